"""Bad tables, folders and metadata: refused before anything is written, with file and line."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import flairhub as fh
from flairhub.config import load_train_config
from flairhub.errors import DataError
from tests.helpers.breaking import NAMES, set_dates
from tests.helpers.commands import failure
from tests.helpers.comparisons import same_tree
from tests.helpers.makers import PatchFiles, write_train_config


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
    "backslashes": (
        lambda files: edit_csv(files, LAST, LAST.replace("/", "\\")),
        r"train\.csv, line 3, column DEM_ELEV: 'D012-2019_DEM_ELEV.*' is a path of Windows. Write paths below",
    ),
    "drive": (
        lambda files: edit_csv(files, LAST, f"D:/{LAST}"),
        r"train\.csv, line 3, column DEM_ELEV: 'D:/D012.*' is a path of Windows",
    ),
    "latin-1": (
        lambda files: files.csvs["train"].write_bytes(files.csvs["train"].read_bytes() + b"\xe9\n"),
        r"train\.csv: cannot be read as CSV: line 4 is not UTF-8 \(byte 0xe9\), perhaps Latin-1; save it as UTF-8",
    ),
    "utf-16": (
        lambda files: files.csvs["train"].write_text(files.csvs["train"].read_text(), encoding="utf-16"),
        r"train\.csv: cannot be read as CSV: is UTF-16 text",
    ),
    "cells": (lambda files: edit_csv(files, f",{LAST}", ""), r"train\.csv, line 3: 4 cells, expected 5"),
    "binary": (lambda files: files.csvs["train"].write_bytes(b"\xff\xfe\x00"), r"train\.csv: cannot be read as CSV"),
    "gone": (lambda files: files.csvs["test"].unlink(), r"test\.csv"),
}


@pytest.mark.parametrize("kind", BAD_CSVS)
def test_bad_csvs(files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    change, message = BAD_CSVS[kind]
    config = write_train_config(tmp_path / "config", files)
    change(files)
    code, shown = failure(capsys, "ingest", "--config", config, "--cube", tmp_path / "c.zarr")
    assert code == 1
    assert re.search(rf"^DataError: .*{message}", shown)
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


def test_csvs_of_spreadsheets_and_pandas(files: PatchFiles, tmp_path: Path) -> None:
    """Commas at line ends, an index without a name, quotes, blank lines, a byte order mark, Windows' line ends."""
    plain = load_train_config(write_train_config(tmp_path / "config", files))
    fh.ingest(plain, cube=tmp_path / "plain.zarr")
    for path in files.csvs.values():
        header, *lines = path.read_text().splitlines()
        quoted = [",".join(f'"{cell}"' for cell in line.split(",")) for line in lines]
        rows = [f",{header},,", *(f"{number},{line},,,," for number, line in enumerate(quoted)), ",,,", ""]
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    fh.ingest(plain, cube=tmp_path / "c.zarr")
    assert same_tree(tmp_path / "plain.zarr", tmp_path / "c.zarr")


def rename_dates(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f'ALTER TABLE "{path.stem}" RENAME COLUMN acquisition_dates TO dates')


def add_entry(patch_id: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            # The spatial triggers need functions of GDAL: this row is written without them.
            for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                connection.execute(f'DROP TRIGGER "{trigger}"')
            row = (patch_id, json.dumps({"1": "20200101"}))
            connection.execute(f'INSERT INTO "{path.stem}" (patch_id, acquisition_dates) VALUES (?, ?)', row)

    return change


def edit_cell(path: Path, value: str) -> None:
    """Set the dates of a patch to the value of an SQL expression."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f'DROP TRIGGER "{trigger}"')
        connection.execute(f'UPDATE "{path.stem}" SET acquisition_dates = {value} WHERE patch_id = ?', (TWICE,))


TWICE = "D012-2019_AF-S1-27_3-9"
BAD_METADATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "no column": (rename_dates, "column acquisition_dates is missing. Found fid, geom, patch_id, dates"),
    "zip": (lambda path: path.write_bytes(b"PK"), "not a GeoPackage"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "not a GeoPackage"),
    "damaged": (
        lambda path: path.write_bytes(path.read_bytes()[:-8192] + bytes(8192)),
        "GeoPackage: database disk image is malformed",
    ),
    "gone": (lambda path: path.unlink(), "cannot be read: No such file"),
    "no folder": (lambda path: shutil.rmtree(path.parent), "time series need the folder of the date GeoPackages"),
    "not utf-8": (
        lambda path: edit_cell(path, "CAST(X'7BE97D' AS TEXT)"),
        "text that is not UTF-8: Could not decode to UTF-8 column 'acquisition_dates'",
    ),
    "nested": (lambda path: edit_cell(path, f"'{'[' * 100_000}'"), "acquisition_dates is not a JSON object"),
    "twice a position": (
        lambda path: edit_cell(path, """'{"1": "20200101", "1": "20200102"}'"""),
        f"patch {TWICE}: position 1 is given more than once",
    ),
    "two entries": (add_entry(TWICE), f"patch {TWICE} has several entries with different dates"),
}


@pytest.mark.parametrize("kind", BAD_METADATA)
def test_bad_metadata(files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    change, message = BAD_METADATA[kind]
    change(files.mtd_folder / "GLOBAL_SENTINEL1-ASC_MTD_DATES.gpkg")
    code, shown = failure(capsys, "ingest", "--root", files.folder, "--cube", tmp_path / "c.zarr")
    assert code == 1
    assert "DataError: " in shown
    assert "GLOBAL_SENTINEL1-ASC_MTD_DATES.gpkg: " in shown
    assert message in shown
    assert not (tmp_path / "c.zarr").exists()


def test_bad_folders(files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = files.files["DEM_ELEV"][files.patch_ids[0]]
    for folder, name, message in (
        (tmp_path / "nothing", path.name, "no such folder"),
        (files.mtd_folder, path.name, "no files <DOMAIN>_<MODALITY>"),
        (files.folder, "D012-2019_DEM_AF-S1-27_3-9.tif", "expected a file named D012-2019_DEM_ELEV_AF-S1-27_<row>-"),
        (
            files.folder,
            "D012-2019_DEM_ELEV_AF-S1-27_3-9(1).tif",
            "patch id 'D012-2019_AF-S1-27_3-9(1)' is not <DOMAIN>",
        ),
    ):
        renamed = path.rename(path.with_name(name))
        code, shown = failure(capsys, "ingest", "--root", folder, "--cube", tmp_path / "c.zarr")
        assert code == 1
        assert f"DataError: {renamed if folder == files.folder else folder}: {message}" in shown
        renamed.rename(path)
    shutil.copy(path, path.with_suffix(".tiff"))
    code, shown = failure(capsys, "ingest", "--root", files.folder, "--cube", tmp_path / "c.zarr")
    assert (code, f"{path}f: patch {files.patch_ids[0]} exists already: {path}." in shown) == (1, True)


def test_dates_in_any_order_and_twice(files: PatchFiles, tmp_path: Path) -> None:
    """Keys in text order, days backwards, one of them twice: position alone says which image a date belongs to."""
    name = "SENTINEL1-ASC_TS"
    days = files.dates[name][files.patch_ids[2]][::-1].copy()
    days[3] = days[2]
    entry = {str(i): str(day).replace("-", "") for i, day in sorted(enumerate(days, 1), key=lambda pair: str(pair[0]))}
    set_dates(entry)(files)
    fh.ingest(root=files.folder, cube=tmp_path / "c.zarr")
    cube = fh.open_cube(tmp_path / "c.zarr")
    series = cube.series(name)
    np.testing.assert_array_equal(series.dates[2, : series.n_dates[2]], days)
    np.testing.assert_array_equal(cube.read(name, [2])[0, : len(days)], files.arrays[name][files.patch_ids[2]])
