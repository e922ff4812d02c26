"""Many processes, a cluster, workers that die, Ctrl-C: the same bytes, nothing open to the network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import rasterio
from click.testing import CliRunner

from flairhub.cli import cli
from flairhub.config import load_zonal_config
from flairhub.errors import DataError, JobError, UsageError
from flairhub.inference import open_zone, run_zonal
from flairhub.inference.run import ZonalResult
from flairhub.ingest import ingest_zone
from flairhub.jobs import engine
from flairhub.jobs.processes import local_client
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import CloudFilter, SeriesPreparation
from tests.helpers import stopped_zonal
from tests.helpers.bundle_makers import make_bundle, write_zonal_config
from tests.helpers.waiting import HANG_S, session_ends, wait_until
from tests.helpers.zone_makers import MadeZone, make_zone

PREPARATIONS: Mapping[str, Any] = {
    "AERIAL_RGBI": ImagePreparation((1, 2, 3), None, "custom", (50.0, 51.0, 52.0), (20.0, 21.0, 22.0)),
    "SENTINEL2_TS": SeriesPreparation((1, 3, 4, 9), CloudFilter(55, 65, 0.4), "monthly"),
}
N_BLOCKS = 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "aerial_s2", PREPARATIONS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeZone:
    ratios = {"AERIAL_RGBI": 1, "SENTINEL2_TS": 8}
    return make_zone(tmp_path_factory.mktemp("zone"), 96, 80, ratios, n_dates=6, quality=True)


@pytest.fixture(scope="module")
def yaml_path(tmp_path_factory: pytest.TempPathFactory, made: MadeZone, bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    return write_zonal_config(folder / "zonal.yaml", made, bundle, {"block_px": 40, "write_confidence": True})


@pytest.fixture(scope="module")
def serial(yaml_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a run with one thread."""
    out = tmp_path_factory.mktemp("serial")
    result = run_zonal(configured(yaml_path, out), workers=1)
    assert result.n_blocks == N_BLOCKS
    return maps_of(out)


def configured(yaml_path: Path, out: Path) -> Any:
    return load_zonal_config(yaml_path, [f"output_path={out}"])


def maps_of(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tif")):
        with rasterio.open(path) as dataset:
            found[path.name] = dataset.read().tobytes()
    assert len(found) == 2
    return found


class Cluster:
    """A scheduler and two worker processes, reached over TCP; workers count how often they load a model."""

    places: set[Any]

    def __init__(self, client: Any):
        self.client, self.address = client, client.scheduler.address
        # Also run by workers that take the place of killed ones.
        client.register_worker_callbacks(count_loads)

    def pids(self) -> list[int]:
        return list(self.client.run(os.getpid).values())


def count_loads() -> None:
    """Run in a worker: from now on, note every bundle that is read."""
    import flairhub.models

    # Elsewhere than the one who asks: relative paths are the asker's.
    os.chdir("/")

    original: Callable[..., Any] = flairhub.models.load_model
    loads: list[str] = []

    def counted(path: Any, device: Any = "cpu") -> Any:
        loads.append(str(path))
        return original(path, device)

    flairhub.models.load_model = counted
    flairhub.models.loads_of_this_test = loads  # type: ignore[attr-defined]


def loads_here() -> list[str] | None:
    import flairhub.models

    return getattr(flairhub.models, "loads_of_this_test", None)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Local processes as `--scheduler processes` starts them; their scheduler's address serves as any other's."""
    own = psutil.Process()
    before, known = listening([own]), {child.pid for child in own.children(recursive=True)}
    with local_client(2) as client:
        cluster = Cluster(client)
        fresh = [child for child in own.children(recursive=True) if child.pid not in known]
        cluster.places = listening([own, *fresh]) - before
        yield cluster


def listening(processes: list[psutil.Process]) -> set[Any]:
    found = [entry for process in processes for entry in process.net_connections()]
    return {entry.laddr for entry in found if entry.status == psutil.CONN_LISTEN}


def worker_processes(own: psutil.Process, known: set[int]) -> list[psutil.Process]:
    """Living worker processes that are not known."""
    found = []
    for child in own.children(recursive=True):
        try:
            if child.pid not in known and "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def test_threads_give_the_same_bytes(yaml_path: Path, tmp_path: Path, serial: dict[str, bytes]) -> None:
    done = CliRunner().invoke(
        cli, ["zonal", "--config", str(yaml_path), "--set", f"output_path={tmp_path}", "--workers", "2"]
    )
    assert done.exit_code == 0, done.output
    assert maps_of(tmp_path) == serial


def test_cluster_gives_the_same_bytes_and_loads_the_model_once_per_worker(
    yaml_path: Path, tmp_path: Path, serial: dict[str, bytes], cluster: Cluster, bundle: Path
) -> None:
    cluster.client.wait_for_workers(2, timeout=HANG_S)
    result = run_zonal(configured(yaml_path, tmp_path), scheduler=cluster.address)
    assert result.n_computed == N_BLOCKS
    assert maps_of(tmp_path) == serial
    loads = cluster.client.run(loads_here)
    assert len(loads) == 2
    # One that took the place of a killed one may have had no block yet.
    assert [str(bundle)] in loads.values()
    assert all(paths in ([], [str(bundle)]) for paths in loads.values())


def test_cluster_reads_a_zone_cube(
    yaml_path: Path,
    tmp_path: Path,
    serial: dict[str, bytes],
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ingest_zone(open_zone(yaml_path), cube="zone.zarr")
    run_zonal(load_zonal_config(yaml_path, ["output_path=out", "cube=zone.zarr"]), scheduler=cluster.address)
    assert maps_of(tmp_path / "out") == serial


def test_cluster_reads_files_by_relative_paths(
    made: MadeZone,
    yaml_path: Path,
    tmp_path: Path,
    serial: dict[str, bytes],
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(made.folder)
    keys = {
        "AERIAL_RGBI.input_img_path": "AERIAL_RGBI.tif",
        "SENTINEL2_TS.input_img_path": "SENTINEL2_TS.tif",
        "SENTINEL2_TS.dates_txt": "SENTINEL2_TS.txt",
        "SENTINEL2_TS.filter_clouds_img_path": "SENTINEL2_MSK-SC.tif",
    }
    changes = [f"output_path={tmp_path}", *(f"modalities.{key}={value}" for key, value in keys.items())]
    run_zonal(load_zonal_config(yaml_path, changes), scheduler=cluster.address)
    assert maps_of(tmp_path) == serial


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def killing(pids: list[int], at: int) -> Callable[[str, int, int], None]:
    """Return a progress that kills a worker process once `at` blocks are done."""
    left = list(pids)

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "map" and done == at and left:
            os.kill(left.pop(), signal.SIGKILL)

    return progress


def test_cluster_survives_a_killed_worker(
    yaml_path: Path, tmp_path: Path, serial: dict[str, bytes], cluster: Cluster
) -> None:
    before = cluster.pids()
    result = run_zonal(
        configured(yaml_path, tmp_path), scheduler=cluster.address, progress=killing(before[:1], N_BLOCKS // 3)
    )
    wait_until(lambda: has_ended(before[0]), "the death of the worker")
    assert result.n_computed == N_BLOCKS
    assert maps_of(tmp_path) == serial


def test_errors_of_workers_keep_file_and_reason(
    yaml_path: Path, tmp_path: Path, made: MadeZone, bundle: Path, cluster: Cluster
) -> None:
    """A raster that is damaged behind its header: the error travels, without GDAL's own."""
    import shutil

    folder = shutil.copytree(made.folder, tmp_path / "zone")
    content = bytearray((folder / "AERIAL_RGBI.tif").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = b"\x00" * 2000
    (folder / "AERIAL_RGBI.tif").write_bytes(content)
    config = load_zonal_config(
        yaml_path,
        [f"output_path={tmp_path / 'out'}", f"modalities.AERIAL_RGBI.input_img_path={folder / 'AERIAL_RGBI.tif'}"],
    )
    with pytest.raises(DataError, match=r"AERIAL_RGBI.tif: cannot read rows .* damaged or gone"):
        run_zonal(config, scheduler=cluster.address)


def test_local_processes_listen_on_this_machine_only(cluster: Cluster) -> None:
    assert len(cluster.places) >= 4, "scheduler, dashboard, two workers"
    assert {place.ip for place in cluster.places} == {"127.0.0.1"}


@pytest.mark.slow
def test_local_processes_of_which_one_dies_give_the_same_bytes(
    yaml_path: Path, tmp_path: Path, serial: dict[str, bytes]
) -> None:
    """`--scheduler processes --workers 2`, one of them killed on the way."""
    own = psutil.Process()
    known = {child.pid for child in own.children(recursive=True)}
    killed: list[int] = []

    def look(stage: str, done: int, total: int) -> None:
        if stage != "map" or done != 3 or killed:
            return
        workers = worker_processes(own, known)
        killed.append(workers[0].pid)
        workers[0].kill()

    result = run_zonal(configured(yaml_path, tmp_path), workers=2, scheduler="processes", progress=look)
    assert result.n_computed == N_BLOCKS
    assert killed
    assert maps_of(tmp_path) == serial


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(4))
def test_processes_that_die_again_and_again(
    yaml_path: Path, tmp_path: Path, serial: dict[str, bytes], turn: int
) -> None:
    """A worker process dies at every second block, when the last one has been replaced by then."""
    own, count = psutil.Process(), [0]
    known = {child.pid for child in own.children(recursive=True)}

    def progress(stage: str, done: int, total: int) -> None:
        workers = worker_processes(own, known)
        if stage == "map" and 0 < done < total and done % 2 == turn % 2 and len(workers) == 2:
            workers[(turn // 2 + done // 2) % 2].kill()
            count[0] += 1

    result = run_zonal(configured(yaml_path, tmp_path), workers=2, scheduler="processes", progress=progress)
    assert count[0] >= 1
    assert result.n_computed == N_BLOCKS
    assert maps_of(tmp_path) == serial


def test_worker_that_dies_again_and_again_is_reported() -> None:
    class KilledWorker(Exception):
        pass

    class Dead:
        def submit(self, function: Any, job: Any) -> Any:
            from concurrent.futures import Future

            future: Future[Any] = Future()
            submitted.append(job)
            future.set_exception(KilledWorker())
            return future

    submitted: list[Any] = []
    with pytest.raises(JobError, match=r"block \(0, 1\): the worker processes .* died again and again"):
        list(engine.run_jobs(engine.Workers(Dead(), 1), print, [(0, 1)], noun="block"))  # type: ignore[arg-type]
    assert submitted == [(0, 1)] * engine.LOST_AT_MOST


def test_a_lost_scheduler_is_reported() -> None:
    """dask cancels what a scheduler had that does not come back."""
    from concurrent.futures import Future

    class Gone:
        def submit(self, function: Any, job: Any) -> Any:
            future: Future[Any] = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    with pytest.raises(JobError, match=r"the dask scheduler has gone away. Finished blocks are kept"):
        list(engine.run_jobs(engine.Workers(Gone(), 1), print, [(0, 1)], noun="block"))  # type: ignore[arg-type]


def test_a_run_without_workers_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before some time: workers of a cluster may come back."""
    from concurrent.futures import Future

    class Idle:
        def submit(self, function: Any, job: Any) -> Any:
            return Future()

    monkeypatch.setattr(engine, "CHECK_EVERY_S", 0.01)
    monkeypatch.setattr(engine, "WITHOUT_WORKERS_S", 0.1)
    left = [1] * 30
    workers = engine.Workers(Idle(), 1, living=lambda: left.pop() if left else 0)  # type: ignore[arg-type]
    with pytest.raises(JobError, match=r"no worker process has been there for .* Finished blocks are kept"):
        list(engine.run_jobs(workers, print, [(0, 1)], noun="block"))
    assert not left


def test_schedulers_that_cannot_be(yaml_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client, LocalCluster

    config = configured(yaml_path, tmp_path)
    monkeypatch.setattr(engine, "CONNECT_TIMEOUT_S", 0.5)
    with pytest.raises(UsageError, match=r"no dask scheduler answers at tcp://127.0.0.1:9"):
        run_zonal(config, scheduler="tcp://127.0.0.1:9")
    # It may take its time to answer, but none to have a worker.
    monkeypatch.setattr(engine, "CONNECT_TIMEOUT_S", HANG_S)
    wait = Client.wait_for_workers
    monkeypatch.setattr(Client, "wait_for_workers", lambda client, number, timeout: wait(client, number, timeout=0.1))
    with pytest.raises(UsageError, match=r"got 'slurm', expected threads, processes or an address"):
        run_zonal(config, scheduler="slurm")
    with (
        LocalCluster(n_workers=0, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0") as empty,
        pytest.raises(UsageError, match=r"has no workers. Start some \(`dask worker tcp://"),
    ):
        run_zonal(config, scheduler=empty.scheduler_address)


def test_help_mentions_workers_and_scheduler() -> None:
    text = " ".join(CliRunner().invoke(cli, ["zonal", "--help"]).output.split())
    assert "--workers INTEGER" in text
    assert "tcp://host:8786" in text
    assert "--scheduler processes --workers 4" in text


@pytest.mark.parametrize(
    "arguments", [(), pytest.param(("--scheduler", "processes"), marks=pytest.mark.slow)], ids=["threads", "processes"]
)
def test_ctrl_c_ends_after_the_running_windows_and_the_same_command_continues(
    yaml_path: Path, tmp_path: Path, serial: dict[str, bytes], arguments: tuple[str, ...]
) -> None:
    """Interrupted while both workers are inside a window, each in the middle of a block."""
    sets = [f"output_path={tmp_path}", "batch_size=1", "workers=2"]
    options = ["--config", str(yaml_path), *(part for one in sets for part in ("--set", one)), *arguments]
    with start(tmp_path, options) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines == ["window\n"] * 2, process.communicate(timeout=HANG_S)[1]
        os.killpg(process.pid, signal.SIGINT)
        if arguments:
            (tmp_path / stopped_zonal.GO_ON).touch()
        out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, err
    if not arguments:
        assert out.split() == ["computed"] * 2, "the running windows end, and no other one begins"
    wait_until(lambda: session_ends(process.pid), "the end of all workers")
    said = [line for line in err.splitlines() if line]
    assert len(said) == 1
    assert said[0].startswith("Interrupted. ")
    assert said[0].endswith(f" of {N_BLOCKS} blocks are done; the same command continues there.")
    n_done = int(said[0].split()[1])
    assert not list(tmp_path.glob("*.tif"))
    result: ZonalResult = run_zonal(configured(yaml_path, tmp_path))
    assert 0 < result.n_blocks - result.n_computed <= n_done + 1
    assert maps_of(tmp_path) == serial


def start(folder: Path, arguments: list[str]) -> subprocess.Popen[str]:
    """Start `flairhub zonal` in a session of its own: a signal to its group reaches its workers and nobody else."""
    command = [sys.executable, str(Path(stopped_zonal.__file__)), str(folder), *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
