"""Fault points: named places where a test can have the process killed, interrupted, or the disk full.

Off unless the environment variable `FLAIRHUB_FAULT` is set: `<point>[:<n>[:<what>]]` strikes when the point is reached
for the n-th time (default 1) in a process. `<what>` is `kill` (SIGKILL, the default), `interrupt` (SIGINT to the
process group, as a terminal sends it), or `full` (the error of a full disk, at that and every later time). The points
are listed in docs/ingest.md.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

VARIABLE = "FLAIRHUB_FAULT"

_reached: Counter[str] = Counter()


def reach(point: str) -> None:
    """Strike when the test environment asks for a fault here; otherwise do nothing.

    Raises:
        OSError: The fault asked for is a full disk.
    """
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    name, _, rest = wanted.partition(":")
    if name != point:
        return
    number, _, what = rest.partition(":")
    _reached[point] += 1
    first = int(number or 1)
    if what == "full" and _reached[point] >= first:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if _reached[point] == first and what == "interrupt":
        os.killpg(0, signal.SIGINT)
    elif _reached[point] == first and what != "full":
        os.kill(os.getpid(), signal.SIGKILL)
