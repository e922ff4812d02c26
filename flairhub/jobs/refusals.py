"""What the system refuses, as one line that names the file: no defect of ours, and something the user can mend."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flairhub.errors import DataError, FlairhubError, OutputError
from flairhub.jobs.placement import is_disk_full, temporary_name

_IN_TEXT = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust (safetensors) name the system's error."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_CHAIN = 10

KEPT = "What is finished stays valid: make room and run the same command again."
"""What to say of a full disk where finished parts count."""


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
        raise kind(_sentence(refusal, named, what, KEPT)) from error


@contextmanager
def explained(place: Path, kind: type[FlairhubError] = OutputError, full: str = KEPT) -> Iterator[None]:
    """Like `refusals`, for the system's own errors only; `place` is named, and in brackets what else the system names.

    Args:
        place: File or folder, for the message.
        kind: The error to raise.
        full: What to say of a full disk, a whole sentence.

    Raises:
        FlairhubError: Of that kind: the system refuses.
    """
    try:
        yield
    except OSError as error:
        raise kind(_sentence(error, place, "cannot be written", full)) from error


def _sentence(error: OSError, place: Path | str, what: str, full: str) -> str:
    reason = error.strerror or str(error)
    if is_disk_full(error):
        return f"{place}: {reason}. {full}"
    other = f" ({error.filename})" if error.filename and str(error.filename) != str(place) else ""
    return f"{place}: {what}: {reason}{other}."


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


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Have a folder that can be written, tried before anything is computed; what stays empty is removed at the end.

    Raises:
        OSError: The system refuses.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    with _tried(folder, ""):
        yield


def try_folder(folder: Path, name: str) -> None:
    """See whether a file can be written to a folder, which is made and removed again when it does not exist.

    Args:
        folder: The folder.
        name: Longest name of what will be written there.

    Raises:
        OutputError: The system refuses.
    """
    with explained(folder), _tried(folder, name):
        pass


@contextmanager
def _tried(folder: Path, name: str) -> Iterator[None]:
    """Make a folder and write a file in it, of which nothing is left; at the end the folder goes if it is empty."""
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = temporary_name(folder / (name or "trial"))
        try:
            with trial.open("wb") as stream:
                stream.write(bytes(4096))
                stream.flush()
                # A quota may show no earlier.
                os.fsync(stream.fileno())
        except OSError as error:
            # The folder is what the user knows.
            raise OSError(error.errno, error.strerror, str(folder)) from error
        finally:
            with suppress(OSError):
                trial.unlink(missing_ok=True)
        yield
    finally:
        for place in missing:
            with suppress(OSError):
                place.rmdir()
