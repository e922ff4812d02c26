"""A store that was written when format 1 was new: every later version must read it.

`tests/golden/cube-format-1/cube.zarr` is never written again. `values.npz` holds what its source files held, taken
before they were ingested: `<MODALITY>/<patch id>` (series (time, band, y, x)), `dates/<MODALITY>/<patch id>` (days
since 1970-01-01), `patch_id`, `split`, `origin`. The monthly means below were worked out from those by hand of numpy.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import flairhub as fh
from flairhub.cube.reader import Backend
from flairhub.cube.template import consolidate
from flairhub.cube.verify import verify
from flairhub.modalities import MODALITIES
from flairhub.timeseries import CloudFilter

FOLDER = Path(__file__).parents[1] / "golden" / "cube-format-1"
PATH = FOLDER / "cube.zarr"
NAMES = (
    "AERIAL_RGBI",
    "DEM_ELEV",
    "SPOT_RGBI",
    "SENTINEL2_TS",
    "SENTINEL1-ASC_TS",
    "SENTINEL2_MSK-SC",
    "ALL_LABEL-LPIS",
)
SHA256 = "1ba1075a0ba115c9e5da057c91cf6505648a7cd847f20b7aa135e2bd69f07630"
"""Of the names and bytes of all files of the store: it must stay as it was written."""


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "values.npz") as stored:
        return dict(stored)


def test_nobody_wrote_the_store_again() -> None:
    digest = hashlib.sha256()
    for path in sorted(PATH.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(PATH).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    assert digest.hexdigest() == SHA256


def test_its_metadata_is_consolidated_in_the_same_way_today(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(PATH, tmp_path / "copy.zarr"))
    consolidate(copy)
    for path in PATH.rglob("zarr.json"):
        assert (copy / path.relative_to(PATH)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("backend", ["direct", "zarr"])
def test_every_value_and_date(values: dict[str, np.ndarray], backend: Backend) -> None:
    cube = fh.open_cube(PATH, backend)
    assert cube.modalities == NAMES
    assert cube.patch_ids == values["patch_id"].tolist() == [f"D012-2019_AF-S1-27_3-{col}" for col in (9, 10, 11)]
    table = cube.patches
    assert table.split.tolist() == values["split"].tolist() == ["train", "valid", "train"]
    np.testing.assert_allclose(np.stack([table.x_min, table.y_max], axis=1), values["origin"], atol=1e-6)
    assert cube.present("DEM_ELEV").tolist() == [True, False, True]
    assert cube.present("SENTINEL1-ASC_TS").tolist() == [True, True, False]
    for name in NAMES:
        for position in np.flatnonzero(cube.present(name)):
            stored, expected = cube.read(name, [position])[0], values[f"{name}/{cube.patch_ids[position]}"]
            assert stored.dtype == expected.dtype
            if MODALITIES[name].is_series:
                dated = MODALITIES[name].dates_of or name
                days = values[f"dates/{dated}/{cube.patch_ids[position]}"].astype("datetime64[D]")
                series = cube.series(name)
                assert series.n_dates[position] == len(days)
                np.testing.assert_array_equal(series.dates[position, : len(days)], days)
                stored = stored[: len(days)]
            np.testing.assert_array_equal(stored, expected)


def test_monthly_means(values: dict[str, np.ndarray]) -> None:
    cube = fh.open_cube(PATH)
    means = cube.averages("SENTINEL2_TS")["monthly"]
    assert means.cloud_filter == CloudFilter(1.0, 1.0, 0.3)
    for position, patch_id in enumerate(cube.patch_ids):
        images, quality = values[f"SENTINEL2_TS/{patch_id}"], values[f"SENTINEL2_MSK-SC/{patch_id}"]
        month = (
            values[f"dates/SENTINEL2_TS/{patch_id}"].astype("datetime64[D]").astype("datetime64[M]").astype(int) % 12
        )
        snow, cloud = quality[:, 0] <= 1, quality[:, 1] <= 1
        clear = (snow & cloud).mean(axis=(1, 2)) >= 0.7
        clear = clear if clear.any() else snow.mean(axis=(1, 2)) >= 0.7
        stored = cube.read_average("SENTINEL2_TS", "monthly", [position])[0]
        for number in range(12):
            chosen = images[clear & (month == number)].astype(np.float64)
            assert means.n_observations[position, number] == len(chosen)
            expected = chosen.mean(axis=0) if len(chosen) else np.zeros(images.shape[1:])
            np.testing.assert_allclose(stored[number], expected, rtol=1e-5)
        assert means.dates[position, 3] == np.datetime64("2019-04-15")


def test_it_is_whole_and_others_open_it(values: dict[str, np.ndarray]) -> None:
    found = verify(fh.open_cube(PATH))
    assert (found.damage, found.n_chunks, found.n_files) == ((), 28, 20)
    (note,) = found.unchecked
    assert "made before stores had a seal" in note
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for group in ("patches", *NAMES, "SENTINEL2_TS/monthly"):
            assert xr.open_zarr(PATH, group=group).load().patch_id.values.tolist() == values["patch_id"].tolist()
    array = zarr.open_array(str(PATH / "SPOT_RGBI" / "data"), mode="r")
    np.testing.assert_array_equal(array[2], values["SPOT_RGBI/D012-2019_AF-S1-27_3-11"])
