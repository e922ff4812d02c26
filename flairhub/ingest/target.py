"""The place of a cube while it is written: where it may be, one writer at a time, and what the system says to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flairhub.errors import CubeError, DataError, UsageError
from flairhub.ingest.lock import writer_lock
from flairhub.jobs import discard_folder, is_disk_full, place_folder, remove_leftovers

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""Also a URL that went through `Path`, which makes one slash of two."""


@contextmanager
def writing(cube: str | Path) -> Iterator[Path]:
    """Hold the right to write a cube; yield its path without symbolic links, so that one store has one lock.

    Raises:
        UsageError: No cube can be there.
        CubeError: Another process writes it, the disk is full, or the system refuses.
    """
    if _URL.match(str(cube)):
        raise UsageError(f"{cube}: a cube is written to a local folder. Copy it to its place when it is complete.")
    path = Path(cube).resolve()
    if not path.name:
        raise UsageError(f"{path}: no place for a cube. Name a folder that does not exist yet.")
    around = next((parent for parent in path.parents if (parent / "zarr.json").is_file()), None)
    if around is not None:
        raise UsageError(f"{path} lies inside the Zarr store {around}. Choose another path.")
    try:
        with writer_lock(path):
            yield path
    except OSError as error:
        if is_disk_full(error):
            raise CubeError(
                f"{path}: {error.strerror}. What is finished stays valid: make room and run the same command again."
            ) from error
        named = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        raise CubeError(f"{path}: cannot be written: {error.strerror or error}{named}.") from error


@contextmanager
def reading() -> Iterator[None]:
    """Turn what the system says about a source folder into a DataError.

    Raises:
        DataError: A folder or file that cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror or error}.") from error


def make_place(path: Path, keep: bool, create: Callable[[Path], None]) -> bool:
    """Put an empty store at `path`, in one step; remove what stopped runs left beside it.

    Args:
        path: Where to.
        keep: What is there stays; otherwise it is replaced.
        create: Writes the empty store to a new folder.

    Returns:
        True when the store is new.
    """
    remove_leftovers(path)
    if path.exists():
        if keep:
            return False
        discard_folder(path)
    place_folder(path, create)
    return True
