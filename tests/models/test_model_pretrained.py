"""Pretrained encoders: channels, local files, no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import flairhub.models.arch as arch_module
from flairhub.errors import WeightsError
from flairhub.models import NetworkSpec, build_network, pretrained
from flairhub.models.pretrained import adapt
from tests.helpers.model_makers import LC, make_batch, make_spec


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[], nn.Module]:
    """Stand in for the hub: the RGB encoder with random weights that are remembered."""
    models: list[nn.Module] = []

    def create(arch: Any, size: int) -> nn.Module:
        models.append(arch_module.create_encoder(arch, channels=3, size=size))
        return models[-1]

    monkeypatch.setattr(pretrained, "create_pretrained", create)
    return lambda: models[-1]


@pytest.mark.parametrize(
    ("arch", "mode"),
    [
        ("resnet18-unet", "copy_first"),
        ("test_resnet-upernet", "copy_second"),
        ("test_resnet-upernet", "random"),
        ("test_convnext-upernet", "copy_third"),
    ],
)
def test_first_convolutions_adapt_to_the_channels(fake_hub: Callable[[], nn.Module], arch: str, mode: str) -> None:
    inputs = {"AERIAL_RGBI": 5, "AERIAL-RLT_PAN": 1, "DEM_ELEV": 2, "SPOT_RGBI": 3}
    spec = NetworkSpec(inputs, {LC: 3}, arch, new_channels_init_mode=mode)
    network = build_network(spec, pretrained=True).eval()
    rgb = fake_hub().state_dict()
    first = next(name for name, value in rgb.items() if value.ndim == 4 and value.shape[1] == 3)

    def weight(name: str) -> torch.Tensor:
        return network.encoders[name].seg_model.state_dict()[first]

    filters = rgb[first]
    torch.testing.assert_close(weight("SPOT_RGBI"), filters)
    torch.testing.assert_close(weight("AERIAL-RLT_PAN"), filters.sum(dim=1, keepdim=True))
    torch.testing.assert_close(weight("DEM_ELEV"), filters[:, :2] * 1.5)
    torch.testing.assert_close(weight("AERIAL_RGBI")[:, :3], filters)
    for channel in (3, 4):
        new = weight("AERIAL_RGBI")[:, channel]
        equal = [torch.equal(new, filters[:, source]) for source in range(3)]
        assert equal == [mode == name for name in ("copy_first", "copy_second", "copy_third")]
        assert new.std() > 0
    for name, value in rgb.items():
        if name != first:
            assert torch.equal(network.encoders["DEM_ELEV"].seg_model.state_dict()[name], value), name
    with torch.no_grad():
        assert network(make_batch(spec, image=128)[0]).logits[LC].isfinite().all()


def test_position_tables_of_other_windows_are_resized(fake_hub: Callable[[], nn.Module]) -> None:
    spec = make_spec(
        "AERIAL_RGBI",
        "SPOT_RGBI",
        arch="swin_tiny_patch4_window7_224-upernet",
        sizes={"AERIAL_RGBI": 224, "SPOT_RGBI": 32},
        tasks={LC: 3},
    )
    network = build_network(spec, pretrained=True)
    table = "model.layers_3.blocks.0.attn.relative_position_bias_table"
    rgb = fake_hub().state_dict()[table]
    assert rgb.shape == (169, 24)
    assert torch.equal(network.encoders["AERIAL_RGBI"].seg_model.state_dict()[table], rgb)
    small = network.encoders["SPOT_RGBI"].seg_model.state_dict()[table]
    assert small.shape == (1, 24)
    torch.testing.assert_close(small[0], rgb.reshape(13, 13, 24)[6, 6])


@pytest.mark.parametrize("arch", ["resnet18-unet", "test_resnet-upernet"])
def test_without_a_network_the_error_names_both_ways_out(monkeypatch: pytest.MonkeyPatch, arch: str) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Network is unreachable")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", offline)
    with pytest.raises(WeightsError) as error:
        build_network(make_spec("AERIAL_RGBI", arch=arch), pretrained=True)
    text = str(error.value)
    assert "Network is unreachable" in text
    assert "`models.monotemp_model.pretrained: false`" in text
    assert "local file" in text
    assert "path/to/file.safetensors" in text


def test_nothing_is_asked_of_the_network_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.socket.connect", forbidden)
    build_network(make_spec("AERIAL_RGBI", "SENTINEL2_TS"))
    build_network(make_spec("AERIAL_RGBI", arch="resnet18-fpn"))
    build_network(make_spec("SENTINEL2_TS"), pretrained=True)  # no image encoder


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("names", ["smp", "smp model", "timm"])
def test_a_local_file_of_encoder_weights(tmp_path: Path, suffix: str, names: str) -> None:
    import timm

    torch.manual_seed(9)
    if names == "timm":
        tensors = timm.create_model("test_convnext").state_dict()
    else:
        model = arch_module.create(arch_module.parse_arch("test_convnext-unet"), channels=3, classes=1, size=64)
        tensors = model.encoder.state_dict() if names == "smp" else model.state_dict()
    file = tmp_path / f"encoder{suffix}"
    if suffix == ".pth":
        torch.save(tensors, file)
    else:
        save_file(tensors, file)
    spec = make_spec("AERIAL_RGBI", arch="test_convnext-upernet", tasks={LC: 3})
    network = build_network(spec, pretrained=file)
    prefix = {"smp": "model.", "smp model": "encoder.model.", "timm": ""}[names]
    expected = tensors[f"{prefix}stages{'.' if names == 'timm' else '_'}0.blocks.0.conv_dw.weight"]
    assert torch.equal(
        network.encoders["AERIAL_RGBI"].seg_model.state_dict()["model.stages_0.blocks.0.conv_dw.weight"], expected
    )


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.ones(64, 3, 7, 7)}, file)
    with pytest.raises(WeightsError, match=r"tensor .* is missing. Are the weights of this encoder"):
        build_network(make_spec("AERIAL_RGBI"), pretrained=file)
    with pytest.raises(WeightsError, match="no such weights file"):
        build_network(make_spec("AERIAL_RGBI"), pretrained=tmp_path / "nothing.pth")
    with pytest.raises(WeightsError, match=r"w: got \[2, 4\], expected \[2, 3\]"):
        adapt({"w": torch.ones(2, 4)}, {"w": torch.ones(2, 3)}, "random")
