"""Files inside the published zip archives, read without unpacking.

A member is named by the path of its archive and its own, as if the archive were a folder:
`/data/D012-2019_DEM_ELEV.zip/AF-S1-27/D012-2019_DEM_ELEV_AF-S1-27_5-10.tif`. Members are inflated into memory, one at a
time, and their CRC-32 is checked, which GDAL's own /vsizip/ does not do.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from flairhub.errors import DataError

MOST_BYTES = 2**30
"""Largest accepted member, inflated."""

MOST_RATIO = 200
"""Most times a large member may inflate; honest rasters reach some ten."""

RATIO_FREE_BYTES = 64 * 2**20
"""Members up to this size may inflate as they like: an uncompressed raster of one value does."""

_SUFFIX = ".zip"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class MemberPath(NamedTuple):
    """A member of an archive."""

    archive: str
    member: str


class _Archive(NamedTuple):
    file: zipfile.ZipFile
    members: Mapping[str, zipfile.ZipInfo]


def split_member(path: str) -> MemberPath | None:
    """Return the archive and the member that a path names, or None for a plain file."""
    end = path.lower().find(_SUFFIX + "/")
    if end < 0:
        return None
    archive = path[: end + len(_SUFFIX)]
    return None if _is_folder(archive) else MemberPath(archive, path[len(archive) + 1 :])


def file_exists(path: str) -> bool:
    """True when a plain file or a member of an archive exists.

    Raises:
        DataError: The archive is there but not readable.
    """
    member = split_member(path)
    if member is None:
        return os.path.isfile(path)
    return os.path.isfile(member.archive) and member.member in _archive(member.archive).members


def file_state(path: str | None) -> Any:
    """Return size and modification time of a file, for members those of their archive; `absent` when there is none."""
    if path is None:
        return None
    member = split_member(path)
    try:
        status = os.stat(path if member is None else member.archive)
    except OSError:
        return "absent"
    return [status.st_size, status.st_mtime_ns]


def list_members(archive: str) -> list[str]:
    """Return the names of an archive's files, sorted.

    Raises:
        DataError: No readable zip, or a name that leads out of it.
    """
    return sorted(name for name, info in _archive(archive).members.items() if not info.is_dir())


def read_member(path: MemberPath) -> bytes:
    """Inflate one member.

    Raises:
        DataError: Absent, damaged, encrypted, or larger than any patch.
    """
    where = f"{path.archive}/{path.member}"
    archive = _archive(path.archive)
    info = archive.members.get(path.member)
    if info is None:
        raise DataError(f"{where}: no such file in the archive.")
    if info.flag_bits & 1 or info.compress_type not in _METHODS:
        method = "encrypted" if info.flag_bits & 1 else f"compressed by method {info.compress_type}"
        raise DataError(f"{where}: {method}; expected stored or deflated.")
    stored = max(1, info.compress_size)
    if info.file_size > MOST_BYTES or (info.file_size > RATIO_FREE_BYTES and info.file_size > MOST_RATIO * stored):
        raise DataError(
            f"{where}: inflates from {info.compress_size} to {info.file_size} bytes; members have at most "
            f"{MOST_BYTES >> 20} MiB and, above {RATIO_FREE_BYTES >> 20} MiB, {MOST_RATIO} times their stored size."
        )
    try:
        return archive.file.read(info)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{where}: damaged in the archive: {error}.") from error


def _archive(path: str) -> _Archive:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    return _open_archive(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=32)
def _open_archive(path: str, size: int, mtime_ns: int) -> _Archive:
    """Open an archive once per process and state, and check all its names."""
    try:
        file = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: not a readable zip archive ({size} bytes): {error}.") from error
    members: dict[str, zipfile.ZipInfo] = {}
    for info in file.infolist():
        _check_name(path, info)
        if info.filename in members:
            raise DataError(f"{path}: holds {info.filename!r} twice.")
        members[info.filename] = info
    return _Archive(file, members)


def _check_name(path: str, info: zipfile.ZipInfo) -> None:
    name = info.orig_filename
    if name.startswith("/") or "\\" in name or ":" in name or "\x00" in name or ".." in name.split("/"):
        raise DataError(f"{path}: member {name!r} leads out of the archive. Nothing is read from such an archive.")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(f"{path}: member {name!r} is a symbolic link. Nothing is read from such an archive.")


@lru_cache(maxsize=4096)
def _is_folder(path: str) -> bool:
    return os.path.isdir(path)
