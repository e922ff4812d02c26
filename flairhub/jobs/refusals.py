"""What the system refuses, as one line that names the file: no defect of ours, and something the user can mend."""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flairhub.errors import DataError, FlairhubError
from flairhub.jobs.placement import PARTIAL, is_disk_full

_IN_TEXT = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust (safetensors) name the system's error."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_CHAIN = 10


@contextmanager
def refusals(path: Path, kind: type[FlairhubError] = DataError, what: str = "cannot be written") -> Iterator[None]:
    """Turn what the system says about writing to `path` into one line.

    Args:
        path: Folder or file that is written; a file that the system names is named instead.
        kind: The error to raise.
        what: What the system did not let us do.

    Raises:
        FlairhubError: Of that kind: full disk, quota, no permission, a file where a folder should be, a name that is
            too long, no threads left.
    """
    try:
        yield
    except FlairhubError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and "start new thread" in str(error):
            raise kind("The system starts no more threads (see `ulimit -u`). Use fewer workers or threads.") from error
        refusal = _system_error(error)
        if refusal is None and isinstance(error, OSError):
            # Of a library that keeps the number to itself, as rasterio does.
            raise kind(f"{path}: {what}: {error}.") from error
        if refusal is None:
            raise
        named = path if refusal.filename is None else refusal.filename
        if is_disk_full(refusal):
            raise kind(
                f"{named}: {refusal.strerror}. What is finished stays valid: make room and run the same command again."
            ) from error
        raise kind(f"{named}: {what}: {refusal.strerror or refusal}.") from error


def _system_error(error: BaseException | None) -> OSError | None:
    """The system's error behind an exception: torch and safetensors raise their own on top of it."""
    for _ in range(_CHAIN):
        if error is None:
            return None
        if isinstance(error, OSError) and error.errno is not None:
            return error
        text = str(error)
        number = _IN_TEXT.search(text)
        codes = [int(number[1])] if number is not None else [code for code in _FULL if os.strerror(code) in text]
        if codes:
            return OSError(codes[0], os.strerror(codes[0]))
        error = error.__cause__ or error.__context__
    return None


def check_writable(folder: Path) -> None:
    """Make a folder and try to write a file in it.

    Raises:
        OSError: The system refuses.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{uuid.uuid4().hex[:12]}{PARTIAL}"
    try:
        probe.write_bytes(b"\0" * 4096)
    except OSError as error:
        # The folder is what the user knows.
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        with suppress(OSError):
            probe.unlink()


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Have a folder that can be written, tried before anything is computed; what stays empty is removed at the end.

    Raises:
        OSError: The system refuses.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        check_writable(folder)
        yield
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
