"""The tables beside the images: CSV splits, and the GeoPackages with dates and official splits.

A GeoPackage is an SQLite file. It is opened with Python's own sqlite3, read-only and with an untrusted schema: no GDAL
driver guessing, nothing in it is run. While nobody writes it, it is opened without locks, which leaves no files beside
it and works in folders that are read-only; whether somebody does is looked at before and after.
"""

from __future__ import annotations

import csv
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import DataError
from flairhub.ingest.archives import MemberPath, file_exists, file_state, read_member, split_member
from flairhub.written_dates import encoding_problem, parse_dates_json, plain_dates_json

_SQLITE_MAGIC = b"SQLite format 3\x00"
_LONGEST_CELL = 4 * 2**20
_VERSIONS = slice(18, 20)
"""Bytes of the header that say how the file is written and read: 1 = journal, 2 = write-ahead log."""

_WAIT_S = 5.0
"""How long to wait for who is writing."""


@dataclass(frozen=True)
class CsvTable:
    """A CSV of one split.

    Attributes:
        path: The file.
        columns: Its header.
        rows: One mapping per line, with the line number under `line`.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]


def read_csv(path: Path, required: Sequence[str]) -> CsvTable:
    """Read a CSV of a split.

    Args:
        path: The file.
        required: Columns that must be there.

    Raises:
        DataError: Missing, not a CSV, a missing or doubled column, a line of another length.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path}: neither a file nor a folder; expected a CSV file.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream, strict=True)
            columns = [name.strip() for name in next(lines, [])]
            _check_columns(path, columns, required)
            rows = []
            for cells in lines:
                if not any(cells):
                    continue
                # Spreadsheets end lines with commas.
                while len(cells) > len(columns) and not cells[-1].strip():
                    del cells[-1]
                if len(cells) != len(columns):
                    raise DataError(f"{path}, line {lines.line_num}: {len(cells)} cells, expected {len(columns)}.")
                rows.append((lines.line_num, dict(zip(columns, (cell.strip() for cell in cells), strict=True))))
    except FileNotFoundError:
        raise DataError(f"{path}: no such CSV file.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: cannot be read as CSV: {encoding_problem(path.read_bytes())}.") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV (UTF-8): {error}.") from error
    return CsvTable(path, tuple(columns), tuple(rows))


def _check_columns(path: Path, columns: list[str], required: Sequence[str]) -> None:
    # Nobody asks for a column without a name: it may be one that a program left behind.
    doubled = sorted({name for name in columns if name and columns.count(name) > 1})
    if doubled:
        raise DataError(f"{path}: column {', '.join(doubled)} appears more than once.")
    missing = [name for name in required if name not in columns]
    if missing:
        raise DataError(
            f"{path}: column {', '.join(missing)} is missing. Found {', '.join(columns) or 'no columns'}. "
            "Expected patch_id and one column per modality and label in use"
            + (", separated by commas." if len(columns) == 1 else ".")
        )


def read_dates(path: Path, patch_ids: Sequence[str]) -> dict[str, NDArray[np.datetime64] | DataError]:
    """Read the acquisition dates of the patches asked for.

    Args:
        path: GeoPackage with `patch_id` and `acquisition_dates`.
        patch_ids: Whose dates; others are not looked at.

    Returns:
        By patch id (time,) datetime64[D] in image order, or what is wrong with the entry, so that the caller decides
        whether one bad patch ends the ingest. Patches without an entry are left out.

    Raises:
        DataError: No GeoPackage, or no such columns.
    """
    wanted = set(patch_ids)
    texts: dict[str, int] = {}
    dates_of: dict[str, NDArray[np.datetime64] | DataError] = {}
    for patch_id, text in read_geopackage(path, ("patch_id", "acquisition_dates")):
        if patch_id not in wanted:
            continue
        # Of a large data set the texts would fill memory.
        if texts.setdefault(patch_id, hash(text)) != hash(text):
            dates_of[patch_id] = DataError(
                f"{path}: patch {patch_id} has several entries with different dates. Keep one."
            )
        elif patch_id not in dates_of:
            try:
                dates = _plain_dates(text)
                dates_of[patch_id] = parse_dates_json(text, f"{path}: patch {patch_id}") if dates is None else dates
            except DataError as error:
                dates_of[patch_id] = error
    return dates_of


# Patches of one ROI often share their dates: the last texts are remembered.
_plain_dates = lru_cache(maxsize=4096)(plain_dates_json)


def read_splits(path: Path) -> dict[str, str]:
    """Read the official splits: `split_1` of the GeoPackage, else its first column named `split...`.

    Returns:
        `train`, `valid` or `test` by patch id.
    """
    columns = _columns(path)
    names = sorted((name for name in columns if name.startswith("split")), key=lambda name: (name != "split_1", name))
    if not names:
        raise DataError(f"{path}: no column split_1 (or split...). Found {', '.join(columns)}.")
    splits: dict[str, str] = {}
    for patch_id, text in read_geopackage(path, ("patch_id", names[0])):
        split = {"val": "valid", "validation": "valid"}.get(str(text).lower(), str(text).lower() if text else "")
        if split not in ("train", "valid", "test", ""):
            raise DataError(f"{path}: patch {patch_id}: {names[0]} is {text!r}, expected train, valid or test.")
        if splits.setdefault(patch_id, split) != split:
            raise DataError(f"{path}: patch {patch_id} is both {splits[patch_id]} and {split}.")
    return splits


def read_geopackage(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the first layer of a GeoPackage that has all `columns`.

    Raises:
        DataError: Missing file, not a GeoPackage, or no such layer.
    """
    present = _columns(path)
    missing = [name for name in columns if name not in present]
    if missing:
        raise DataError(f"{path}: column {', '.join(missing)} is missing. Found {', '.join(present) or 'no layer'}.")
    with _connect(path) as connection:
        chosen = ", ".join(_quoted(name) for name in columns)
        try:
            yield from connection.execute(f"SELECT {chosen} FROM {_quoted(_layer(connection))}")
        except sqlite3.Error as error:
            kind = "text that is not UTF-8" if "decode" in str(error) else "damaged GeoPackage"
            raise DataError(f"{path}: {kind}: {error}.") from error


def _columns(path: Path) -> list[str]:
    with _connect(path) as connection:
        try:
            layer = _layer(connection)
            return [row[1] for row in connection.execute(f"PRAGMA table_info({_quoted(layer)})")] if layer else []
        except sqlite3.Error as error:
            raise DataError(f"{path}: not a GeoPackage: {error}.") from error


def _layer(connection: sqlite3.Connection) -> str:
    """Name of the first layer with a column `patch_id`, else of the first layer."""
    rows = connection.execute("SELECT table_name FROM gpkg_contents ORDER BY rowid").fetchall()
    for (name,) in rows:
        if any(column[1] == "patch_id" for column in connection.execute(f"PRAGMA table_info({_quoted(name)})")):
            return str(name)
    return str(rows[0][0]) if rows else ""


class _connect:
    """Opens a GeoPackage read-only, and closes it, which sqlite3's own context manager does not."""

    def __init__(self, path: Path):
        self._path = path
        self._before: Any = None

    def __enter__(self) -> sqlite3.Connection:
        path = self._path
        member = split_member(str(path))
        if member is not None:
            self._connection = _from_archive(path, member)
        else:
            try:
                self._before = _states(path)
                magic = _head(path)
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
            _check_magic(path, magic)
            self._connection = self._open()
        self._connection.execute("PRAGMA trusted_schema=OFF")
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_CELL)
        return self._connection

    def _open(self) -> sqlite3.Connection:
        """Open a file: without locks while nobody writes it, otherwise as SQLite shares it with who does."""
        path = self._path.resolve()
        beside = [name for name, state in self._before.items() if name != str(path) and state and state[0]]
        if not beside:
            return sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)
        self._before = None
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_WAIT_S)
        try:
            # One transaction: what is committed now, whatever is written meanwhile.
            connection.isolation_level = None
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            connection.close()
            names = " and ".join(map(os.path.basename, beside))
            raise DataError(
                f"{self._path}: {names} beside it holds changes that are not in the file yet, and they cannot be read "
                f"({error}). Close the layer in QGIS, or whatever has it open."
            ) from error
        return connection

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._connection.close()
        # An iterator that nobody reads to its end has not given the whole either.
        if self._before is not None and kind is not GeneratorExit and _states(self._path) != self._before:
            raise DataError(f"{self._path}: it changed while it was read. Run again when nobody writes it.")


def _states(path: Path) -> dict[str, Any]:
    """Size and time of change of a GeoPackage and of what SQLite keeps beside one that is being written."""
    path = path.resolve()
    return {str(path): file_state(str(path))} | {
        f"{path}{suffix}": None if (state := file_state(f"{path}{suffix}")) == "absent" else state
        for suffix in ("-wal", "-journal")
    }


def _from_archive(path: Path, member: MemberPath) -> sqlite3.Connection:
    """Open a GeoPackage in a zip archive from memory."""
    for suffix in ("-wal", "-journal"):
        beside = MemberPath(member.archive, member.member + suffix)
        if file_exists(f"{beside.archive}/{beside.member}") and read_member(beside):
            raise DataError(
                f"{path}: {os.path.basename(beside.member)} beside it holds changes that are not in the file yet. "
                "Close the layer in QGIS, and pack it again."
            )
    content = bytearray(read_member(member))
    _check_magic(path, bytes(content[: len(_SQLITE_MAGIC)]))
    # SQLite opens no file in memory that says that it has a write-ahead log.
    content[_VERSIONS] = bytes(1 if version == 2 else version for version in content[_VERSIONS])
    connection = sqlite3.connect(":memory:")
    connection.deserialize(bytes(content))
    return connection


def _check_magic(path: Path, magic: bytes) -> None:
    if magic != _SQLITE_MAGIC:
        raise DataError(f"{path}: not a GeoPackage (it does not start as an SQLite file).")


def _head(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a GeoPackage, nor a file.")
    with path.open("rb") as stream:
        return stream.read(len(_SQLITE_MAGIC))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
