"""Running jobs: threads of this process, local worker processes, or a dask cluster; one loop for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from flairhub.errors import UsageError

Job = TypeVar("Job")
Result = TypeVar("Result")

_QUEUED_PER_WORKER = 2


@contextmanager
def job_executor(workers: int, scheduler: str | None) -> Iterator[Executor]:
    """Yield where jobs run.

    Args:
        workers: Threads, or local processes.
        scheduler: None or `threads`; `processes` for local dask workers; or the address of a dask scheduler
            (`tcp://host:port`), whose workers see the same files.

    Raises:
        UsageError: No such scheduler, or it does not answer.
    """
    if workers < 1:
        raise UsageError(f"workers: got {workers}, expected at least 1.")
    if scheduler in (None, "threads"):
        pool = ThreadPoolExecutor(workers, thread_name_prefix="flairhub-map")
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return
    from distributed import Client, LocalCluster

    if scheduler == "processes":
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            yield client.get_executor(pure=False)
        return
    if "://" not in str(scheduler):
        raise UsageError(
            f"scheduler: got {scheduler!r}, expected threads, processes or an address such as tcp://host:8786."
        )
    try:
        client = Client(scheduler, timeout=20)
    except (OSError, ValueError) as error:
        raise UsageError(f"scheduler: no dask scheduler answers at {scheduler} ({error}).") from None
    with client:
        yield client.get_executor(pure=False)


def run_jobs(
    executor: Executor, workers: int, function: Callable[[Job], Result], jobs: Iterable[Job]
) -> Iterator[tuple[Job, Result]]:
    """Yield (job, result) as jobs finish; few are queued at a time, so that memory does not grow with their number.

    The first error stops the rest.
    """
    waiting: dict[Future[Any], Job] = {}
    remaining = iter(jobs)
    try:
        while True:
            for job in islice(remaining, _QUEUED_PER_WORKER * workers - len(waiting)):
                waiting[executor.submit(function, job)] = job
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    finally:
        for future in waiting:
            future.cancel()
