"""Files and folders are whole under their names or absent."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import pytest

from flairhub.jobs import (
    FileWriter,
    discard_folder,
    folder_bytes,
    is_disk_full,
    place_folder,
    placed,
    remove_leftovers,
    sha256_of,
    sweep,
    to_disk,
    write_file,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pieces_make_one_file_with_length_and_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.bin"
    assert write_file(path, [b"one", b"", b"two"]) == (6, google_crc32c.value(b"onetwo"))
    assert path.read_bytes() == b"onetwo"
    assert sha256_of(path) == hashlib.sha256(b"onetwo").hexdigest()
    assert names(path.parent) == ["b.bin"]
    write_text(path, "é")
    assert path.read_bytes() == b"\xc3\xa9"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failure_leaves_the_file_before(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    path.write_text("before")

    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise error

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)), FileWriter(path) as target:
        list(map(target.write, pieces()))
    with pytest.raises(type(error)), placed(path) as temporary:
        write(temporary)
    assert (path.read_text(), names(tmp_path)) == ("before", ["a"])


def test_nobody_sees_the_file_before_it_is_whole_and_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    events: list[str] = []
    force, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("disk"), force(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *places: (events.append("name"), replace(*places)))
    with placed(path, durable=True) as temporary:
        temporary.write_text("x")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".a.")
        assert temporary.name.endswith(".partial")
    assert events == ["disk", "name"]
    with placed(path) as temporary:
        temporary.write_text("y")
    assert events == ["disk", "name", "name"]
    assert path.read_text() == "y"


def test_a_file_that_was_never_written_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), placed(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "new" / "f"

    def create(text: str) -> None:
        def write(folder: Path) -> None:
            folder.mkdir()
            (folder / text).write_text(text)

        place_folder(path, write)

    for text in ("one", "two"):
        create(text)
        assert names(path) == [text]
    assert names(path.parent) == ["f"]
    assert folder_bytes(path.parent) == 3
    discard_folder(path)
    assert names(path.parent) == []


def test_a_folder_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.mkdir()

    def fail(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place_folder(path, fail)
    assert (names(tmp_path), names(path)) == (["f"], [])


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "c[1].zarr"
    for name in (".c[1].zarr.0123456789ab.partial", ".c1.zarr.0123456789ab.partial", "c[1].zarr", "c[1].zarr.lock"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    (tmp_path / ".c[1].zarr.ffffffffffff.partial").touch()
    remove_leftovers(path)
    assert names(tmp_path) == [".c1.zarr.0123456789ab.partial", "c[1].zarr", "c[1].zarr.lock"]
    inside = path / "a" / "b"
    inside.mkdir(parents=True)
    for name in (".0.0123456789ab.partial", "zarr.0a1b.partial", "0", "partial"):
        (inside / name).touch()
    assert sweep(path) == 2
    assert names(inside) == ["0", "partial"]
    assert sweep(tmp_path / "nowhere") == 0


def test_files_that_are_not_there_cannot_be_forced_to_disk(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    to_disk([tmp_path / "a"])
    with pytest.raises(FileNotFoundError):
        to_disk([tmp_path / "a", tmp_path / "b"])


def test_what_counts_as_a_full_disk() -> None:
    full = [OSError(number, "") for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
    assert all(map(is_disk_full, full))
    assert not any(map(is_disk_full, [OSError(errno.EIO, ""), ValueError(errno.ENOSPC), OSError()]))
