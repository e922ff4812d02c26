"""xarray objects as sources of a zone: the map is the one from GeoTIFFs of the same values."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import rioxarray
import xarray as xr
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import flairhub as fh
from flairhub.errors import DataError, UsageError, ZoneError
from flairhub.inference import predict_zone
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import CloudFilter, SeriesPreparation
from flairhub.zones import Zone
from tests.helpers.array_makers import RATIOS, arrays_of, as_array, zone_of
from tests.helpers.bundle_makers import make_bundle
from tests.helpers.zone_makers import X_MIN, Y_MAX, MadeZone, fake_model, make_zone, write_raster

IMAGES = {"AERIAL_RGBI": ImagePreparation((4, 1, 2)), "SPOT_RGBI": ImagePreparation()}
SERIES = SeriesPreparation(cloud_filter=CloudFilter(max_cloud=60, max_snow=60, max_frac=0.9))
MODEL = fake_model({**IMAGES, "SENTINEL2_TS": SERIES})


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


def three_bands(made: MadeZone) -> NDArray[Any]:
    """An infrared ortho: infrared, red, green of the aerial bands red, green, blue, infrared."""
    return made.arrays["AERIAL_RGBI"][[3, 0, 1]]


def test_a_bundle_takes_bands_by_name(made: MadeZone, tmp_path: Path) -> None:
    """A three-band infrared ortho is enough for channels [4, 1, 2], as an array and as a file."""
    bundle = make_bundle(tmp_path / "bundle", {"AERIAL_RGBI": IMAGES["AERIAL_RGBI"]})
    full = arrays_of(made)["AERIAL_RGBI"]
    expected = classes(fh.zone(AERIAL_RGBI=full), bundle)
    ortho = full.isel(band=[3, 0, 1])
    for labels in (["NIR", "R", "G"], ["nir08", "red", "green"]):
        zone = fh.zone(AERIAL_RGBI=ortho.assign_coords(band=labels))
        assert zone.rasters["AERIAL_RGBI"].bands == ("R", "G", "NIR")
        np.testing.assert_array_equal(classes(zone, bundle), expected)
    path = write_raster(tmp_path / "ortho.tif", three_bands(made), 0.2)
    config = {
        "output_path": str(tmp_path),
        "output_name": "map",
        "model_weights": str(bundle),
        "img_pixels_detection": 32,
        "margin": 4,
        "modalities": {
            "inputs": {"AERIAL_RGBI": True},
            "AERIAL_RGBI": {"input_img_path": str(path), "bands": ["NIR", "red", "G"]},
        },
    }
    yaml_path = tmp_path / "zonal.yaml"
    yaml_path.write_text(yaml.safe_dump(config))
    zone = fh.open_zone(yaml_path)
    assert zone.rasters["AERIAL_RGBI"].bands == ("NIR", "R", "G")
    np.testing.assert_array_equal(classes(zone, bundle), expected)
    config["modalities"]["AERIAL_RGBI"]["bands"] = ["R", "G", "B"]
    yaml_path.write_text(yaml.safe_dump(config))
    with pytest.raises(ZoneError, match=r"the model takes NIR, R, G, but .*ortho.tif has R, G, B: NIR is missing"):
        classes(fh.open_zone(yaml_path), bundle)
    config["modalities"]["AERIAL_RGBI"]["bands"] = ["NIR", "R"]
    yaml_path.write_text(yaml.safe_dump(config))
    with pytest.raises(ZoneError, match=r"ortho.tif has 3 bands, but `bands` names 2 \(NIR, R\)"):
        fh.open_zone(yaml_path)
    del config["modalities"]["AERIAL_RGBI"]["bands"]
    yaml_path.write_text(yaml.safe_dump(config))
    with pytest.raises(ZoneError, match=r"channels \[4\] do not exist.*modalities.AERIAL_RGBI.bands: \[...\]"):
        classes(fh.open_zone(yaml_path), bundle)


def test_nodata_and_numbered_bands_of_an_opened_file(tmp_path: Path) -> None:
    """What rioxarray gives, with its declared nodata, in another order of bands."""
    made = make_zone(tmp_path, 64, 64, {"AERIAL_RGBI": 1})
    values = made.arrays["AERIAL_RGBI"]
    values[:, :, :20] = 0
    write_raster(tmp_path / "AERIAL_RGBI.tif", values, 0.2, nodata=0)
    model = fake_model({"AERIAL_RGBI": IMAGES["AERIAL_RGBI"]})
    expected = classes(made.open(32, 4), model)
    assert (expected[:, :20] == 255).all()
    assert (expected[:, 20:] != 255).all()
    images = rioxarray.open_rasterio(tmp_path / "AERIAL_RGBI.tif", chunks={"x": 16, "y": 16})
    for array in (images, images.isel(band=[3, 0, 1, 2])):
        np.testing.assert_array_equal(classes(fh.zone(AERIAL_RGBI=array), model), expected)
    with pytest.raises(ZoneError, match=r"AERIAL_RGBI.*: bands \[4, 1\], expected the numbers 1..2 or the names R, G"):
        fh.zone(AERIAL_RGBI=images.isel(band=[3, 0]))


@pytest.mark.parametrize("chunk", [None, 3])
def test_scale_and_offset(tmp_path: Path, chunk: int | None) -> None:
    """Attributes say that numbers are packed: they are unpacked; an encoding says that they have been."""
    packed = np.arange(1, 145, dtype="int16").reshape(4, 6, 6)
    packed[:, 0, 0] = -1
    array = as_array(packed, "SPOT_RGBI", 1.6)
    array = array.chunk(x=chunk, y=chunk) if chunk else array
    array.attrs |= {"scale_factor": 0.5, "add_offset": 10.0, "_FillValue": -1}
    pixels = fh.zone(SPOT_RGBI=array).rasters["SPOT_RGBI"].read((0, 6), (0, 6))
    assert pixels.values.dtype == "float32"
    np.testing.assert_array_equal(pixels.values[:, 1:], packed[:, 1:] * 0.5 + 10)
    assert pixels.valid is not None
    assert pixels.valid.sum() == 35
    assert not pixels.valid[0, 0]
    dataset = xr.decode_cf(array.rename("pixels").to_dataset(), decode_coords="all")
    decoded = fh.zone(SPOT_RGBI=dataset["pixels"]).rasters["SPOT_RGBI"].read((0, 6), (0, 6))
    np.testing.assert_array_equal(decoded.values, pixels.values)
    np.testing.assert_array_equal(decoded.valid, pixels.valid)
    # 10 is a value now, although the encoding still has -1 and the offset.
    assert dataset["pixels"].encoding["_FillValue"] == -1


def test_dates(made: MadeZone) -> None:
    array = arrays_of(made)["SENTINEL2_TS"]
    bare, other = array.drop_vars("time"), np.datetime64("2020-02-01") + np.arange(array.sizes["time"])
    assert list(fh.zone(SENTINEL2_TS=array).dates["SENTINEL2_TS"]) == list(made.dates["SENTINEL2_TS"])
    given = fh.zone(SENTINEL2_TS=array.rename(time="t"), dates={"SENTINEL2_TS": [str(day) for day in other]})
    assert list(given.dates["SENTINEL2_TS"]) == list(other)
    from_file = fh.zone(SENTINEL2_TS=bare, dates={"SENTINEL2_TS": made.folder / "SENTINEL2_TS.txt"})
    assert list(from_file.dates["SENTINEL2_TS"]) == list(made.dates["SENTINEL2_TS"])
    with pytest.raises(ZoneError, match=r"SENTINEL2_TS: has no time coordinate"):
        fh.zone(SENTINEL2_TS=bare)
    with pytest.raises(ZoneError, match=r"SENTINEL2_TS: has 5 images, but 2 dates"):
        fh.zone(SENTINEL2_TS=array, dates={"SENTINEL2_TS": ["20210101", "20210105"]})
    mask = arrays_of(made)["SENTINEL2_MSK-SC"]
    with pytest.raises(ZoneError, match=r"quality\['SENTINEL2_TS'\]: has 4 dates, and SENTINEL2_TS 5"):
        fh.zone(SENTINEL2_TS=array, quality={"SENTINEL2_TS": mask.isel(time=slice(4))})


def test_the_crs_is_taken_where_it_stands() -> None:
    array = as_array(np.ones((4, 8, 8), "uint8"), "AERIAL_RGBI", 0.2)
    expected = fh.zone(AERIAL_RGBI=array).geobox
    assert expected.bounds == (X_MIN, Y_MAX - 8 * 0.2, X_MIN + 8 * 0.2, Y_MAX)
    bare = array.drop_vars("spatial_ref")
    bare.attrs, bare.encoding = {}, {}
    for declared in (
        bare.assign_attrs({"proj:code": "EPSG:2154"}),
        bare.assign_coords({"proj:epsg": 2154}),
        bare.assign_attrs(crs="epsg:2154"),
        bare.to_dataset(name="ortho").assign_attrs({"proj:code": "EPSG:2154"}),
    ):
        assert fh.zone(AERIAL_RGBI=declared).geobox == expected
    flat = bare.drop_vars(["x", "y"]).assign_attrs({"spatial:transform": [0.2, 0, X_MIN, 0, -0.2, Y_MAX]})
    assert fh.zone(AERIAL_RGBI=flat.assign_attrs({"proj:code": "EPSG:2154"})).geobox == expected
    with pytest.raises(ZoneError, match=r"AERIAL_RGBI: has no CRS. Write it"):
        fh.zone(AERIAL_RGBI=bare)


def broken_arrays() -> dict[str, tuple[Any, str]]:
    """What cannot be a source, by what is wrong, and the message."""
    array = as_array(np.ones((4, 8, 8), "uint8"), "AERIAL_RGBI", 0.2)
    uneven = array.x.values.copy()
    uneven[3] += 0.1
    dataset = array.to_dataset("band")
    return {
        "degrees": (array.rename(x="longitude", y="latitude"), r"longitude.*a geographic CRS has no metres.*reproject"),
        "degrees by crs": (array.rio.write_crs(4326), r"is in EPSG:4326: a geographic CRS has no metres"),
        "unknown dimension": (array.expand_dims(level=2), r"dimensions level, band, y, x, expected y and x.*'level'"),
        "no y": (array.isel(y=0), r"has dimensions band, x, but no y"),
        "two dates": (array.expand_dims(time=2), r"has 2 dates, but AERIAL_RGBI is an image"),
        "uneven": (
            array.assign_coords(x=uneven),
            r"x is not evenly spaced: centres are up to 0.1 \(0.5 px\) off",
        ),
        "words": (array.assign_coords(x=list("abcdefgh")), r"x is <U1, expected finite numbers"),
        "other names": (array.assign_coords(band=list("klmn")), r"bands k, l, m, n, expected some of R, G, B, NIR"),
        "twice": (array.assign_coords(band=["R", "red", "B", "NIR"]), r"R and red both mean R. Keep one"),
        "three without names": (array.drop_vars("band").isel(band=slice(3)), r"has 3 bands without names, expected 4"),
        "no band": (array.isel(band=0, drop=True), r"has no dimension band, but AERIAL_RGBI has 4 bands"),
        "complex": (array.astype("complex64"), r"has dtype complex64, expected real numbers"),
        "a list": ([1, 2], r"got list, expected a DataArray, a Dataset or a path"),
        "unknown variables": (dataset.rename(R="k", G="l", B="m", NIR="n"), r"bands k, l, m, n, expected some of"),
    }


@pytest.mark.parametrize("name", list(broken_arrays()))
def test_refusals(name: str) -> None:
    source, message = broken_arrays()[name]
    with pytest.raises(ZoneError, match=message):
        fh.zone(AERIAL_RGBI=source)


def test_keywords_are_checked() -> None:
    array = as_array(np.ones((4, 8, 8), "uint8"), "AERIAL_RGBI", 0.2)
    with pytest.raises(UsageError, match=r"unknown modality 'AERIAL_RGB'. Did you mean AERIAL_RGBI"):
        fh.zone(AERIAL_RGB=array)
    with pytest.raises(UsageError, match=r"zone: got no source"):
        fh.zone()
    with pytest.raises(UsageError, match=r"align: got 'warp', expected strict or resample"):
        fh.zone(AERIAL_RGBI=array, align="warp")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"quality: AERIAL_RGBI is no series among the sources"):
        fh.zone(AERIAL_RGBI=array, quality={"AERIAL_RGBI": array})


def test_a_source_that_fails_is_named(made: MadeZone) -> None:
    def fail(block: NDArray[Any]) -> NDArray[Any]:
        raise OSError("the server is gone")

    array = arrays_of(made)["AERIAL_RGBI"]
    lazy = array.copy(data=da.map_blocks(fail, da.from_array(array.values, chunks=8), meta=array.values[:0]))
    raster = fh.zone(AERIAL_RGBI=lazy).rasters["AERIAL_RGBI"]
    with pytest.raises(DataError, match=r"AERIAL_RGBI: cannot read rows 0-3, .* \(OSError: the server is gone"):
        raster.read((0, 4), (0, 4))
