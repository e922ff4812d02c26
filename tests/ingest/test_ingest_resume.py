"""Killed at any instant, in any number of processes, by one writer at a time: the same bytes in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import flairhub as fh
from flairhub.errors import CubeError, LockError, OutputExistsError, UsageError
from flairhub.ingest import run
from flairhub.ingest.patch_shards import run_job
from flairhub.ingest.store import read_entries
from flairhub.jobs import Journal, writer_lock
from tests.helpers.comparisons import same_tree
from tests.helpers.makers import PatchFiles, make_patch_files
from tests.helpers.waiting import wait_until

NAMES = ("AERIAL_RGBI", "SENTINEL2_TS", "ALL_LABEL-LPIS")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    return make_patch_files(tmp_path_factory.mktemp("resume"), n_rois=2, modalities=NAMES)


@pytest.fixture(scope="module")
def whole(files: PatchFiles, make_cube: Callable[..., Path]) -> Path:
    return make_cube(files, shard=1)


def ingest(files: PatchFiles, cube: Path, **options: object) -> fh.ingest.IngestReport:
    return fh.ingest(root=files.folder, cube=cube, shard=1, **options)  # type: ignore[arg-type]


def has_lines(child: subprocess.Popen[bytes], cube: Path, number: int) -> bool:
    """True when the journal has that many lines, or will never have them."""
    journal = cube / "ingest" / "journal.jsonl"
    started = cube.exists() and (not number or (journal.exists() and journal.read_bytes().count(b"\n") >= number))
    return started or child.poll() is not None


def test_sigkill_anywhere_then_again(files: PatchFiles, whole: Path, tmp_path: Path) -> None:
    cube = tmp_path / "c.zarr"
    code = f"import flairhub as fh; fh.ingest(root={str(files.folder)!r}, cube={str(cube)!r}, shard=1)"
    for n_lines in (0, 5, 17):
        child = subprocess.Popen([sys.executable, "-c", code])
        wait_until(partial(has_lines, child, cube, n_lines), f"{n_lines} shards")
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = len(read_entries(cube))
    report = ingest(files, cube)
    assert report.n_reused == done
    assert same_tree(cube, whole)
    assert not (tmp_path / "c.zarr.lock").exists()


@pytest.mark.parametrize("stop_at", [0, 1, 11, 23])
def test_stopped_after_any_job(
    files: PatchFiles, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    count = 0

    def counting(job: object, store: str, overlap: bool) -> object:
        nonlocal count
        if count == stop_at:
            raise KeyboardInterrupt
        count += 1
        return run_job(job, store, overlap)  # type: ignore[arg-type]

    cube = tmp_path / "c.zarr"
    monkeypatch.setattr(run, "run_job", counting)
    with pytest.raises(KeyboardInterrupt):
        ingest(files, cube)
    with pytest.raises(CubeError, match="not complete"):
        fh.open_cube(cube)
    monkeypatch.setattr(run, "run_job", run_job)
    assert ingest(files, cube).n_reused == stop_at
    assert same_tree(cube, whole)


def test_stopped_while_finishing(
    files: PatchFiles, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cube = tmp_path / "c.zarr"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "fill_store", stop)
        with pytest.raises(KeyboardInterrupt):
            ingest(files, cube)
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "rewrite", stop)
        with pytest.raises(KeyboardInterrupt):
            ingest(files, cube)
    report = ingest(files, cube)
    assert report.already_complete
    assert same_tree(cube, whole)


def test_leftovers_half_lines_and_lost_shards_are_redone(files: PatchFiles, whole: Path, tmp_path: Path) -> None:
    cube = tmp_path / "c.zarr"
    leftover = tmp_path / ".c.zarr.0123456789ab.partial"
    leftover.mkdir()
    (leftover / "rest").write_text("x")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "fill_store", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ingest(files, cube)
    journal = cube / "ingest" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-10])
    (cube / "AERIAL_RGBI/data/c/2/0/0/0").unlink()
    (cube / "AERIAL_RGBI/data/c/3/0/0/.0.123.partial").write_bytes(b"half")
    assert ingest(files, cube).n_reused == 22
    assert same_tree(cube, whole)
    assert not leftover.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the name of an open file")
def test_data_is_on_disk_before_the_line_that_says_so(
    files: PatchFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power failure could tear apart is forced to disk in the right order."""
    cube = tmp_path / "c.zarr"
    events: list[str] = []
    lines: list[int] = []
    force, append = os.fsync, Journal.append

    def recorded(descriptor: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        force(descriptor)

    def noted(journal: Journal, record: Mapping[str, Any]) -> None:
        for name in record["files"]:
            assert str(cube / name) in events
        append(journal, record)
        assert events[-1] == str(journal.path)
        lines.append(len(events))

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(Journal, "append", noted)
    ingest(files, cube)
    after = events[lines[-2] :]
    (status,) = [place for place, name in enumerate(after) if name.startswith(str(cube / ".zarr.json."))]
    tables = {str(path) for path in cube.rglob("*") if path.is_file() and path.name != "journal.jsonl"}
    assert tables <= set(after[:status]), "everything before the status"
    assert [name for name in after[status + 1 :] if name.startswith(str(cube / "ingest/.journal.jsonl."))]


def test_a_disk_that_cannot_keep_a_shard(
    files: PatchFiles, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(paths: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(run, "to_disk", broken)
        with pytest.raises(CubeError, match=r"24 of 24 shards failed[\s\S]*OSError: \[Errno 5\] Input/output error"):
            ingest(files, tmp_path / "c.zarr")
    assert read_entries(tmp_path / "c.zarr") == {}
    ingest(files, tmp_path / "c.zarr")
    assert same_tree(tmp_path / "c.zarr", whole)


def test_complete_and_unchanged_is_left_alone(files: PatchFiles, tmp_path: Path) -> None:
    cube = tmp_path / "c.zarr"
    ingest(files, cube)
    before = {path: path.stat().st_mtime_ns for path in cube.rglob("*")}
    report = ingest(files, cube)
    assert report.already_complete
    assert report.n_reused == report.n_jobs == 24
    assert {path: path.stat().st_mtime_ns for path in cube.rglob("*")} == before


def test_another_plan_needs_overwrite(files: PatchFiles, tmp_path: Path) -> None:
    cube = tmp_path / "c.zarr"
    ingest(files, cube)
    with pytest.raises(OutputExistsError, match=r"made from other files, modalities or options. Pass --overwrite"):
        ingest(files, cube, codec="none")
    with pytest.raises(OutputExistsError, match="made from other files"):
        ingest(files, cube, modalities=["AERIAL_RGBI"])
    ingest(files, cube, modalities=["AERIAL_RGBI"], overwrite=True)
    assert fh.open_cube(cube).modalities == ("AERIAL_RGBI",)
    path = files.files["AERIAL_RGBI"][files.patch_ids[4]]
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    try:
        with pytest.raises(OutputExistsError, match="the source files of 1 of 8 shards have changed since"):
            ingest(files, cube, modalities=["AERIAL_RGBI"])
    finally:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_why_a_complete_cube_is_not_taken(files: PatchFiles, tmp_path: Path) -> None:
    cube = tmp_path / "c.zarr"
    options = {"modalities": ["AERIAL_RGBI"]}
    ingest(files, cube, **options)
    shard = cube / "AERIAL_RGBI/data/c/2/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    (cube / "AERIAL_RGBI/data/c/3/0/0/0").unlink()
    with pytest.raises(OutputExistsError, match="complete, but 2 of 8 shards are gone, cut off, or not in the journal"):
        ingest(files, cube, **options)
    path = files.files["AERIAL_RGBI"][files.patch_ids[4]]
    whole, stat = path.read_bytes(), path.stat()
    path.write_bytes(whole[:-200])
    try:
        ingest(files, cube, **options, overwrite=True, on_error="skip")
        message = "complete, but bad patches of 1 of 8 shards were left out, and --on-error is raise. Pass --overwrite"
        with pytest.raises(OutputExistsError, match=message):
            ingest(files, cube, **options)
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_another_format_needs_overwrite(files: PatchFiles, tmp_path: Path) -> None:
    cube = tmp_path / "c.zarr"
    ingest(files, cube, modalities=["AERIAL_RGBI"])
    text = (cube / "zarr.json").read_text()
    (cube / "zarr.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(OutputExistsError, match=r"a cube exists, of format 2, this version writes 1. Pass --overwrite"):
        ingest(files, cube, modalities=["AERIAL_RGBI"])
    ingest(files, cube, modalities=["AERIAL_RGBI"], overwrite=True)
    assert fh.open_cube(cube).attributes["format"] == 1


def test_what_is_no_cube_is_never_removed(files: PatchFiles, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="exists and is no cube; it is never removed"):
            ingest(files, tmp_path / "precious", overwrite=overwrite)
    assert (tmp_path / "precious" / "thesis.txt").exists()
    (tmp_path / "empty").mkdir()
    ingest(files, tmp_path / "empty", modalities=["AERIAL_RGBI"])
    assert fh.open_cube(tmp_path / "empty").n_patches == 8


def test_a_second_writer_is_refused_naming_the_first(files: PatchFiles, tmp_path: Path) -> None:
    cube = tmp_path / "c.zarr"
    with writer_lock(cube, "cube"), pytest.raises(LockError, match=rf"process {os.getpid()} on \S+ .* is writing this"):
        ingest(files, cube)
    (tmp_path / "c.zarr.lock").write_text("process 1 on elsewhere")  # left by a kill: held by nobody
    ingest(files, cube, modalities=["AERIAL_RGBI"])
    assert not (tmp_path / "c.zarr.lock").exists()


def test_a_failing_job_leaves_the_others_done(
    files: PatchFiles, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: object, store: str, overlap: bool) -> object:
        if job.id == "SENTINEL2_TS/000003":  # type: ignore[attr-defined]
            raise OSError(5, "Input/output error")
        return run_job(job, store, overlap)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "run_job", broken)
    cube = tmp_path / "c.zarr"
    with pytest.raises(CubeError, match=rf"1 of 24 shards failed[\s\S]*{files.patch_ids[3]}[\s\S]*Input/output error"):
        ingest(files, cube)
    monkeypatch.setattr(run, "run_job", run_job)
    assert ingest(files, cube).n_reused == 23
    assert same_tree(cube, whole)


def test_progress_counts_shards(files: PatchFiles, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    ingest(files, tmp_path / "c.zarr", modalities=["AERIAL_RGBI"], progress=lambda *call: calls.append(call))
    assert calls == [("ingest", done, 8) for done in range(9)]


def test_contradictory_arguments(files: PatchFiles, tmp_path: Path) -> None:
    for options, message in (
        ({}, "nothing to ingest"),
        ({"root": files.folder, "on_error": "ignore"}, "on_error: got 'ignore', expected raise or skip"),
        ({"root": files.folder, "workers": -1}, "workers: got -1"),
        ({"root": files.folder, "codec": "best"}, "codec: got 'best'"),
        ({"root": files.folder, "modalities": ["AERIAL"]}, "unknown modality 'AERIAL'"),
        ({"root": files.folder, "modalities": ["DEM_ELEV"]}, "modalities DEM_ELEV: no files. Found AERIAL_RGBI"),
        ({"root": files.folder, "domains": ["D001-2020"]}, "domains D001-2020: no patches. Found D012-2019"),
    ):
        with pytest.raises(UsageError, match=message):
            fh.ingest(cube=tmp_path / "c.zarr", **options)  # type: ignore[arg-type]
