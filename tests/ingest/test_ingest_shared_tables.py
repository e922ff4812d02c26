"""GeoPackages that another program has open: what it has committed is read, or they are refused by name."""

from __future__ import annotations

import json
import shutil
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flairhub.errors import DataError
from flairhub.ingest import tables
from flairhub.ingest.tables import read_dates, read_geopackage

PATCH = "D010-2018_AF-S1-1_1-1"
OLD, NEW = ({"1": "20170101", "2": "20170201"}, {"1": "20180105", "2": "20180310"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """What sqlite needs to see of a GeoPackage, with the old dates."""
    path = tmp_path / "dates.gpkg"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE gpkg_contents (table_name TEXT)")
        connection.execute("CREATE TABLE dates (patch_id TEXT, acquisition_dates TEXT)")
        connection.execute("INSERT INTO gpkg_contents VALUES ('dates')")
        connection.execute("INSERT INTO dates VALUES (?, ?)", (PATCH, json.dumps(OLD)))
    connection.close()
    return path


@pytest.fixture
def editor(path: Path) -> Iterator[sqlite3.Connection]:
    """A program that has the file open."""
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


def dates(path: Path) -> list[str]:
    entry = read_dates(path, [PATCH])[PATCH]
    assert isinstance(entry, np.ndarray)
    return [str(day).replace("-", "") for day in entry]


def correct(editor: sqlite3.Connection) -> None:
    editor.execute("UPDATE dates SET acquisition_dates = ?", (json.dumps(NEW),))


def test_corrections_in_a_write_ahead_log_are_read(path: Path, editor: sqlite3.Connection) -> None:
    """As QGIS keeps them until the layer is closed."""
    editor.execute("PRAGMA journal_mode=WAL")
    correct(editor)
    assert path.with_name("dates.gpkg-wal").stat().st_size
    assert dates(path) == list(NEW.values())
    editor.execute("BEGIN")
    editor.execute("UPDATE dates SET acquisition_dates = 'nothing'")
    assert dates(path) == list(NEW.values()), "what is not committed is not there"


def test_files_copied_together_and_a_log_that_was_left_behind(path: Path, editor: sqlite3.Connection) -> None:
    editor.execute("PRAGMA journal_mode=WAL")
    correct(editor)
    copy = path.parent / "copy" / path.name
    copy.parent.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    assert dates(copy) == list(NEW.values())


def test_a_log_that_cannot_be_read_is_named(
    path: Path, editor: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_WAIT_S", 0.01)
    editor.execute("PRAGMA locking_mode=EXCLUSIVE")
    editor.execute("PRAGMA journal_mode=WAL")
    correct(editor)
    with pytest.raises(
        DataError, match=r"dates.gpkg: dates.gpkg-wal beside it holds changes .* Close the layer in QGIS"
    ):
        dates(path)


def test_a_journal_of_a_transaction_that_was_cut_off_is_named(path: Path, editor: sqlite3.Connection) -> None:
    """Pages of a transaction that never ended are in the file: only who may write can put them back."""
    editor.execute("PRAGMA cache_size=1")
    editor.execute("BEGIN")
    editor.execute("CREATE TABLE more AS SELECT randomblob(4000) FROM dates, dates, dates, dates")
    correct(editor)
    for _ in range(8):
        editor.execute("INSERT INTO more SELECT randomblob(4000) FROM more")
    assert path.with_name("dates.gpkg-journal").stat().st_size
    copy = path.parent / "copy" / path.name
    copy.parent.mkdir()
    for suffix in ("", "-journal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    editor.execute("ROLLBACK")
    assert dates(path) == list(OLD.values())
    with pytest.raises(DataError, match=r"dates.gpkg-journal beside it holds changes"):
        dates(copy)


def test_a_writer_that_is_at_work_is_waited_for_or_named(
    path: Path, editor: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_WAIT_S", 0.01)
    editor.execute("BEGIN EXCLUSIVE")
    correct(editor)
    if path.with_name("dates.gpkg-journal").exists() and path.with_name("dates.gpkg-journal").stat().st_size:
        with pytest.raises(DataError, match=r"dates.gpkg-journal beside it .*locked"):
            dates(path)
    editor.execute("COMMIT")
    assert dates(path) == list(NEW.values())


def test_a_file_that_changes_while_it_is_read_is_named(path: Path, editor: sqlite3.Connection) -> None:
    rows = read_geopackage(path, ("patch_id", "acquisition_dates"))
    assert next(rows)[0] == PATCH
    correct(editor)
    with pytest.raises(DataError, match=r"dates.gpkg: it changed while it was read"):
        list(rows)


def test_reading_leaves_nothing_beside_a_file_that_nobody_writes(path: Path, editor: sqlite3.Connection) -> None:
    editor.execute("PRAGMA journal_mode=WAL")
    correct(editor)
    editor.close()
    assert path.read_bytes()[18:20] == b"\x02\x02", "still a file with a log, which is empty now"
    before = sorted(path.parent.iterdir())
    assert dates(path) == list(NEW.values())
    assert sorted(path.parent.iterdir()) == before


def test_geopackages_in_archives(path: Path, editor: sqlite3.Connection, tmp_path: Path) -> None:
    editor.execute("PRAGMA journal_mode=WAL")
    correct(editor)
    log = Path(f"{path}-wal")
    with zipfile.ZipFile(tmp_path / "open.zip", "w") as archive:
        archive.write(path, path.name)
        archive.write(log, log.name)
    with pytest.raises(
        DataError, match=r"dates.gpkg-wal beside it holds changes that are not in the file yet. .*pack it"
    ):
        dates(tmp_path / "open.zip" / path.name)
    editor.close()
    with zipfile.ZipFile(tmp_path / "closed.zip", "w") as archive:
        archive.write(path, path.name)
        archive.writestr(log.name, b"")
    assert dates(tmp_path / "closed.zip" / path.name) == list(NEW.values())
