"""One writer per cube."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flairhub.errors import CubeError


@contextmanager
def writer_lock(cube: Path) -> Iterator[None]:
    """Hold the right to write a cube; the system gives it back however the process ends.

    The lock is a file beside the cube, `<cube>.lock`, that names its holder and goes away with it.

    Raises:
        CubeError: Another process is writing; the message names it.
    """
    path = cube.with_name(cube.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(path, cube)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take(path: Path, cube: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise CubeError(f"{cube}: {holder} is writing this cube. Wait for it, or stop it.") from None
        # Between opening and locking the holder before may have removed the file: then the lock is on nothing.
        try:
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
