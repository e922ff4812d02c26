"""Lazy mosaics of one ROI equal the source files, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401  (registers .rio)

import flairhub as fh
from flairhub.errors import CubeError
from flairhub.modalities import MODALITIES
from tests.helpers.makers import PatchFiles, make_patch_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    return make_patch_files(
        tmp_path_factory.mktemp("roi"),
        domains=("D012-2019", "D033-2018"),
        n_rois=1,
        rows=2,
        cols=3,
        holes=[1],
        missing=[("DEM_ELEV", 0), ("AERIAL_RGBI", 0), ("SENTINEL2_TS", 2), ("ALL_LABEL-LPIS", 1)],
    )


@pytest.fixture(scope="module")
def cube(files: PatchFiles, make_cube: Callable[..., Path]) -> fh.cube.Cube:
    return fh.open_cube(make_cube(files))


def test_every_pixel_at_its_coordinates(cube: fh.cube.Cube, files: PatchFiles) -> None:
    tree = fh.open_roi(cube, "D012-2019_AF-S1-27")
    assert set(tree.children) == set(MODALITIES)
    assert tree.attrs == {"roi": "AF-S1-27", "domain": "D012-2019"}
    for name, row in MODALITIES.items():
        mosaic = tree[name].to_dataset()
        assert mosaic.data.chunks is not None
        assert mosaic.rio.crs == "EPSG:2154"
        loaded = mosaic.load()
        seen = np.zeros(loaded.present.shape, dtype=bool)
        for patch_id, path in files.files[name].items():
            if not patch_id.startswith("D012"):
                continue
            with rasterio.open(path) as source:
                left, _, _, top = source.bounds
                res = source.res[0]
            corner = loaded.sel(x=left + res / 2, y=top - res / 2, method="nearest", tolerance=res / 1000)
            i = int(np.flatnonzero(loaded.y.values == corner.y.values)[0])
            j = int(np.flatnonzero(loaded.x.values == corner.x.values)[0])
            size = files.sizes_px[name]
            window = loaded.isel(y=slice(i, i + size), x=slice(j, j + size))
            expected = files.arrays[name][patch_id]
            if not row.is_series:
                np.testing.assert_array_equal(window.data.values, expected)
                assert window.present.values.all()
                seen[i : i + size, j : j + size] = True
                continue
            days = files.dates[row.dates_of or name][patch_id]
            times = window.time.values.astype("datetime64[D]")
            held = np.isin(times, days)
            np.testing.assert_array_equal(times[held], days)
            np.testing.assert_array_equal(window.data.values[held], expected)
            np.testing.assert_array_equal(
                window.present.values, np.broadcast_to(held[:, None, None], window.present.shape)
            )
            seen[held, i : i + size, j : j + size] = True
        np.testing.assert_array_equal(loaded.present.values, seen)
        unseen = np.moveaxis(loaded.data.values, -3, 0)[:, ~seen]
        assert unseen.size, "the ROI has holes"
        fill = {"uint8": 0, "uint16": 0, "float32": np.nan}[row.dtype] if "LABEL" not in name else 255
        np.testing.assert_array_equal(unseen, np.full_like(unseen, fill))


def test_rasterio_gives_every_pixel_the_same_place(cube: fh.cube.Cube, files: PatchFiles) -> None:
    """Each pixel of each source file, placed by rasterio, is the mosaic's pixel with these very coordinates."""
    tree = fh.open_roi(cube, "D012-2019_AF-S1-27")
    for name in ("AERIAL_RGBI", "DEM_ELEV", "ALL_LABEL-LPIS"):
        mosaic = tree[name].to_dataset().load()
        for patch_id, path in files.files[name].items():
            if not patch_id.startswith("D012"):
                continue
            with rasterio.open(path) as source:
                assert mosaic.rio.crs == source.crs
                rows, cols = np.mgrid[: source.height, : source.width]
                xs, ys = source.xy(rows.ravel(), cols.ravel())
                values = source.read()
            j = np.searchsorted(mosaic.x.values, np.asarray(xs) - 1e-6)
            i = len(mosaic.y) - 1 - np.searchsorted(mosaic.y.values[::-1], np.asarray(ys) - 1e-6)
            np.testing.assert_allclose(mosaic.x.values[j], xs, rtol=0, atol=1e-6)
            np.testing.assert_allclose(mosaic.y.values[i], ys, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(mosaic.data.values[:, i, j], values.reshape(len(values), -1))


def test_the_transform_is_that_of_the_north_west_patch(cube: fh.cube.Cube, files: PatchFiles) -> None:
    mosaic = fh.open_roi(cube, "D012-2019_AF-S1-27")["SPOT_RGBI"].to_dataset()
    with rasterio.open(files.files["SPOT_RGBI"][files.patch_ids[0]]) as source:
        np.testing.assert_allclose(tuple(mosaic.rio.transform())[:6], tuple(source.transform)[:6])
    assert mosaic.rio.shape == (32, 48)


def test_two_images_of_one_day_are_both_kept(tmp_path: Path, make_cube: Callable[..., Path]) -> None:
    from tests.helpers.makers import date_entry, write_dates

    files = make_patch_files(tmp_path, n_rois=1, rows=1, cols=2, modalities=["SENTINEL1-ASC_TS"])
    first, second = files.patch_ids
    counts = [len(files.arrays["SENTINEL1-ASC_TS"][patch_id]) for patch_id in (first, second)]
    days = {
        first: np.full(counts[0], np.datetime64("2019-04-05")),
        second: np.arange(counts[1]) + np.datetime64("2019-04-01"),
    }
    entries = {patch_id: date_entry(days[patch_id]) for patch_id in days}
    write_dates(files.mtd_folder / "GLOBAL_SENTINEL1-ASC_MTD_DATES.gpkg", entries)
    mosaic = fh.open_roi(make_cube(files), "AF-S1-27")["SENTINEL1-ASC_TS"].to_dataset().load()
    held = mosaic.present.values[:, 0, 0]
    assert held.sum() == counts[0]
    np.testing.assert_array_equal(mosaic.data.values[held][:, :, :10, :10], files.arrays["SENTINEL1-ASC_TS"][first])
    assert (mosaic.time.values[held].astype("datetime64[D]") == np.datetime64("2019-04-05")).all()


def test_unknown_and_ambiguous_rois(cube: fh.cube.Cube) -> None:
    with pytest.raises(CubeError, match=r"no ROI 'ZZ-1'. The cube holds AF-S1-27"):
        fh.open_roi(cube, "ZZ-1")
    with pytest.raises(CubeError, match="several domains, pass one of D012-2019_AF-S1-27, D033-2018_AF-S1-27"):
        fh.open_roi(cube, "AF-S1-27")
