"""A map does not depend on windows, blocks, batches, threads: it equals one forward pass over the whole area."""

from __future__ import annotations

import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import dask
import numpy as np
import pytest
import torch
import xarray as xr

from flairhub.errors import UsageError
from flairhub.inference import predict_zone
from flairhub.inference.lazy_map import blank_block, predict_block
from flairhub.inference.map_plan import default_block, map_sizes, plan_axes, plan_map
from flairhub.inference.model_ref import memory_ref, model_ref
from flairhub.modalities import MODALITIES
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from flairhub.timeseries import CloudFilter, SeriesPreparation, prepare_series
from tests.helpers.zone_makers import (
    SmallField,
    fake_model,
    made_dates,
    make_zone,
    whole_area_logits,
    whole_area_map,
    write_raster,
)

AERIAL = {"AERIAL_RGBI": ImagePreparation((4, 1, 2))}
ALL = {
    "AERIAL_RGBI": ImagePreparation((4, 1, 2)),
    "AERIAL-RLT_PAN": ImagePreparation(),
    "DEM_ELEV": ImagePreparation(elevation="dsm_ndsm"),
    "SPOT_RGBI": ImagePreparation(None),
    "SENTINEL2_TS": SeriesPreparation((3, 1)),
    "SENTINEL1-ASC_TS": SeriesPreparation(),
    "SENTINEL1-DESC_TS": SeriesPreparation(),
}
RATIOS = {
    "AERIAL_RGBI": 1,
    "AERIAL-RLT_PAN": 2,
    "DEM_ELEV": 1,
    "SPOT_RGBI": 4,
    "SENTINEL2_TS": 8,
    "SENTINEL1-ASC_TS": 8,
    "SENTINEL1-DESC_TS": 8,
}


@pytest.mark.parametrize(("height", "width"), [(61, 47), (7, 90), (5, 3), (40, 40)])
@pytest.mark.parametrize(("window", "margin"), [(16, 1), (16, 7), (33, 4), (64, 10)])
def test_any_window_equals_one_pass(tmp_path: Path, height: int, width: int, window: int, margin: int) -> None:
    made = make_zone(tmp_path, height, width, {"AERIAL_RGBI": 1})
    model, zone = fake_model(AERIAL), made.open(window, margin)
    expected = whole_area_map(made, zone, model)
    assert len(np.unique(expected)) > 4
    found = predict_zone(zone, model, block_px=25, batch_size=3)["class"]
    np.testing.assert_array_equal(found.values, expected)


def test_all_modalities_any_block_batch_and_threads(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 88, 56, RATIOS)
    model, zone = fake_model(ALL), made.open(48, 9)
    assert zone.lattice_px == 8
    expected = whole_area_map(made, zone, model)
    for block_px, batch_size, threads in [(1000, 1, 1), (24, 2, 3), (17, 5, 2), (50, 64, 1)]:
        lazy = predict_zone(zone, model, block_px=block_px, batch_size=batch_size)
        with dask.config.set(scheduler="threads", num_workers=threads):
            np.testing.assert_array_equal(lazy["class"].values, expected, err_msg=f"{block_px} {batch_size}")


@pytest.mark.parametrize(("window", "margin", "n_windows"), [(512, 128, 6), (768, 200, 2), (256, 0, 2), (512, 0, 1)])
def test_published_ratio_of_51_and_a_fifth(tmp_path: Path, window: int, margin: int, n_windows: int) -> None:
    """0.2 m beside 10.24 m; windows of 512 px with a margin of 128 px are the published zonal configuration's."""
    made = make_zone(tmp_path, 512, 256, {"AERIAL_RGBI": 1, "SPOT_RGBI": 8, "SENTINEL2_TS": Fraction(256, 5)})
    names = ("AERIAL_RGBI", "SPOT_RGBI", "SENTINEL2_TS")
    model = fake_model(dict(zip(names, (ImagePreparation(), ImagePreparation(), SeriesPreparation()), strict=True)))
    zone = made.open(window, margin)
    assert zone.lattice_px == 256
    rows, cols = plan_axes(zone, map_sizes(zone))
    assert rows.count * cols.count == n_windows
    found = predict_zone(zone, model, block_px=300)["class"].values
    # Without a margin the edges of windows see zeros in place of their neighbours.
    expected = whole_area_map(made, zone, model) if margin else predict_zone(zone, model)["class"].values
    np.testing.assert_array_equal(found, expected)


def test_finest_modality_leads_whatever_the_order(tmp_path: Path) -> None:
    """The grid is the elevation's, though the historical images come first in network order."""
    made = make_zone(tmp_path, 40, 24, {"AERIAL-RLT_PAN": 4, "DEM_ELEV": 1})
    model = fake_model({"AERIAL-RLT_PAN": ImagePreparation(), "DEM_ELEV": ImagePreparation(elevation="dsm_dtm")})
    zone = made.open(16, 4)
    assert (zone.geobox.height, zone.geobox.width, zone.geobox.x_res) == (40, 24, 0.2)
    np.testing.assert_array_equal(predict_zone(zone, model)["class"].values, whole_area_map(made, zone, model))


def test_coordinates_are_read_where_they_belong(tmp_path: Path) -> None:
    """Coordinate-coded rasters: what the network saw in the middle of each window is the pixel's own place."""
    rows, cols = np.mgrid[0:60, 0:44].astype(np.uint16)
    path = write_raster(tmp_path / "SPOT_RGBI.tif", np.stack([rows, cols, rows, cols]), 1.6)
    made = make_zone(tmp_path / "unused", 4, 4, {"SPOT_RGBI": 1})
    zone = type(made)(tmp_path, {}, {}, (type(made.requests[0])("SPOT_RGBI", path, key="m"),)).open(20, 3)

    class Identity(SmallField):
        def forward(self, inputs, dates=None, masks=None, size=None, aux=False, present=None):  # type: ignore[no-untyped-def]
            self.calls += 1
            output = super().forward(inputs, dates, masks, size, aux)
            values = inputs["SPOT_RGBI"]
            logits = torch.full((len(values), 19, *size), -1e4)
            logits[:, 0] = values[:, 0]
            logits[:, 1] = values[:, 1]
            output.logits["AERIAL_LABEL-COSIA"] = logits
            return output

    model = fake_model({"SPOT_RGBI": ImagePreparation()})
    network = Identity({"SPOT_RGBI": 4}, {"AERIAL_LABEL-COSIA": 19}).eval()
    found = predict_zone(zone, type(model)(network, model.preparations, model.tasks), outputs=("class",))
    np.testing.assert_array_equal(found["class"].values, (cols > rows).astype(np.uint8))


@pytest.mark.parametrize("average", [None, "monthly", "semi-monthly"])
def test_filter_and_averages_act_per_window(tmp_path: Path, average) -> None:  # type: ignore[no-untyped-def]
    """Each window keeps the dates that are clear in it, whatever else is in its batch and block."""
    made = make_zone(tmp_path, 48, 48, {"AERIAL_RGBI": 1, "SENTINEL2_TS": 8}, n_dates=9, quality=True)
    rule = CloudFilter(max_cloud=60, max_snow=70, max_frac=0.4)
    series = SeriesPreparation(cloud_filter=rule, average=average)
    model = fake_model({"AERIAL_RGBI": ImagePreparation(), "SENTINEL2_TS": series})
    zone = made.open(32, 4)
    expected = np.full((48, 48), 255, dtype=np.uint8)
    rows, cols = plan_axes(zone, map_sizes(zone))
    kept = set()
    for i in range(rows.count):
        for j in range(cols.count):
            index = _mirror(rows.start(i), 32, 48), _mirror(cols.start(j), 32, 48)
            coarse = _mirror(rows.start(i) // 8, 4, 6), _mirror(cols.start(j) // 8, 4, 6)
            image = made.arrays["AERIAL_RGBI"][:, index[0]][:, :, index[1]]
            s2 = made.arrays["SENTINEL2_TS"][:, coarse[0]][:, :, coarse[1]].reshape(9, 10, 4, 4)
            mask = made.arrays["SENTINEL2_MSK-SC"][:, coarse[0]][:, :, coarse[1]].reshape(9, 2, 4, 4)
            one = prepare_series(s2, made.dates["SENTINEL2_TS"], mask, series)
            kept.add(one.valid.tobytes())
            logits = model.network(
                {"AERIAL_RGBI": torch.from_numpy(image[None]).float(), "SENTINEL2_TS": _tensor(one.values)},
                {"SENTINEL2_TS": torch.from_numpy(one.offsets[None])},
                {"SENTINEL2_TS": torch.from_numpy(one.valid[None])},
                size=(32, 32),
            ).logits["AERIAL_LABEL-COSIA"]
            (top, bottom), (left, right) = rows.core(i), cols.core(j)
            part = logits.argmax(dim=1)[0].numpy()[top - rows.start(i) :, left - cols.start(j) :]
            expected[top:bottom, left:right] = part[: bottom - top, : right - left]
    assert len(kept) > 1, "the windows must differ in what they keep"
    for block_px, batch_size in [(1000, 1), (24, 4), (1000, 7)]:
        found = predict_zone(zone, model, block_px=block_px, batch_size=batch_size)["class"]
        np.testing.assert_array_equal(found.values, expected)


def _mirror(first: int, count: int, length: int) -> np.ndarray:
    return np.pad(np.arange(length), 200, mode="symmetric")[first + 200 : first + 200 + count]


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values[None]).float()


def test_window_without_a_usable_date(tmp_path: Path) -> None:
    """Beside an image the series is masked out; alone, the window has no data."""
    made = make_zone(tmp_path, 32, 32, {"AERIAL_RGBI": 1, "SENTINEL2_TS": 8}, quality=True)
    never = SeriesPreparation(cloud_filter=CloudFilter(-1, -1, 0.0))
    both = fake_model({"AERIAL_RGBI": ImagePreparation(), "SENTINEL2_TS": never})
    found = predict_zone(made.open(16, 4), both)["class"].values
    alone = fake_model({"AERIAL_RGBI": ImagePreparation()})
    np.testing.assert_array_equal(found, predict_zone(made.open(16, 4), alone)["class"].values)
    series_only = fake_model({"SENTINEL2_TS": never})
    assert (predict_zone(made.open(16, 4), series_only)["class"].values == 255).all()


def test_probabilities_confidence_and_scaled(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 30, 20, {"AERIAL_RGBI": 1})
    model, zone = fake_model(AERIAL), made.open(16, 3)
    logits = torch.from_numpy(whole_area_logits(made, zone, model)["AERIAL_LABEL-COSIA"])
    expected = logits.softmax(dim=0).numpy()
    found = predict_zone(zone, model, outputs=("probabilities", "confidence", "class", "scaled"), block_px=12)
    np.testing.assert_allclose(found["probabilities"].values, expected, atol=1e-5)
    np.testing.assert_allclose(found["confidence"].values, expected.max(axis=0), atol=1e-5)
    np.testing.assert_array_equal(found["class"].values, expected.argmax(axis=0))
    np.testing.assert_allclose(found["scaled"].values, 255 * expected, atol=0.501)
    assert found["probabilities"].dims == ("class_name", "y", "x")
    assert list(found["class_name"].values) == list(default_task("AERIAL_LABEL-COSIA").names)


@pytest.mark.parametrize("output_px_m", [0.4, 0.5, 0.1, 0.14])
def test_other_output_pixels_do_not_depend_on_blocks(tmp_path: Path, output_px_m: float) -> None:
    made = make_zone(tmp_path, 30, 42, {"AERIAL_RGBI": 1})
    model, zone = fake_model(AERIAL), made.open(16, 3, output_px_m=output_px_m)
    outputs = ("class", "probabilities")
    whole = predict_zone(zone, model, outputs=outputs).compute()
    for block_px in (7, 11):
        xr.testing.assert_identical(predict_zone(zone, model, outputs=outputs, block_px=block_px).compute(), whole)
    fine = predict_zone(zone, model, outputs=("probabilities",), output_px_m=0.2)["probabilities"].values
    if output_px_m == 0.4:
        mean = fine.reshape(19, 15, 2, 21, 2).mean(axis=(2, 4))
        np.testing.assert_allclose(whole["probabilities"].values, mean, atol=1e-5)
        np.testing.assert_array_equal(whole["class"].values, whole["probabilities"].values.argmax(axis=0))
    if output_px_m == 0.1:
        inner = whole["probabilities"].values[:, 1:-1:2, 1:-1:2]
        near, far = fine[:, :-1, :-1], fine[:, 1:, 1:]
        sides = fine[:, 1:, :-1], fine[:, :-1, 1:]
        expected = near * 0.5625 + far * 0.0625 + (sides[0] + sides[1]) * 0.1875
        np.testing.assert_allclose(inner, expected, atol=1e-5)
    assert whole["class"].shape == (-(-(30 * 200) // round(output_px_m * 1000)), whole.sizes["x"])
    np.testing.assert_allclose(np.diff(whole["x"].values), output_px_m)


def test_nodata_in_gives_nodata_out(tmp_path: Path) -> None:
    """Declared nodata, NaN and missing series pixels; integer pixels need all their bands missing."""
    made = make_zone(
        tmp_path,
        32,
        32,
        {"AERIAL_RGBI": 1, "DEM_ELEV": 1, "SPOT_RGBI": 4, "SENTINEL1-ASC_TS": 8},
        profiles={"AERIAL_RGBI": {"nodata": 0}, "DEM_ELEV": {"nodata": -9999}, "SENTINEL1-ASC_TS": {"nodata": -1}},
    )
    aerial, dem, s1 = (made.arrays[name].copy() for name in ("AERIAL_RGBI", "DEM_ELEV", "SENTINEL1-ASC_TS"))
    aerial[aerial == 0] = 1
    aerial[:, 3, 4] = 0
    aerial[0, 5, 5] = 0
    dem[1, 10, 11] = -9999
    dem[0, 20, 21] = np.nan
    s1[:, 3, 2] = -1
    s1[4, 0, 0] = -1
    for name, values, res, nodata in [
        ("AERIAL_RGBI", aerial, 0.2, 0),
        ("DEM_ELEV", dem, 0.2, -9999),
        ("SENTINEL1-ASC_TS", s1, 1.6, -1),
    ]:
        write_raster(tmp_path / f"{name}.tif", values, res, nodata=nodata)
    model = fake_model(
        {
            "AERIAL_RGBI": ImagePreparation(),
            "DEM_ELEV": ImagePreparation(elevation="ndsm"),
            "SPOT_RGBI": ImagePreparation(),
            "SENTINEL1-ASC_TS": SeriesPreparation(),
        }
    )
    expected = np.zeros((32, 32), dtype=bool)
    for row, col in [(3, 4), (10, 11), (20, 21)]:
        expected[row, col] = True
    expected[24:32, 16:24] = True
    outputs = ("class", "confidence", "probabilities", "scaled")
    found = predict_zone(made.open(24, 4), model, outputs=outputs, block_px=9).compute()
    np.testing.assert_array_equal(found["class"].values == 255, expected)
    np.testing.assert_array_equal(np.isnan(found["confidence"].values), expected)
    np.testing.assert_array_equal(np.isnan(found["probabilities"].values).all(axis=0), expected)
    np.testing.assert_array_equal((found["scaled"].values == 0).all(axis=0), expected)


def test_only_the_blocks_of_a_slice_are_computed(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 80, 80, {"AERIAL_RGBI": 1})
    model, zone = fake_model(AERIAL), made.open(16, 3)
    lazy = predict_zone(zone, model, block_px=10, batch_size=1, outputs=("class", "confidence"))
    assert model.network.calls == 0, "building the graph must not call the network"
    assert lazy["class"].chunks == ((10,) * 8, (10,) * 8)
    lazy.isel(y=slice(12, 15), x=slice(0, 25)).compute()
    assert model.network.calls == 3


def test_windows_without_data_are_skipped(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 40, 40, {"AERIAL_RGBI": 1}, profiles={"AERIAL_RGBI": {"nodata": 0}})
    values = np.maximum(made.arrays["AERIAL_RGBI"], 1)
    values[:, :20] = 0
    write_raster(tmp_path / "AERIAL_RGBI.tif", values, 0.2, nodata=0)
    model = fake_model({"AERIAL_RGBI": ImagePreparation()})
    found = predict_zone(made.open(16, 3), model, batch_size=1)["class"].values
    assert (found[:20] == 255).all()
    assert (found[20:] < 255).all()
    assert model.network.calls == 2 * 4


def test_graph_of_ten_thousand_blocks_is_small_and_calls_nothing(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 100, 100, {"AERIAL_RGBI": 1})
    model = fake_model(AERIAL)
    lazy = predict_zone(made.open(3, 1), model, block_px=1)
    assert lazy["class"].data.npartitions == 10_000
    assert len(pickle.dumps(lazy.__dask_graph__())) < 5_000_000
    assert model.network.calls == 0


def test_several_tasks_in_one_pass(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 20, 20, {"AERIAL_RGBI": 1})
    model = fake_model(AERIAL, ("AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS"))
    zone = made.open(16, 3)
    found = predict_zone(zone, model, batch_size=100).compute()
    assert model.network.calls == 1
    for task, logits in whole_area_logits(made, zone, model).items():
        np.testing.assert_array_equal(found[f"class_{task}"].values, logits.argmax(axis=0))
    one = predict_zone(zone, model, tasks=["ALL_LABEL-LPIS"])
    assert list(one.data_vars) == ["class"]
    np.testing.assert_array_equal(one["class"].values, found["class_ALL_LABEL-LPIS"].values)
    with pytest.raises(UsageError, match="task nothing is not predicted"):
        predict_zone(zone, model, tasks=["nothing"])


def test_dataset_is_georeferenced(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 20, 30, {"AERIAL_RGBI": 1, "SENTINEL2_TS": 10})
    zone = made.open(20, 0)
    model = fake_model({"AERIAL_RGBI": ImagePreparation(), "SENTINEL2_TS": SeriesPreparation()})
    lazy = predict_zone(zone, model)
    assert lazy.rio.crs.to_epsg() == 2154
    assert lazy.rio.bounds() == pytest.approx(zone.geobox.bounds)
    tree = zone.to_xarray(chunk_px=7)
    for name in ("AERIAL_RGBI", "SENTINEL2_TS"):
        data = tree[name]["data"]
        values = data.values
        n_bands = len(MODALITIES[name].bands)
        np.testing.assert_array_equal(values.reshape(-1, *values.shape[-2:]), made.arrays[name])
        assert tree[name].to_dataset().rio.crs.to_epsg() == 2154
        assert data.sizes["band"] == n_bands
    assert (tree["SENTINEL2_TS"]["time"].values.astype("datetime64[D]") == made_dates(5)).all()
    assert tree["AERIAL_RGBI"]["data"].chunks == ((4,), (7, 7, 6), (7, 7, 7, 7, 2))


def test_a_model_in_memory_stays_in_its_process(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 8, 8, {"AERIAL_RGBI": 1})
    model = fake_model(AERIAL)
    ref = memory_ref(model)
    travelled = pickle.loads(pickle.dumps(ref))
    assert travelled.in_memory is None
    zone = made.open(8, 1)
    plan = plan_map(zone, travelled, map_sizes(zone))
    block = blank_block(plan, ref.tasks, ("class",), (0, 0))
    assert (predict_block(block, zone, travelled)["class"] < 255).all(), "the same process finds it again"
    stranger = pickle.loads(pickle.dumps(ref).replace(ref.path.encode(), b"x" * len(ref.path)))
    with pytest.raises(UsageError, match="memory of another process"):
        predict_block(block, zone, stranger)


def test_a_training_model_is_copied_not_changed() -> None:
    model = fake_model(AERIAL)
    model.network.train()
    ref = model_ref(model)
    assert model.network.training
    assert not ref.in_memory.training


def test_default_blocks_bound_the_memory(tmp_path: Path) -> None:
    """Long series on the finest grid get smaller blocks than images do."""
    made = make_zone(tmp_path, 64, 64, {"SENTINEL2_TS": 1}, n_dates=5)
    zone = made.open(16, 2)
    model = model_ref(fake_model({"SENTINEL2_TS": SeriesPreparation()}))
    assert default_block(zone, model, 12) == int((256e6 / (5 * 10 * 2)) ** 0.5)
    days = np.datetime64("2020-01-01") + np.arange(10_000)
    longer = replace(zone.rasters["SENTINEL2_TS"], dates=days)
    assert default_block(replace(zone, rasters={"SENTINEL2_TS": longer}), model, 12) == 35
    assert default_block(replace(zone, rasters={"SENTINEL2_TS": longer}), model, 64) == 64
    shorter = replace(longer, dates=days[:1])
    assert default_block(replace(zone, rasters={"SENTINEL2_TS": shorter}), model, 12) == 2048
