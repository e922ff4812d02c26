"""Regions of interest of a patch cube as zones: the map of a mosaic of the same patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from flairhub.cli import main
from flairhub.config import load_zonal_config
from flairhub.errors import ConfigError, CubeError, ZoneError
from flairhub.inference import open_zone, predict_zone, run_zonal
from flairhub.ingest import ingest, ingest_zone
from flairhub.modalities import INPUTS, MODALITIES
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import CloudFilter, SeriesPreparation
from flairhub.zones import RasterRequest
from tests.helpers.bundle_makers import make_bundle, write_zonal_config
from tests.helpers.makers import PatchFiles, date_entry, make_patch_files
from tests.helpers.makers import write_dates as write_gpkg
from tests.helpers.zone_makers import MadeZone, fake_model, write_dates, write_raster

ROI = "AF-S1-27"
PREPARATIONS: Mapping[str, Any] = {
    "AERIAL_RGBI": ImagePreparation((4, 1, 2), None, "scaling"),
    "AERIAL-RLT_PAN": ImagePreparation(normalisation="scaling"),
    "DEM_ELEV": ImagePreparation(elevation="ndsm"),
    "SPOT_RGBI": ImagePreparation((1, 2, 3), None, "scaling"),
    "SENTINEL2_TS": SeriesPreparation((1, 2, 8), CloudFilter(20, 20, 0.5), "monthly"),
    "SENTINEL1-ASC_TS": SeriesPreparation(),
    "SENTINEL1-DESC_TS": SeriesPreparation(average="semi-monthly"),
}
SERIES = ("SENTINEL2_TS", "SENTINEL1-ASC_TS", "SENTINEL1-DESC_TS")
HOLE, WITHOUT_SPOT = 4, 1
WINDOW, MARGIN = 64, 10


def with_dates(files: PatchFiles, own: int) -> PatchFiles:
    """Give all patches the same dates but for the last `own` ones, which nobody else has."""
    dates: dict[str, dict[str, np.ndarray]] = {}
    for number, name in enumerate(SERIES):
        if name not in files.modalities:
            continue
        dates[name] = {}
        for place, patch_id in enumerate(files.patch_ids):
            days = np.arange(5) * 60 + number
            days[5 - own :] += 1 + place
            dates[name][patch_id] = np.datetime64("2019-01-05") + days
        entries = {patch_id: date_entry(days) for patch_id, days in dates[name].items()}
        write_gpkg(files.mtd_folder / str(MODALITIES[name].dates_file), entries)
    return replace(files, dates=dates)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    """One ROI of 2 x 3 cells, one of them empty, one without SPOT; all patches of the same five dates."""
    made = make_patch_files(
        tmp_path_factory.mktemp("files"),
        n_rois=1,
        cols=3,
        holes=[HOLE],
        missing=[("SPOT_RGBI", WITHOUT_SPOT)],
        n_dates=dict.fromkeys(SERIES, (5, 5)),
    )
    return with_dates(made, 0)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory, files: PatchFiles) -> Path:
    path = tmp_path_factory.mktemp("cubes") / "hub.zarr"
    ingest(root=files.folder, cube=path, shard=2)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "all", PREPARATIONS)


def mosaic(files: PatchFiles, folder: Path, keep: slice = slice(None)) -> MadeZone:
    """Write the patches as whole GeoTIFFs, 2 x 3 cells; where no patch is, the file's mask says so."""
    left = min(x for x, _ in files.origins.values())
    top = max(y for _, y in files.origins.values())
    arrays, requests = {}, []
    for name in (*INPUTS, "SENTINEL2_MSK-SC"):
        if name not in files.modalities:
            continue
        row, size = MODALITIES[name], files.sizes_px[name]
        first = next(iter(files.arrays[name].values()))
        leading = (5 if row.is_series else 1) * first.shape[-3]
        whole, mask = np.zeros((leading, 2 * size, 3 * size), first.dtype), np.zeros((2 * size, 3 * size), np.uint8)
        for patch_id, values in files.arrays[name].items():
            x, y = files.origins[patch_id]
            i, j = round((top - y) / 102.4), round((x - left) / 102.4)
            place = slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size)
            whole[:, place[0], place[1]] = values.reshape(leading, size, size)
            mask[place] = 255
        if row.is_series:
            whole = whole.reshape(5, -1, *whole.shape[1:])[keep].reshape(-1, *whole.shape[1:])
        path = write_raster(folder / f"{name}.tif", whole, 102.4 / size, origin=(left, top))
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(mask)
        arrays[name] = whole
        if not row.is_input:
            continue
        dates_path = mask_path = None
        if row.is_series:
            days = next(iter(files.dates[name].values()))[keep]
            dates_path = write_dates(folder / f"{name}.txt", days)
            mask_path = folder / f"{row.quality_mask}.tif" if row.quality_mask in files.modalities else None
        requests.append(RasterRequest(name, path, dates_path, mask_path, f"modalities.{name}"))
    return MadeZone(folder, arrays, {}, tuple(requests))


NO_FILES = MadeZone(Path(), {}, {}, ())
WINDOWS = {"img_pixels_detection": WINDOW, "margin": MARGIN}
CHANGES = {
    **WINDOWS,
    "modalities.SENTINEL2_TS.filter_clouds_max_cloud": 20,
    "modalities.SENTINEL2_TS.filter_clouds_max_snow": 20,
    "modalities.SENTINEL2_TS.filter_clouds_max_frac_cover": 0.5,
}


@pytest.mark.parametrize("missing", ["nodata", "drop"])
def test_map_of_a_region_is_the_map_of_its_mosaic(
    files: PatchFiles, cube: Path, bundle: Path, tmp_path: Path, missing: str
) -> None:
    """All modalities, through real files; the empty cell has no data, the patch without SPOT only where all count."""
    made = mosaic(files, tmp_path)
    path = write_zonal_config(tmp_path / "zonal.yaml", made, bundle, {**CHANGES, "missing": missing})
    first = run_zonal(path)
    config = load_zonal_config(path, [f"cube={cube}", f"roi=D012-2019_{ROI}", "output_name=roi", "block_px=100"])
    again = run_zonal(config)
    with rasterio.open(first.maps[0].path) as one, rasterio.open(again.maps[0].path) as other:
        assert one.transform == pytest.approx(other.transform)
        assert (one.crs, one.shape) == (other.crs, other.shape)
        expected, found = one.read(1), other.read(1)
    assert found.tobytes() == expected.tobytes()
    cells = (found == 255).reshape(2, 64, 3, 64).swapaxes(1, 2).all(axis=(2, 3))
    gone = {(1, 1)} if missing == "drop" else {(1, 1), (0, 1)}
    assert {(int(i), int(j)) for i, j in np.argwhere(cells)} == gone
    assert len(np.unique(found)) > 2


def test_commands_take_a_region(cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A YAML that names no raster; the region can be written to a zone cube of its own."""
    small = make_bundle(tmp_path / "small", {"AERIAL_RGBI": ImagePreparation(normalisation="scaling")})
    changes = {**WINDOWS, "cube": str(cube), "roi": ROI, "modalities.inputs.AERIAL_RGBI": True}
    path = write_zonal_config(tmp_path / "zonal.yaml", NO_FILES, small, changes)
    main(["check", str(path)])
    assert "128 x 192 px of 1.6 m" in capsys.readouterr().out
    first = run_zonal(path)
    target = tmp_path / "roi.zarr"
    ingest_zone(open_zone(path), cube=target)
    again = run_zonal(load_zonal_config(path, [f"cube={target}", "roi=null", "output_name=again"]))
    assert first.nodata_share == again.nodata_share == pytest.approx(1 / 6)
    with rasterio.open(first.maps[0].path) as one, rasterio.open(again.maps[0].path) as other:
        assert one.read().tobytes() == other.read().tobytes()


@pytest.fixture(scope="module")
def other_dates(tmp_path_factory: pytest.TempPathFactory) -> tuple[PatchFiles, Path]:
    """Three dates in common, two of its own for every patch; no empty cell."""
    folder = tmp_path_factory.mktemp("others")
    names = ("AERIAL_RGBI", "SENTINEL2_TS", "SENTINEL2_MSK-SC")
    limits = {"SENTINEL2_TS": (5, 5)}
    made = make_patch_files(folder / "files", n_rois=1, cols=3, modalities=names, n_dates=limits)
    made = with_dates(made, 2)
    ingest(root=made.folder, cube=folder / "hub.zarr")
    return made, folder / "hub.zarr"


SUM = {"AERIAL_RGBI": ImagePreparation(), "SENTINEL2_TS": SeriesPreparation()}


def roi_map(cube: Path, tmp_path: Path, window: int) -> np.ndarray:
    changes = {
        "cube": str(cube),
        "roi": ROI,
        "img_pixels_detection": window,
        "margin": 0,
        **{f"modalities.inputs.{name}": True for name in SUM},
    }
    path = write_zonal_config(tmp_path / "zonal.yaml", NO_FILES, tmp_path, changes)
    return predict_zone(open_zone(path), fake_model(SUM), block_px=50)["class"].values


def with_gaps(files: PatchFiles, folder: Path) -> MadeZone:
    """The patches as whole GeoTIFFs; at the dates that a patch does not have, its pixels are nodata."""
    made, name = mosaic(files, folder), "SENTINEL2_TS"
    axis = sorted({day for days in files.dates[name].values() for day in days})
    left = min(x for x, _ in files.origins.values())
    top = max(y for _, y in files.origins.values())
    whole = np.full((len(axis), 10, 20, 30), 65535, np.uint16)
    for patch_id, values in files.arrays[name].items():
        x, y = files.origins[patch_id]
        i, j = round((top - y) / 102.4), round((x - left) / 102.4)
        slots = [axis.index(day) for day in files.dates[name][patch_id]]
        whole[slots, :, i * 10 : (i + 1) * 10, j * 10 : (j + 1) * 10] = values
    path = write_raster(folder / f"{name}.tif", whole.reshape(-1, 20, 30), 10.24, origin=(left, top), nodata=65535)
    days = write_dates(folder / f"{name}.txt", np.array(axis))
    requests = [one for one in made.requests if one.name != name]
    return replace(made, requests=(*requests, RasterRequest(name, path, days, key=f"modalities.{name}")))


def test_a_date_counts_where_a_patch_has_it(other_dates: tuple[PatchFiles, Path], tmp_path: Path) -> None:
    files, cube = other_dates
    # A window per patch: each with all of its own dates.
    found = roi_map(cube, tmp_path, 64)
    for number, patch_id in enumerate(files.patch_ids):
        folder, x_y = tmp_path / f"patch{number}", files.origins[patch_id]
        requests = []
        for name in SUM:
            values = files.arrays[name][patch_id]
            flat = values.reshape(-1, *values.shape[-2:])
            path = write_raster(folder / f"{name}.tif", flat, 102.4 / flat.shape[-1], origin=x_y)
            days = write_dates(folder / f"{name}.txt", files.dates[name][patch_id]) if name in files.dates else None
            requests.append(RasterRequest(name, path, days))
        alone = predict_zone(MadeZone(folder, {}, {}, tuple(requests)).open(64, 0), fake_model(SUM))["class"].values
        i, j = divmod(number, 3)
        np.testing.assert_array_equal(found[i * 64 : (i + 1) * 64, j * 64 : (j + 1) * 64], alone)
    # Windows over four patches: as of rasters in which dates lack the pixels of the other patches.
    model, zone = fake_model(SUM), with_gaps(files, tmp_path / "gaps").open(128, 0)
    expected = predict_zone(zone, model)["class"].values
    assert len(zone.dates["SENTINEL2_TS"]) == 3 + 2 * 6
    np.testing.assert_array_equal(roi_map(cube, tmp_path, 128), expected)


def test_check_counts_the_dates_that_windows_use(other_dates: tuple[PatchFiles, Path], tmp_path: Path) -> None:
    """One sampled square over all patches: three dates are common, two are each patch's own, a sixth of the pixels."""
    from flairhub.inference.values import CheckReport, _check_clouds

    changes = {"cube": str(other_dates[1]), "roi": ROI, "img_pixels_detection": 64, "margin": 0}
    inputs = {f"modalities.inputs.{name}": True for name in SUM}
    zone = open_zone(write_zonal_config(tmp_path / "zonal.yaml", NO_FILES, tmp_path, {**changes, **inputs}))
    report = CheckReport()
    _check_clouds(report, zone, "SENTINEL2_TS", CloudFilter(100, 100, 1.0))
    clear = sorted(share for _, share, _ in report.dates["SENTINEL2_TS"])
    assert clear == pytest.approx([1 / 6] * 12 + [1.0] * 3)
    assert [share for _, _, share in report.dates["SENTINEL2_TS"]] == [1.0] * 15


def test_zone_cube_keeps_which_patch_has_which_date(other_dates: tuple[PatchFiles, Path], tmp_path: Path) -> None:
    changes = {"cube": str(other_dates[1]), "roi": ROI, "img_pixels_detection": 128, "margin": 0}
    inputs = {f"modalities.inputs.{name}": True for name in SUM}
    path = write_zonal_config(tmp_path / "zonal.yaml", NO_FILES, tmp_path, {**changes, **inputs})
    target = tmp_path / "roi.zarr"
    ingest_zone(open_zone(path), cube=target)
    stored = open_zone(load_zonal_config(path, [f"cube={target}", "roi=null"]))
    expected = predict_zone(open_zone(path), fake_model(SUM))["class"].values
    np.testing.assert_array_equal(predict_zone(stored, fake_model(SUM))["class"].values, expected)
    valid = stored.rasters["SENTINEL2_TS"].read((0, 20), (0, 30)).valid
    assert valid is not None
    assert valid.shape == (15, 20, 30)
    assert valid.sum() == (3 * 6 + 2 * 6) * 100


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"roi": "ZZ-S1-1"}, CubeError, r"no ROI 'ZZ-S1-1'. The cube holds AF-S1-27"),
        ({"roi": None}, CubeError, r"no zone cube \(attribute 'flairhub_zone' is missing\)"),
        ({"modalities.inputs.SPOT_RGBI": True}, ZoneError, r"holds no SPOT_RGBI, only AERIAL_RGBI"),
        ({"img_pixels_detection": 50}, ConfigError, "multiples of 32 px. Use 32 or 64"),
    ],
)
def test_errors_say_what_to_do(
    other_dates: tuple[PatchFiles, Path],
    tmp_path: Path,
    changes: Mapping[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    base = {"cube": str(other_dates[1]), "roi": ROI, "modalities.inputs.AERIAL_RGBI": True, "margin": 0}
    inputs = {"modalities.inputs.SENTINEL2_TS": True}
    path = write_zonal_config(tmp_path / "zonal.yaml", NO_FILES, tmp_path, {**base, **inputs, **changes})
    with pytest.raises(error, match=message):
        open_zone(path)


def test_mask_that_does_not_fit_its_series_is_named(tmp_path: Path) -> None:
    names = ("AERIAL_RGBI", "SENTINEL2_TS", "SENTINEL2_MSK-SC")
    made = make_patch_files(tmp_path / "files", n_rois=1, modalities=names, missing=[("SENTINEL2_MSK-SC", 2)])
    ingest(root=made.folder, cube=tmp_path / "hub.zarr")
    changes = {"cube": str(tmp_path / "hub.zarr"), "roi": ROI, "modalities.inputs.SENTINEL2_TS": True}
    path = write_zonal_config(tmp_path / "zonal.yaml", NO_FILES, tmp_path, changes)
    with pytest.raises(
        CubeError, match=rf"{made.patch_ids[2]} has \d+ images of SENTINEL2_TS, but 0 of .*filter_clouds"
    ):
        open_zone(path)
    off = load_zonal_config(path, ["modalities.SENTINEL2_TS.filter_clouds=false", "img_pixels_detection=5", "margin=0"])
    assert open_zone(off).quality == {}
