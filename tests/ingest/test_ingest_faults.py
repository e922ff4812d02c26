"""Killed, interrupted or out of disk at any named point: the next run ends with the bytes of an uninterrupted one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import flairhub as fh
from flairhub.errors import CubeError, DataError
from flairhub.ingest import patch_shards
from flairhub.ingest.store import read_entries
from tests.helpers.comparisons import same_tree
from tests.helpers.makers import PatchFiles, make_patch_files
from tests.helpers.processes import run, start
from tests.helpers.waiting import wait_until

NAMES = ("AERIAL_RGBI", "SENTINEL1-ASC_TS")
POINTS = (
    "store",
    "patch:2",
    "file-rename:2",
    "shard:2",
    "journal-half:2",
    "journal-line:1",
    "tables",
    "complete",
)
"""Every fault point, somewhere in the middle of its visits."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    return make_patch_files(tmp_path_factory.mktemp("faults"), n_rois=1, modalities=NAMES)


@pytest.fixture(scope="module")
def whole(files: PatchFiles, make_cube: Callable[..., Path]) -> Path:
    return make_cube(files, shard=1)


def test_sigkill_at_every_point_in_turn(files: PatchFiles, whole: Path, tmp_path: Path) -> None:
    """One store is killed at point after point; it ends equal, and what was finished is never done again."""
    cube = tmp_path / "c.zarr"
    done = 0
    for point in POINTS[:-2]:
        code, output = run(files, cube, fault=point)
        assert code == -signal.SIGKILL, output
        with pytest.raises(CubeError, match=r"not complete"):
            fh.open_cube(cube)
        assert len(read_entries(cube)) >= done
        done = len(read_entries(cube))
    assert done == 5
    assert run(files, cube, fault="tables")[0] == -signal.SIGKILL
    assert len(read_entries(cube)) == 8
    assert run(files, cube, fault="complete")[0] == -signal.SIGKILL
    fh.open_cube(cube)
    report = fh.ingest(root=files.folder, cube=cube, shard=1)
    assert (report.already_complete, report.n_reused) == (True, 8)
    assert same_tree(cube, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["c.zarr"]


def test_every_fault_point_is_tested() -> None:
    package = Path(fh.__file__).parent
    sources = "".join(path.read_text() for room in ("cube", "ingest", "jobs") for path in (package / room).glob("*.py"))
    named = {part.split('"')[0] for part in sources.split('reach("')[1:]}
    assert named == {point.split(":")[0] for point in POINTS}


def test_ctrl_c_exits_130_and_continues(files: PatchFiles, whole: Path, tmp_path: Path) -> None:
    cube = tmp_path / "c.zarr"
    code, output = run(files, cube, fault="patch:4:interrupt")
    assert (code, "Interrupted." in output, "Traceback" in output) == (130, True, False)
    assert not list(cube.rglob("*.partial"))
    assert len(read_entries(cube)) == 3
    assert fh.ingest(root=files.folder, cube=cube, shard=1).n_reused == 3
    assert same_tree(cube, whole)


def test_a_full_disk_exits_1_and_continues(files: PatchFiles, whole: Path, tmp_path: Path) -> None:
    for number, point in enumerate(("file-rename:9:full", "file-rename:1:full", "tables:1:full")):
        cube = tmp_path / f"{number}.zarr"
        code, output = run(files, cube, fault=point)
        assert code == 1
        assert f"{cube}: No space left on device. What is finished stays valid: make room and run the same" in output
        assert not list(cube.rglob("*.partial"))
        fh.ingest(root=files.folder, cube=cube, shard=1)
        assert same_tree(cube, whole)


def test_a_limit_of_the_system_is_like_a_full_disk(files: PatchFiles, whole: Path, tmp_path: Path) -> None:
    """A real refusal by the system, in the middle of a shard."""
    cube = tmp_path / "c.zarr"
    code, output = run(files, cube, limit_bytes=12_000)
    assert (code, "File too large" in output) == (1, True)
    assert not list(cube.rglob("*.partial"))
    fh.ingest(root=files.folder, cube=cube, shard=1)
    assert same_tree(cube, whole)


def kill_at_random_times(files: PatchFiles, whole: Path, folder: Path, times: int, seed: int) -> None:
    clock = random.Random(seed)
    started = time.monotonic()
    process = start(files, folder / "time.zarr")
    process.communicate()
    longest = time.monotonic() - started
    cube = folder / "c.zarr"
    finished: set[str] = set()
    for _ in range(times):
        process = start(files, cube)
        time.sleep(clock.uniform(0.3, 1.1) * longest)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        known = set(read_entries(cube))
        assert known >= finished
        finished = known
        if process.returncode == 0:
            assert same_tree(cube, whole)
            shutil.rmtree(cube)
            finished = set()
    fh.ingest(root=files.folder, cube=cube, shard=1)
    assert same_tree(cube, whole)


def test_sigkill_at_random_times(files: PatchFiles, whole: Path, tmp_path: Path) -> None:
    kill_at_random_times(files, whole, tmp_path, times=3, seed=1)


@pytest.mark.slow
def test_sigkill_at_many_random_times(files: PatchFiles, whole: Path, tmp_path: Path) -> None:
    kill_at_random_times(files, whole, tmp_path, times=60, seed=2)


def test_a_second_process_is_refused_naming_the_first(files: PatchFiles, tmp_path: Path) -> None:
    cube = tmp_path / "c.zarr"
    first = start(files, cube, fault="shard:4:stop")
    wait_until(lambda: psutil.Process(first.pid).status() == psutil.STATUS_STOPPED, "the fourth shard of the first")
    try:
        code, output = run(files, cube)
        assert code == 1
        assert f"process {first.pid} on " in output
        assert "is writing this cube. Wait for it, or stop it." in output
    finally:
        os.kill(first.pid, signal.SIGCONT)
    first.communicate()
    assert first.returncode == 0
    assert run(files, cube)[0] == 0


def test_a_source_that_changes_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_patch_files(tmp_path / "files", n_rois=1, modalities=("DEM_ELEV",), sizes_px={"DEM_ELEV": 16})
    path, cube = files.files["DEM_ELEV"][files.patch_ids[2]], tmp_path / "c.zarr"
    read = patch_shards.read_raster

    def changed(name: str, *arguments: Any, **options: Any) -> Any:
        raster = read(name, *arguments, **options)
        if name == str(path):
            os.utime(path, ns=(1, 1))
        return raster

    with monkeypatch.context() as patched:
        patched.setattr(patch_shards, "read_raster", changed)
        with pytest.raises(DataError, match=rf"DEM_ELEV/000002 \({files.patch_ids[2]}\): source files changed while"):
            fh.ingest(root=files.folder, cube=cube, shard=1)
    assert fh.ingest(root=files.folder, cube=cube, shard=1).n_reused == 2
    fh.ingest(root=files.folder, cube=tmp_path / "fresh.zarr", shard=1)
    assert same_tree(cube, tmp_path / "fresh.zarr")
