"""xarray objects as sources of a zone: the map is the one from GeoTIFFs of the same values."""

from __future__ import annotations

import pickle
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import rioxarray
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import flairhub as fh
from flairhub.errors import ZoneError
from flairhub.inference import predict_zone
from flairhub.modalities import MODALITIES
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import CloudFilter, SeriesPreparation
from flairhub.zones import Zone
from tests.helpers.bundle_makers import make_bundle
from tests.helpers.zone_makers import X_MIN, Y_MAX, MadeZone, fake_model, make_zone, write_raster

IMAGES = {"AERIAL_RGBI": ImagePreparation((4, 1, 2)), "SPOT_RGBI": ImagePreparation()}
SERIES = SeriesPreparation(cloud_filter=CloudFilter(max_cloud=60, max_snow=60, max_frac=0.9))
MODEL = fake_model({**IMAGES, "SENTINEL2_TS": SERIES})
RATIOS = {"AERIAL_RGBI": 1, "SPOT_RGBI": 8, "SENTINEL2_TS": 8}


def as_array(
    values: NDArray[Any], name: str, res_m: float, dates: Any = None, origin: tuple[float, float] = (X_MIN, Y_MAX)
) -> xr.DataArray:
    """A DataArray of (band, y, x) values as files hold them."""
    bands, (height, width) = MODALITIES[name].bands, values.shape[-2:]
    coords: dict[str, Any] = {
        "y": origin[1] - (np.arange(height) + 0.5) * res_m,
        "x": origin[0] + (np.arange(width) + 0.5) * res_m,
        "band": list(bands),
    }
    dims: tuple[str, ...] = ("band", "y", "x")
    if MODALITIES[name].is_series:
        values = values.reshape(-1, len(bands), height, width)
        dims = ("time", *dims)
        if dates is not None:
            coords["time"] = dates.astype("datetime64[ns]")
    return xr.DataArray(values, dims=dims, coords=coords).rio.write_crs("EPSG:2154")


def arrays_of(made: MadeZone, ratios: Mapping[str, int] = RATIOS) -> dict[str, xr.DataArray]:
    """The rasters of a made zone and its masks, in memory."""
    result = {name: as_array(made.arrays[name], name, 0.2 * ratios[name], made.dates.get(name)) for name in ratios}
    mask = "SENTINEL2_MSK-SC"
    if mask in made.arrays:
        result[mask] = as_array(made.arrays[mask], mask, 0.2 * ratios["SENTINEL2_TS"], made.dates["SENTINEL2_TS"])
    return result


def zone_of(arrays: Mapping[str, Any], **options: Any) -> Zone:
    sources = dict(arrays)
    mask = sources.pop("SENTINEL2_MSK-SC", None)
    return fh.zone(sources, quality=None if mask is None else {"SENTINEL2_TS": mask}, **options)


def classes(zone: Zone, model: Any = MODEL, block_px: int = 40, margin_px: int = 4) -> NDArray[Any]:
    maps = predict_zone(zone, model, window_px=32, margin_px=margin_px, block_px=block_px)
    return np.asarray(maps["class"].values)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeZone:
    return make_zone(tmp_path_factory.mktemp("zone"), 72, 96, RATIOS, quality=True)


@pytest.fixture(scope="module")
def expected(made: MadeZone) -> NDArray[Any]:
    result = classes(made.open(32, 4))
    assert len(np.unique(result)) > 4
    return result


def shuffled(array: xr.DataArray, draw: Any) -> xr.DataArray | xr.Dataset:
    """The same pixels, laid out in another way."""
    array = array.transpose(*draw(st.permutations(array.dims)))
    array = array.isel(y=slice(None, None, draw(st.sampled_from([1, -1]))))
    array = array.isel(x=slice(None, None, draw(st.sampled_from([1, -1]))))
    array = array.isel(band=draw(st.permutations(range(array.sizes["band"]))))
    if draw(st.booleans()):
        array = array.chunk({name: draw(st.integers(1, length)) for name, length in array.sizes.items()})
    if draw(st.booleans()):
        return array.to_dataset("band")
    return array.rename({"x": draw(st.sampled_from(["x", "X"])), "band": draw(st.sampled_from(["band", "bands"]))})


@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_map_is_that_of_files(made: MadeZone, expected: NDArray[Any], data: Any) -> None:
    """Chunks, order of dimensions, direction of axes, bands as variables or along a dimension; images and series."""
    zone = zone_of({name: shuffled(array, data.draw) for name, array in arrays_of(made).items()})
    assert zone.geobox == made.open(32, 4).geobox
    np.testing.assert_array_equal(classes(zone, block_px=data.draw(st.integers(8, 100))), expected)


@given(data=st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_numbers_without_meaning(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Kinds of numbers, nodata, grids and margins: the same 255, wherever nodata is declared."""
    folder = tmp_path_factory.mktemp("nodata")
    dtype = data.draw(st.sampled_from(["uint8", "int16", "float32"]))
    nodata = data.draw(st.sampled_from([0, 7, 255]))
    ratio = data.draw(st.sampled_from([2, 4, 8]))
    margin = data.draw(st.sampled_from([0, 4, 8]))
    height, width = data.draw(st.integers(5, 9)) * 8, data.draw(st.integers(5, 9)) * 8
    made = make_zone(folder, height, width, {"AERIAL_RGBI": 1, "SPOT_RGBI": ratio})
    values = made.arrays["AERIAL_RGBI"].astype(dtype)
    values[:, :20, 3:30] = nodata
    write_raster(folder / "AERIAL_RGBI.tif", values, 0.2, nodata=nodata)
    model = fake_model(IMAGES)
    files = classes(made.open(32, margin), model, margin_px=margin)
    assert (files[:20, 3:30] == 255).all()
    aerial = as_array(values, "AERIAL_RGBI", 0.2)
    where = data.draw(st.sampled_from(["attrs", "rio", "nodata", "encoding" if dtype != "float32" else "attrs"]))
    if where == "rio":
        aerial = aerial.rio.write_nodata(nodata)
    elif where == "encoding":
        aerial.encoding["_FillValue"] = nodata
    else:
        aerial.attrs["_FillValue" if where == "attrs" else "nodata"] = nodata
    if data.draw(st.booleans()):
        aerial = aerial.chunk(17)
    spot = as_array(made.arrays["SPOT_RGBI"], "SPOT_RGBI", 0.2 * ratio)
    zone = fh.zone(AERIAL_RGBI=aerial, SPOT_RGBI=spot)
    np.testing.assert_array_equal(classes(zone, model, margin_px=margin), files)


def test_other_grids_are_resampled_as_files_are(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 64, 64, {"AERIAL_RGBI": 1, "SPOT_RGBI": 8})
    origin = (X_MIN - 3.3, Y_MAX + 2.1)
    values = np.random.default_rng(0).integers(1, 99, (4, 12, 9)).astype("uint16")
    write_raster(tmp_path / "SPOT_RGBI.tif", values, 1.6, origin=origin)
    files = made.open(32, 4, resample=True)
    spot = as_array(values, "SPOT_RGBI", 1.6, origin=origin)
    aerial = as_array(made.arrays["AERIAL_RGBI"], "AERIAL_RGBI", 0.2)
    model = fake_model(IMAGES)
    expected = classes(files, model)
    with pytest.raises(ZoneError, match=r"SPOT_RGBI: SPOT_RGBI covers .* or set align: resample"):
        fh.zone(AERIAL_RGBI=aerial, SPOT_RGBI=spot)
    for chunk in (None, 5):
        sources = {"AERIAL_RGBI": aerial, "SPOT_RGBI": spot}
        if chunk:
            sources = {name: array.chunk(y=chunk, x=chunk) for name, array in sources.items()}
        np.testing.assert_array_equal(classes(fh.zone(sources, align="resample"), model), expected)


class Counting:
    """Chunks that count how often each is computed, and whether it happens inside another task."""

    def __init__(self, values: NDArray[Any], chunk: int):
        self.values, self.chunk, self.counts, self.guard = values, chunk, Counter[tuple[int, int]](), threading.Lock()

    def read(self, block_id: tuple[int, ...] = ()) -> NDArray[Any]:
        row, col = block_id[-2:]
        with self.guard:
            self.counts[row, col] += 1
        rows, cols = (slice(number * self.chunk, (number + 1) * self.chunk) for number in (row, col))
        return self.values[..., rows, cols]

    def array(self) -> da.Array:
        lengths = [
            tuple(min(self.chunk, length - first) for first in range(0, length, self.chunk))
            for length in self.values.shape[-2:]
        ]
        chunks = (*((length,) for length in self.values.shape[:-2]), *lengths)
        meta = np.empty((0,) * len(chunks), self.values.dtype)
        return da.map_blocks(self.read, chunks=chunks, dtype=self.values.dtype, meta=meta)


def counted(made: MadeZone) -> tuple[Zone, dict[str, Counting]]:
    arrays, sources = arrays_of(made), {}
    for name, array in arrays.items():
        sources[name] = Counting(array.values, 16 if name == "AERIAL_RGBI" else 5)
        arrays[name] = array.copy(data=sources[name].array())
    return zone_of(arrays), sources


def test_every_source_chunk_is_computed_once(made: MadeZone, expected: NDArray[Any]) -> None:
    zone, sources = counted(made)
    maps = predict_zone(zone, MODEL, window_px=32, margin_px=4, block_px=24, outputs=("class", "confidence"))
    assert not any(source.counts for source in sources.values())
    np.testing.assert_array_equal(maps.compute()["class"], expected)
    for name, source in sources.items():
        n_chunks = int(np.prod([-(-length // source.chunk) for length in source.values.shape[-2:]]))
        assert len(source.counts) == n_chunks, name
        assert set(source.counts.values()) == {1}, name


def test_a_slice_computes_only_the_chunks_that_its_windows_touch(made: MadeZone, expected: NDArray[Any]) -> None:
    zone, sources = counted(made)
    maps = predict_zone(zone, MODEL, window_px=32, margin_px=4, block_px=24)
    part = maps["class"].sel(x=slice(X_MIN, X_MIN + 2), y=slice(Y_MAX, Y_MAX - 2)).values
    np.testing.assert_array_equal(part, expected[:10, :10])
    # The block has one window: 28 px, mirrored at the edge.
    assert set(sources["AERIAL_RGBI"].counts) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert set(sources["SENTINEL2_TS"].counts) == {(0, 0)}


def test_no_compute_inside_a_task(made: MadeZone, expected: NDArray[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {name: array.chunk(y=9, x=9) for name, array in arrays_of(made).items()}
    maps = predict_zone(zone_of(arrays), MODEL, window_px=32, margin_px=4, block_px=24)
    array = maps["class"].data
    graph, keys = dict(array.__dask_graph__()), array.__dask_keys__()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed inside a task")

    monkeypatch.setattr(da.Array, "compute", refuse)
    blocks = dask.threaded.get(graph, keys)
    np.testing.assert_array_equal(np.block([list(row) for row in blocks]), expected)


def test_several_worker_processes(made: MadeZone, expected: NDArray[Any], tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    bundle = make_bundle(tmp_path / "bundle", {name: MODEL.preparations[name] for name in RATIOS})
    arrays = arrays_of(made)
    arrays["AERIAL_RGBI"] = arrays["AERIAL_RGBI"].chunk(x=20, y=20)
    zone = zone_of(arrays)
    options = {"window_px": 32, "margin_px": 4, "block_px": 40}
    alone = predict_zone(zone, bundle, **options)["class"].values
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1")
    with cluster, Client(cluster):
        np.testing.assert_array_equal(predict_zone(zone, bundle, **options)["class"].values, alone)


def test_lazily_indexed_arrays_travel_by_reference(made: MadeZone) -> None:
    image = rioxarray.open_rasterio(made.folder / "AERIAL_RGBI.tif")
    zone = fh.zone(AERIAL_RGBI=image)
    assert len(pickle.dumps(zone)) < 10_000
    model = fake_model({"AERIAL_RGBI": IMAGES["AERIAL_RGBI"]})
    maps = predict_zone(zone, model, window_px=32, margin_px=4, block_px=24)
    assert len(pickle.dumps(dict(maps["class"].data.__dask_graph__()))) < 30_000
    assert not image.variable._in_memory
    files = predict_zone(made.open(32, 4), model, window_px=32, margin_px=4)["class"].values
    np.testing.assert_array_equal(maps["class"].values, files)
    assert not image.variable._in_memory


def test_a_zarr_store_without_dask(made: MadeZone, expected: NDArray[Any], tmp_path: Path) -> None:
    arrays = arrays_of(made)
    for name, array in arrays.items():
        array.rename("pixels").to_dataset().to_zarr(tmp_path / f"{name}.zarr")
    opened = {
        name: xr.open_zarr(tmp_path / f"{name}.zarr", chunks=None, decode_coords="all")["pixels"] for name in arrays
    }
    zone = zone_of(opened)
    assert len(pickle.dumps(zone)) < 40_000
    np.testing.assert_array_equal(classes(zone), expected)


def test_arrays_in_memory_are_in_the_graph_once(made: MadeZone) -> None:
    zone = fh.zone(AERIAL_RGBI=arrays_of(made)["AERIAL_RGBI"])
    model = fake_model({"AERIAL_RGBI": IMAGES["AERIAL_RGBI"]})
    maps = predict_zone(zone, model, window_px=32, margin_px=4, block_px=8)
    n_bytes = made.arrays["AERIAL_RGBI"].nbytes
    assert n_bytes < len(pickle.dumps(dict(maps["class"].data.__dask_graph__()))) < 4 * n_bytes


def test_ten_thousand_blocks_are_a_small_graph() -> None:
    n_px = 25_600
    aerial = xr.DataArray(
        da.zeros((4, n_px, n_px), chunks=(4, 256, 256), dtype="uint8"),
        dims=("band", "y", "x"),
        coords={"x": X_MIN + (np.arange(n_px) + 0.5) * 0.2, "y": Y_MAX - (np.arange(n_px) + 0.5) * 0.2},
    ).rio.write_crs(2154)
    coarse = n_px // 50
    series = xr.DataArray(
        da.zeros((20, 10, coarse, coarse), chunks=(1, 10, 64, 64), dtype="uint16"),
        dims=("time", "band", "y", "x"),
        coords={
            "time": np.datetime64("2021-01-01", "ns") + np.arange(20) * np.timedelta64(5, "D"),
            "x": X_MIN + (np.arange(coarse) + 0.5) * 10,
            "y": Y_MAX - (np.arange(coarse) + 0.5) * 10,
        },
    ).rio.write_crs(2154)
    zone = fh.zone(AERIAL_RGBI=aerial, SENTINEL2_TS=series)
    model = fake_model({"AERIAL_RGBI": ImagePreparation(), "SENTINEL2_TS": SeriesPreparation()})
    maps = predict_zone(zone, model, window_px=250, margin_px=0, block_px=250)["class"]
    assert maps.data.npartitions == 103**2
    assert len(pickle.dumps(dict(maps.data.__dask_graph__()))) < 50e6
