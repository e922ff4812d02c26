"""One writer at a time, on file systems with and without locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flairhub.errors import LockError
from flairhub.jobs import lock as lock_module
from flairhub.jobs import writer_lock
from tests.helpers.waiting import HANG_S

BOTH = pytest.mark.parametrize("lock", [True, False], ids=["by system", "by file"])


def holder(**changes: Any) -> str:
    own = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "boot": lock_module._boot_id(),
        "since": "2026-01-02T03:04:05+00:00",
        "by_system": False,
    }
    return json.dumps({**own, **changes})


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@BOTH
def test_the_second_is_refused_naming_the_first_and_the_file_goes_away(tmp_path: Path, lock: bool) -> None:
    target = tmp_path / "new" / "c.zarr"
    message = (
        rf"^{target} is in use: process {os.getpid()} on {re.escape(socket.gethostname())} "
        r"\(since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00\) is writing this cube. Wait for it, or stop it."
    )
    with writer_lock(target, "cube", lock):
        assert (tmp_path / "new" / "c.zarr.lock").exists()
        for other in (True, False):
            with pytest.raises(LockError, match=message), writer_lock(target, "cube", other):
                pass
        assert json.loads((tmp_path / "new" / "c.zarr.lock").read_text())["by_system"] is lock
    assert list((tmp_path / "new").iterdir()) == []
    with writer_lock(target, "cube", lock):
        pass


@BOTH
def test_a_failure_gives_it_back(tmp_path: Path, lock: bool) -> None:
    with pytest.raises(KeyboardInterrupt), writer_lock(tmp_path / "c", "cube", lock):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_links_share_one_lock(tmp_path: Path, lock: bool) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with (
        writer_lock(tmp_path / "link", "map", lock),
        pytest.raises(LockError, match=rf"^{tmp_path}/real is in use: .* is writing this map"),
        writer_lock(tmp_path / "real", "map", lock),
    ):
        pass


@BOTH
@pytest.mark.parametrize("why", ["process", "boot"])
def test_a_file_of_a_process_that_has_ended_does_not_hold(tmp_path: Path, lock: bool, why: str) -> None:
    path = tmp_path / "c.lock"
    for by_system in (True, False):
        gone = {"process": ended_process()} if why == "process" else {"boot": "another"}
        path.write_text(holder(by_system=by_system, **gone))
        with writer_lock(tmp_path / "c", "cube", lock):
            assert json.loads(path.read_text())["process"] == os.getpid()
        assert list(tmp_path.iterdir()) == []


@BOTH
@pytest.mark.parametrize("changes", [{}, {"host": "elsewhere", "boot": "another", "process": 1}])
def test_a_plain_file_of_a_living_or_distant_process_holds(tmp_path: Path, lock: bool, changes: dict[str, Any]) -> None:
    path = tmp_path / "c.lock"
    path.write_text(holder(**changes))
    message = rf"since 2026-01-02T03:04:05\+00:00\) is writing this cube.* If it has ended, remove {path}"
    with pytest.raises(LockError, match=message), writer_lock(tmp_path / "c", "cube", lock):
        pass
    assert path.exists()


def test_a_file_that_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "c.lock"
    path.write_text("")
    with (
        pytest.raises(LockError, match=r"another process is writing this cube.* remove"),
        writer_lock(tmp_path / "c", "cube", lock=False),
    ):
        pass
    with writer_lock(tmp_path / "c", "cube"):
        pass
    assert not path.exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = (
        rf"{tmp_path}/c.lock: the file system has no locks \({re.escape(os.strerror(number))}\).* Pass --no-lock "
        r"\(lock=False\) to go on with a plain lock file"
    )
    with pytest.raises(LockError, match=message), writer_lock(tmp_path / "c", "cube"):
        pass
    assert list(tmp_path.iterdir()) == []
    with writer_lock(tmp_path / "c", "cube", lock=False):
        assert (tmp_path / "c.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_another_refusal_of_the_system_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"), writer_lock(tmp_path / "c", "cube"):
        pass


def test_a_lock_that_somebody_took_meanwhile_is_given_back(tmp_path: Path) -> None:
    """Two find the file of an ended process; the slower one must not remove what the faster one has made."""
    path = tmp_path / "c.lock"
    path.write_text(holder(process=ended_process()))
    stale = lock_module._read(path)
    path.write_text(holder())
    lock_module._take_away(path, stale)
    assert path.read_text() == holder()
    assert list(tmp_path.iterdir()) == [path]


@BOTH
def test_many_processes_one_at_a_time(tmp_path: Path, lock: bool) -> None:
    """Each adds one to a number in a file, without any other protection."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom flairhub.errors import LockError\n"
        "from flairhub.jobs import writer_lock\nnumber = Path(sys.argv[1])\nleft = 20\n"
        "while left:\n    try:\n"
        f"        with writer_lock(number, 'cube', {lock}):\n"
        "            value = int(number.read_text())\n            time.sleep(0.001)\n"
        "            number.write_text(str(value + 1))\n            left -= 1\n"
        "    except LockError:\n        time.sleep(0.002)\n"
    )
    number = tmp_path / "number"
    number.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(number)]) for _ in range(3)]
    assert [process.wait(timeout=HANG_S) for process in processes] == [0, 0, 0]
    assert number.read_text() == "60"
    assert list(tmp_path.iterdir()) == [number]


def test_a_process_number_that_another_process_has_got_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.lock"
    with writer_lock(tmp_path / "c", "cube", lock=False):
        record = json.loads(path.read_text())
    assert record["process"] == os.getpid()
    assert record["started"].isdigit()
    path.write_text(json.dumps(record))
    with pytest.raises(LockError, match="is writing this cube"), writer_lock(tmp_path / "c", "cube", lock=False):
        pass
    path.write_text(json.dumps({**record, "started": str(int(record["started"]) - 1)}))
    with writer_lock(tmp_path / "c", "cube", lock=False):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_plain_file_needs_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with writer_lock(tmp_path / "c", "cube", lock=False):
        assert json.loads((tmp_path / "c.lock").read_text())["process"] == os.getpid()
        with pytest.raises(LockError, match="is writing this cube"), writer_lock(tmp_path / "c", "cube", lock=False):
            pass
    assert list(tmp_path.iterdir()) == []
