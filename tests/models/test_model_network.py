"""The whole network: any subset of inputs, missing modalities, auxiliary heads, dropout."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from flairhub.errors import UsageError
from flairhub.modalities import INPUTS
from flairhub.models import Network, NetworkSpec, SeriesOptions
from flairhub.models.network import draw_kept
from flairhub.models.network_spec import beside_images
from tests.helpers.model_makers import (
    CHANNELS,
    CLASSES,
    EXACT,
    LC,
    LPIS,
    cached_encoder,
    in_double,
    make_batch,
    make_network,
    make_spec,
    relative_error,
)

SUBSETS = [subset for n in range(1, 8) for subset in combinations(INPUTS, n)]


@pytest.mark.parametrize("subset", SUBSETS, ids=lambda names: "+".join(name[:12] for name in names))
def test_every_subset_of_inputs_runs_forward(subset: tuple[str, ...]) -> None:
    network = Network(make_spec(*subset), make_encoder=cached_encoder).eval()
    inputs, dates = make_batch(network.spec, batch=1, image=32, time=2)
    with torch.no_grad():
        output = network(inputs, dates, size=(40, 24))
    assert not output.aux
    for task, classes in CLASSES.items():
        assert output.logits[task].shape == (1, classes, 40, 24)
        assert output.logits[task].isfinite().all()
        assert output.logits[task].std() > 0


def test_all_subsets_are_covered() -> None:
    assert len(SUBSETS) == 127


def test_order_of_keys_does_not_matter() -> None:
    names = ("AERIAL_RGBI", "SPOT_RGBI", "SENTINEL2_TS")
    spec = make_spec(*names, aux=("AERIAL_RGBI", "SENTINEL2_TS"))
    backwards = NetworkSpec(
        {name: CHANNELS[name] for name in reversed(names)},
        dict(reversed(CLASSES.items())),
        spec.arch,
        series=spec.series,
        aux=("SENTINEL2_TS", "AERIAL_RGBI"),
    )
    assert backwards == spec
    assert list(backwards.inputs) == list(names)
    torch.manual_seed(1)
    network = Network(spec).eval()
    torch.manual_seed(1)
    other = Network(backwards).eval()
    inputs, dates = make_batch(spec)
    with torch.no_grad():
        expected = network(inputs, dates, aux=True)
        result = other(dict(reversed(inputs.items())), dict(reversed(dates.items())), aux=True)
    for key, values in (expected.logits | expected.aux).items():
        assert torch.equal(values, (result.logits | result.aux)[key])


def test_default_size_is_the_finest_input() -> None:
    network = make_network("AERIAL_RGBI", "DEM_ELEV", "SENTINEL2_TS")
    inputs, dates = make_batch(network.spec)
    inputs["AERIAL_RGBI"] = inputs["AERIAL_RGBI"][:, :, ::2, ::2]
    with torch.no_grad():
        assert network(inputs, dates).logits[LC].shape[-2:] == (64, 64)


@pytest.mark.parametrize("names", [("AERIAL_RGBI", "SENTINEL2_TS"), ("SENTINEL2_TS", "SENTINEL1-ASC_TS")])
def test_a_padded_batch_equals_its_samples_alone(names: tuple[str, ...]) -> None:
    network = make_network(*names, aux=names)
    spec = network.spec
    inputs, dates = make_batch(spec, batch=3, time=7)
    network, inputs = in_double(network, inputs)
    lengths = (7, 3, 1)
    masks = {name: torch.arange(7) < torch.tensor(lengths).unsqueeze(1) for name in dates}
    for name in dates:
        inputs[name][~masks[name]] = 1e4  # whatever padding holds
        dates[name][~masks[name]] = 99999
    with torch.no_grad():
        batch = network(inputs, dates, masks, aux=True)
        for i, n in enumerate(lengths):
            alone = {k: x[i : i + 1, :n] if k in dates else x[i : i + 1] for k, x in inputs.items()}
            single = network(alone, {k: d[i : i + 1, :n] for k, d in dates.items()}, aux=True)
            for key, values in (single.logits | single.aux).items():
                torch.testing.assert_close((batch.logits | batch.aux)[key][i : i + 1], values, **EXACT)


def test_an_image_of_zeros_is_not_padding() -> None:
    network = make_network("SENTINEL2_TS")
    inputs, dates = make_batch(network.spec)
    inputs["SENTINEL2_TS"][:, 1] = 0
    mask = {"SENTINEL2_TS": torch.ones(2, 4, dtype=torch.bool)}
    with torch.no_grad():
        seen = network(inputs, dates, mask).logits[LC]
        mask["SENTINEL2_TS"][:, 1] = False
        masked = network(inputs, dates, mask).logits[LC]
    assert relative_error(seen, masked) > 1e-3


def test_a_missing_modality_counts_as_zero_features() -> None:
    network = make_network("AERIAL_RGBI", "DEM_ELEV", "SENTINEL2_TS", aux=("DEM_ELEV", "AERIAL_RGBI"))
    inputs, dates = make_batch(network.spec)
    network, inputs = in_double(network, inputs)
    without = {name: x for name, x in inputs.items() if name != "DEM_ELEV"}
    with torch.no_grad():
        result = network(without, dates, aux=True)
        for level, conv in network.fusion_handler.conv_f.items():
            widths = [widths[int(level)] for widths in network.fusion_handler.channels.values()]
            start = widths[0]
            conv.weight[:, start : start + widths[1]] = 0
        expected = network(inputs, dates)
    torch.testing.assert_close(result.logits[LC], expected.logits[LC], **EXACT)
    assert set(result.aux) == {("AERIAL_RGBI", task) for task in CLASSES}


@pytest.mark.parametrize("given", ["SPOT_RGBI", "SENTINEL2_TS"])
def test_the_reference_modality_may_be_missing(given: str) -> None:
    network = make_network("AERIAL_RGBI", "SPOT_RGBI", "SENTINEL2_TS")
    inputs, dates = make_batch(network.spec)
    with torch.no_grad():
        output = network({given: inputs[given]}, dates, size=(64, 64))
    assert output.logits[LC].shape == (2, 19, 64, 64)
    assert output.logits[LC].isfinite().all()
    assert output.logits[LC].std() > 0


@pytest.mark.parametrize("lacking", ["AERIAL_RGBI", "DEM_ELEV", "SENTINEL2_TS"])
def test_a_sample_without_a_modality_gets_what_it_gets_alone(lacking: str) -> None:
    network = make_network("AERIAL_RGBI", "DEM_ELEV", "SENTINEL2_TS")
    inputs, dates = make_batch(network.spec)
    network, inputs = in_double(network, inputs)
    others = {name: x[1:] for name, x in inputs.items() if name != lacking}
    other_dates = {name: days[1:] for name, days in dates.items() if name != lacking}
    size = tuple(inputs["AERIAL_RGBI"].shape[-2:])
    with torch.no_grad():
        full = network(inputs, dates).logits[LC]
        result = network(inputs, dates, present={lacking: torch.tensor([True, False])}).logits[LC]
        alone = network(others, other_dates, size=size).logits[LC]
    torch.testing.assert_close(result[0], full[0], **EXACT)
    torch.testing.assert_close(result[1], alone[0], **EXACT)
    assert relative_error(result[1], full[1]) > 1e-3


def test_series_without_any_date_are_left_out() -> None:
    network = make_network("SENTINEL1-ASC_TS", "SENTINEL1-DESC_TS")
    inputs, dates = make_batch(network.spec)
    network, inputs = in_double(network, inputs)
    mask = {"SENTINEL1-DESC_TS": torch.tensor([[True] * 4, [False] * 4])}
    with torch.no_grad():
        both = network(inputs, dates, mask).logits[LC]
        one = network({"SENTINEL1-ASC_TS": inputs["SENTINEL1-ASC_TS"]}, dates).logits[LC]
        full = network(inputs, dates).logits[LC]
    torch.testing.assert_close(both[1], one[1], **EXACT)
    torch.testing.assert_close(both[0], full[0], **EXACT)


def test_nothing_given_is_edited() -> None:
    network = make_network("AERIAL_RGBI", "SENTINEL2_TS", modality_dropout={"AERIAL_RGBI": 0.5}).train()
    inputs, dates = make_batch(network.spec)
    masks = {"SENTINEL2_TS": torch.tensor([[True, True, False, False], [False] * 4])}
    before = [{k: v.clone() for k, v in given.items()} for given in (inputs, dates, masks)]
    network(inputs, dates, masks)
    for given, copy in zip((inputs, dates, masks), before, strict=True):
        assert all(torch.equal(given[name], copy[name]) for name in copy)


def test_auxiliary_heads_are_computed_on_request_and_get_gradients() -> None:
    names = ("AERIAL_RGBI", "SPOT_RGBI", "SENTINEL2_TS")
    network = make_network(*names, aux=names).train()
    inputs, dates = make_batch(network.spec)
    assert not network(inputs, dates).aux
    output = network(inputs, dates, aux=True)
    assert set(output.aux) == {(name, task) for name in names for task in CLASSES}
    assert all(values.shape == output.logits[task].shape for (_, task), values in output.aux.items())
    sum(values.square().mean() for values in (output.logits | output.aux).values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
    for key, head in network.aux_decoders.items():
        assert any(parameter.grad.abs().sum() > 0 for parameter in head.parameters()), key


def test_every_parameter_takes_part() -> None:
    """Distributed training needs no search for unused parameters."""
    network = make_network("AERIAL_RGBI", "SENTINEL2_TS", tasks={LC: 19}).train()
    network(*make_batch(network.spec)).logits[LC].square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_dropout_rates_are_the_configured_ones() -> None:
    rates = torch.tensor([0.1, 0.3, 0.5])
    kept = draw_kept(rates, torch.ones(20000, 3, dtype=torch.bool))
    assert kept.any(dim=1).all()
    # The 0.1 * 0.3 * 0.5 samples that would lose everything get one back, in proportion to the chance of being kept.
    rescue = 0.1 * 0.3 * 0.5 * (1 - rates) / (1 - rates).sum()
    torch.testing.assert_close((~kept).float().mean(dim=0), rates - rescue, rtol=0, atol=0.022)  # six deviations


def test_dropout_of_the_network_over_2000_draws() -> None:
    names = ("AERIAL_RGBI", "SPOT_RGBI", "SENTINEL2_TS")
    rates = {"AERIAL_RGBI": 0.2, "SENTINEL2_TS": 0.4}
    network = make_network(*names, modality_dropout=rates).train()
    inputs = {name: torch.zeros(500, 1, 1, 1) for name in names}
    dropped = dict.fromkeys(names, 0)
    for _ in range(4):
        kept = network.draw_dropout(inputs, {})
        assert torch.stack(list(kept.values())).any(dim=0).all()
        for name in names:
            dropped[name] += int((~kept[name]).sum())
    assert dropped["SPOT_RGBI"] == 0
    # Six deviations.
    assert abs(dropped["AERIAL_RGBI"] / 2000 - 0.2) < 0.06
    assert abs(dropped["SENTINEL2_TS"] / 2000 - 0.4) < 0.07
    assert network.eval().draw_dropout(inputs, {}) == {}


def test_rate_one_drops_always_but_never_everything() -> None:
    kept = draw_kept(torch.tensor([1.0, 1.0]), torch.ones(1000, 2, dtype=torch.bool))
    assert (kept.sum(dim=1) == 1).all()
    kept = draw_kept(torch.tensor([1.0, 0.0]), torch.ones(1000, 2, dtype=torch.bool))
    assert not kept[:, 0].any()
    assert kept[:, 1].all()


def test_dropped_samples_do_not_see_their_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network("AERIAL_RGBI", "SENTINEL2_TS", modality_dropout={"SENTINEL2_TS": 0.5})
    inputs, dates = make_batch(network.spec)
    network, inputs = in_double(network, inputs)
    with torch.no_grad():
        full = network(inputs, dates).logits[LC]
        without = network({"AERIAL_RGBI": inputs["AERIAL_RGBI"]}).logits[LC]
        monkeypatch.setattr(network, "draw_dropout", lambda *_: {"SENTINEL2_TS": torch.tensor([True, False])})
        result = network(inputs, dates).logits[LC]
    torch.testing.assert_close(result[0], full[0], **EXACT)
    torch.testing.assert_close(result[1], without[1], **EXACT)


def test_widths_beside_images_follow_the_number_of_levels() -> None:
    options = SeriesOptions()
    assert beside_images(options, 4).encoder_widths == (64, 64, 128, 128)
    assert beside_images(options, 6).encoder_widths == (64, 64, 64, 128, 128, 128)
    assert beside_images(options, 6).decoder_widths == (64, 64, 64, 128, 128, 128)
    assert options == SeriesOptions()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x, d: x.clear(), "no input given"),
        (lambda x, d: x.update(SPOT_RGBI=x["AERIAL_RGBI"]), "unknown input 'SPOT_RGBI'"),
        (lambda x, d: x.update(AERIAL_RGBI=x["AERIAL_RGBI"][:, :2]), r"with 3 channels"),
        (lambda x, d: d.clear(), "got day offsets none, expected one per date"),
        (lambda x, d: d.update(SENTINEL2_TS=d["SENTINEL2_TS"][:, :1]), r"got day offsets \(2, 1\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: object, text: str) -> None:
    network = make_network("AERIAL_RGBI", "SENTINEL2_TS")
    inputs, dates = make_batch(network.spec)
    change(inputs, dates)  # type: ignore[operator]
    with pytest.raises(UsageError, match=text):
        network(inputs, dates)


def test_masks_that_do_not_fit_are_refused() -> None:
    network = make_network("SENTINEL2_TS")
    inputs, dates = make_batch(network.spec)
    with pytest.raises(UsageError, match=r"got a mask of shape \(2, 3\), expected one value per date \(2, 4\)"):
        network(inputs, dates, {"SENTINEL2_TS": torch.ones(2, 3, dtype=torch.bool)})


def test_all_three_crop_levels() -> None:
    for classes in (23, 31, 46):
        network = make_network("SENTINEL2_TS", tasks={LPIS: classes})
        with torch.no_grad():
            assert network(*make_batch(network.spec)).logits[LPIS].shape == (2, classes, 6, 6)
