"""Where a cube may be written, what the system refuses, and tables as other programs write them."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flairhub as fh
from flairhub.errors import CubeError, DataError, LockError, OutputExistsError
from flairhub.ingest.store import reading, writing
from flairhub.jobs import writer_lock
from tests.helpers.commands import failure, run_command
from tests.helpers.comparisons import same_tree
from tests.helpers.makers import PatchFiles, write_train_config
from tests.helpers.processes import start_afresh
from tests.helpers.waiting import HANG_S, session_ends, wait_until

ONE = ("--modality", "DEM_ELEV")


def test_places_that_are_none(small_files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "c [b]'é.zarr"
    code, out, _ = run_command(capsys, "ingest", "--root", small_files.folder, "--cube", store, *ONE)
    assert (code, f"{store}: 4 patches" in out) == (0, True)
    (tmp_path / "file").write_text("x")
    for place, code, message in (
        (store / "inside.zarr", 2, f"lies inside the Zarr store {store}"),
        (store / "DEM_ELEV" / "data", 2, f"lies inside the Zarr store {store / 'DEM_ELEV'}"),
        ("/", 2, "no place for a cube"),
        ("s3://bucket/c.zarr", 2, "a cube is written to a local folder"),
        (tmp_path / "file", 2, "exists and is no cube; it is never removed"),
        (tmp_path / "file" / "c.zarr", 1, f"cannot be written: File exists ({tmp_path / 'file'})"),
        (small_files.folder, 2, "exists and is no cube; it is never removed"),
    ):
        found = failure(capsys, "ingest", "--root", small_files.folder, "--cube", place, "--overwrite", *ONE)
        assert (found[0], message in found[1]) == (code, True), found
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.name, "file"]
    assert (tmp_path / "file").read_text() == "x"
    assert run_command(capsys, "cube", "verify", store)[0] == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="the system refuses root nothing")
def test_what_may_not_be_written_or_read(files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    code, shown = failure(capsys, "ingest", "--root", files.folder, "--cube", closed / "c.zarr")
    assert (code, "c.zarr: cannot be written: Permission denied" in shown) == (1, True)
    folder = files.files["DEM_ELEV"][files.patch_ids[0]].parent
    folder.chmod(0)
    code, shown = failure(capsys, "ingest", "--root", files.folder, "--cube", tmp_path / "c.zarr")
    folder.chmod(0o700)
    assert (code, f"DataError: {folder}: cannot be read: Permission denied" in shown) == (1, True)


def test_what_the_system_says_has_the_name_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}/nowhere: cannot be read: No such file"), reading():
        os.scandir(tmp_path / "nowhere")
    cube = tmp_path / "c.zarr"
    with pytest.raises(CubeError, match=rf"{cube}: cannot be written: Input/output error \(x\)"), writing(cube):
        raise OSError(errno.EIO, "Input/output error", "x")
    with pytest.raises(CubeError, match=rf"{cube}: Quota. What is finished stays valid"), writing(cube):
        raise OSError(errno.EDQUOT, "Quota")


def test_a_link_is_the_store_that_it_names(small_files: PatchFiles, tmp_path: Path) -> None:
    """One lock for one store, whatever it is called; --overwrite replaces the store and leaves the link."""
    link, real = tmp_path / "link.zarr", tmp_path / "real.zarr"
    link.symlink_to(real)
    options = {"root": small_files.folder, "modalities": ["DEM_ELEV"]}
    with writer_lock(real, "cube"), pytest.raises(LockError, match="is writing this cube"):
        fh.ingest(cube=link, **options)  # type: ignore[arg-type]
    for codec in ("fast", "none"):
        fh.ingest(cube=link, overwrite=True, codec=codec, **options)  # type: ignore[arg-type]
        assert fh.open_cube(real).attributes["codec"] == codec
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.zarr", "real.zarr"]


def test_a_file_system_without_locks(
    small_files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    cube = tmp_path / "c.zarr"
    arguments = ["ingest", "--root", small_files.folder, "--cube", cube, "--workers", 0, *ONE]
    code, shown = failure(capsys, *arguments)
    assert (code, f"LockError: {cube}.lock: the file system has no locks (No locks available)" in shown) == (1, True)
    assert list(tmp_path.iterdir()) == []
    assert run_command(capsys, *arguments, "--no-lock")[0] == 0
    assert fh.open_cube(cube).n_patches == 4
    assert list(tmp_path.iterdir()) == [cube]


def test_stopped_while_the_old_cube_is_removed(
    small_files: PatchFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a cube must not lie under its name: nobody would dare to remove it."""
    cube, fresh = tmp_path / "c.zarr", tmp_path / "fresh.zarr"
    options = {"root": small_files.folder, "modalities": ["DEM_ELEV"]}
    fh.ingest(cube=cube, codec="none", **options)  # type: ignore[arg-type]
    remove = shutil.rmtree

    def stopped(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (path / "zarr.json").unlink()
            raise KeyboardInterrupt
        remove(path, ignore_errors=True)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            fh.ingest(cube=cube, overwrite=True, **options)  # type: ignore[arg-type]
    for path in (cube, fresh):
        fh.ingest(cube=path, **options)  # type: ignore[arg-type]
    assert same_tree(cube, fresh)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.zarr", "fresh.zarr"]


def test_pipes_and_devices_are_no_files(files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Opening a pipe would wait for ever, reading a device would fill the memory."""
    path = files.files["DEM_ELEV"][files.patch_ids[2]]
    config = write_train_config(tmp_path / "config", files)
    path.unlink()
    os.mkfifo(path)
    arguments = ["--root", files.folder, "--cube", tmp_path / "c.zarr"]
    code, shown = failure(capsys, "ingest", *arguments)
    assert (code, f"DataError: no such file: {path}" in shown) == (1, True)
    assert fh.ingest(root=files.folder, cube=tmp_path / "c.zarr", on_error="skip").skipped == (
        ("DEM_ELEV", files.patch_ids[2], f"{path}: no such file."),
    )
    path.unlink()
    path.symlink_to("/dev/zero")
    code, shown = failure(capsys, "ingest", *arguments, "--overwrite")
    assert (code, f"DataError: no such file: {path}" in shown) == (1, True)
    dates = files.mtd_folder / "GLOBAL_SENTINEL1-ASC_MTD_DATES.gpkg"
    dates.unlink()
    os.mkfifo(dates)
    code, shown = failure(capsys, "ingest", *arguments, "--on-error", "skip", "--overwrite")
    assert (code, f"DataError: {dates}: not a GeoPackage, nor a file" in shown) == (1, True)
    place = "paths.train_csv=/dev/zero"
    code, shown = failure(capsys, "ingest", "--config", config, "--set", place, "--cube", tmp_path / "d.zarr")
    assert (code, "DataError: /dev/zero: neither a file nor a folder; expected a CSV file." in shown) == (1, True)


def test_hidden_files_are_ignored(files: PatchFiles, tmp_path: Path) -> None:
    path = files.files["DEM_ELEV"][files.patch_ids[2]]
    path.with_name(f"._{path.name}").write_text("of a Mac")
    with zipfile.ZipFile(files.folder / "D012-2019_SPOT_RGBI.zip", "w") as archive:
        archive.writestr(f"__MACOSX/D012-2019_SPOT_RGBI/AF/._{path.name}", b"of a Mac")
    report = fh.ingest(root=files.folder, cube=tmp_path / "c.zarr")
    assert (report.n_files, len(report.modalities)) == (16, 4)


def rewritten(change: Callable[[str], str], **encoding: str) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        text = change(path.read_text())
        with path.open("w", newline="", **encoding) as stream:  # type: ignore[call-overload]
            stream.write(text)

    return rewrite


SPREADSHEETS: dict[str, tuple[Callable[[Path], None], str]] = {
    "byte order mark": (rewritten(str, encoding="utf-8-sig"), ""),
    "line ends of Windows": (rewritten(lambda text: text.replace("\n", "\r\n")), ""),
    "blanks around commas": (rewritten(lambda text: text.replace(",", " , ")), ""),
    "empty lines at the end": (rewritten(lambda text: text + "\n,,,,\n\n"), ""),
    "semicolons": (rewritten(lambda text: text.replace(",", ";")), "in use, separated by commas."),
    "utf-16": (rewritten(str, encoding="utf-16"), "cannot be read as CSV: is UTF-16 text"),
    "nothing": (rewritten(lambda _: ""), "is missing. Found no columns"),
    "a header alone": (rewritten(lambda text: text.split("\n")[0]), "no patches in the CSVs"),
}


@pytest.mark.parametrize("kind", SPREADSHEETS)
def test_tables_as_spreadsheets_write_them(
    files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    change, message = SPREADSHEETS[kind]
    config = write_train_config(tmp_path / "config", files)
    for path in files.csvs.values():
        change(path)
    arguments = ["ingest", "--config", config, "--cube", tmp_path / "c.zarr"]
    if not message:
        code, out, _ = run_command(capsys, *arguments)
        assert (code, "4 patches, 4 modalities" in out) == (0, True)
        assert fh.open_cube(tmp_path / "c.zarr").present("DEM_ELEV").all()
        return
    code, shown = failure(capsys, *arguments)
    assert code == 1
    assert str(files.csvs["train"]) in shown
    assert message in shown


INTERRUPTED_START = """
import os, signal, distributed

class Interrupted(distributed.LocalCluster):
    def __init__(self, *args, **kwargs):
        self.closing = False
        os.killpg(0, signal.SIGINT)
        super().__init__(*args, **kwargs)
        os.killpg(0, signal.SIGINT)

    def close(self, *args, **kwargs):
        if not self.closing:
            self.closing = True
            os.killpg(0, signal.SIGINT)
            os.killpg(0, signal.SIGINT)
        return super().close(*args, **kwargs)

distributed.LocalCluster = Interrupted
"""


def test_ctrl_c_again_and_again_while_workers_start(small_files: PatchFiles, tmp_path: Path) -> None:
    """To the whole process group, as a terminal sends it: before, after, and while they are ended."""
    cube = tmp_path / "c.zarr"
    process = start_afresh(small_files, cube, "--workers", 2, before=INTERRUPTED_START)
    out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, out.strip(), err.strip()) == (130, "", "Interrupted.")
    wait_until(lambda: session_ends(process.pid), "the end of all workers")
    fh.ingest(root=small_files.folder, cube=cube, shard=1)
    assert fh.open_cube(cube).n_patches == 4


def test_two_ingests_at_once_end_with_an_error_and_a_store_that_can_be_replaced(
    small_files: PatchFiles, tmp_path: Path
) -> None:
    """As when the lock was removed by hand: the second is stopped, the first writes on into what it left."""
    cube, fresh = tmp_path / "c.zarr", tmp_path / "fresh.zarr"
    options: dict[str, Any] = {"root": small_files.folder, "modalities": ["DEM_ELEV"], "shard": 1}

    def stopped(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    def second(stage: str, done: int, total: int) -> None:
        if done == 2:
            (tmp_path / "c.zarr.lock").unlink()
            with pytest.raises(KeyboardInterrupt):
                fh.ingest(cube=cube, codec="none", overwrite=True, progress=stopped, **options)

    with pytest.raises(CubeError, match=r"c\.zarr: another process has written to this cube at the same time"):
        fh.ingest(cube=cube, progress=second, **options)
    with pytest.raises(CubeError, match="not complete"):
        fh.open_cube(cube)
    fh.ingest(cube=cube, overwrite=True, **options)
    fh.ingest(cube=fresh, **options)
    assert same_tree(cube, fresh)


@pytest.mark.parametrize("damage", ["no root", "damaged root", "shards and journal", "half written"])
def test_what_an_ingest_left_can_be_replaced(
    small_files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    cube, fresh = tmp_path / "c.zarr", tmp_path / "fresh.zarr"
    fh.ingest(root=small_files.folder, cube=fresh, modalities=["DEM_ELEV"])
    shutil.copytree(fresh, cube)
    (cube / "zarr.json").write_text("{")
    if damage != "damaged root":
        (cube / "zarr.json").unlink()
    if damage == "shards and journal":
        shutil.rmtree(cube / "patches")
        for path in cube.rglob("zarr.json"):
            path.unlink()
    elif damage == "half written":
        (cube / "DEM_ELEV/data/c/0/0/0/.0.0123456789ab.partial").write_bytes(b"half")
    arguments = ("ingest", "--root", small_files.folder, "--cube", cube, *ONE)
    code, shown = failure(capsys, *arguments)
    assert (code, "what is left of a cube whose zarr.json is absent or damaged. Pass --overwrite" in shown) == (2, True)
    assert run_command(capsys, *arguments, "--overwrite")[0] == 0
    assert same_tree(cube, fresh)


def test_what_is_not_of_an_ingest_is_never_removed(small_files: PatchFiles, tmp_path: Path) -> None:
    fh.ingest(root=small_files.folder, cube=tmp_path / "made.zarr", modalities=["DEM_ELEV"])
    (tmp_path / "made.zarr/zarr.json").unlink()
    for number, name in enumerate(("notes.txt", "DEM_ELEV/data/c/0/0/0/0.txt", "D012/x.tif", "DEM_ELEV/photo.jpg")):
        cube = Path(shutil.copytree(tmp_path / "made.zarr", tmp_path / f"{number}.zarr"))
        (cube / name).parent.mkdir(exist_ok=True)
        (cube / name).write_text("mine")
        with pytest.raises(OutputExistsError, match="exists and is no cube; it is never removed"):
            fh.ingest(root=small_files.folder, cube=cube, modalities=["DEM_ELEV"], overwrite=True)
        assert (cube / name).read_text() == "mine"
    for number, name in enumerate(("zarr.json", "ingest/journal.jsonl", "patches/zarr.json")):
        other = tmp_path / f"other{number}"
        (other / name).parent.mkdir(parents=True)
        (other / name).write_text("{}")
        with pytest.raises(OutputExistsError, match="it is never removed"):
            fh.ingest(root=small_files.folder, cube=other, modalities=["DEM_ELEV"], overwrite=True)


def test_names_that_the_system_refuses_are_one_line(
    small_files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for length in (240, 300):
        place = tmp_path / ("a" * length)
        code, shown = failure(capsys, "ingest", "--root", small_files.folder, "--cube", place, *ONE)
        assert (code, f"CubeError: {place}: cannot be written: File name too long" in shown) == (1, True)
    place = small_files.files["DEM_ELEV"][small_files.patch_ids[0]] / "c.zarr"
    code, shown = failure(capsys, "ingest", "--root", small_files.folder, "--cube", place, *ONE)
    assert (code, f"{place}: cannot be written: " in shown) == (1, True)
    for command in ("info", "verify"):
        code, shown = failure(capsys, "cube", command, tmp_path / ("a" * 300))
        assert (code, "does not exist" in shown) == (1, True)
