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

import dask.array as da
import numpy as np
import pytest
import rioxarray  # noqa: F401  (adds `.rio`)
import xarray as xr
import zarr

from flairhub.errors import LockError, OutputExistsError, ZoneError
from flairhub.inference import map_store
from flairhub.inference.map_store import BlockRecord, MapStore, Work, checksum_of
from flairhub.tasks import default_task
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
    command = [sys.executable, str(Path(killed_run.__file__)), str(folder), *(str(one) for one in arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=HANG_S)
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
    chunk = sorted(path for path in (out / WORK / "map.zarr").rglob("class/c/**/*") if path.is_file())[0]
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


def make_store(path: Path) -> tuple[MapStore, xr.Dataset]:
    store = MapStore(str(path / "map.zarr"), (0, 3, 6, 8), (0, 4, 6))
    variable = xr.Variable(("class_name", "y", "x"), da.zeros((2, 8, 6), dtype="uint8", chunks=-1))
    variable.encoding = {"chunks": (2, 3, 2), "fill_value": 255}
    return store, xr.Dataset({"a": variable})


def test_store_is_an_array_of_the_map_that_blocks_fill(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (2, 8, 6), dtype=np.uint8)
    store, maps = make_store(tmp_path)
    store.create(maps)
    array = zarr.open_group(store.path, mode="r")["a"]
    assert (array.shape, array.chunks, array.fill_value) == ((2, 8, 6), (2, 3, 2), 255)
    assert (array[:] == 255).all()
    for row in range(3):
        for col in range(2):
            rows, cols = store.extent((row, col))
            crc = store.write("a", (row, col), values[:, slice(*rows), slice(*cols)])
            assert store.checksum("a", (row, col)) == crc == checksum_of(values[:, slice(*rows), slice(*cols)])
    np.testing.assert_array_equal(array[:], values)
    np.testing.assert_array_equal(store.read("a", (2, 7), (1, 5)), values[:, 2:7, 1:5])
    shorter = values[:, 6:8, 4:6] // 2
    store.write("a", (2, 1), shorter)
    np.testing.assert_array_equal(store.read("a", (5, 8), (3, 6))[:, 1:, 1:], shorter)
    np.testing.assert_array_equal(store.read("a", (5, 6), (3, 6)), values[:, 5:6, 3:6])


def test_second_writer_is_refused(tmp_path: Path) -> None:
    store, maps = make_store(tmp_path)
    with Work.open(tmp_path, "key", store, maps, resume=True, discard_other=False) as work:
        work.record((0, 0), BlockRecord({}, {}, 0))
        with pytest.raises(
            LockError, match=rf"process {os.getpid()} on .* is writing this map. Wait for it, or stop it"
        ):
            Work.open(tmp_path, "key", store, maps, resume=True, discard_other=True).__enter__()
        assert work.done
    with Work.open(tmp_path, "key", store, maps, resume=True, discard_other=False) as again:
        assert set(again.done) == {(0, 0)}
    assert map_store.stored_key(tmp_path) == "key"


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


@pytest.mark.parametrize("broken", ["changed", "torn", "gone"])
def test_block_that_changed_after_the_journal_is_named_and_repaired(
    tmp_path: Path, finished: tuple[Path, dict[str, bytes]], broken: str
) -> None:
    """A chunk goes bad after its block was journalled: no map appears, the next run computes that block again."""
    made, out = killed_run.open_made(finished[0]), tmp_path / "out"

    def breaking(stage: str, done: int, total: int) -> None:
        if stage == "map" and done == total:
            chunk = out / WORK / "map.zarr" / "class" / "c" / "1" / "2"
            if broken == "changed":
                zarr.open_array(out / WORK / "map.zarr", path="class", mode="r+")[30, 50] = 254
            elif broken == "torn":
                chunk.write_bytes(chunk.read_bytes()[:-5])
            else:
                chunk.unlink()

    with pytest.raises(ZoneError, match=r"is damaged.*Run again to repair it"):
        killed_run.run(made, out, progress=breaking)
    assert not list(out.glob("*.tif"))
    assert killed_run.run(made, out).n_computed == 1
    assert files_of(out) == finished[1]


def test_unfinished_map_opens_with_its_grid_and_classes(
    tmp_path: Path, finished: tuple[Path, dict[str, bytes]]
) -> None:
    made, out = killed_run.open_made(finished[0]), tmp_path / "out"
    interrupted(made, out, 6)
    task = default_task("AERIAL_LABEL-COSIA")
    with xr.open_zarr(out / WORK / "map.zarr", consolidated=False, mask_and_scale=False) as maps:
        assert maps.rio.crs.to_epsg() == 2154
        assert maps.rio.bounds() == pytest.approx(made.open(32, 4).geobox.bounds)
        classes = maps["class"]
        assert (classes.dims, classes.shape, classes.dtype) == (("y", "x"), (96, 96), np.dtype("uint8"))
        assert classes.attrs["_FillValue"] == 255
        assert classes.attrs["flag_values"] == list(range(19))
        assert classes.attrs["flag_meanings"].split()[3] == "impervious_surface"
        assert classes.attrs["flag_colors"].split() == [row.css for row in task.classes]
        assert 6 * 24 * 24 <= int((classes != 255).sum()) < 96 * 96
