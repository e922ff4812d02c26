"""Running jobs: threads of this process, local worker processes, or a dask cluster; one loop for all."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from flairhub.errors import FlairhubError, UsageError, ZoneError
from flairhub.jobs.processes import local_client, quiet_distributed

Job = TypeVar("Job")
Result = TypeVar("Result")

QUEUED_PER_WORKER = 2
"""Jobs handed out ahead per thread or process: enough to keep it busy, few enough to keep memory flat."""

LOST_AT_MOST = 3
"""How often a job is handed out again after dask has given it up, which it does after four deaths."""

LOOK_EVERY_S = 5
"""How often the workers are counted while no job ends."""

WITHOUT_WORKERS_S = 120
"""How long a run waits for a worker when there is none."""

CONNECT_TIMEOUT_S = 20
"""How long a scheduler may take to answer, and to have its first worker."""


class Stopped(Exception):
    """A job ended early because its run was interrupted or has failed."""


@dataclass(frozen=True)
class Workers:
    """Where jobs run.

    Attributes:
        executor: Takes the jobs.
        slots: Jobs that run at a time.
        stop: Set when the run ends early; jobs in threads of this process look at it between windows. None where jobs
            run elsewhere.
        living: Number of worker processes; where they are this run's own it also has lost ones replaced.
    """

    executor: Executor
    slots: int
    stop: threading.Event | None = None
    living: Callable[[], int] | None = None


@contextmanager
def job_workers(workers: int, scheduler: str | None) -> Iterator[Workers]:
    """Yield where jobs run.

    Args:
        workers: Threads, or local processes.
        scheduler: None or `threads`; `processes` for local dask workers; or the address of a dask scheduler
            (`tcp://host:port`), whose workers see the same files.

    Raises:
        UsageError: No such scheduler, it does not answer, or it has no workers.
    """
    if workers < 1:
        raise UsageError(f"workers: got {workers}, expected at least 1.")
    if scheduler in (None, "threads"):
        stop = threading.Event()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="flairhub-map")
        try:
            yield Workers(pool, workers, stop)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        return
    if scheduler == "processes":
        with local_client(workers) as client:
            yield Workers(client.get_executor(pure=False), workers, living=partial(_replaced, client, workers))
        return
    if "://" not in str(scheduler):
        raise UsageError(
            f"scheduler: got {scheduler!r}, expected threads, processes or an address such as tcp://host:8786."
        )
    with _client_of(str(scheduler)) as client:
        slots = max(1, sum(client.nthreads().values()))
        yield Workers(client.get_executor(pure=False), slots, living=lambda: len(client.nthreads()))


def _replaced(client: Any, workers: int) -> int:
    """Have worker processes that could not be started again replaced; return how many there are."""
    living = len(client.nthreads())
    if living < workers:
        client.cluster.scale(workers)
    return living


@contextmanager
def _client_of(address: str) -> Iterator[Any]:
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise UsageError(f"scheduler: no dask scheduler answers at {address} ({error}).") from None
    with quiet_distributed(), client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_TIMEOUT_S)
        except TimeoutError:
            raise UsageError(
                f"scheduler: {address} has no workers. Start some (`dask worker {address}`) where the files are seen."
            ) from None
        yield client


def run_jobs(workers: Workers, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result]]:
    """Yield (job, result) as jobs finish; few are queued at a time, so that memory does not grow with their number.

    The first error stops the rest. A job whose worker process dies is done again by another one.

    Raises:
        ZoneError: A job's worker processes die again and again.
    """
    waiting: dict[Future[Any], Job] = {}
    remaining = iter(jobs)
    attempt = function if workers.stop is not None else partial(_attempt, function)
    lost: Counter[Job] = Counter()
    try:
        while True:
            for job in islice(remaining, QUEUED_PER_WORKER * workers.slots - len(waiting)):
                waiting[workers.executor.submit(attempt, job)] = job
            if not waiting:
                return
            for future in _some_done(workers, waiting):
                job = waiting.pop(future)
                if _is_lost(future):
                    # dask holds a death against every job that the worker had: most are innocent.
                    lost[job] += 1
                    if lost[job] == LOST_AT_MOST:
                        raise _lost_error(job)
                    waiting[workers.executor.submit(attempt, job)] = job
                    continue
                found = future.result()
                if isinstance(found, FlairhubError):
                    raise found
                yield job, found
    finally:
        if workers.stop is not None:
            workers.stop.set()
        for future in waiting:
            future.cancel()


def _some_done(workers: Workers, waiting: Iterable[Future[Any]]) -> Iterable[Future[Any]]:
    """Wait for jobs; while none ends, see that there is somebody to do them.

    Raises:
        ZoneError: There is no worker, and no new one comes.
    """
    last_seen = time.monotonic()
    while True:
        done = wait(waiting, LOOK_EVERY_S if workers.living else None, return_when=FIRST_COMPLETED).done
        if done or workers.living is None:
            return done
        if workers.living():
            last_seen = time.monotonic()
        elif time.monotonic() - last_seen > WITHOUT_WORKERS_S:
            raise ZoneError(
                f"no worker process has been there for {WITHOUT_WORKERS_S} s. Finished blocks are kept; start workers "
                f"and run again."
            )


def _attempt(function: Callable[[Any], Any], job: Any) -> Any:
    """Return the result or the error, without its causes: GDAL's exceptions do not travel between processes."""
    try:
        return function(job)
    except FlairhubError as error:
        try:
            return type(error)(str(error))
        except TypeError:
            return ZoneError(str(error))


def _is_lost(future: Future[Any]) -> bool:
    """True when dask gave a job up because too many workers died that had it.

    Raises:
        ZoneError: The scheduler itself is gone.
    """
    try:
        return type(future.exception()).__name__ == "KilledWorker"
    except CancelledError:
        raise ZoneError("the dask scheduler has gone away. Finished blocks are kept; start it and run again.") from None


def _lost_error(job: Any) -> ZoneError:
    return ZoneError(
        f"block {job}: the worker processes that computed it died again and again, perhaps for want of memory. "
        f"Use a smaller block_px or batch_size; finished blocks are kept."
    )
