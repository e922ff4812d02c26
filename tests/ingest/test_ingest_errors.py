"""Bad input: each kind has its error, which names file, what was found and what was expected."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from comparisons import same_tree
from makers import PatchFiles, date_entry, make_patch_files, write_dates, write_patch, write_train_config
from rasterio.transform import from_origin

import flairhub as fh
from flairhub.config import load_train_config
from flairhub.cube.verify import verify
from flairhub.errors import DataError, UsageError
from flairhub.ingest.origins import Origins

NAMES = ("AERIAL_RGBI", "DEM_ELEV", "SENTINEL1-ASC_TS", "AERIAL_LABEL-COSIA")
SIZES = {"AERIAL_RGBI": 16, "DEM_ELEV": 16, "AERIAL_LABEL-COSIA": 16, "SENTINEL1-ASC_TS": 4}


@pytest.fixture
def files(tmp_path: Path) -> PatchFiles:
    return make_patch_files(tmp_path / "files", n_rois=1, modalities=NAMES, sizes_px=SIZES)


def rewrite(files: PatchFiles, name: str, index: int = 2, values: np.ndarray | None = None, **profile: object) -> None:
    patch_id = files.patch_ids[index]
    stored = files.arrays[name][patch_id] if values is None else values
    write_patch(files.files[name][patch_id], stored, files.origins[patch_id], **profile)  # type: ignore[arg-type]


def truncate(files: PatchFiles) -> None:
    path = files.files["DEM_ELEV"][files.patch_ids[2]]
    path.write_bytes(path.read_bytes()[:-900])


def vrt(files: PatchFiles) -> None:
    source = files.files["DEM_ELEV"][files.patch_ids[1]]
    files.files["DEM_ELEV"][files.patch_ids[2]].write_text(
        f'<VRTDataset rasterXSize="16" rasterYSize="16"><VRTRasterBand dataType="Float32" band="1"><SimpleSource>'
        f"<SourceFilename>{source}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )


def sparse(files: PatchFiles) -> None:
    path = files.files["DEM_ELEV"][files.patch_ids[2]]
    transform = from_origin(*files.origins[files.patch_ids[2]], 6.4, 6.4)
    path.unlink()
    options = {"width": 16, "height": 16, "count": 2, "dtype": "float32", "crs": "EPSG:2154", "SPARSE_OK": True}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **options):
        pass


def bomb(files: PatchFiles, index: int = 2) -> None:
    path = files.files["DEM_ELEV"][files.patch_ids[index]]
    path.unlink()
    options = {"width": 300_000, "height": 300_000, "count": 2, "dtype": "float32", "crs": "EPSG:2154"}
    transform = from_origin(*files.origins[files.patch_ids[2]], 0.1, 0.1)
    blocks = {"SPARSE_OK": True, "BIGTIFF": "YES", "TILED": True, "BLOCKXSIZE": 65536, "BLOCKYSIZE": 65536}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **options, **blocks):
        pass


def moved(dx: float) -> Callable[[PatchFiles], None]:
    def change(files: PatchFiles) -> None:
        x, y = files.origins[files.patch_ids[2]]
        rewrite(files, "DEM_ELEV", transform=from_origin(x + dx, y, 6.4, 6.4))

    return change


def set_dates(entry: object) -> Callable[[PatchFiles], None]:
    def change(files: PatchFiles) -> None:
        entries = {patch_id: date_entry(days) for patch_id, days in files.dates["SENTINEL1-ASC_TS"].items()}
        if entry is None:
            del entries[files.patch_ids[2]]
        else:
            entries[files.patch_ids[2]] = entry  # type: ignore[assignment]
        write_dates(files.mtd_folder / "GLOBAL_SENTINEL1-ASC_MTD_DATES.gpkg", entries)

    return change


def label(value: int) -> Callable[[PatchFiles], None]:
    def change(files: PatchFiles) -> None:
        values = files.arrays["AERIAL_LABEL-COSIA"][files.patch_ids[2]].copy()
        values[0, 3, 3] = value
        rewrite(files, "AERIAL_LABEL-COSIA", values=values)

    return change


def south_up(files: PatchFiles) -> None:
    x, y = files.origins[files.patch_ids[2]]
    flipped = rasterio.Affine(6.4, 0, x, 0, 6.4, y - 102.4)
    rewrite(files, "DEM_ELEV", transform=flipped)


def dem(index: int, values: np.ndarray | None = None, **profile: object) -> Callable[[PatchFiles], None]:
    return lambda files: rewrite(files, "DEM_ELEV", index, values, **profile)


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
    "lossy": (dem(2, TWO.astype(np.float64) + 0.1), FILE + r"dtype float64 value 0\.1 does not fit float32"),
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
def test_bad_files(files: PatchFiles, tmp_path: Path, kind: str) -> None:
    change, message = BAD_FILES[kind]
    change(files)
    cube = tmp_path / "c.zarr"
    with pytest.raises(DataError, match=message) as caught:
        fh.ingest(root=files.folder, cube=cube)
    assert caught.value.exit_code == 1
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


def test_where_modalities_disagree_the_majority_is_right_in_any_order(files: PatchFiles, tmp_path: Path) -> None:
    """The first modality's file is the one that is off; interrupted between the two passes, too."""
    x, y = files.origins[files.patch_ids[2]]
    rewrite(files, "AERIAL_RGBI", transform=from_origin(x + 3.2, y, 6.4, 6.4))
    options = {"root": files.folder, "on_error": "skip", "shard": 2}
    report = fh.ingest(cube=tmp_path / "c.zarr", **options)  # type: ignore[arg-type]
    ((name, patch_id, reason),) = report.skipped
    assert (name, patch_id) == ("AERIAL_RGBI", files.patch_ids[2])
    assert "expected (489921.600, 6839590.400) as in " in reason
    assert "_DEM_ELEV_" in reason
    assert fh.open_cube(tmp_path / "c.zarr").patches.x_min[2] == pytest.approx(x)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Origins, "misplaced", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fh.ingest(cube=tmp_path / "d.zarr", **options)  # type: ignore[arg-type]
    assert fh.ingest(cube=tmp_path / "d.zarr", **options).n_reused == 8  # type: ignore[arg-type]
    assert same_tree(tmp_path / "d.zarr", tmp_path / "c.zarr")


def test_an_odd_first_file_is_outvoted(files: PatchFiles, tmp_path: Path) -> None:
    rewrite(files, "DEM_ELEV", 0, np.zeros((2, 8, 8), dtype=np.float32), transform=from_origin(0, 0, 12.8, 12.8))
    report = fh.ingest(root=files.folder, cube=tmp_path / "c.zarr", on_error="skip")
    assert [entry[:2] for entry in report.skipped] == [("DEM_ELEV", files.patch_ids[0])]


def test_how_much_may_be_skipped(files: PatchFiles, tmp_path: Path) -> None:
    truncate(files)
    cube = tmp_path / "c.zarr"
    options = {"root": files.folder, "cube": cube, "on_error": "skip"}
    report = fh.ingest(**options)  # type: ignore[arg-type]
    assert (report.n_files, report.skipped_share, report.too_many_skipped) == (16, 1 / 16, True)
    again = fh.ingest(**options, max_skipped=0.0625)  # type: ignore[arg-type]
    assert (again.already_complete, again.skipped, again.too_many_skipped) == (True, report.skipped, False)
    with pytest.raises(UsageError, match=r"max_skipped: got 2, expected a share between 0 and 1"):
        fh.ingest(**options, max_skipped=2)  # type: ignore[arg-type]


def test_a_series_without_a_usable_date(tmp_path: Path) -> None:
    names = ("SENTINEL2_TS", "SENTINEL2_MSK-SC", "AERIAL_LABEL-COSIA")
    files = make_patch_files(tmp_path / "files", n_rois=1, modalities=names)
    mask = files.arrays["SENTINEL2_MSK-SC"]
    for patch_id in files.patch_ids:
        mask[patch_id][:] = 0
    mask[files.patch_ids[1]][:] = 100
    for patch_id in files.patch_ids:
        write_patch(files.files["SENTINEL2_MSK-SC"][patch_id], mask[patch_id], files.origins[patch_id])
    steps = {"filter_sentinel2": True, "temporal_average_sentinel2": "monthly"}
    config = write_train_config(tmp_path / "config", files, modalities={"pre_processings": steps})
    fh.ingest(load_train_config(config), cube=tmp_path / "c.zarr")
    cube = fh.open_cube(tmp_path / "c.zarr")
    means = cube.averages("SENTINEL2_TS")["monthly"]
    assert means.n_observations.sum(axis=1).astype(bool).tolist() == [True, False, True, True]
    assert np.isnat(means.dates[1]).all()
    assert not cube.read_average("SENTINEL2_TS", "monthly", [1]).any()
    assert cube.series("SENTINEL2_TS").n_dates[1] == len(files.arrays["SENTINEL2_TS"][files.patch_ids[1]])


BOMB = """
import sys
import flairhub as fh
from flairhub.errors import DataError
try:
    fh.ingest(root=sys.argv[1], cube=sys.argv[2], modalities=["DEM_ELEV"])
except DataError as error:
    print(error)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("index", [0, 2])
def test_a_refused_bomb_takes_no_memory(files: PatchFiles, tmp_path: Path, index: int) -> None:
    """3 kB that declare 300000 x 300000 px; the whole process stays below 200 MB."""
    bomb(files, index)
    assert files.files["DEM_ELEV"][files.patch_ids[index]].stat().st_size < 3000
    arguments = [sys.executable, "-c", BOMB, str(files.folder), str(tmp_path / "c.zarr")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    message, peak_kib = done.stdout.strip().split("\n")
    assert "300000 x 300000 px" in message
    assert int(peak_kib) * 1024 < 200e6


def test_a_fixed_file_continues(files: PatchFiles, tmp_path: Path) -> None:
    good = files.files["AERIAL_LABEL-COSIA"][files.patch_ids[2]].read_bytes()
    label(77)(files)
    with pytest.raises(DataError, match="value 77"):
        fh.ingest(root=files.folder, cube=tmp_path / "c.zarr", shard=2)
    files.files["AERIAL_LABEL-COSIA"][files.patch_ids[2]].write_bytes(good)
    report = fh.ingest(root=files.folder, cube=tmp_path / "c.zarr", shard=2)
    assert report.n_reused >= 4
    assert fh.open_cube(tmp_path / "c.zarr").present("AERIAL_LABEL-COSIA").all()


def test_one_footprint_for_all_modalities(tmp_path: Path) -> None:
    files = make_patch_files(tmp_path, n_rois=1, modalities=["AERIAL_RGBI", "SPOT_RGBI"])
    for patch_id in files.patch_ids:
        write_patch(
            files.files["SPOT_RGBI"][patch_id], files.arrays["SPOT_RGBI"][patch_id], files.origins[patch_id], 102.3
        )
    message = (
        r"SPOT_RGBI\S+: footprint 102\.3 x 102\.3 m \(16 x 16 px\), expected 102\.4 x 102\.4 m as in \S+AERIAL_RGBI"
    )
    with pytest.raises(DataError, match=message):
        fh.ingest(root=tmp_path, cube=tmp_path / "c.zarr")


def test_one_crs_for_all_modalities(tmp_path: Path) -> None:
    files = make_patch_files(tmp_path, n_rois=1, modalities=["AERIAL_RGBI", "SPOT_RGBI"])
    for patch_id in files.patch_ids:
        values = files.arrays["SPOT_RGBI"][patch_id]
        write_patch(files.files["SPOT_RGBI"][patch_id], values, files.origins[patch_id], crs="EPSG:3035")
    with pytest.raises(
        DataError, match=r"CRS EPSG:3035, expected EPSG:2154 as in .*All modalities of a data set share"
    ):
        fh.ingest(root=tmp_path, cube=tmp_path / "c.zarr")


def edit_csv(files: PatchFiles, old: str, new: str, split: str = "train") -> None:
    path = files.csvs[split]
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def remove_column(files: PatchFiles) -> None:
    edit_csv(files, "DEM_ELEV", "DEM")


def repeat_line(files: PatchFiles) -> None:
    text = files.csvs["train"].read_text()
    files.csvs["train"].write_text(text + text.split("\n")[1] + "\n")


LAST = "D012-2019_DEM_ELEV/AF-S1-27/D012-2019_DEM_ELEV_AF-S1-27_4-9.tif"
BAD_CSVS: dict[str, tuple[Callable[[PatchFiles], None], str]] = {
    "column": (remove_column, r"train\.csv: column DEM_ELEV is missing. Found patch_id, AERIAL_RGBI, DEM,"),
    "twice a column": (
        lambda files: edit_csv(files, "DEM_ELEV", "AERIAL_RGBI"),
        "column AERIAL_RGBI appears more than once",
    ),
    "no file": (
        lambda files: edit_csv(files, LAST, LAST.replace("4-9", "4-99")),
        r"no such file: \S+_4-99\.tif. Leave the CSV cell empty",
    ),
    "twice": (
        repeat_line,
        r"train\.csv, line 4: patch D012-2019_AF-S1-27_3-9 is listed already in \S+train\.csv, line 2",
    ),
    "two splits": (
        lambda files: edit_csv(files, "D012-2019_AF-S1-27_3-10,", "D012-2019_AF-S1-27_4-9,", "valid"),
        r"valid\.csv, line 2: patch D012-2019_AF-S1-27_4-9 is listed already in \S+train\.csv, line 3",
    ),
    "id with a path": (
        lambda files: edit_csv(files, "D012-2019_AF-S1-27_4-9,", "D012-2019_../x_4-9,"),
        r"patch id 'D012-2019_\.\./x_4-9' is not",
    ),
    "id with a slash": (
        lambda files: edit_csv(files, "D012-2019_AF-S1-27_4-9,", "/etc/passwd,"),
        "patch id '/etc/passwd' is not",
    ),
    "url": (
        lambda files: edit_csv(files, LAST, "https://x.org/a.tif"),
        r"train\.csv, line 3, column DEM_ELEV: 'https://x.org/a.tif' is not",
    ),
    "vsi": (
        lambda files: edit_csv(files, LAST, "/vsicurl/https://x.org/a.tif"),
        "URLs and GDAL's /vsi paths are not read",
    ),
    "outside": (
        lambda files: edit_csv(files, LAST, "../../etc/a.tif"),
        r"'\.\./\.\./etc/a\.tif' leads to \S+, outside \S+files",
    ),
    "cells": (lambda files: edit_csv(files, f",{LAST}", ""), r"train\.csv, line 3: 4 cells, expected 5"),
    "binary": (lambda files: files.csvs["train"].write_bytes(b"\xff\xfe\x00"), r"train\.csv: cannot be read as CSV"),
    "gone": (lambda files: files.csvs["test"].unlink(), r"test\.csv"),
}


@pytest.mark.parametrize("kind", BAD_CSVS)
def test_bad_csvs(files: PatchFiles, tmp_path: Path, kind: str) -> None:
    change, message = BAD_CSVS[kind]
    config = load_train_config(write_train_config(tmp_path / "config", files))
    change(files)
    with pytest.raises(DataError, match=message):
        fh.ingest(config, cube=tmp_path / "c.zarr")
    assert not (tmp_path / "c.zarr").exists()


def test_a_file_that_is_not_there_can_be_skipped(files: PatchFiles, tmp_path: Path) -> None:
    config = load_train_config(write_train_config(tmp_path / "config", files))
    edit_csv(files, LAST, LAST.replace("4-9", "4-99"))
    report = fh.ingest(config, cube=tmp_path / "c.zarr", on_error="skip")
    ((name, patch_id, reason),) = report.skipped
    assert (name, patch_id) == ("DEM_ELEV", files.patch_ids[2])
    assert reason.endswith("_4-99.tif: no such file.")


def test_the_data_root_widens_and_narrows_where_paths_may_lead(files: PatchFiles, tmp_path: Path) -> None:
    below = tmp_path / "files" / "lists"
    below.mkdir()
    for split, path in files.csvs.items():
        files.csvs[split] = below / path.name
        files.csvs[split].write_text(path.read_text().replace("D012-2019_AERIAL_RGBI/", "../D012-2019_AERIAL_RGBI/"))
        absolute = files.csvs[split].read_text()
        for name in NAMES[1:]:
            absolute = absolute.replace(f",D012-2019_{name}/", f",{files.folder}/D012-2019_{name}/")
        files.csvs[split].write_text(absolute)
    config = load_train_config(write_train_config(tmp_path / "config", files))
    with pytest.raises(DataError, match=r"outside \S+lists \(the CSV's folder; set paths.data_root"):
        fh.ingest(config, cube=tmp_path / "c.zarr")
    wider = write_train_config(tmp_path / "config", files, paths={"data_root": str(files.folder)})
    fh.ingest(load_train_config(wider), cube=tmp_path / "c.zarr")
    assert fh.open_cube(tmp_path / "c.zarr").present("AERIAL_RGBI").all()
    narrower = write_train_config(tmp_path / "config", files, paths={"data_root": str(below)})
    with pytest.raises(DataError, match=r"outside \S+lists \(paths.data_root\)"):
        fh.ingest(load_train_config(narrower), cube=tmp_path / "d.zarr")


def test_bad_metadata(files: PatchFiles, tmp_path: Path) -> None:
    path = files.mtd_folder / "GLOBAL_SENTINEL1-ASC_MTD_DATES.gpkg"
    whole = path.read_bytes()
    connection = sqlite3.connect(path)
    connection.execute(f'ALTER TABLE "{path.stem}" RENAME COLUMN acquisition_dates TO dates')
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match=r"column acquisition_dates is missing. Found fid, geom, patch_id, dates"):
        fh.ingest(root=files.folder, cube=tmp_path / "c.zarr")
    for content, message in (
        (b"PK", "not a GeoPackage"),
        (whole[:3000], "not a GeoPackage"),
        (None, "cannot be read: No such file"),
    ):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            fh.ingest(root=files.folder, cube=tmp_path / "c.zarr")
    write_dates(path, {patch_id: date_entry(days) for patch_id, days in files.dates["SENTINEL1-ASC_TS"].items()})
    connection = sqlite3.connect(path)
    text = json.dumps({"1": "20200101"})
    # The spatial triggers need functions of GDAL: this row is written without them.
    for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f'DROP TRIGGER "{trigger}"')
    connection.execute(
        f'INSERT INTO "{path.stem}" (patch_id, acquisition_dates) VALUES (?, ?)', (files.patch_ids[0], text)
    )
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match=rf"patch {files.patch_ids[0]} has several entries with different dates"):
        fh.ingest(root=files.folder, cube=tmp_path / "c.zarr")


def test_bad_folders(files: PatchFiles, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        fh.ingest(root=tmp_path / "nothing", cube=tmp_path / "c.zarr")
    with pytest.raises(DataError, match="no files <DOMAIN>_<MODALITY>"):
        fh.ingest(root=files.mtd_folder, cube=tmp_path / "c.zarr")
    path = files.files["DEM_ELEV"][files.patch_ids[0]]
    path.rename(path.with_name("D012-2019_DEM_AF-S1-27_3-9.tif"))
    with pytest.raises(DataError, match=r"expected a file named D012-2019_DEM_ELEV_AF-S1-27_<row>-<col>\.tif"):
        fh.ingest(root=files.folder, cube=tmp_path / "c.zarr")


def test_dates_in_any_order_of_keys(files: PatchFiles, tmp_path: Path) -> None:
    name = "SENTINEL1-ASC_TS"
    days = files.dates[name][files.patch_ids[2]][::-1]
    entry = {str(i): str(day).replace("-", "") for i, day in sorted(enumerate(days, 1), key=lambda pair: str(pair[0]))}
    set_dates(entry)(files)
    fh.ingest(root=files.folder, cube=tmp_path / "c.zarr")
    series = fh.open_cube(tmp_path / "c.zarr").series(name)
    np.testing.assert_array_equal(series.dates[2, : series.n_dates[2]], days)
