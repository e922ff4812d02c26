"""Architectures: names, every decoder of smp, levels, image sizes, export."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch

from flairhub.errors import UsageError
from flairhub.models import Network
from flairhub.models.arch import Arch, parse_arch
from flairhub.models.encoders import Features, level_channels
from tests.helpers.model_makers import EXACT, LC, in_double, make_batch, make_network, make_spec, relative_error

# Decoders that take tiny encoders, and one encoder of each family for those that do not.
ARCHS = (
    "test_resnet-unet",
    "test_resnet-unetplusplus",
    "test_resnet-manet",
    "test_resnet-linknet",
    "test_resnet-fpn",
    "test_resnet-pspnet",
    "mobilenet_v2-pan",
    "mobilenet_v2-deeplabv3",
    "mobilenet_v2-deeplabv3plus",
    "test_resnet-upernet",
    "test_resnet-upernet-smp",
    "test_resnet-segformer",
    "mit_b0-segformer",
    "test_convnext-upernet",
    "test_convnext-unet",
    "test_vit-dpt",
)


@pytest.mark.parametrize(
    ("text", "arch"),
    [
        ("resnet18-unet", Arch("resnet18", "unet")),
        ("swin_base_patch4_window12_384-upernet", Arch("tu-swin_base_patch4_window12_384", "upernet")),
        ("tu-resnet18-fpn", Arch("tu-resnet18", "fpn")),
        ("efficientnet-b0-upernet-smp", Arch("efficientnet-b0", "upernet-smp")),
        ("timm-efficientnet-b0-unetplusplus", Arch("timm-efficientnet-b0", "unetplusplus")),
        ("convnextv2_atto-deeplabv3plus", Arch("tu-convnextv2_atto", "deeplabv3plus")),
    ],
)
def test_names_are_split_at_the_decoder(text: str, arch: Arch) -> None:
    assert parse_arch(text) == arch


@pytest.mark.parametrize(
    ("arch", "text"),
    [
        ("resnet18", "expected <encoder>-<decoder> with a decoder of: unet"),
        ("-unet", "expected <encoder>-<decoder>"),
        ("resnet81-unet", "unknown encoder 'resnet81'.*Did you mean resnet"),
        ("mit_b0-unetplusplus", "encoder 'mit_b0' does not work with decoder 'unetplusplus'"),
    ],
)
def test_unusable_architectures_are_refused(arch: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Network(make_spec("AERIAL_RGBI", arch=arch))


def smallest(arch: str) -> int:
    """PAN pools its 1/16 map three times."""
    return 128 if arch.endswith("-pan") else 64


@pytest.mark.parametrize("arch", ARCHS)
def test_every_decoder_fuses_images_and_series(arch: str) -> None:
    names = ("AERIAL_RGBI", "DEM_ELEV", "SENTINEL2_TS")
    size = smallest(arch)
    sizes = {"AERIAL_RGBI": size, "DEM_ELEV": size}
    network = make_network(*names, arch=arch, sizes=sizes, aux=("DEM_ELEV",), tasks={LC: 19})
    with torch.no_grad():
        inputs, dates = make_batch(network.spec, image=size)
        output = network(inputs, dates, aux=True)
        alone = network({"AERIAL_RGBI": inputs["AERIAL_RGBI"]}).logits[LC]
        without = network({"SENTINEL2_TS": inputs["SENTINEL2_TS"]}, dates, size=(size, size)).logits[LC]
    for values in (*output.logits.values(), *output.aux.values(), alone, without):
        assert values.shape == (2, 19, size, size)
        assert values.isfinite().all()
    assert relative_error(output.logits[LC], alone) > 1e-4


@pytest.mark.parametrize("arch", [arch for arch in ARCHS if not arch.endswith("-upernet")])
def test_a_single_image_equals_smps_own_model(arch: str) -> None:
    size = smallest(arch)
    network = make_network("AERIAL_RGBI", arch=arch, sizes={"AERIAL_RGBI": size}, tasks={LC: 5})
    parsed = network.arch
    options = {"img_size": 64} if parsed.decoder == "dpt" else {}
    model = smp.create_model(
        parsed.smp_decoder, parsed.encoder, encoder_weights=None, in_channels=3, classes=5, **options
    )
    model.encoder.load_state_dict(network.encoders["AERIAL_RGBI"].seg_model.state_dict())
    parts = network.main_decoders[LC].seg_model
    model.decoder.load_state_dict(parts.decoder.state_dict())
    model.segmentation_head.load_state_dict(parts.segmentation_head.state_dict())
    inputs, _ = make_batch(network.spec, image=size)
    network, inputs = in_double(network, inputs)
    with torch.no_grad():
        expected = model.double().eval()(inputs["AERIAL_RGBI"])
        result = network(inputs, size=tuple(expected.shape[-2:])).logits[LC]
        torch.testing.assert_close(result, expected, **EXACT)
        if parsed.decoder != "dpt":  # fusion skips the full resolution, because no decoder reads it
            maps = network.encoders["AERIAL_RGBI"](inputs["AERIAL_RGBI"]).maps
            blank = Features([torch.full_like(maps[0], torch.nan), *maps[1:]])
            assert network.main_decoders[LC](blank).isfinite().all()


def test_levels_start_where_channels_do() -> None:
    assert level_channels((3, 64, 64, 128)) == (3, 64, 64, 128)
    assert level_channels((3, 0, 96, 192)) == (96, 192)
    assert level_channels((64, 128, 256)) == (64, 128, 256)


@pytest.mark.parametrize("encoder", ["swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224"])
def test_window_transformers_take_any_image_size(encoder: str) -> None:
    try:
        network = make_network("AERIAL_RGBI", arch=f"{encoder}-upernet", sizes={"AERIAL_RGBI": 128}, tasks={LC: 3})
    except UsageError:
        pytest.skip(f"the installed timm has no {encoder}")
    for size in (32, 64, 100, 128, 160) if encoder.startswith("swin_") else (128,):
        with torch.no_grad():
            logits = network({"AERIAL_RGBI": torch.randn(1, 3, size, size)}).logits[LC]
        assert logits.shape == (1, 3, size, size)
        assert logits.isfinite().all()


def export_case() -> tuple[Network, tuple[object, ...]]:
    network = make_network("AERIAL_RGBI", "SENTINEL2_TS", aux=("SENTINEL2_TS",), tasks={LC: 5})
    inputs, dates = make_batch(network.spec, batch=2, image=32, time=3)
    mask = {"SENTINEL2_TS": torch.tensor([[True, True, True], [True, False, False]])}
    network, inputs = in_double(network, inputs)
    return network, (inputs, dates, mask)


def test_export_with_padding_gives_the_same_logits() -> None:
    network, arguments = export_case()
    program = torch.export.export(network, arguments, {"aux": True}, strict=False)
    with torch.no_grad():
        expected = network(*arguments, aux=True)
        result = program.module()(*arguments, aux=True)
    for key, values in (expected.logits | expected.aux).items():
        torch.testing.assert_close((result.logits | result.aux)[key], values, **EXACT)


def test_compile_with_padding_gives_the_same_logits() -> None:
    network, arguments = export_case()
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        expected, result = network(*arguments).logits, compiled(*arguments).logits
    torch.testing.assert_close(result[LC], expected[LC], **EXACT)


def test_channels_last_and_bf16() -> None:
    network, (inputs, dates, mask) = export_case()
    network, inputs = network.float(), {name: values.float() for name, values in inputs.items()}
    with torch.no_grad():
        expected = network(inputs, dates, mask).logits[LC]
        network.to(memory_format=torch.channels_last)
        last = dict(inputs, AERIAL_RGBI=inputs["AERIAL_RGBI"].contiguous(memory_format=torch.channels_last))
        assert relative_error(network(last, dates, mask).logits[LC], expected) < 1e-3
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert relative_error(network(last, dates, mask).logits[LC].float(), expected) < 0.1
