"""What the system refuses is one line, before anything is computed where that can be known."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster

from flairhub.errors import OutputError
from flairhub.inference import map_store
from flairhub.jobs import try_folder
from flairhub.prepare import ImagePreparation
from tests.helpers.bundle_makers import make_bundle, write_zonal_config
from tests.helpers.commands import failure, run_command
from tests.helpers.zone_makers import make_zone


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zonal")
    made = make_zone(folder / "zone", 64, 48, {"AERIAL_RGBI": 1})
    return write_zonal_config(
        folder / "zonal.yaml", made, make_bundle(folder / "bundle", {"AERIAL_RGBI": ImagePreparation()})
    )


@pytest.mark.parametrize("command", ["zonal", "check"])
@pytest.mark.parametrize(
    ("path", "name", "message"),
    [
        ("file", "map", "file: cannot be written: File exists"),
        ("file/below", "map", "below: cannot be written: Not a directory"),
        ("/proc/x", "map", "/proc/x: cannot be written: No such file or directory"),
        ("out", "n" * 200, "out: cannot be written: File name too long"),
        ("n" * 300, "map", "cannot be written: File name too long"),
    ],
)
def test_output_path_is_tried_first(
    command: str, path: str, name: str, message: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    changes = ("--set", f"output_path={tmp_path / path}", "--set", f"output_name={name}")
    # Missing weights would be found afterwards.
    arguments = [command, "--config", config, *changes, "--set", "model_weights=/no/bundle"]
    code, printed, told = run_command(capsys, *arguments)
    assert code == 1
    assert message in printed + told
    assert "Unexpected" not in told
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses(
    number: int, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=os.strerror(number)):
        try_folder(tmp_path / "a/b", "map.tif")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(map_store.MapStore, "write", refuse)
    code, told = failure(capsys, "zonal", "--config", config, "--set", f"output_path={tmp_path / 'out'}")
    assert code == 1
    assert told.count("\n") == 1
    assert told.startswith(f"OutputError: {tmp_path / 'out'}: ")
    assert os.strerror(number) in told
    assert ("Make room and run the same command again" in told) == (number in (errno.ENOSPC, errno.EDQUOT))


def test_workers_that_do_not_start(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(LocalCluster, "__init__", fail)
    monkeypatch.setattr(LocalCluster, "__del__", lambda _: None, raising=False)
    changes = ("--set", f"output_path={tmp_path / 'out'}", "--scheduler", "processes", "--workers", "2")
    code, told = failure(capsys, "zonal", "--config", config, *changes)
    assert code == 1
    assert "JobError: 2 worker processes do not start (Nanny failed to start)" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("img_pixels_detection=5120", "5120 px, but the zone has only 64 x 48 px"),
        ("output_px_meters=1e300", "1e+300 m, but the zone is only 12.8 m long"),
        ("output_px_meters=13", "13 m, but the zone is only 12.8 m long"),
    ],
)
def test_sizes_beyond_the_zone(
    change: str, message: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"output_path={tmp_path / 'out'}"
    code, told = failure(capsys, "zonal", "--config", config, "--set", out, "--set", change)
    assert code == 2
    assert message in told
    assert not (tmp_path / "out").exists()
