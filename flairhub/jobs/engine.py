"""Running a plan of jobs: here, in threads, in local processes, or on a dask cluster; one loop for all."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeVar, overload

from flairhub.errors import FlairhubError, JobError, UsageError
from flairhub.jobs.processes import local_client, quiet_distributed

Job = TypeVar("Job")
Result = TypeVar("Result")

QUEUED_PER_SLOT = 2
"""Jobs handed out ahead per thread or process: enough to keep it busy, few enough to keep memory flat."""

LOST_AT_MOST = 3
"""How often a job is handed out before it is reported; dask gives one up after four deaths each time."""

CHECK_EVERY_S = 5
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
        executor: Takes the jobs; None = each is done here, when its result is asked for.
        slots: Jobs that run at a time.
        stop: Set when the run ends early; jobs of this process look at it now and then. None where jobs run elsewhere.
        living: Number of worker processes; where they are this run's own it also has lost ones replaced.
    """

    executor: Executor | None
    slots: int
    stop: threading.Event | None = None
    living: Callable[[], int] | None = None


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def job_workers(workers: int, scheduler: str | None) -> Iterator[Workers]:
    """Yield where jobs run.

    Args:
        workers: Threads, or local processes; 0 = none, jobs run in the caller's thread.
        scheduler: None or `threads`; `processes` for local dask workers; or the address of a dask scheduler
            (`tcp://host:port`), whose workers see the same files and are all used, whatever `workers` is.

    Raises:
        UsageError: No such scheduler, it does not answer, or it has no workers.
    """
    if scheduler in (None, "threads") and workers == 0:
        yield Workers(None, 1, threading.Event())
    elif scheduler in (None, "threads"):
        stop = threading.Event()
        pool = ThreadPoolExecutor(_at_least_one(workers), thread_name_prefix="flairhub-job")
        try:
            yield Workers(pool, workers, stop)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    elif scheduler == "processes":
        with local_client(_at_least_one(workers)) as client:
            yield Workers(client.get_executor(pure=False), workers, living=partial(_replaced, client, workers))
    elif "://" in str(scheduler):
        with _client_of(str(scheduler)) as client:
            slots = max(1, sum(client.nthreads().values()))
            yield Workers(client.get_executor(pure=False), slots, living=lambda: len(client.nthreads()))
    else:
        raise UsageError(
            f"scheduler: got {scheduler!r}, expected threads, processes or an address such as tcp://host:8786."
        )


def _at_least_one(workers: int) -> int:
    if workers < 1:
        raise UsageError(f"workers: got {workers}, expected at least 1.")
    return workers


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


@overload
def run_jobs(
    workers: Workers,
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    noun: str = ...,
    name: Callable[[Job], str] = ...,
    hint: str = ...,
    errors: Literal["raise"] = ...,
) -> Iterator[tuple[Job, Result]]: ...
@overload
def run_jobs(
    workers: Workers,
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    noun: str = ...,
    name: Callable[[Job], str] = ...,
    hint: str = ...,
    errors: Literal["yield"],
) -> Iterator[tuple[Job, Result | Exception]]: ...
def run_jobs(
    workers: Workers,
    function: Callable[[Job], Any],
    jobs: Iterable[Job],
    *,
    noun: str = "job",
    name: Callable[[Job], str] = str,
    hint: str = "",
    errors: Literal["raise", "yield"] = "raise",
) -> Iterator[tuple[Job, Any]]:
    """Yield (job, result) as jobs finish, in any order; few are queued at a time, so that memory stays flat.

    A job whose worker process dies is done again. dask holds the death of a worker against every job that it had, so
    jobs that it gives up are suspects: they are done one at a time after all others, which finds the guilty.

    Args:
        workers: From `job_workers`.
        function: Does one job; for other processes it can be pickled, and so can jobs and results.
        jobs: The plan, frozen.
        noun: What a job is to the user, for messages: `block`, `shard`.
        name: Names a job in messages.
        hint: What to do about a job that kills its workers, a whole sentence.
        errors: `raise` ends with the first error; `yield` gives a `FlairhubError` or `OSError`, and whatever a job in
            another process failed with, in place of the result and goes on.

    Raises:
        JobError: A job's worker processes die again and again; there is no scheduler or no worker any more.
    """
    loop = _Loop(workers, partial(_attempt, function, workers.stop is None), noun, name, hint)
    try:
        for job, result in loop.finished(jobs):
            if isinstance(result, Exception) and errors == "raise":
                raise result
            yield job, result
    finally:
        if workers.stop is not None:
            workers.stop.set()
        loop.cancel()


def _attempt(function: Callable[[Any], Any], elsewhere: bool, job: Any) -> Any:
    """Return the result or the error; from `elsewhere` without its causes: GDAL's do not travel between processes."""
    try:
        return function(job)
    except FlairhubError as error:
        if not elsewhere:
            return error
        try:
            return type(error)(str(error))
        except TypeError:
            return FlairhubError(str(error))
    except OSError as error:
        return OSError(error.errno, f"{error.strerror or error}", error.filename) if elsewhere else error


@dataclass
class _Loop:
    """The jobs of one run that are handed out."""

    workers: Workers
    attempt: Callable[[Any], Any]
    noun: str
    name: Callable[[Any], str]
    hint: str

    def __post_init__(self) -> None:
        self._running: dict[Future[Any], Any] = {}

    def finished(self, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield each job with its result, or the exception that it failed with."""
        if self.workers.executor is None:
            yield from ((job, self.attempt(job)) for job in jobs)
            return
        suspects: deque[tuple[Any, int]] = deque()
        for job, result in self._handed_out(iter(jobs), QUEUED_PER_SLOT * self.workers.slots):
            if _is_lost(result):
                suspects.append((job, 1))
            else:
                yield job, result
        while suspects:
            job, times = suspects.popleft()
            ((_, result),) = self._handed_out(iter([job]), 1)
            if not _is_lost(result):
                yield job, result
            elif times + 1 < LOST_AT_MOST:
                suspects.append((job, times + 1))
            else:
                yield job, self._lost(job)

    def cancel(self) -> None:
        """Take back what is queued."""
        for future in self._running:
            future.cancel()

    def _handed_out(self, remaining: Iterator[Any], most: int) -> Iterator[tuple[Any, Any]]:
        executor = self.workers.executor
        assert executor is not None
        while True:
            for job in islice(remaining, most - len(self._running)):
                self._running[executor.submit(self.attempt, job)] = job
            if not self._running:
                return
            for future in self._some_done():
                job = self._running.pop(future)
                yield job, self._outcome(future)

    def _some_done(self) -> Collection[Future[Any]]:
        """Wait for jobs; while none ends, see that there is somebody to do them."""
        living, last_seen = self.workers.living, time.monotonic()
        while True:
            done = wait(self._running, CHECK_EVERY_S if living else None, return_when=FIRST_COMPLETED).done
            if done or living is None:
                return done
            if living():
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > WITHOUT_WORKERS_S:
                raise JobError(
                    f"no worker process has been there for {WITHOUT_WORKERS_S} s. Finished {self.noun}s are kept; "
                    "start workers and run again."
                )

    def _outcome(self, future: Future[Any]) -> Any:
        try:
            error = future.exception()
        except CancelledError:
            raise JobError(
                f"the dask scheduler has gone away. Finished {self.noun}s are kept; start it and run again."
            ) from None
        if error is None:
            return future.result()
        # What a thread fails with unexpectedly is a defect, not a result.
        if self.workers.stop is not None or not isinstance(error, Exception):
            raise error
        return error

    def _lost(self, job: Any) -> JobError:
        parts = (
            f"{self.noun} {self.name(job)}: the worker processes that had it died again and again, perhaps for want of "
            "memory.",
            self.hint,
            f"Finished {self.noun}s are kept.",
        )
        return JobError(" ".join(filter(None, parts)))


def _is_lost(result: Any) -> bool:
    """True when dask gave a job up because too many workers died that had it."""
    return type(result).__name__ == "KilledWorker"
