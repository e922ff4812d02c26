"""Local dask worker processes: started quietly, reached from this machine only, ended by the one that started them."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from flairhub.errors import JobError

CLOSE_TIMEOUT_S = 30
"""How long workers may take to end."""


@contextmanager
def local_client(workers: int) -> Iterator[Any]:
    """Start worker processes with one thread each, and end them.

    Scheduler, dashboard and workers listen on 127.0.0.1 only.

    Args:
        workers: Number of processes.

    Yields:
        A `distributed.Client`; `client.cluster` is the `LocalCluster`.
    """
    from multiprocessing import resource_tracker

    from distributed import Client, LocalCluster

    opened: list[Any] = []
    with quiet_distributed():
        try:
            # Its start would unblock the signal again.
            resource_tracker.ensure_running()
            with _interrupts_later(), _said_when_none_starts(workers):
                cluster = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    memory_limit=0,
                    preload=[__name__],
                )
                opened.append(cluster)
                opened.append(Client(cluster))
            yield opened[-1]
        finally:
            with _interrupts_later():
                for one in reversed(opened):
                    # What is done is on disk: nobody waits for a worker that does not go; it ends with this process.
                    with suppress(TimeoutError):
                        one.close(timeout=CLOSE_TIMEOUT_S)


@contextmanager
def _said_when_none_starts(workers: int) -> Iterator[None]:
    """Turn what dask says about worker processes that die while they start into a JobError."""
    try:
        yield
    except (RuntimeError, OSError, TimeoutError) as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise JobError(
            f"{workers} worker processes do not start ({reason}): the system may lack memory, processes or threads for "
            f"them. Use fewer workers, or threads. Nothing was computed."
        ) from error


def dask_setup(worker: Any) -> None:
    """Run by dask in every worker process at its start, because this module is its `preload`.

    Ctrl-C, which a terminal sends to all processes, is left to the one that started the workers: it ends them. What
    fails comes back as a job's result, so their log has nothing to add.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


@contextmanager
def quiet_distributed() -> Iterator[None]:
    """Keep the comings and goings of workers out of the log; what fails comes back as the job's result.

    Neither is the size of jobs anybody's concern: some bring the pixels that they work on.
    """
    # dask gives some of its loggers a level and a handler of their own.
    # Results that are on their way when a client closes end in tornado's log.
    logs = [logging.getLogger(name) for name in ("distributed", "distributed.client", "tornado.application")]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold Ctrl-C back while workers start or end, so that it finds all of them or none.

    Processes and threads that start meanwhile never see it: the one that started them ends them.
    """
    caught: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: caught.append(number)) if in_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_main:
            signal.signal(signal.SIGINT, handler)
    if caught:
        raise KeyboardInterrupt
