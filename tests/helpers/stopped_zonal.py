"""`flairhub zonal` that stands still in its middle, for tests to interrupt it there.

python stopped_zonal.py FOLDER ARGUMENTS...: until a first block is journalled under FOLDER the run is as usual. From
then on a window prints `window` and waits: in threads until the run is shutting down, which is after it has noticed
that it has to stop; in worker processes until FOLDER/go-on exists. After it, it prints `computed`.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flairhub.cli import main
from flairhub.inference import block
from tests.helpers.waiting import wait_until

JOURNAL = ".map.unfinished/journal.jsonl"
GO_ON = "go-on"


def has_block(folder: Path) -> bool:
    """True when the journal of the run has a finished block."""
    journal = folder / JOURNAL
    return journal.is_file() and "\n" in journal.read_text()


def stand_still(folder: Path) -> None:
    """Have windows wait once a block is done; also in worker processes, which import this file again."""
    window_outputs, shutdown, ending = block.window_outputs, ThreadPoolExecutor.shutdown, threading.Event()

    def waiting(*arguments: Any, **options: Any) -> Any:
        if not has_block(folder):
            return window_outputs(*arguments, **options)
        # One write: lines of several processes do not mix.
        sys.stdout.write("window\n")
        sys.stdout.flush()
        wait_until(lambda: ending.is_set() or (folder / GO_ON).exists(), "the end of the run")
        result = window_outputs(*arguments, **options)
        sys.stdout.write("computed\n")
        sys.stdout.flush()
        return result

    def noted(pool: ThreadPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            ending.set()
        shutdown(pool, wait, cancel_futures=cancel_futures)

    block.window_outputs = waiting
    ThreadPoolExecutor.shutdown = noted  # type: ignore[method-assign]


if __name__ in ("__main__", "__mp_main__"):
    stand_still(Path(sys.argv[1]))
if __name__ == "__main__":
    main(["zonal", *sys.argv[2:]])
