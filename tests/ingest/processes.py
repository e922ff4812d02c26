"""Running an ingest in a process of its own, to be killed, interrupted or starved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from makers import PatchFiles


def start(
    files: PatchFiles, cube: Path, *arguments: object, fault: str = "", limit_bytes: int = 0
) -> subprocess.Popen[str]:
    """Start `flairhub ingest --root ... --cube ... --shard 1`.

    Args:
        files: What to ingest.
        cube: Where to.
        arguments: More of the command line.
        fault: Value of FLAIRHUB_FAULT.
        limit_bytes: Largest file that the process may write; 0 = any.
    """
    command = ["ingest", "--root", files.folder, "--cube", cube, "--shard", 1, "--workers", 0, *arguments]
    code = "import sys; from flairhub.cli import main; main(sys.argv[1:])"
    if limit_bytes:
        code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes},) * 2); {code}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FLAIRHUB_FAULT": fault}
    # A session of its own: a signal to its group reaches its workers and nobody else.
    return subprocess.Popen(
        [sys.executable, "-c", code, *(str(argument) for argument in command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(files: PatchFiles, cube: Path, *arguments: object, fault: str = "", limit_bytes: int = 0) -> tuple[int, str]:
    """Run an ingest to its end; return exit code (negative = signal) and all output."""
    process = start(files, cube, *arguments, fault=fault, limit_bytes=limit_bytes)
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err
