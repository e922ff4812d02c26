"""Running an ingest in a process of its own, to be killed, interrupted or starved."""

from __future__ import annotations

import multiprocessing.forkserver
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.helpers.makers import PatchFiles
from tests.helpers.waiting import HANG_S, wait_until

# Importing takes longer than ingesting the small data sets of the tests: a server imports once, and each run is its
# copy. Modules that start threads when imported are none of these.
_fork = multiprocessing.get_context("forkserver")
PRELOADED = ["flairhub.cli.ingest", "flairhub.ingest.run", "rasterio", "zarr", "distributed", "torch"]


def start_server(*modules: str) -> None:
    """Start the process whose copies the runs are; it imports in the background, some `modules` more when given."""
    _fork.set_forkserver_preload([*PRELOADED, *modules])
    multiprocessing.forkserver.ensure_running()


class Running:
    """A run of the command line, with what is used of `subprocess.Popen`."""

    def __init__(
        self,
        arguments: list[str],
        fault: str = "",
        limit_bytes: int = 0,
        program: Callable[[list[str]], object] | None = None,
    ):
        """Start the command line, or another program; on return its session, and so its process group, is its own."""
        self._folder = tempfile.TemporaryDirectory()
        self._texts = [Path(self._folder.name) / name for name in ("out", "err")]
        settings = ([str(path) for path in self._texts], arguments, fault, limit_bytes, program)
        self._process = _fork.Process(target=_work, args=settings)
        self._process.start()
        self.pid = self._process.pid or 0
        wait_until(lambda: self._texts[1].exists() or not self._process.is_alive(), "the start of the run")

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float) -> None:
        """Wait for its end, but no longer than `seconds`."""
        self._process.join(seconds)

    def communicate(self, timeout: float = HANG_S) -> tuple[str, str]:
        """Wait for its end; return what it wrote to standard output and error."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, "still running"
        return self._texts[0].read_text(), self._texts[1].read_text()

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode


def _work(
    texts: list[str],
    arguments: list[str],
    fault: str,
    limit_bytes: int,
    program: Callable[[list[str]], object] | None,
) -> None:
    os.setsid()
    for number, path in enumerate(texts, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ["FLAIRHUB_FAULT"] = fault
    if fault.endswith(":stop"):
        kill = os.kill
        os.kill = lambda pid, _: kill(pid, signal.SIGSTOP)
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    from flairhub.cli import main

    (program or main)(arguments)


def _arguments(files: PatchFiles, cube: Path, more: tuple[object, ...]) -> list[str]:
    command = ["ingest", "--root", files.folder, "--cube", cube, "--shard", 1, "--workers", 0, *more]
    return [str(argument) for argument in command]


def start(files: PatchFiles, cube: Path, *arguments: object, fault: str = "", limit_bytes: int = 0) -> Running:
    """Start `flairhub ingest --root ... --cube ... --shard 1`.

    Args:
        files: What to ingest.
        cube: Where to.
        arguments: More of the command line.
        fault: Value of FLAIRHUB_FAULT; with `stop` for what it does, the process stands still until it gets SIGCONT.
        limit_bytes: Largest file that the process may write; 0 = any.
    """
    return Running(_arguments(files, cube, arguments), fault, limit_bytes)


def start_afresh(
    files: PatchFiles, cube: Path, *arguments: object, fault: str = "", before: str = ""
) -> subprocess.Popen[str]:
    """Like `start`, in a new interpreter that first executes `before`: for runs that start workers of their own."""
    code = f"{before}\nfrom flairhub.cli import main; main()"
    # A session of its own: a signal to its group reaches its workers and nobody else.
    return subprocess.Popen(
        [sys.executable, "-c", code, *_arguments(files, cube, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "FLAIRHUB_FAULT": fault},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(files: PatchFiles, cube: Path, *arguments: object, fault: str = "", limit_bytes: int = 0) -> tuple[int, str]:
    """Run an ingest to its end; return exit code (negative = signal) and all output."""
    process = start(files, cube, *arguments, fault=fault, limit_bytes=limit_bytes)
    out, err = process.communicate()
    code = process.returncode
    assert code is not None
    return code, out + err
