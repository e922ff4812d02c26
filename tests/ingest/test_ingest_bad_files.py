"""Bad rasters and dates: each kind has its error, which names file, what was found and what was expected."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

import flairhub as fh
from flairhub.cube.verify import verify
from tests.helpers.breaking import NAMES, bomb, dem, label, moved, rewrite, set_dates, south_up, sparse, truncate, vrt
from tests.helpers.commands import failure
from tests.helpers.makers import PatchFiles

TWO = np.zeros((2, 16, 16), dtype=np.float32)
FILE = r"D012-2019_DEM_ELEV_AF-S1-27_4-9\.tif: "
FIRST = r"D012-2019_DEM_ELEV_AF-S1-27_3-9\.tif"
ENTRY = r"GLOBAL_SENTINEL1-ASC_MTD_DATES\.gpkg: patch D012-2019_AF-S1-27_4-9"

BAD_FILES: dict[str, tuple[Callable[[PatchFiles], None], str]] = {
    "bands": (dem(2, np.zeros((3, 16, 16), dtype=np.float32)), FILE + r"3 bands, expected 2 \(DEM_ELEV\)"),
    "size": (
        dem(2, np.zeros((2, 8, 16), dtype=np.float32)),
        FILE + rf"size 16 x 8 px, expected 16 x 16 px as in \S*{FIRST}",
    ),
    "crs": (dem(2, crs="EPSG:32631"), FILE + rf"CRS EPSG:32631, expected EPSG:2154 as in \S*{FIRST}"),
    "no crs": (dem(2, crs=None), FILE + "CRS none, expected EPSG:2154"),
    "resolution": (
        dem(2, transform=from_origin(0, 0, 3.2, 3.2)),
        FILE + r"footprint 51\.2 x 51\.2 m, expected 102\.4 x 102\.4 m",
    ),
    "south-up": (south_up, FILE + r"pixel size \(6\.4, 6\.4\) is not north-up"),
    "rotated": (
        dem(2, transform=rasterio.Affine(6.4, 0.1, 489000, 0.1, -6.4, 6840000)),
        FILE + r"the raster is rotated \(transform",
    ),
    "no georeferencing": (dem(2, transform=rasterio.Affine.identity(), crs=None), FILE + "no georeferencing found"),
    "nan transform": (
        dem(2, transform=rasterio.Affine(6.4, 0, np.nan, 0, -6.4, 6840000)),
        FILE + r"no georeferencing found: its transform \S.* is not finite",
    ),
    "half a pixel": (moved(3.2), r"upper left corner \(\S+, \S+\), expected \(\S+, \S+\) as in \S+_4-9\.tif"),
    "complex": (dem(2, TWO.astype(np.complex64)), FILE + "dtype complex64, expected float32"),
    "lossy": (dem(2, TWO.astype(np.float64) + 1e39), FILE + r"dtype float64 value 1e\+39 does not fit float32"),
    "integers too large": (dem(2, TWO.astype(np.int32) + 2**24 + 1), FILE + "dtype int32 value 16777217 does not fit"),
    "truncated": (truncate, FILE + "truncated or damaged"),
    "empty": (
        lambda files: files.files["DEM_ELEV"][files.patch_ids[2]].write_bytes(b""),
        FILE + r"not a readable GeoTIFF \(0",
    ),
    "html": (
        lambda files: files.files["DEM_ELEV"][files.patch_ids[2]].write_text("<html></html>"),
        FILE + r"not a readable GeoTIFF \(13 bytes\)",
    ),
    "vrt": (vrt, FILE + "not a readable GeoTIFF"),
    "sparse": (sparse, FILE + "sparse: block 0, 0 of band 1 was never written"),
    "bomb": (bomb, FILE + r"size 300000 x 300000 px, expected 16 x 16 px"),
    "first bomb": (lambda files: bomb(files, 0), r"declares 300000 x 300000 px x 2 bands \(686646 MiB\)"),
    "label": (
        label(19),
        r"_4-9\.tif: level 1: value 19 is outside the 19 classes 0\.\.18 of AERIAL_LABEL-COSIA \(1 pixels\)",
    ),
    "images": (
        lambda files: rewrite(
            files, "SENTINEL1-ASC_TS", values=files.arrays["SENTINEL1-ASC_TS"][files.patch_ids[2]][:-1]
        ),
        r"_4-9\.tif: 5 images \(10 bands / 2 of SENTINEL1-ASC_TS\) but 6 dates in the metadata",
    ),
    "odd bands": (
        lambda files: rewrite(files, "SENTINEL1-ASC_TS", values=np.zeros((7, 4, 4), dtype=np.float32)),
        r"_4-9\.tif: 7 bands is no multiple of 2, the bands per date of SENTINEL1-ASC_TS",
    ),
    "date": (set_dates({"1": "20190103", "2": "20191303"}), ENTRY + r", entry 2: date '20191303' is not YYYYMMDD"),
    "positions": (set_dates({"1": "20190103", "3": "20191203"}), ENTRY + r": positions must be 1\.\.2, got \[1, 3\]"),
    "many dates": (
        set_dates({str(i): "20190103" for i in range(1, 4098)}),
        r"DATES\.gpkg: patch \S+_4-9 has 4097 dates, at most 4096 are accepted",
    ),
    "json": (set_dates("{'1': '20190103'}"), ENTRY + ": acquisition_dates is not a JSON object"),
    "no entry": (set_dates(None), ENTRY + " has no entry"),
    "too few dates": (set_dates({"1": "20190103"}), r"_4-9\.tif: 6 images .* but 1 dates"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    change, message = BAD_FILES[kind]
    change(files)
    cube = tmp_path / "c.zarr"
    code, shown = failure(capsys, "ingest", "--root", files.folder, "--cube", cube)
    assert code == 1
    assert re.search(rf"^DataError: .*{message}", shown)
    # The same file in an otherwise good data set can be left out by choice.
    report = fh.ingest(root=files.folder, cube=cube, on_error="skip")
    bad = 0 if kind == "first bomb" else 2
    assert [patch_id for _, patch_id, _ in report.skipped] == [files.patch_ids[bad]]
    stored = fh.open_cube(cube)
    name = report.skipped[0][0]
    assert stored.present(name).tolist() == [position != bad for position in range(4)]
    if name == "SENTINEL1-ASC_TS":
        assert stored.series(name).n_dates[2] == 0
    assert verify(stored).damage == (), "no chunk of the skipped patch"
    noted = json.loads((cube / "ingest/report.json").read_text())
    assert noted["files"] == dict.fromkeys(NAMES, 4)
    assert noted["skipped"] == [{"modality": name, "patch_id": files.patch_ids[bad], "reason": report.skipped[0][2]}]
    origins = np.array([files.origins[patch_id] for patch_id in files.patch_ids])
    np.testing.assert_allclose(np.stack([stored.patches.x_min, stored.patches.y_max], 1), origins, atol=1e-6)
