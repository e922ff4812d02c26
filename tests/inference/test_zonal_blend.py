"""Blending, flips, bfloat16 and dropped inputs: the options of how windows become a map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from flairhub.inference import Style, predict_zone
from flairhub.inference.windows import plan_axis, touching, weights_of
from flairhub.models import NetworkSpec, build_network
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from flairhub.timeseries import SeriesPreparation
from tests.helpers.zone_makers import FakeModel, fake_model, make_zone, write_raster

AERIAL = {"AERIAL_RGBI": ImagePreparation()}
ALL = ("class", "confidence", "probabilities")
BLEND = Style(blend=True)


@given(
    length=st.integers(1, 200),
    window=st.integers(1, 40),
    share=st.floats(0, 1),
    lattice=st.sampled_from([1, 2, 5]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_weights_sum_to_one_and_do_not_depend_on_the_range(
    length: int, window: int, share: float, lattice: int, data: st.DataObject
) -> None:
    window, length = window * lattice, length * lattice
    axis = plan_axis(length, window, int(share * (window - lattice) // 2), lattice)
    total = np.zeros(length)
    for index in range(axis.count):
        first, last = max(axis.start(index), 0), min(axis.start(index) + window, length)
        weights = weights_of(axis, index, first, last)
        assert (weights > 0).all()
        total[first:last] += weights
        low = data.draw(st.integers(first, last - 1))
        np.testing.assert_array_equal(weights_of(axis, index, low, last), weights[low - first :])
    np.testing.assert_allclose(total, 1, atol=1e-4)
    first = data.draw(st.integers(0, length - 1))
    last = data.draw(st.integers(first + 1, length))
    expected = [i for i in range(axis.count) if axis.start(i) < last and axis.start(i) + window > first]
    assert list(touching(axis, first, last)) == expected


def test_blended_is_a_mean_of_windows_for_every_block_size(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 40, 32, {"AERIAL_RGBI": 1, "SENTINEL2_TS": 8})
    model = fake_model({**AERIAL, "SENTINEL2_TS": SeriesPreparation()})
    zone = made.open(24, 4)
    whole = predict_zone(zone, model, outputs=ALL, style=BLEND).compute()
    for block_px, batch in ((7, 1), (16, 3)):
        again = predict_zone(zone, model, outputs=ALL, style=BLEND, block_px=block_px, batch_size=batch).compute()
        xr.testing.assert_identical(again, whole)
    np.testing.assert_allclose(whole["probabilities"].sum("class_name").values, 1, atol=1e-4)
    np.testing.assert_array_equal(whole["probabilities"].argmax("class_name").values, whole["class"].values)
    # Far from window borders, where the receptive field is inside of every window, blending changes nothing.
    cropped = predict_zone(zone, model, outputs=("probabilities",))["probabilities"].values
    differs = np.abs(whole["probabilities"].values - cropped).max(axis=0) > 1e-4
    assert 0 < differs.mean() < 0.9


def test_without_overlap_blending_is_cropping(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 30, 22, {"AERIAL_RGBI": 1})
    zone, model = made.open(8, 0), fake_model(AERIAL)
    blended = predict_zone(zone, model, outputs=ALL, style=BLEND).compute()
    np.testing.assert_allclose(
        blended["probabilities"].values, predict_zone(zone, model, outputs=ALL)["probabilities"].values, atol=1e-5
    )


def test_flips_average_mirrored_passes(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 16, 16, {"AERIAL_RGBI": 1})
    model, zone = fake_model(AERIAL), made.open(16, 0)
    found = predict_zone(zone, model, outputs=ALL, style=Style(flips=True)).compute()
    values = torch.from_numpy(made.arrays["AERIAL_RGBI"][None]).float()
    expected = 0
    with torch.inference_mode():
        for axes in ((), (-1,), (-2,), (-2, -1)):
            logits = model.network({"AERIAL_RGBI": values.flip(axes)}, size=(16, 16)).logits["AERIAL_LABEL-COSIA"]
            expected = expected + logits.flip(axes).softmax(dim=1)[0].numpy() / 4
    np.testing.assert_allclose(found["probabilities"].values, expected, atol=1e-5)
    np.testing.assert_array_equal(found["class"].values, expected.argmax(axis=0))


def test_bf16_is_close(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 24, 16, {"AERIAL_RGBI": 1})
    model, zone = fake_model(AERIAL), made.open(16, 2)
    seen = []
    model.network.filters["AERIAL_RGBI"].register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    found = predict_zone(zone, model, style=Style(bf16=True))["class"].values
    assert set(seen) == {torch.bfloat16}
    assert (found == predict_zone(zone, model)["class"].values).mean() > 0.9


def test_a_missing_input_is_dropped_or_nodata(tmp_path: Path) -> None:
    """Where the series is absent, the map is what the image alone gives."""
    made = make_zone(tmp_path, 32, 32, {"AERIAL_RGBI": 1, "SENTINEL2_TS": 8}, profiles={"SENTINEL2_TS": {"nodata": 0}})
    series = made.arrays["SENTINEL2_TS"]
    series[series == 0] = 1
    series[:, :, 2:] = 0
    write_raster(tmp_path / "SENTINEL2_TS.tif", series, 1.6, nodata=0)
    both = fake_model({**AERIAL, "SENTINEL2_TS": SeriesPreparation()})
    zone = made.open(16, 0)
    strict = predict_zone(zone, both)["class"].values
    assert (strict[:, 16:] == 255).all()
    assert (strict[:, :16] != 255).all()
    dropped = predict_zone(zone, both, style=Style(drop_missing=True))["class"].values
    np.testing.assert_array_equal(dropped[:, :16], strict[:, :16])
    image = predict_zone(zone, fake_model(AERIAL))["class"].values
    np.testing.assert_array_equal(dropped[:, 16:], image[:, 16:])


def test_a_window_without_an_image_is_what_the_network_gives_without_it(tmp_path: Path) -> None:
    """A real network: zero pixels are not the same as no image."""
    made = make_zone(tmp_path, 128, 64, {"AERIAL_RGBI": 1, "SPOT_RGBI": 2}, profiles={"SPOT_RGBI": {"nodata": 0}})
    spot = np.maximum(made.arrays["SPOT_RGBI"], 1)
    spot[:, :, 16:] = 0
    write_raster(tmp_path / "SPOT_RGBI.tif", spot, 0.4, nodata=0)
    torch.manual_seed(0)
    task = default_task("AERIAL_LABEL-COSIA")
    spec = NetworkSpec({"AERIAL_RGBI": 4, "SPOT_RGBI": 4}, {task.label: task.n_classes}, "test_resnet-linknet")
    network = build_network(spec).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()  # else zero pixels give zero features
    preparations = {
        "AERIAL_RGBI": ImagePreparation(),
        "SPOT_RGBI": ImagePreparation(None, None, "custom", (9.0,) * 4, (5.0,) * 4),
    }
    zone = made.open(32, 0)
    model = FakeModel(network, preparations, (task,))
    found = predict_zone(zone, model, style=Style(drop_missing=True), batch_size=3)["class"].values
    expected = np.zeros_like(found)
    zeros = expected.copy()
    for top in range(0, found.shape[0], 32):
        for left in range(0, found.shape[1], 32):
            box = np.s_[:, top : top + 32, left : left + 32]
            inputs = {"AERIAL_RGBI": torch.from_numpy(made.arrays["AERIAL_RGBI"][box][None]).float()}
            own = (spot[:, top // 2 : top // 2 + 16, left // 2 : left // 2 + 16][None].astype(np.float32) - 9) / 5
            with torch.no_grad():
                filled = {**inputs, "SPOT_RGBI": torch.from_numpy(own * (left < 32))}
                zeros[box[1:]] = network(filled, size=(32, 32)).logits[task.label].argmax(1)[0]
                inputs = filled if left < 32 else inputs
                expected[box[1:]] = network(inputs, size=(32, 32)).logits[task.label].argmax(1)[0]
    np.testing.assert_array_equal(found, expected)
    assert (zeros != expected).any()
