"""A run killed anywhere continues to the same bytes; another one's work is not touched."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zarr

from flairhub.errors import LockError, OutputExistsError, ZoneError
from flairhub.inference import work as work_module
from flairhub.inference.work import BlockRecord, BlockStore, Work
from tests.helpers import killed_run
from tests.helpers.waiting import HANG_S

WORK = ".map.unfinished"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A zone and the files of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("zone")
    killed_run.run(killed_run.open_made(folder), folder / "whole")
    return folder, files_of(folder / "whole")


def killed(folder: Path, *arguments: object) -> list[str]:
    """Run in another process, which dies where the arguments say; return the lines it has printed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(Path(killed_run.__file__)), str(folder), *(str(one) for one in arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=HANG_S)
    assert done.returncode == -signal.SIGKILL
    return done.stdout.splitlines()


@pytest.mark.parametrize(("stage", "number", "left"), [("map", 5, 11), ("write", 1, 0)], ids=["map", "write"])
def test_killed_run_continues_with_the_same_bytes(
    tmp_path: Path, finished: tuple[Path, dict[str, bytes]], stage: str, number: int, left: int
) -> None:
    folder, expected = finished
    out = tmp_path / "out"
    for path in folder.glob("*.tif"):
        # With its time of change: other times are other data.
        shutil.copy2(path, tmp_path)
    killed(tmp_path, "--at", stage, number)
    assert (out / WORK).is_dir()
    assert not list(out.glob("*.tif"))
    result = killed_run.run(killed_run.open_made(tmp_path), out)
    assert result.n_blocks == 16
    assert result.n_computed == left
    assert files_of(out) == expected
    assert not (out / WORK).exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_windows_until_it_is_done(
    tmp_path: Path, finished: tuple[Path, dict[str, bytes]], seed: int
) -> None:
    """Every process dies in a random window of its first four; what one has done the next does not do again."""
    folder, expected = finished
    for path in folder.glob("*.tif"):
        shutil.copy2(path, tmp_path)
    rng, out, done = random.Random(seed), tmp_path / "out", 0
    for _ in range(5):  # that leaves at least one of the 16 windows
        first = killed(tmp_path, "--in-call", rng.randint(1, 4))[0].split()
        assert int(first[1]) >= done, "the journal has lost a block"
        done = int(first[1])
        assert not list(out.glob("*.tif"))
    killed_run.run(killed_run.open_made(tmp_path), out)
    assert files_of(out) == expected


def test_killed_between_moving_files(
    tmp_path: Path, finished: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some files already have their names: the next run knows them as its own and finishes."""
    made, replace = killed_run.open_made(finished[0]), os.replace
    out = tmp_path / "out"

    def dying(source: Path, target: Path) -> None:
        if str(target).endswith(".tif"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("flairhub.inference.run.os.replace", dying)
    with pytest.raises(KeyboardInterrupt):
        killed_run.run(made, out)
    monkeypatch.undo()
    assert (out / "map_tiles.gpkg").exists()
    assert killed_run.run(made, out).n_computed == 0
    assert files_of(out) == finished[1]


def interrupted(made: killed_run.MadeZone, out: Path, after: int) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed_run.run(made, out, progress=stop)


def test_damaged_block_and_torn_journal_are_repaired(tmp_path: Path, finished: tuple[Path, dict[str, bytes]]) -> None:
    made, out = killed_run.open_made(finished[0]), tmp_path / "out"
    interrupted(made, out, 6)
    journal = out / WORK / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"block": [3, 3], "cr')
    chunk = sorted(path for path in (out / WORK / "blocks.zarr").rglob("c/**/*") if path.is_file())[0]
    chunk.write_bytes(chunk.read_bytes()[:-5])
    result = killed_run.run(made, out)
    assert 16 - 6 < result.n_computed < 16
    assert files_of(out) == finished[1]


def test_other_work_is_refused_kept_and_dropped_when_asked(
    tmp_path: Path, finished: tuple[Path, dict[str, bytes]]
) -> None:
    made, out = killed_run.open_made(finished[0]), tmp_path / "out"
    interrupted(made, out, 6)
    before = (out / WORK / "journal.jsonl").read_bytes()
    zone = made.open(32, 5)
    with pytest.raises(OutputExistsError, match=r"unfinished map of another model, configuration or data.*--overwrite"):
        killed_run.write_zone(zone, killed_run.mortal_model(), out, "map", tiles=True, block_px=24)
    assert (out / WORK / "journal.jsonl").read_bytes() == before
    result = killed_run.write_zone(zone, killed_run.mortal_model(), out, "map", overwrite=True)
    assert result.n_computed == result.n_blocks


def test_without_resume_all_is_computed_again(tmp_path: Path, finished: tuple[Path, dict[str, bytes]]) -> None:
    made, out = killed_run.open_made(finished[0]), tmp_path / "out"
    interrupted(made, out, 6)
    assert killed_run.run(made, out, resume=False).n_computed == 16
    assert files_of(out) == finished[1]


def make_store(path: Path) -> BlockStore:
    return BlockStore(str(path / "blocks.zarr"), (0, 3, 7, 8), (0, 4, 6), {"a": 2})


def test_store_reads_any_region(tmp_path: Path) -> None:
    import numpy as np

    values = np.random.default_rng(0).integers(0, 255, (2, 8, 6), dtype=np.uint8)
    store = make_store(tmp_path)
    store.create()
    for row in range(3):
        for col in range(2):
            rows, cols = store.row_edges[row : row + 2], store.col_edges[col : col + 2]
            crc = store.write("a", (row, col), values[:, slice(*rows), slice(*cols)])
            assert store.checksum("a", (row, col)) == crc
    for top in range(8):
        for bottom in range(top + 1, 9):
            found = store.read("a", (top, bottom), (1, 5))
            np.testing.assert_array_equal(found, values[:, top:bottom, 1:5])


def test_second_writer_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with Work.open(tmp_path, "key", store, resume=True, discard_other=False) as work:
        work.record((0, 0), BlockRecord({}, {}, 0))
        with pytest.raises(
            LockError, match=rf"process {os.getpid()} on .* is writing this map. Wait for it, or stop it"
        ):
            Work.open(tmp_path, "key", store, resume=True, discard_other=True).__enter__()
        assert work.done
    with Work.open(tmp_path, "key", store, resume=True, discard_other=False) as again:
        assert set(again.done) == {(0, 0)}


def test_a_file_system_without_locks(
    tmp_path: Path, finished: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    made, out = killed_run.open_made(finished[0]), tmp_path / "out"
    with pytest.raises(LockError, match=r"map.unfinished.lock: the file system has no locks .* Pass --no-lock"):
        killed_run.run(made, out)
    assert list(out.iterdir()) == []
    killed_run.run(made, out, lock=False)
    assert files_of(out) == finished[1]
    assert not list(out.glob(".*"))


def test_block_that_changed_after_the_journal_is_an_error(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with Work.open(tmp_path, "key", store, resume=True, discard_other=False) as work:
        work.record((0, 0), BlockRecord({"a": 1}, {"a": (1,)}, 0))
        with pytest.raises(ZoneError, match=r"block \(0, 0\) of a is damaged. Run again"):
            work.check_stored()
    assert zarr.open_group(store.path, mode="r")["a"].shape == (2, 12, 8)
    assert work_module.found_key(tmp_path) == "key"
