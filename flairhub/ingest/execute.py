"""Running jobs: one after the other here, or on dask workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flairhub.errors import FlairhubError, UsageError
from flairhub.ingest.job import Job, JobResult
from flairhub.ingest.jobs import run_job
from flairhub.jobs.processes import local_client

JOBS_PER_WORKER = 2
"""Jobs handed out ahead per worker: enough to keep it busy, few enough to keep memory flat."""

FILES_WORTH_WORKERS = 4000
"""Below, starting processes takes longer than reading the files: about 10 ms each."""

CONNECT_TIMEOUT_S = 10
"""How long a scheduler may take to answer."""


def run_jobs(
    jobs: Sequence[Job], store: str, workers: int, scheduler: str | None
) -> Iterator[tuple[Job, JobResult | Exception]]:
    """Yield every job with its result as it finishes, in any order.

    Args:
        jobs: What to do.
        store: Folder of the cube, as the workers see it.
        workers: Local dask worker processes; 0 = in this process.
        scheduler: Address of a running dask scheduler, which then has the workers.

    Yields:
        The job and its result, or the exception it failed with for good.
    """
    if not jobs:
        return
    if not workers and not scheduler:
        overlap = usable_cores() > 1
        for job in jobs:
            try:
                result: JobResult | Exception = run_job(job, store, overlap)
            except (FlairhubError, OSError) as error:
                result = error
            yield job, result
        return
    with _client(min(workers, len(jobs)), scheduler) as client:
        yield from _run_on(client, jobs, store)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_workers(jobs: Sequence[Job]) -> int:
    """Return how many worker processes pay: one per core, or 0 (this process) for few files or a single core."""
    n_files = sum(file is not None for job in jobs for file in job.files)
    return 0 if n_files < FILES_WORTH_WORKERS or usable_cores() == 1 else usable_cores()


def _attempt(do: Callable[..., JobResult], job: Job, store: str, overlap: bool) -> JobResult | Exception:
    """Return the result or the error, without its causes: GDAL's exceptions do not travel between processes."""
    try:
        return do(job, store, overlap)
    except FlairhubError as error:
        return type(error)(str(error))
    except OSError as error:
        return OSError(error.errno, f"{error.strerror or error}", error.filename)


def _run_on(client: Any, jobs: Sequence[Job], store: str) -> Iterator[tuple[Job, JobResult | Exception]]:
    from distributed import KilledWorker

    n_workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    suspects = []
    for job, result in _submitted(client, jobs, store, JOBS_PER_WORKER * n_workers, "ingest"):
        if isinstance(result, KilledWorker):
            suspects.append(job)
        else:
            yield job, result
    # dask holds the death of a worker against every job that it had: one at a time, the guilty are found.
    yield from _submitted(client, suspects, store, 1, "alone")


def _submitted(
    client: Any, jobs: Sequence[Job], store: str, ahead: int, prefix: str
) -> Iterator[tuple[Job, JobResult | Exception]]:
    """Yield jobs as they finish, with at most `ahead` of them handed out at a time."""
    from distributed import as_completed

    waiting = iter(jobs)
    running: dict[Any, Job] = {}
    finished = as_completed()

    def submit() -> None:
        job = next(waiting, None)
        if job is not None:
            future = client.submit(_attempt, run_job, job, store, False, pure=False, key=f"{prefix}-{job.id}")
            running[future] = job
            finished.add(future)

    for _ in range(ahead):
        submit()
    try:
        for future in finished:
            job = running.pop(future)
            try:
                result: JobResult | Exception = future.result()
            except Exception as error:  # whatever its workers died of is reported with the job's patches
                result = error
            future.release()
            submit()
            yield job, result
    finally:
        client.cancel(list(running))


@contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    if not scheduler:
        with local_client(workers) as client:
            yield client
        return
    from distributed import Client

    try:
        client = Client(scheduler, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise UsageError(f"scheduler {scheduler}: cannot be reached: {error}.") from error
    with client:
        yield client
