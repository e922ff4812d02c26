"""`xr.map_blocks` over a template gives the maps of `predict_zone`, whatever is sliced and however it is chunked."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import flairhub as fh
from flairhub.errors import UsageError, ZoneError
from flairhub.inference import Style, predict_block, predict_zone
from flairhub.inference.map_plan import map_sizes, plan_map
from flairhub.inference.map_store import MapStore
from flairhub.inference.model_ref import model_ref
from flairhub.inference.outputs import stored_maps
from flairhub.inference.windows import block_edges, chunk_length
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from flairhub.timeseries import SeriesPreparation
from tests.helpers.bundle_makers import make_bundle
from tests.helpers.waiting import HANG_S
from tests.helpers.zone_makers import X_MIN, Y_MAX, fake_model, make_zone

RATIOS = {"AERIAL_RGBI": 1, "SPOT_RGBI": 4, "SENTINEL2_TS": 8}
INPUTS = {
    "AERIAL_RGBI": ImagePreparation((4, 1, 2)),
    "SPOT_RGBI": ImagePreparation(),
    "SENTINEL2_TS": SeriesPreparation((3, 1)),
}
LABELS = ("AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS")
OUTPUTS = ("class", "confidence", "probabilities", "scaled")


def mapped(template: xr.Dataset, zone: Any, model: Any) -> xr.Dataset:
    return xr.map_blocks(predict_block, template, args=[zone, model], template=template)


def computed(maps: xr.Dataset) -> xr.Dataset:
    return maps.compute(scheduler="synchronous")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, xr.Dataset]:
    """Three resolutions, a series, two tasks, windows that start before the zone; and their whole maps."""
    made = make_zone(tmp_path_factory.mktemp("several"), 72, 56, RATIOS)
    zone, model = made.open(32, 4), fake_model(INPUTS, LABELS)
    assert plan_map(zone, model_ref(model), map_sizes(zone)).rows.phase == 4
    return zone, model, computed(predict_zone(zone, model, outputs=OUTPUTS))


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_block_slice_and_chunks(several: tuple[Any, Any, xr.Dataset], data: st.DataObject) -> None:
    zone, model, whole = several
    template = zone.template(model, outputs=OUTPUTS, block_px=data.draw(st.integers(1, 60)) + 15)
    chosen = {}
    for name in ("y", "x"):
        first = data.draw(st.integers(0, whole.sizes[name] - 1))
        chosen[name] = slice(first, data.draw(st.integers(first + 1, whole.sizes[name])), data.draw(st.integers(1, 3)))
    part = template.isel(chosen)
    if data.draw(st.booleans()):
        part = part.chunk({name: data.draw(st.integers(9, 60)) for name in ("y", "x")})
    maps = computed(mapped(part, zone, model))
    xr.testing.assert_equal(maps, whole.isel(chosen))
    for name in maps.data_vars:
        assert maps[name].attrs == whole[name].attrs
        assert maps[name].dtype == whole[name].dtype
    assert maps.rio.crs.to_epsg() == 2154


def test_sel_rows_and_single_variables(several: tuple[Any, Any, xr.Dataset]) -> None:
    zone, model, whole = several
    template = zone.template(model, outputs=OUTPUTS, block_px=24)
    row = computed(mapped(template[["confidence_ALL_LABEL-LPIS"]].isel(y=17), zone, model))
    np.testing.assert_array_equal(row.to_array()[0], whole["confidence_ALL_LABEL-LPIS"][17])
    bounds = {"x": slice(float(whole.x[5]), float(whole.x[20])), "y": slice(float(whole.y[30]), float(whole.y[44]))}
    part = computed(mapped(template.sel(bounds), zone, model))
    xr.testing.assert_equal(part, whole.isel(x=slice(5, 21), y=slice(30, 45)))
    flipped = computed(mapped(template.isel(y=slice(None, None, -1)), zone, model))
    xr.testing.assert_equal(flipped, whole.isel(y=slice(None, None, -1)))


@pytest.mark.parametrize(
    ("style", "output_px_m"), [(Style(blend=True, flips=True), None), (Style(), 0.5), (Style(drop_missing=True), 0.1)]
)
def test_styles_and_output_pixels_travel_in_the_attributes(tmp_path: Path, style: Style, output_px_m: Any) -> None:
    made = make_zone(tmp_path, 40, 32, {"AERIAL_RGBI": 1})
    zone, model = made.open(16, 3), fake_model({"AERIAL_RGBI": ImagePreparation()})
    options: dict[str, Any] = {"outputs": OUTPUTS, "style": style, "output_px_m": output_px_m}
    whole = computed(predict_zone(zone, model, **options))
    maps = computed(mapped(zone.template(model, block_px=13, **options), zone, model))
    xr.testing.assert_equal(maps, whole)
    xr.testing.assert_equal(maps - whole, whole - whole)
    assert {key: maps.attrs[key] for key in whole.attrs} == whole.attrs


def test_sizes_come_from_the_zone_else_from_the_model(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 64, 64, {"AERIAL_RGBI": 1, "SENTINEL2_TS": 8})
    inputs = {"AERIAL_RGBI": ImagePreparation(), "SENTINEL2_TS": SeriesPreparation()}
    bundle = make_bundle(tmp_path / "bundle", inputs)
    configured = made.open(32, 4).template(bundle).attrs
    assert (configured["window_px"], configured["margin_px"]) == (32, 4)
    zone = type(made.open(32, 4))(made.open(32, 4).geobox, made.open(32, 4).rasters, {})
    trained = zone.template(bundle).attrs
    assert (trained["window_px"], trained["margin_px"]) == (512, 64)
    given = zone.template(bundle, window_px=64, margin_px=8).attrs
    assert (given["window_px"], given["margin_px"]) == (64, 8)
    assert zone.template(fake_model(inputs)).attrs["window_px"] == 512


def test_building_calls_nothing_and_a_slice_only_its_blocks(several: tuple[Any, Any, xr.Dataset]) -> None:
    zone, model, _ = several
    model.network.calls = model.network.samples = 0
    maps = mapped(zone.template(model, block_px=24), zone, model)
    assert model.network.calls == 0
    values = maps["class_AERIAL_LABEL-COSIA"].isel(y=slice(0, 20), x=slice(0, 20)).data
    values.compute(scheduler="synchronous")
    assert model.network.samples == 1


def test_zone_of_arrays_has_a_template_at_once(tmp_path: Path) -> None:
    """In a process that has imported nothing but the package, and with bands that go by name."""
    make_zone(tmp_path, 48, 40, {"AERIAL_RGBI": 1})
    make_bundle(tmp_path / "bundle", {"AERIAL_RGBI": ImagePreparation((4, 1, 2))})
    code = """if True:
        import sys
        import numpy as np, rioxarray, xarray as xr
        import flairhub as fh
        ortho = rioxarray.open_rasterio(sys.argv[1] + "/AERIAL_RGBI.tif").assign_coords(band=["R", "G", "B", "NIR"])
        maps = []
        for bands in (["R", "G", "B", "NIR"], ["NIR", "B", "R", "G"]):
            zone = fh.zone(AERIAL_RGBI=ortho.sel(band=bands))
            template = zone.template(sys.argv[1] + "/bundle", window_px=32, margin_px=4, block_px=24)
            mapped = xr.map_blocks(fh.predict_block, template, args=[zone, sys.argv[1] + "/bundle"], template=template)
            maps.append(mapped["class"].values)
            lazy = fh.predict_zone(zone, sys.argv[1] + "/bundle", window_px=32, margin_px=4)
            np.testing.assert_array_equal(lazy["class"].values, maps[-1])
        np.testing.assert_array_equal(*maps)
        print(len(np.unique(maps[0])))
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 1


def test_bundle_in_several_processes(tmp_path: Path) -> None:
    from flairhub.jobs.processes import local_client

    made = make_zone(tmp_path, 64, 48, {"AERIAL_RGBI": 1})
    bundle = make_bundle(tmp_path / "bundle", {"AERIAL_RGBI": ImagePreparation()})
    zone = made.open(32, 4)
    template = zone.template(str(bundle), outputs=("class", "probabilities"), block_px=24)
    maps = mapped(template, zone, str(bundle))
    assert len(pickle.dumps((zone, str(bundle)))) < 10_000
    expected = computed(predict_zone(zone, bundle, outputs=("class", "probabilities")))
    with local_client(2):
        xr.testing.assert_equal(maps.compute(), expected)


def test_what_is_no_template_is_refused(several: tuple[Any, Any, xr.Dataset], tmp_path: Path) -> None:
    zone, model, whole = several
    with pytest.raises(UsageError, match=r"does not say how it is computed. Map over a Dataset of zone.template"):
        predict_block(whole.drop_attrs(), zone, model)
    with pytest.raises(UsageError, match="expected some of class_AERIAL_LABEL-COSIA, "):
        predict_block(whole.assign(other=whole["class_ALL_LABEL-LPIS"]), zone, model)
    with pytest.raises(ZoneError, match=r"y from .* are no centres of pixels of the zone's map"):
        predict_block(whole.assign_coords(y=whole.y + 0.1), zone, model)
    smaller = make_zone(tmp_path, 40, 56, RATIOS).open(32, 4)
    with pytest.raises(ZoneError, match=r"y from .* are no centres"):
        predict_block(whole, smaller, model)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_every_lazy_map_goes_to_zarr_and_opens_as_a_map(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("zarr")
    height, width = data.draw(st.integers(1, 24)) * 4, data.draw(st.integers(1, 24)) * 4
    window = data.draw(st.integers(2, 10)) * 4
    margin, block = data.draw(st.integers(0, (window - 4) // 2)), data.draw(st.integers(8, 100))
    made = make_zone(folder, height, width, {"AERIAL_RGBI": 1, "SPOT_RGBI": 4})
    model = fake_model({"AERIAL_RGBI": ImagePreparation(), "SPOT_RGBI": ImagePreparation()})
    lazy = predict_zone(made.open(window, margin), model, outputs=("class", "scaled"), block_px=block)
    lazy.to_zarr(folder / "map.zarr")
    task = default_task(LABELS[0])
    with xr.open_zarr(folder / "map.zarr", mask_and_scale=False) as stored:
        xr.testing.assert_equal(stored, lazy)
        assert stored.rio.crs.to_epsg() == 2154
        assert stored["class"].attrs["_FillValue"] == 255
        assert stored["class"].attrs["flag_values"] == list(range(task.n_classes))
        assert stored["class"].attrs["flag_meanings"].split()[3] == "impervious_surface"
        assert stored["class"].attrs["flag_colors"].split()[0] == "#db0e9a"


WAYS: dict[str, Any] = {
    "plain": {},
    "integers": {"mask_and_scale": False},
    "all coordinates": {"decode_coords": "all"},
    "no dask": {"chunks": None},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lazy maps, those of map_blocks, a variable of its own, and the store of a run."""
    folder = tmp_path_factory.mktemp("stored")
    made = make_zone(folder, 72, 56, {"AERIAL_RGBI": 1})
    zone, model = made.open(32, 4), fake_model({"AERIAL_RGBI": ImagePreparation()})
    maps = predict_zone(zone, model, outputs=("class", "confidence", "scaled"))
    maps.to_zarr(folder / "lazy.zarr")
    maps.to_zarr(folder / "old.zarr", zarr_format=2)
    maps["class"].to_zarr(folder / "single.zarr")
    mapped(zone.template(model, block_px=24), zone, model).to_zarr(folder / "mapped.zarr")
    ref = model_ref(model)
    plan = plan_map(zone, ref, map_sizes(zone))
    run = MapStore(str(folder / "run.zarr"), plan.row_edges, plan.col_edges)
    run.create(stored_maps(plan, ref.tasks, "argmax", True))
    run.write("class", (0, 0), maps["class"].values)
    return folder


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated:RuntimeWarning")
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", ["lazy", "old", "single", "mapped", "run"])
def test_a_variable_of_a_stored_map_knows_its_place_and_its_classes(stored: Path, name: str, way: str) -> None:
    with xr.open_zarr(stored / f"{name}.zarr", **WAYS[way]) as maps:
        for array in maps.data_vars.values():
            assert array.rio.crs.to_epsg() == 2154
            assert tuple(array.rio.transform())[:6] == (0.2, 0, X_MIN, 0, -0.2, Y_MAX)
        classes, task = maps["class"], default_task(LABELS[0])
        assert list(classes.attrs["flag_values"]) == list(range(task.n_classes))
        assert classes.attrs["flag_meanings"].split()[:2] == ["building", "greenhouse"]
        assert classes.attrs["flag_colors"].split()[:2] == ["#db0e9a", "#9999ff"]
        assert {**classes.attrs, **classes.encoding}["_FillValue"] == 255
        assert classes.flairhub.areas()["pixels"].sum() == 72 * 56
    assert zarr.open_group(stored / f"{name}.zarr")["class"].fill_value == 255


def test_sizes_that_did_not_fit_zarr(tmp_path: Path) -> None:
    """512 px windows, margin 64, 3,900 px: blocks of one length, the last one shorter."""
    made = make_zone(tmp_path, 8, 3900, {"AERIAL_RGBI": 1})
    zone, model = made.open(512, 64), fake_model({"AERIAL_RGBI": ImagePreparation()})
    template = zone.template(model)
    assert template.chunks["x"] == (1920, 1920, 60)
    template.to_zarr(tmp_path / "map.zarr", compute=False)
    plan = plan_map(zone, model_ref(model), map_sizes(zone))
    assert (chunk_length(plan.col_edges), block_edges(3900, 2048, plan.ratio, plan.cols)[1]) == (960, 1920)
    assert {"predict_block", "write_zone", "predict_zone", "open_zone"} <= set(fh.__all__)
