"""U-TAE against a plain transcription of the paper, its options, masks and precisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from flairhub.errors import UsageError
from flairhub.models import NetworkSpec, SeriesOptions
from flairhub.models.utae import UTAE
from tests.helpers.model_makers import EXACT, paper_module, relative_error

SMALL = SeriesOptions(encoder_widths=(16, 16, 32), decoder_widths=(16, 16, 32), out_conv=(16, 19), n_head=4, d_model=32)
PAPER = 1e-5
"""Of the largest value, in float64: both compute their positional encoding in float32, some 1e-8 of it."""


def make_series(batch: int = 2, time: int = 5, size: int = 8, channels: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, time, channels, size, size), torch.randint(-134, 231, (batch, time))


def shake(module: nn.Module) -> nn.Module:
    """Give norms weights and statistics that are not 0 and 1."""
    for name, value in module.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value += 0.2 * torch.rand_like(value)
        assert name
    return module.eval()


@pytest.mark.parametrize("stride", [1, 2])
def test_equals_the_papers_module(stride: int) -> None:
    kernel = (3, 1, 1) if stride == 1 else (4, 2, 1)
    options = SeriesOptions(str_conv_k=kernel[0], str_conv_s=kernel[1], str_conv_p=kernel[2])
    paper = paper_module().PaperUTAE(3, kernel=kernel)
    ours = UTAE(3, options, (32, 19))
    ours.load_state_dict(shake(paper).state_dict())
    paper.double()
    ours.double()
    x, dates = make_series(size=16)
    with torch.no_grad():
        logits, maps = ours.eval()(x.double(), dates)
        expected, expected_maps = paper(x.double(), dates)
    assert relative_error(logits, expected) < PAPER
    for result, wanted in zip(maps, expected_maps, strict=True):
        assert relative_error(result, wanted) < PAPER


def test_ragged_batches_equal_the_papers_module_sample_by_sample() -> None:
    paper = paper_module().PaperUTAE(3)
    ours = UTAE(3, SeriesOptions(), (32, 19))
    ours.load_state_dict(shake(paper).state_dict())
    paper.double()
    ours.double()
    x, dates = make_series(batch=3, time=6)
    mask = torch.tensor([[True] * 6, [True, False, True, False, True, True], [False, False, True, False, False, False]])
    with torch.no_grad():
        logits, _ = ours.eval()(x.double(), dates, mask)
        for i in range(3):
            expected, _ = paper(x[i : i + 1, mask[i]].double(), dates[i : i + 1, mask[i]])
            assert relative_error(logits[i : i + 1], expected) < PAPER


def test_gradients_equal_the_papers_module() -> None:
    paper = paper_module().PaperUTAE(3)
    ours = UTAE(3, SeriesOptions(), (32, 19))
    ours.load_state_dict(shake(paper).state_dict())
    ours.double().eval()
    paper.double()
    x, dates = make_series()
    x = x.double()
    for model in (paper, ours):
        model(x, dates)[0].square().mean().backward()
    for (name, wanted), result in zip(paper.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(result.grad, wanted.grad, rtol=1e-4, atol=1e-8, msg=name)


@pytest.mark.parametrize("agg_mode", ["att_group", "att_mean", "mean"])
@pytest.mark.parametrize("encoder_norm", ["group", "batch", "instance"])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_option_is_batch_invariant(agg_mode: str, encoder_norm: str, stride: int) -> None:
    options = SMALL.model_copy(update={"agg_mode": agg_mode, "encoder_norm": encoder_norm, "str_conv_s": stride})
    network = shake(UTAE(3, options, (16, 19))).double()
    x, dates = make_series(batch=2, time=6)
    mask = torch.arange(6) < torch.tensor([[6], [2]])
    with torch.no_grad():
        logits, maps = network(x.double(), dates, mask)
        for i, n in enumerate((6, 2)):
            alone, alone_maps = network(x[i : i + 1, :n].double(), dates[i : i + 1, :n])
            torch.testing.assert_close(logits[i : i + 1], alone, **EXACT)
            for result, wanted in zip(maps, alone_maps, strict=True):
                torch.testing.assert_close(result[i : i + 1], wanted, **EXACT)


def test_modes_of_aggregation_differ() -> None:
    x, dates = make_series()
    results = []
    for mode in ("att_group", "att_mean", "mean"):
        torch.manual_seed(3)
        network = UTAE(3, SMALL.model_copy(update={"agg_mode": mode}), (16, 19)).eval()
        with torch.no_grad():
            results.append(network(x, dates)[0])
    assert relative_error(results[0], results[1]) > 1e-3
    assert relative_error(results[1], results[2]) > 1e-3


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "circular"])
def test_padding_modes_act_at_the_border(padding_mode: str) -> None:
    torch.manual_seed(3)
    reflect = UTAE(3, SMALL, (16, 19)).eval()
    options = SMALL.model_copy(update={"padding_mode": padding_mode, "pad_value": -1.0})
    other = UTAE(3, options, (16, 19)).eval()
    other.load_state_dict(reflect.state_dict())
    x, dates = make_series()
    with torch.no_grad():
        assert relative_error(other(x, dates)[0], reflect(x, dates)[0]) > 1e-3


def test_padded_dates_are_never_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = UTAE(3, SMALL, (16, 19)).eval()
    seen: list[int] = []
    network.in_conv.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    x, dates = make_series(batch=2, time=6)
    with torch.no_grad():
        network(x, dates, torch.arange(6) < torch.tensor([[6], [2]]))
        network(x, dates, torch.ones(2, 6, dtype=torch.bool))
    assert seen == [8, 12]


def test_logits_are_not_computed_unless_wanted() -> None:
    network = UTAE(3, SMALL, (16, 19)).eval()
    network.out_conv.forward = None  # any call fails
    with torch.no_grad():
        logits, maps = network(*make_series(), logits=False)
    assert logits is None
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 8, 8), (16, 8, 8), (16, 8, 8)]


def test_runs_under_bf16_autocast_with_padding() -> None:
    network = UTAE(3, SMALL, (16, 19)).train()
    x, dates = make_series(batch=2, time=6)
    mask = torch.arange(6) < torch.tensor([[6], [2]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = network(x, dates, mask)
    logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    network.eval()
    with torch.no_grad():
        full = network(x, dates, mask)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(x, dates, mask)[0]
    assert relative_error(half.float(), full) < 0.05


def test_runs_in_bf16_weights() -> None:
    network = UTAE(3, SMALL, (16, 19)).eval().to(torch.bfloat16)
    x, dates = make_series()
    with torch.no_grad():
        assert network(x.to(torch.bfloat16), dates)[0].isfinite().all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"encoder_widths": (64, 128)}, "decoder_widths: 4 widths, but encoder_widths has 2"),
        ({"decoder_widths": (32, 32, 64, 64)}, "must be equal"),
        ({"n_head": 7}, "d_model: got 256, expected a multiple of n_head = 7"),
    ],
)
def test_options_that_do_not_fit_are_refused(change: dict[str, Any], text: str) -> None:
    options = SeriesOptions(**change)
    with pytest.raises(UsageError, match=text):
        UTAE(3, options, (5,))
    with pytest.raises(UsageError, match=text):
        NetworkSpec({"SENTINEL2_TS": 10}, {"T": 3}, series=options)


def test_values_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValidationError, match="att_group"):
        SeriesOptions(agg_mode="max")  # type: ignore[arg-type]
    values = NetworkSpec({"SENTINEL2_TS": 10}, {"T": 3}).to_json()
    with pytest.raises(UsageError, match=r"network: series: (.|\n)*agg_mode"):
        NetworkSpec.from_json({**values, "series": {**values["series"], "agg_mode": "max"}})


@pytest.mark.parametrize(("padding_mode", "smallest"), [("reflect", 16), ("zeros", 8)])
def test_images_too_small_for_the_strides_are_refused(padding_mode: str, smallest: int) -> None:
    options = SeriesOptions(
        encoder_widths=(8, 8, 8, 8),
        decoder_widths=(8, 8, 8, 8),
        n_head=4,
        d_model=16,
        str_conv_k=4,
        str_conv_s=2,
        str_conv_p=1,
        padding_mode=padding_mode,  # type: ignore[arg-type]
    )
    module = UTAE(3, options, (5,)).eval()
    dates = torch.zeros(1, 2)
    with torch.no_grad():
        logits, _ = module(torch.randn(1, 2, 3, smallest, smallest), dates)
    assert logits is not None
    assert logits.shape == (1, 5, smallest, smallest)
    small = smallest // 2
    with pytest.raises(UsageError, match=rf"series of {small} x {small} pixels are too small for 4 levels .* level 4"):
        module(torch.randn(1, 2, 3, small, small), dates)
