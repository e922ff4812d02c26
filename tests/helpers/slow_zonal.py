"""`flairhub zonal` with a slow network, for tests to interrupt: `python slow_zonal.py SECONDS_PER_CALL ARGUMENTS...`.

Prints `windows` before every call of the network.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from flairhub.cli import main
from flairhub.inference import block

if __name__ == "__main__":
    original, seconds = block.window_outputs, float(sys.argv[1])

    def slowly(*arguments: Any, **options: Any) -> Any:
        print("windows", flush=True)  # noqa: T201
        time.sleep(seconds)
        return original(*arguments, **options)

    block.window_outputs = slowly
    main(["zonal", *sys.argv[2:]])
