"""Putting a file or a folder in place: whole under its name or not at all, whenever the process is killed.

What is being written has a hidden name beside its final one, `.<name>.<12 hex digits>.partial`, and is renamed when it
is complete. A kill leaves it behind; `sweep` and `remove_leftovers` are for the one who holds the right to write.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import google_crc32c

from flairhub.jobs.faults import reach

PARTIAL = ".partial"
"""Suffix of what is being written; zarr-python's own writes have it too, so that one sweep removes both."""

_SYNC_THREADS = 8
_PIECE_BYTES = 8 * 2**20


@contextmanager
def placed(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a name to write a file under; at the end it replaces `path` in one step.

    Args:
        path: Final name; its folder is made.
        durable: Have the file on disk before it gets its name, in case the power fails.

    Raises:
        OSError: The file system refuses; nothing of the new file is kept.
    """
    if path.exists() and not path.is_file():
        # A folder, or a device: renaming would put a file in the place of /dev/null.
        raise FileExistsError(errno.EEXIST, "Not a regular file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        if durable:
            _sync(temporary)
        reach("file-rename")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class FileWriter:
    """Writes a file piece by piece, so that it is either whole or absent: a context manager.

    Attributes:
        length: Bytes so far.
        checksum: CRC-32C so far.
    """

    def __init__(self, path: Path, durable: bool = False):
        """Choose the file; it is opened, under a temporary name, by `with`.

        Args:
            path: Final name; its folder is made.
            durable: Have it on disk before it gets its name, in case the power fails.
        """
        self.length = self.checksum = 0
        self._path, self._durable = path, durable

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(placed(self._path, self._durable))
            self._stream = stack.enter_context(temporary.open("wb"))
            self._stack = stack.pop_all()
        return self

    def write(self, piece: bytes) -> None:
        """Append bytes."""
        self._stream.write(piece)
        self.checksum, self.length = google_crc32c.extend(self.checksum, piece), self.length + len(piece)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def write_file(path: Path, pieces: Sequence[bytes], durable: bool = False) -> tuple[int, int]:
    """Write a file so that it is either whole or absent.

    Args:
        path: Its name; an existing file is replaced.
        pieces: What it holds, in order.
        durable: Whole or absent also when the power fails.

    Returns:
        Its length in bytes and the CRC-32C of all of it.
    """
    with FileWriter(path, durable) as target:
        for piece in pieces:
            target.write(piece)
    return target.length, target.checksum


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file so that it is either whole or absent, also when the power fails."""
    write_file(path, [text.encode()], durable=True)


def place_folder(path: Path, create: Callable[[Path], None]) -> None:
    """Make a folder under a temporary name; when it is complete it gets its name, instead of what has that now.

    Args:
        path: Final name; the folder around it is made.
        create: Makes the folder that it is given, and writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, former = temporary_name(path), temporary_name(path)
    try:
        create(temporary)
        if path.exists():
            path.rename(former)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(former, ignore_errors=True)


def discard_folder(path: Path) -> None:
    """Remove a folder; it is away in one step, because nobody would dare to remove half of one."""
    former = temporary_name(path)
    path.rename(former)
    shutil.rmtree(former)


def remove_leftovers(path: Path) -> None:
    """Remove what stopped runs left beside `path`, with its name; only for the one who may write it."""
    for name in glob.glob(f".{glob.escape(path.name)}.*{PARTIAL}", root_dir=path.parent):
        leftover = path.parent / name
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sweep(folder: Path) -> int:
    """Remove the temporary files inside a folder that a killed writer left; return how many there were."""
    leftovers = [path for path in folder.rglob(f"*{PARTIAL}") if path.is_file()]
    for path in leftovers:
        path.unlink()
    return len(leftovers)


def to_disk(paths: Iterable[Path]) -> None:
    """Wait until the system has written files to disk.

    In several threads: a file system commits what they ask for together, ten times faster than one after the other.
    """
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        for _ in pool.map(_sync, paths):
            pass


def folder_bytes(folder: Path) -> int:
    """Return the size of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def file_checksum(path: Path) -> tuple[int, int]:
    """Return the length of a file in bytes and the CRC-32C of all of it.

    Raises:
        OSError: It cannot be read.
    """
    length = checksum = 0
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            checksum, length = google_crc32c.extend(checksum, piece), length + len(piece)
    return length, checksum


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_disk_full(error: object) -> bool:
    """True for the errors of a full disk, an exhausted quota, a file that may not grow."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def temporary_name(path: Path) -> Path:
    """Return a hidden name beside `path`, unlike any other's: a worker thought dead may write the same file."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
