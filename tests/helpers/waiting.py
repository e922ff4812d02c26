"""Waiting for an event, however long it takes: a busy machine is no error, a hanging process is one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

HANG_S = 1200
"""No expectation: what takes longer hangs. The limit of every process that a test starts and of every wait."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return once `condition()` holds.

    Args:
        condition: Looked at again and again.
        what: Is awaited, for the message.

    Raises:
        AssertionError: It does not come true.
    """
    last = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < last, f"waited {HANG_S} s, in vain: {what}"
        time.sleep(0.005)


def session_ends(leader: int) -> bool:
    """True when no process of the session that `leader` started is left."""
    return all(_session(entry.pid) != leader for entry in psutil.process_iter())


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0
