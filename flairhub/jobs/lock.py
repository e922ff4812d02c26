"""One writer at a time: a lock file beside what is written, that names its holder and goes away with it."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from flairhub.errors import LockError
from flairhub.jobs.placement import temporary_name

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system without locks answers."""

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EACCES)
"""What a file system without hard links answers."""

_ATTEMPTS = 20
"""The holder before may remove the file between our opening and locking it: then the lock is on nothing."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as the lock file says.

    Attributes:
        host: Name of its machine.
        process: Its process id.
        boot: Id of the boot of the machine; empty where the system has none.
        since: UTC, ISO 8601 to the second.
        by_system: The system's lock is held too, and ends with the process; otherwise the file itself is the lock.
        started: When the process began, in ticks since the boot: another process may get its number. Empty = unknown.
    """

    host: str
    process: int
    boot: str
    since: str
    by_system: bool
    started: str = ""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} (since {self.since})"

    @property
    def is_gone(self) -> bool:
        """True when the process has certainly ended; of another machine's process nobody here knows."""
        if self.host != socket.gethostname():
            return False
        if self.boot != _boot_id():
            return True
        if self.started and _start_of(self.process) not in ("", self.started):
            return True
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


@contextmanager
def writer_lock(target: Path, noun: str, lock: bool = True) -> Iterator[None]:
    """Hold the right to write a file or folder.

    The lock file is `<target>.lock`, with symbolic links in `target` resolved, so that all its names share one lock. It
    holds host, process and time. Normally the system locks it, and gives it back however the process ends; with
    `lock=False` the existence of the file is the lock, and it is taken over from a process that has ended.

    Args:
        target: What is to be written; the folder around it is made.
        noun: What it is, for the message: `cube`, `map`.
        lock: Use the locks of the file system; False only where it has none.

    Raises:
        LockError: Another process holds the lock, which the message names; or the file system has no locks.
    """
    target = target.resolve()
    path = target.with_name(target.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked_by_system(path, target, noun) if lock else _locked_by_file(path, target, noun):
        yield


@contextmanager
def locks_around(path: Path, noun: str, is_target: Callable[[Path], bool], lock: bool = True) -> Iterator[None]:
    """Hold the right to write in all targets that a path lies in, and refuse where one is being written.

    Args:
        path: File or folder that is added to a target; it need not exist.
        noun: What targets are, for the message.
        is_target: Tells which of the folders around the path are targets.
        lock: Use the locks of the file system; see `writer_lock`.

    Raises:
        LockError: As `writer_lock`.
    """
    with ExitStack() as stack:
        for parent in reversed(path.resolve().parents):
            is_written = bool(parent.name) and parent.with_name(f"{parent.name}.lock").exists()
            if is_written or is_target(parent):
                stack.enter_context(writer_lock(parent, noun, lock))
        yield


@contextmanager
def _locked_by_system(path: Path, target: Path, noun: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    for _ in range(_ATTEMPTS):
        holder = _read(path)
        if holder is not None and not holder.by_system and not holder.is_gone:
            raise _refusal(path, target, noun, holder)
        lock = FileLock(path, timeout=0, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            if path.exists():
                raise _refusal(path, target, noun, _read(path)) from None
            continue
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            if holder is None:
                path.unlink(missing_ok=True)
            raise LockError(
                f"{path}: the file system has no locks ({error.strerror or error}), so that two processes could write "
                f"this {noun} at once. Pass --no-lock (lock=False) to go on with a plain lock file: make sure yourself "
                "that no second machine writes it."
            ) from error
        break
    else:
        raise _refusal(path, target, noun, None)
    try:
        path.write_bytes(_record(by_system=True))
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _locked_by_file(path: Path, target: Path, noun: str) -> Iterator[None]:
    for _ in range(_ATTEMPTS):
        try:
            _make_file(path)
            break
        except FileExistsError:
            holder = _read(path)
            if path.exists() and (holder is None or not holder.is_gone):
                raise _refusal(path, target, noun, holder, lock=False) from None
            _take_away(path, holder)
    else:
        raise _refusal(path, target, noun, None, lock=False)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _make_file(path: Path) -> None:
    """Make the lock file with its record in one step, so that a kill leaves none that names nobody.

    Raises:
        FileExistsError: There is one.
    """
    aside = temporary_name(path)
    try:
        aside.write_bytes(_record(by_system=False))
        os.link(aside, path)
        return
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    finally:
        aside.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.write(descriptor, _record(by_system=False))
    finally:
        os.close(descriptor)


def _take_away(path: Path, holder: Holder | None) -> None:
    """Remove the lock file of a process that has ended, but not one that somebody else has made meanwhile."""
    aside = temporary_name(path)
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        if _read(aside) != holder:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink()


def _refusal(path: Path, target: Path, noun: str, holder: Holder | None, lock: bool = True) -> LockError:
    way_out = "Wait for it, or stop it."
    if not lock or (holder is not None and not holder.by_system):
        # Nobody takes it away from a process of another machine.
        way_out += f" If it has ended, remove {path}."
    return LockError(f"{target} is in use: {holder or 'another process'} is writing this {noun}. {way_out}")


def _record(by_system: bool) -> bytes:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = Holder(socket.gethostname(), os.getpid(), _boot_id(), since, by_system, _start_of(os.getpid()))
    return json.dumps(asdict(holder)).encode() + b"\n"


def _read(path: Path) -> Holder | None:
    """Return who holds the lock; None when the file does not exist or does not say so."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_of(process: int) -> str:
    try:
        # The name of the program, in brackets, may hold anything.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError, ValueError):
        return ""
