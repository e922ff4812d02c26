"""Everything in a cube equals the files it was made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

import flairhub as fh
from flairhub.config import load_train_config
from flairhub.errors import DataError
from flairhub.modalities import MODALITIES
from flairhub.timeseries import CloudFilter, SeriesPreparation, average_series, keep_dates, prepare_series
from tests.helpers.commands import run_command
from tests.helpers.comparisons import assert_equals_files
from tests.helpers.makers import PatchFiles, make_patch_files, write_patch, write_train_config


def test_from_a_folder(patch_files: PatchFiles, make_cube: Callable[..., Path]) -> None:
    cube = fh.open_cube(make_cube(patch_files))
    assert cube.patch_ids == patch_files.patch_ids
    assert_equals_files(cube, patch_files, tuple(MODALITIES))


@pytest.mark.parametrize("codec", ["fast", "dense", "none"])
def test_from_the_configuration_with_every_codec(patch_files: PatchFiles, tmp_path: Path, codec: str) -> None:
    config = load_train_config(write_train_config(tmp_path / "config", patch_files))
    report = fh.ingest(config, cube=tmp_path / "c.zarr", codec=codec, shard=3)
    cube = fh.open_cube(tmp_path / "c.zarr")
    assert_equals_files(cube, patch_files, tuple(MODALITIES))
    assert report.modalities == tuple(MODALITIES)
    assert (report.n_patches, report.n_jobs, report.n_reused) == (8, 30, 0)
    assert cube.patches.split.tolist() == [patch_files.splits[patch_id] for patch_id in cube.patch_ids]


def test_missing_modalities_are_recorded(tmp_path: Path) -> None:
    files = make_patch_files(
        tmp_path, n_rois=1, missing=[("AERIAL_RGBI", 0), ("SENTINEL2_TS", 2), ("ALL_LABEL-LPIS", 1)], holes=[2]
    )
    config = load_train_config(write_train_config(tmp_path / "config", files))
    for name, source in (("csv", {"config": config}), ("root", {"root": files.folder})):
        fh.ingest(cube=tmp_path / f"{name}.zarr", shard=2, **source)
        assert_equals_files(fh.open_cube(tmp_path / f"{name}.zarr"), files, tuple(MODALITIES))


def test_only_what_the_configuration_enables(patch_files: PatchFiles, tmp_path: Path) -> None:
    inputs = {name: name in ("AERIAL_RGBI", "SENTINEL2_TS") for name in patch_files.modalities if "LABEL" not in name}
    inputs.pop("SENTINEL2_MSK-SC")
    folder = write_train_config(
        tmp_path / "config",
        patch_files,
        modalities={"inputs": inputs},
        labels=["AERIAL_LABEL-COSIA"],
        labels_configs={"ALL_LABEL-LPIS": ...},
    )
    fh.ingest(load_train_config(folder), cube=tmp_path / "c.zarr")
    names = ("AERIAL_RGBI", "SENTINEL2_TS", "SENTINEL2_MSK-SC", "AERIAL_LABEL-COSIA")
    assert_equals_files(fh.open_cube(tmp_path / "c.zarr"), patch_files, names)


def test_only_some_domains_and_modalities(patch_files: PatchFiles, tmp_path: Path) -> None:
    report = fh.ingest(
        root=patch_files.folder,
        cube=tmp_path / "c.zarr",
        domains=["D033-2018"],
        modalities=["AERIAL-RLT_PAN", "SENTINEL1-DESC_TS"],
    )
    cube = fh.open_cube(tmp_path / "c.zarr")
    assert report.n_patches == 4
    assert cube.patch_ids == patch_files.patch_ids[4:]
    assert_equals_files(cube, patch_files, ("AERIAL-RLT_PAN", "SENTINEL1-DESC_TS"))


@pytest.mark.parametrize(("average", "filtered"), [("monthly", True), ("semi-monthly", False)])
def test_averages_are_those_of_timeseries(
    patch_files: PatchFiles, tmp_path: Path, average: str, filtered: bool
) -> None:
    steps = {
        "filter_sentinel2": filtered,
        "filter_sentinel2_max_frac_cover": 0.1,
        "temporal_average_sentinel2": average,
        "temporal_average_sentinel1": average,
    }
    config = load_train_config(
        write_train_config(tmp_path / "config", patch_files, modalities={"pre_processings": steps})
    )
    fh.ingest(config, cube=tmp_path / "c.zarr", shard=3)
    cube = fh.open_cube(tmp_path / "c.zarr")
    assert_equals_files(cube, patch_files, tuple(MODALITIES))
    rule = CloudFilter(1.0, 1.0, 0.1) if filtered else None
    for name in ("SENTINEL2_TS", "SENTINEL1-ASC_TS", "SENTINEL1-DESC_TS"):
        used = rule if name == "SENTINEL2_TS" else None
        stored = cube.averages(name)[average]
        assert (stored.average, stored.cloud_filter) == (average, used)
        for position, patch_id in enumerate(cube.patch_ids):
            values, days = patch_files.arrays[name][patch_id], patch_files.dates[name][patch_id]
            quality = patch_files.arrays["SENTINEL2_MSK-SC"][patch_id]
            keep = keep_dates(quality, used) if used else np.ones(len(days), dtype=bool)
            means = average_series(values[keep], days[keep], average, "05-15")  # type: ignore[arg-type]
            found = cube.read_average(name, average, [position])[0]
            np.testing.assert_array_equal(found, means.values)
            np.testing.assert_array_equal(stored.n_observations[position], means.count)
            year = str(days[keep][0])[:4]
            expected_days = np.datetime64(f"{year}-05-15") + means.offsets
            np.testing.assert_array_equal(stored.dates[position], expected_days)
            whole = prepare_series(values, days, quality, SeriesPreparation(cloud_filter=used, average=average))  # type: ignore[arg-type]
            np.testing.assert_array_equal(found, whole.values)
    assert cube.averages("AERIAL_RGBI") == {}


def test_labels_keep_unknown_apart_from_class_0(tmp_path: Path) -> None:
    files = make_patch_files(tmp_path, n_rois=1, rows=1, cols=3, modalities=["AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS"])
    name = "AERIAL_LABEL-COSIA"
    first, second, third = files.patch_ids
    labels = files.arrays[name]
    labels[first][0, :3, :5] = 255
    write_patch(files.files[name][first], labels[first], files.origins[first])
    labels[second][0, :, 7] = 200
    write_patch(files.files[name][second], labels[second], files.origins[second], nodata=200)
    wide = labels[third].astype(np.int16)
    wide[0, 4] = -1
    write_patch(files.files[name][third], wide, files.origins[third], nodata=-1)
    fh.ingest(root=tmp_path, cube=tmp_path / "c.zarr")
    stored = fh.open_cube(tmp_path / "c.zarr").read(name, [0, 1, 2])
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored[0], labels[first])
    np.testing.assert_array_equal(stored[1], np.where(labels[second] == 200, 255, labels[second]))
    np.testing.assert_array_equal(stored[2], np.where(wide == -1, 255, wide))
    ignored = fh.open_cube(tmp_path / "c.zarr").info(name)["ignored"]
    assert ignored == [15 + 64 + 64]


def test_numeric_dtypes_that_lose_nothing(tmp_path: Path) -> None:
    files = make_patch_files(tmp_path, n_rois=1, rows=1, cols=2, modalities=["DEM_ELEV", "SENTINEL1-ASC_TS"])
    for name, dtype in (("DEM_ELEV", np.int16), ("SENTINEL1-ASC_TS", np.int32)):
        for patch_id, values in files.arrays[name].items():
            whole = np.round(values).astype(dtype)
            files.arrays[name][patch_id] = whole.astype(np.float32)
            write_patch(files.files[name][patch_id], whole, files.origins[patch_id])
    fh.ingest(root=tmp_path, cube=tmp_path / "c.zarr")
    assert_equals_files(fh.open_cube(tmp_path / "c.zarr"), files, ("DEM_ELEV", "SENTINEL1-ASC_TS"))


def test_nan_and_nodata_are_kept_and_counted(tmp_path: Path) -> None:
    files = make_patch_files(tmp_path, n_rois=1, rows=1, cols=2, modalities=["DEM_ELEV", "SPOT_RGBI"])
    first, second = files.patch_ids
    dem, spot = files.arrays["DEM_ELEV"], files.arrays["SPOT_RGBI"]
    dem[first][0, 3] = np.nan
    dem[second][1, :2] = -9999
    spot[first][2, 5] = 0
    spot[first][:, 7, 7] = 0
    write_patch(files.files["DEM_ELEV"][first], dem[first], files.origins[first])
    write_patch(files.files["DEM_ELEV"][second], dem[second], files.origins[second], nodata=-9999)
    write_patch(files.files["SPOT_RGBI"][first], spot[first], files.origins[first], nodata=0)
    report = fh.ingest(root=tmp_path, cube=tmp_path / "c.zarr")
    cube = fh.open_cube(tmp_path / "c.zarr")
    np.testing.assert_array_equal(cube.read("DEM_ELEV", [0, 1]), np.stack([dem[first], dem[second]]))
    lacking = np.zeros((2, *dem[first].shape[1:]), dtype=bool)
    lacking[0, 3] = lacking[1, :2] = True
    statistics = cube.info("DEM_ELEV")["statistics"]
    for band, entry in enumerate(statistics):
        values = np.stack([dem[first][band], dem[second][band]])[~lacking].astype(np.float64)
        assert (entry["invalid"], entry["count"]) == (64 + 128, values.size)
        assert (entry["min"], entry["max"]) == (values.min(), values.max())
        assert entry["mean"] == pytest.approx(values.mean())
        assert entry["std"] == pytest.approx(values.std())
    np.testing.assert_array_equal(cube.read_valid("DEM_ELEV", [0, 1]), ~lacking)
    assert cube.info("DEM_ELEV")["validity"] == ["nodata"]
    # A 0 by chance in one band is a number; a pixel that is 0 in all of them holds no data.
    assert [entry["invalid"] for entry in cube.info("SPOT_RGBI")["statistics"]] == [1] * 4
    black = np.ones((2, *spot[first].shape[1:]), dtype=bool)
    black[0, 7, 7] = False
    np.testing.assert_array_equal(cube.read_valid("SPOT_RGBI", [0, 1]), black)
    assert statistics[0]["invalid"] == report.invalid["DEM_ELEV"]
    assert report.invalid == {"DEM_ELEV": 192, "SPOT_RGBI": 1}
    document = json.loads((tmp_path / "c.zarr/ingest/report.json").read_text())
    assert document["invalid"] == report.invalid
    assert fh.ingest(root=tmp_path, cube=tmp_path / "c.zarr").invalid == report.invalid


def test_bad_files_can_be_recorded_as_missing(tmp_path: Path) -> None:
    files = make_patch_files(tmp_path, n_rois=1, modalities=["SPOT_RGBI", "SENTINEL1-ASC_TS", "ALL_LABEL-LPIS"])
    bad = files.patch_ids[1]
    files.files["SPOT_RGBI"][bad].write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"not a readable GeoTIFF \(22 bytes\)"):
        fh.ingest(root=tmp_path, cube=tmp_path / "c.zarr")
    report = fh.ingest(root=tmp_path, cube=tmp_path / "c.zarr", on_error="skip")
    assert [(name, patch_id) for name, patch_id, _ in report.skipped] == [("SPOT_RGBI", bad)]
    del files.arrays["SPOT_RGBI"][bad]
    assert_equals_files(fh.open_cube(tmp_path / "c.zarr"), files, ("SPOT_RGBI", "SENTINEL1-ASC_TS", "ALL_LABEL-LPIS"))


def test_class_counts_of_the_configuration_widen_the_nomenclature(tmp_path: Path) -> None:
    files = make_patch_files(tmp_path, n_rois=1, modalities=["AERIAL_RGBI", "AERIAL_LABEL-COSIA"])
    name, patch_id = "AERIAL_LABEL-COSIA", files.patch_ids[0]
    files.arrays[name][patch_id][0, 0, 0] = 19
    write_patch(files.files[name][patch_id], files.arrays[name][patch_id], files.origins[patch_id])
    names = {index: f"class {index}" for index in range(20)}
    folder = write_train_config(tmp_path / "config", files, labels_configs={name: {"value_name": names}})
    config = load_train_config(folder)
    fh.ingest(config, cube=tmp_path / "c.zarr")
    assert fh.open_cube(tmp_path / "c.zarr").read(name, [0])[0, 0, 0, 0] == 19
    with pytest.raises(DataError, match=r"value 19 is outside the 19 classes 0\.\.18"):
        fh.ingest(root=tmp_path, cube=tmp_path / "d.zarr")


def test_heights_of_double_precision_are_rounded(tmp_path: Path) -> None:
    files = make_patch_files(tmp_path / "files", n_rois=1, modalities=("DEM_ELEV",), sizes_px={"DEM_ELEV": 16})
    patch_id = files.patch_ids[0]
    heights = files.arrays["DEM_ELEV"][patch_id].astype(np.float64) + 0.1
    heights[:, 0, 0] = np.nan
    heights[:, 0, 1] = -1.7976931348623157e308
    path, origin = files.files["DEM_ELEV"][patch_id], files.origins[patch_id]
    write_patch(path, heights, origin, nodata=-1.7976931348623157e308)
    cube = fh.open_cube(fh.ingest(root=files.folder, cube=tmp_path / "c.zarr").cube)
    valid = cube.read_valid("DEM_ELEV", [0], every_band=True)
    assert valid is not None
    assert np.argwhere(~valid[0]).tolist() == [[0, 0], [0, 1]]
    stored = cube.read("DEM_ELEV", [0])[0]
    np.testing.assert_array_equal(stored[:, 1:], heights[:, 1:].astype(np.float32))


@pytest.mark.parametrize(
    ("crs", "scale", "said", "size"),
    [
        ("EPSG:2154", 1.0, "", "102.4 x 102.4 m"),
        ("EPSG:4326", 1e-5, "is in EPSG:4326, whose unit is the degree: ", "degrees"),
        ("EPSG:2263", 1.0, "EPSG:2263 has units of 0.304801 m", "31.2116 x 31.2116 m"),
    ],
)
def test_units_that_are_no_metres_are_named(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    crs: str,
    scale: float,
    said: str,
    size: str,
) -> None:
    files = make_patch_files(tmp_path / "files", n_rois=1, modalities=("DEM_ELEV",), sizes_px={"DEM_ELEV": 16})
    for patch_id, path in files.files["DEM_ELEV"].items():
        x, y = files.origins[patch_id]
        values = files.arrays["DEM_ELEV"][patch_id]
        write_patch(path, values, (x * scale, y * scale), 102.4 * scale, crs=crs)
    cube = fh.ingest(root=files.folder, cube=tmp_path / "c.zarr").cube
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)
    assert size in run_command(capsys, "cube", "info", cube)[1]


def test_tolerances_of_places_are_those_of_zones(tmp_path: Path) -> None:
    """Terms of rotation that move no pixel, and a compound CRS beside its horizontal part, are no difference."""
    names = ("DEM_ELEV", "SPOT_RGBI")
    files = make_patch_files(tmp_path / "files", n_rois=1, modalities=names, sizes_px=dict.fromkeys(names, 16))
    for patch_id, path in files.files["DEM_ELEV"].items():
        x, y = files.origins[patch_id]
        turned = rasterio.Affine(6.4, 1e-12, x, -1e-12, -6.4, y)
        write_patch(path, files.arrays["DEM_ELEV"][patch_id], (x, y), crs="EPSG:2154+5720", transform=turned)
    cube = fh.open_cube(fh.ingest(root=files.folder, cube=tmp_path / "c.zarr").cube)
    assert_equals_files(cube, files, names)
    turned = rasterio.Affine(6.4, 0.01, x, 0.0, -6.4, y)
    write_patch(path, files.arrays["DEM_ELEV"][patch_id], (x, y), transform=turned)
    with pytest.raises(DataError, match="the raster is rotated"):
        fh.ingest(root=files.folder, cube=tmp_path / "d.zarr")


@pytest.mark.parametrize("packed", [False, True])
def test_a_patch_without_a_tie_point_is_refused(tmp_path: Path, packed: bool) -> None:
    """GDAL puts a file with a pixel size alone at the origin."""
    files = make_patch_files(tmp_path / "files", n_rois=1, modalities=("DEM_ELEV",), sizes_px={"DEM_ELEV": 16})
    path = files.files["DEM_ELEV"][files.patch_ids[1]]
    content = path.read_bytes()
    # The tag of tie points (33922) becomes a private one.
    place = content.index((33922).to_bytes(2, "little") + (12).to_bytes(2, "little"))
    path.write_bytes(content[:place] + (65001).to_bytes(2, "little") + content[place + 2 :])
    folder = files.folder
    if packed:
        folder = tmp_path / "zips"
        folder.mkdir()
        for domain in [entry for entry in files.folder.iterdir() if entry.name.endswith("DEM_ELEV")]:
            shutil.make_archive(str(folder / domain.name), "zip", domain)
    with pytest.raises(DataError, match=rf"{path.name}: has a pixel size, but no tie point"):
        fh.ingest(root=folder, cube=tmp_path / "c.zarr")
