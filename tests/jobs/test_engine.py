"""The same results here, in threads and in processes; what fails is named, what is lost is done again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import dask
import distributed  # noqa: F401  (its configuration is there before a test changes it)
import pytest

from flairhub.errors import ConfigError, DataError, FlairhubError, JobError, UsageError
from flairhub.jobs import Stopped, Workers, engine, job_workers, run_jobs
from flairhub.jobs.processes import local_client
from tests.helpers.waiting import HANG_S


def square(number: int) -> int:
    return number * number


def fail(number: int, kind: str) -> int:
    """Fail at 3, in the way that is asked for."""
    if number == 3:
        if kind == "data":
            try:
                raise ValueError("of GDAL")
            except ValueError as error:
                raise DataError("file: damaged") from error
        if kind == "config":
            raise ConfigError("a.yaml", ["key: wrong"])
        if kind == "system":
            raise OSError(5, "Input/output error", "x.tif")
        raise ZeroDivisionError("defect")
    return number * number


def die(number: int, at: int) -> int:
    """Kill the worker at one number."""
    if number == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die_once(number: int, folder: str) -> int:
    marker = Path(folder) / "died"
    if number == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A scheduler with two worker processes."""
    with local_client(2) as client:
        yield client.scheduler.address


@pytest.fixture(params=["here", "threads", "processes"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    where = {"here": (0, None), "threads": (3, "threads")}
    number, scheduler = where.get(request.param) or (1, request.getfixturevalue("address"))
    with job_workers(number, scheduler) as pool:
        yield pool


def test_every_job_once(workers: Workers) -> None:
    results = list(run_jobs(workers, square, range(30)))
    assert sorted(results) == [(number, number * number) for number in range(30)]
    assert list(run_jobs(workers, square, [])) == []


def test_a_job_may_come_twice(workers: Workers) -> None:
    assert sorted(run_jobs(workers, square, [2, 2])) == [(2, 4), (2, 4)]


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("data", DataError, "^file: damaged$"),
        ("config", FlairhubError, r"^a.yaml: 1 problem\n  - key: wrong$"),
        ("system", OSError, r"^\[Errno 5\] Input/output error: 'x.tif'$"),
        ("defect", ZeroDivisionError, "^defect$"),
    ],
)
def test_the_first_error_ends_it(workers: Workers, kind: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        list(run_jobs(workers, partial(fail, kind=kind), range(200)))
    if kind == "data":
        assert (caught.value.__cause__ is None) == (workers.stop is None), "causes stay in their process"


def test_errors_are_yielded_with_their_jobs(workers: Workers) -> None:
    for kind in ("data", "system"):
        results = dict(run_jobs(workers, partial(fail, kind=kind), range(6), errors="yield"))
        error = results.pop(3)
        assert isinstance(error, DataError if kind == "data" else OSError)
        assert results == {number: number * number for number in (0, 1, 2, 4, 5)}


def test_few_jobs_are_taken_from_the_plan_ahead() -> None:
    taken: list[int] = []

    def plan() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    with job_workers(2, "threads") as pool:
        for done, _ in enumerate(run_jobs(pool, square, plan()), start=1):
            assert len(taken) <= done + 2 * engine.QUEUED_PER_SLOT
    with job_workers(0, None) as pool:
        taken.clear()
        for number, _ in run_jobs(pool, square, plan()):
            assert taken == list(range(number + 1)), "the next is begun when it is asked for"


def test_jobs_in_threads_see_the_end() -> None:
    """The first failure ends what runs beside it."""
    begun = threading.Event()

    def job(name: str) -> None:
        if name == "bad":
            assert begun.wait(HANG_S)
            raise DataError("bad")
        begun.set()
        assert pool.stop is not None
        assert pool.stop.wait(HANG_S)
        ended.append(name)
        raise Stopped

    ended: list[str] = []
    with job_workers(2, None) as pool, pytest.raises(DataError, match=r"^bad$"):
        list(run_jobs(pool, job, ["good", "bad"]))
    assert ended == ["good"]


@pytest.fixture
def mortal() -> Iterator[Workers]:
    """Two processes of a scheduler that gives a job up at its second death; those that stay dead are replaced."""
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}), job_workers(2, "processes") as pool:
        yield pool


def test_a_worker_that_dies_costs_nobody_a_result(mortal: Workers, tmp_path: Path) -> None:
    results = sorted(run_jobs(mortal, partial(die_once, folder=str(tmp_path)), range(8)))
    assert (tmp_path / "died").exists()
    assert results == [(number, number * number) for number in range(8)]


def test_the_guilty_is_named_and_the_innocent_are_done(mortal: Workers) -> None:
    jobs = run_jobs(mortal, partial(die, at=2), range(8), noun="block", name="number {}".format, errors="yield")
    results = dict(jobs)
    error = results.pop(2)
    assert results == {number: number * number for number in (0, 1, 3, 4, 5, 6, 7)}
    assert isinstance(error, JobError)
    assert str(error).startswith("block number 2: the worker processes that had it died again and again, perhaps for")
    assert str(error).endswith("Finished blocks are kept.")


class Executor:
    """Answers every job with a future that `answer` has changed."""

    def __init__(self, answer: Any):
        self.answer, self.jobs = answer, list[Any]()

    def submit(self, function: Any, job: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.jobs.append(job)
        self.answer(future)
        return future


class KilledWorker(Exception):
    """Named as dask's."""


def test_a_suspect_is_handed_out_alone_and_not_for_ever() -> None:
    """Others of a dead worker were innocent: they succeed when nobody dies beside them."""
    executor = Executor(lambda future: future.set_exception(KilledWorker()))
    pool = Workers(executor, 4)  # type: ignore[arg-type]
    hint = "Use a smaller block_px."
    results = list(run_jobs(pool, square, [1, 2], noun="block", hint=hint, errors="yield"))
    assert sorted(executor.jobs) == [1, 1, 1, 2, 2, 2]
    assert [type(error) for _, error in results] == [JobError, JobError]
    assert "perhaps for want of memory. Use a smaller block_px. Finished blocks are kept." in str(results[0][1])
    with pytest.raises(JobError, match="block 1: the worker processes"):
        list(run_jobs(pool, square, [1], noun="block"))


def test_a_scheduler_that_goes_away() -> None:
    def gone(future: Future[Any]) -> None:
        future.cancel()
        future.set_running_or_notify_cancel()

    pool = Workers(Executor(gone), 1)  # type: ignore[arg-type]
    with pytest.raises(JobError, match=r"^the dask scheduler has gone away. Finished shards are kept; start it"):
        list(run_jobs(pool, square, [1], noun="shard", errors="yield"))


def test_no_workers_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHECK_EVERY_S", 0.01)
    monkeypatch.setattr(engine, "WITHOUT_WORKERS_S", 0.05)
    left = [1] * 20
    pool = Workers(Executor(lambda _: None), 1, living=lambda: left.pop() if left else 0)  # type: ignore[arg-type]
    with pytest.raises(JobError, match=r"^no worker process has been there for 0.05 s. Finished shards are kept"):
        list(run_jobs(pool, square, [1], noun="shard"))
    assert not left


def test_places_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CONNECT_TIMEOUT_S", 0.5)
    for workers, scheduler, message in (
        (1, "slurm", r"scheduler: got 'slurm', expected threads, processes or an address such as tcp://host:8786"),
        (1, "tcp://127.0.0.1:9", r"scheduler: no dask scheduler answers at tcp://127.0.0.1:9"),
        (0, "processes", r"workers: got 0, expected at least 1"),
        (-1, None, r"workers: got -1, expected at least 1"),
    ):
        with pytest.raises(UsageError, match=message), job_workers(workers, scheduler):
            pass
