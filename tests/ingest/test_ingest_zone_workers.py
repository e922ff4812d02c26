"""A zone cube from threads, processes and a scheduler: the same bytes, whoever dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flairhub.cube import zone_spec
from flairhub.errors import DataError, LockError, UsageError
from flairhub.inference import open_zone
from flairhub.ingest import ingest_zone
from flairhub.jobs import engine, writer_lock
from flairhub.jobs.processes import local_client
from flairhub.prepare import ImagePreparation
from tests.helpers.bundle_makers import make_bundle, write_zonal_config
from tests.helpers.commands import run_command
from tests.helpers.comparisons import same_tree
from tests.helpers.zone_makers import MadeZone, make_zone

N_SHARDS = 12 + 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeZone:
    return make_zone(tmp_path_factory.mktemp("zone"), 60, 48, {"AERIAL_RGBI": 1, "SPOT_RGBI": 4})


@pytest.fixture(scope="module", autouse=True)
def small_shards() -> Iterator[None]:
    """Many shards of a small zone; the tiling travels with the jobs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zone_spec, "_CHUNK_PX", (8, 8))
        patch.setattr(zone_spec, "_SHARD_BYTES", 16 * 16 * 4)
        yield


@pytest.fixture(scope="module")
def whole(made: MadeZone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by one thread; read only."""
    cube = tmp_path_factory.mktemp("whole") / "zone.zarr"
    assert ingest_zone(made.open(32, 4), cube=cube, workers=1).n_jobs == N_SHARDS
    return cube


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with local_client(2) as client:
        yield client.scheduler.address


@pytest.mark.parametrize("where", ["threads", "processes", "scheduler"])
def test_the_same_bytes_everywhere(
    made: MadeZone, whole: Path, tmp_path: Path, request: pytest.FixtureRequest, where: str
) -> None:
    scheduler = request.getfixturevalue("address") if where == "scheduler" else where
    report = ingest_zone(made.open(32, 4), cube=tmp_path / "z.zarr", workers=2, scheduler=scheduler)
    assert (report.n_jobs, report.n_reused) == (N_SHARDS, 0)
    assert same_tree(tmp_path / "z.zarr", whole)


def test_a_killed_worker(made: MadeZone, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []

    @contextmanager
    def noted(workers: int) -> Iterator[Any]:
        with local_client(workers) as client:
            client.wait_for_workers(workers)
            pids.extend(client.run(os.getpid).values())
            yield client

    def kill(stage: str, done: int, total: int) -> None:
        if done == 3 and len(pids) == 2:
            os.kill(pids.pop(), signal.SIGKILL)

    monkeypatch.setattr(engine, "local_client", noted)
    cube = tmp_path / "z.zarr"
    report = ingest_zone(made.open(32, 4), cube=cube, workers=2, scheduler="processes", progress=kill)
    assert (report.n_jobs, report.n_reused, len(pids)) == (N_SHARDS, 0, 1)
    assert same_tree(cube, whole)


def test_a_stopped_run_continues_elsewhere(made: MadeZone, whole: Path, tmp_path: Path, address: str) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    cube = tmp_path / "z.zarr"
    with pytest.raises(KeyboardInterrupt):
        ingest_zone(made.open(32, 4), cube=cube, scheduler=address, progress=stop)
    assert not (tmp_path / "z.zarr.lock").exists()
    assert ingest_zone(made.open(32, 4), cube=cube, workers=2).n_reused == 4
    assert same_tree(cube, whole)


@pytest.mark.parametrize("fault", ["shard:3", "journal-half:2", "tables", "complete"])
def test_a_killed_run_continues_elsewhere(
    made: MadeZone, whole: Path, tmp_path: Path, fault: str, address: str
) -> None:
    cube = tmp_path / "z.zarr"
    child = os.fork()
    if not child:
        os.environ["FLAIRHUB_FAULT"] = fault
        ingest_zone(made.open(32, 4), cube=cube, workers=1)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    report = ingest_zone(made.open(32, 4), cube=cube, scheduler=address)
    assert report.n_reused == {"shard:3": 2, "journal-half:2": 1}.get(fault, N_SHARDS)
    assert report.already_complete == (fault == "complete")
    assert same_tree(cube, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["z.zarr"]


def test_a_damaged_source_is_named(made: MadeZone, tmp_path: Path, address: str) -> None:
    import shutil
    from dataclasses import replace

    folder = Path(shutil.copytree(made.folder, tmp_path / "zone"))
    requests = tuple(replace(request, path=folder / Path(request.path).name) for request in made.requests)
    content = bytearray((folder / "AERIAL_RGBI.tif").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = b"\x00" * 2000
    (folder / "AERIAL_RGBI.tif").write_bytes(content)
    zone = replace(made, folder=folder, requests=requests).open(32, 4)
    with pytest.raises(DataError, match=r"AERIAL_RGBI.tif: cannot read rows"):
        ingest_zone(zone, cube=tmp_path / "z.zarr", scheduler=address)


def test_without_locks_and_with_a_second_writer(made: MadeZone, whole: Path, tmp_path: Path) -> None:
    cube = tmp_path / "z.zarr"
    with writer_lock(cube, "cube"), pytest.raises(LockError, match="is writing this cube"):
        ingest_zone(made.open(32, 4), cube=cube, lock=False)
    ingest_zone(made.open(32, 4), cube=cube, lock=False)
    assert same_tree(cube, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["z.zarr"]


def test_the_command(
    made: MadeZone, whole: Path, tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle", {"AERIAL_RGBI": ImagePreparation(), "SPOT_RGBI": ImagePreparation()})
    config = write_zonal_config(tmp_path / "zonal.yaml", made, bundle)
    cube = tmp_path / "z.zarr"
    code, out, _ = run_command(capsys, "ingest", "--zone", config, "--cube", cube, "--scheduler", address, "--no-lock")
    assert (code, f"{N_SHARDS} shards" in out.replace("\n", "")) == (0, True)
    assert same_tree(cube, whole)
    with pytest.raises(UsageError, match="got 'slurm', expected threads, processes or an address"):
        ingest_zone(open_zone(config), cube=tmp_path / "y.zarr", scheduler="slurm")
