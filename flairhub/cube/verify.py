"""Checking a whole cube: every file against the journal, every chunk against its checksum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flairhub.cube.cube import Cube, is_local
from flairhub.cube.reader import ArrayReader
from flairhub.cube.seal import CONTENTS, ROOT_FILE, OpenedStore, contents_digest
from flairhub.cube.spec import INGEST, JOURNAL
from flairhub.cube.zone_cube import ZoneCube
from flairhub.errors import CubeError
from flairhub.jobs import Journal, file_checksum
from flairhub.progress import Progress, silent

STAGE = "verify"


@dataclass(frozen=True)
class Verification:
    """What a check found.

    Attributes:
        n_chunks: Chunks that were read and decoded.
        n_files: Files that were compared with the journal.
        damage: One message per damaged or absent chunk, table or file; empty = the cube is whole.
        unchecked: One sentence for each thing that could not be checked, as in cubes of earlier versions.
    """

    n_chunks: int
    n_files: int
    damage: tuple[str, ...]
    unchecked: tuple[str, ...] = ()


def verify(cube: Cube, progress: Progress | None = None) -> Verification:
    """Read every chunk and check every file.

    Args:
        cube: An open cube.
        progress: Told the number of checked patches, over all arrays.
    """
    report = progress or silent
    damage = list(dict.fromkeys(_tables(cube)))
    readers = list(_readers(cube))
    total, done, n_chunks = sum(reader.shape[0] for reader, _ in readers), 0, 0
    for reader, present in readers:
        for index in range(reader.shape[0]):
            if present[index]:
                damage.extend(reader.problems(index))
                n_chunks += reader.n_levels
            done += 1
            report(STAGE, done, total)
    if not is_local(cube.path):
        missing = f"{cube.path}: no folder of this machine: files were not compared with the journal."
        return Verification(n_chunks, 0, tuple(damage), (missing,))
    expected = [name for reader, _ in readers for name in reader.shard_files()]
    n_files, unchecked = _compare_files(Path(cube.path), cube.store, cube.attributes, damage, expected)
    return Verification(n_chunks, n_files, tuple(damage), unchecked)


def verify_zone(cube: ZoneCube, progress: Progress | None = None) -> Verification:
    """Read every chunk of a zone cube and check every file; `progress` is told the number of checked arrays."""
    report, n_chunks = progress or silent, 0
    damage: list[str] = []
    for done, array in enumerate(cube.arrays.values(), start=1):
        for problem in array.problems():
            n_chunks += 1
            damage += [problem] if problem else []
        report(STAGE, done, len(cube.arrays))
    n_files, unchecked = _compare_files(cube.path, cube.store, cube.attributes, damage)
    return Verification(n_chunks, n_files, tuple(damage), unchecked)


def _readers(cube: Cube) -> Iterator[tuple[ArrayReader, Any]]:
    """Yield all arrays that can be opened; `_tables` tells of the others."""
    for name in cube.modalities:
        with suppress(CubeError):
            present = cube.present(name)
            yield cube.array(name), present
            for average in cube.info(name).get("averages", []):
                yield cube.average(name, average), present
            validity = cube.validity(name)
            if validity.mask is not None:
                yield validity.mask, validity.has_mask


def _tables(cube: Cube) -> Iterator[str]:
    for read in (lambda: cube.patches, *(_table_reads(cube, name) for name in cube.modalities)):
        try:
            read()
        except CubeError as error:
            yield str(error)


def _table_reads(cube: Cube, name: str) -> Any:
    def read() -> None:
        cube.present(name)
        cube.averages(name)
        cube.validity(name)
        if "time" in cube.array(name).dims:
            series = cube.series(name)
            counted = (~np.isnat(series.dates)).sum(axis=1)
            if (counted != series.n_dates).any():
                raise CubeError(f"{cube.path}: {name}: dates and n_dates disagree. Ingest again with --overwrite.")

    return read


def _compare_files(
    path: Path, store: OpenedStore, attributes: Mapping[str, Any], damage: list[str], expected: Sequence[str] = ()
) -> tuple[int, tuple[str, ...]]:
    """Compare the files of a store with its journal, and both with its root metadata.

    Args:
        path: The store.
        store: The same, as it was opened.
        attributes: Its own root attributes.
        damage: What is wrong so far; more is added.
        expected: Files that the journal must know.

    Returns:
        How many files were compared, and what could not be checked.
    """
    n_files, before = 0, tuple(damage)
    records: list[Mapping[str, Any]] = []
    for name, problem in _files(path, records, expected):
        n_files += 1
        # A damaged chunk says more than its file does.
        if problem and not any(name.split("/c/")[0] in message for message in before):
            damage.append(f"{path}: {name} {problem}")
    try:
        store.check()
    except CubeError as error:
        damage[:] = dict.fromkeys([*damage, str(error)])
    contents = attributes.get(CONTENTS)
    if contents is None:
        return n_files, (
            f"{path}: made before stores had a seal: its metadata, small tables and report have no checksums of their "
            "own, and were only read. Ingest again to have them.",
        )
    if not damage and contents_digest(records) != contents:
        damage.append(f"{path}: {INGEST}/{JOURNAL} is not the one that {ROOT_FILE} names")
    return n_files, ()


def _files(store: Path, records: list[Mapping[str, Any]], expected: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Compare files with the journal, which must know all `expected` ones: (name, what is wrong or empty).

    The journal's records are added to `records`.
    """
    noted = set()
    try:
        lines = Journal(store / INGEST / JOURNAL).lines()
    except OSError as error:
        yield f"{INGEST}/{JOURNAL}", f"cannot be read: {error.strerror}"
        return
    for number, record in enumerate(lines, start=1):
        if record is None:
            yield f"{INGEST}/{JOURNAL}", f"line {number} is damaged"
            continue
        records.append(record)
        for name, (length, crc) in record["files"].items():
            noted.add(name)
            yield name, _compare(store / name, length, crc)
    for name in expected:
        if name not in noted:
            yield name, "is not in the journal"


def _compare(path: Path, length: int, crc: int) -> str:
    try:
        size, checksum = file_checksum(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if size != length:
        return f"has {size} bytes, the journal says {length}"
    return "" if checksum == crc else "does not fit the checksum in the journal"
