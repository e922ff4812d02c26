"""Many processes: the same bytes, workers that die, jobs that always fail, nothing open to the network."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import psutil
import pytest

import flairhub as fh
from flairhub.errors import CubeError, DataError, UsageError
from flairhub.ingest import run
from flairhub.jobs import engine
from flairhub.jobs.processes import local_client
from tests.helpers import dying
from tests.helpers.comparisons import assert_equals_files, same_tree
from tests.helpers.makers import PatchFiles, make_patch_files
from tests.helpers.processes import start_afresh
from tests.helpers.waiting import HANG_S, session_ends, wait_until

NAMES = ("AERIAL_RGBI", "SENTINEL2_TS", "ALL_LABEL-LPIS")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    return make_patch_files(tmp_path_factory.mktemp("workers"), n_rois=2, modalities=NAMES)


@pytest.fixture(scope="module")
def whole(files: PatchFiles, make_cube: Callable[..., Path]) -> Path:
    return make_cube(files, shard=1)


def ingest(files: PatchFiles, cube: Path, **options: object) -> fh.ingest.IngestReport:
    return fh.ingest(root=files.folder, cube=cube, shard=1, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a running scheduler with one worker, reached over TCP."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    ) as one:
        assert one.scheduler_address.startswith("tcp://")
        yield one.scheduler_address


def test_a_running_scheduler_gives_the_same_bytes(
    files: PatchFiles, whole: Path, tmp_path: Path, scheduler: str
) -> None:
    report = ingest(files, tmp_path / "c.zarr", scheduler=scheduler)
    assert (report.n_jobs, report.n_reused) == (24, 0)
    assert same_tree(tmp_path / "c.zarr", whole)
    assert_equals_files(fh.open_cube(tmp_path / "c.zarr"), files, NAMES)


def test_threads_give_the_same_bytes(files: PatchFiles, whole: Path, tmp_path: Path) -> None:
    ingest(files, tmp_path / "c.zarr", workers=2, scheduler="threads")
    assert same_tree(tmp_path / "c.zarr", whole)


def test_encoding_beside_reading_gives_the_same_bytes(
    files: PatchFiles, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores in (1, 2):
        monkeypatch.setattr(run, "usable_cores", lambda cores=cores: cores)
        ingest(files, tmp_path / f"{cores}.zarr")
        assert same_tree(tmp_path / f"{cores}.zarr", whole)


def test_two_processes_of_which_one_dies_give_the_same_bytes(
    files: PatchFiles, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_job", dying.die_once)
    report = ingest(files, tmp_path / "c.zarr", workers=2)
    assert (tmp_path / "c.zarr.died").exists()
    assert (report.n_jobs, report.n_reused) == (24, 0)
    assert same_tree(tmp_path / "c.zarr", whole)


@pytest.mark.parametrize(
    ("way", "reason"),
    [("die_always", "the worker processes .* died again and again"), ("fail_always", "OSError")],
)
def test_a_job_that_always_fails_is_named_and_the_others_are_done(
    files: PatchFiles,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheduler: str,
    way: str,
    reason: str,
) -> None:
    cube = tmp_path / "c.zarr"
    where: dict[str, object] = {"workers": 2} if way == "die_always" else {"scheduler": scheduler}
    with monkeypatch.context() as patched, dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        patched.setattr(run, "run_job", getattr(dying, way))
        message = rf"1 of 24 shards failed, the others are done[\s\S]*{dying.VICTIM} \({files.patch_ids[3]}\): {reason}"
        with pytest.raises(CubeError, match=message) as caught:
            ingest(files, cube, **where)
    assert caught.value.exit_code == 1
    assert ingest(files, cube).n_reused == 23
    assert same_tree(cube, whole)


def test_a_bad_file_or_a_full_disk_stops_the_workers_too(
    files: PatchFiles, tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = make_patch_files(tmp_path / "files", n_rois=1, modalities=NAMES[:1])
    path = bad.files["AERIAL_RGBI"][bad.patch_ids[2]]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="truncated or damaged"):
        ingest(bad, tmp_path / "c.zarr", scheduler=scheduler)
    monkeypatch.setattr(run, "run_job", dying.no_room)
    with pytest.raises(CubeError, match=r"No space left on device. What is finished stays valid"):
        ingest(files, tmp_path / "d.zarr", scheduler=scheduler)


def test_a_local_cluster_listens_on_this_machine_only() -> None:
    own = psutil.Process()
    before = {entry.laddr for entry in own.net_connections() if entry.status == psutil.CONN_LISTEN}
    with local_client(2) as client:
        client.wait_for_workers(2)
        processes = [own, *own.children(recursive=True)]
        places = {
            entry.laddr
            for process in processes
            for entry in process.net_connections()
            if entry.status == psutil.CONN_LISTEN
        } - before
        dashboard = client.cluster.dashboard_link
    assert len(places) >= 3, "scheduler, dashboard, workers"
    assert {place.ip for place in places} == {"127.0.0.1"}
    assert socket.gethostbyname(dashboard.split("//")[1].split(":")[0]) == "127.0.0.1"


def test_ctrl_c_ends_the_workers(files: PatchFiles, whole: Path, tmp_path: Path) -> None:
    cube = tmp_path / "c.zarr"
    process = start_afresh(files, cube, "--workers", 2, fault="shard:2:interrupt")
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert (out.strip(), err.strip()) == ("", "Interrupted.")
    wait_until(lambda: session_ends(process.pid), "the end of all workers")
    ingest(files, cube)
    assert same_tree(cube, whole)


def test_workers_are_chosen_by_the_number_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    class Few:
        files = ("a", None) * 100

    for cores, jobs, expected in ((8, [Few()] * 40, 8), (8, [Few()] * 39, 0), (1, [Few()] * 400, 0)):
        monkeypatch.setattr(run, "usable_cores", lambda cores=cores: cores)
        assert run.choose_workers(jobs) == expected  # type: ignore[arg-type]


def test_a_scheduler_that_does_not_answer(files: PatchFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CONNECT_TIMEOUT_S", 0.3)
    with pytest.raises(UsageError, match=r"scheduler: no dask scheduler answers at tcp://127.0.0.1:9"):
        ingest(files, tmp_path / "c.zarr", scheduler="tcp://127.0.0.1:9")
