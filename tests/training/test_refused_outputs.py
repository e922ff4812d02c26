"""What the system refuses is one line that names the file, before anything is computed where that can be known."""

import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flairhub.cli import main
from flairhub.config import TrainConfig
from flairhub.errors import DataError
from flairhub.jobs import faults, output_folder, placed, refusals
from flairhub.training.trainer import WholeFiles

CROP = "ALL_LABEL-LPIS"
Configure = Callable[..., TrainConfig]
SERIES: dict[str, Any] = {
    "modalities": {"inputs": {"AERIAL_RGBI": False, "SENTINEL2_TS": True}},
    "labels": [CROP],
    "hyperparams": {"num_epochs": 1, "batch_size": 8, "learning_rate": 1e-3},
}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and standard error of the command line."""
    capsys.readouterr()
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        return int(stopped.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().err


def assert_one_line(result: tuple[int, str], *texts: str) -> None:
    code, message = result
    assert code == 1, message
    (line,) = [line for line in message.splitlines() if line.strip()]
    assert "defect" not in line
    for text in texts:
        assert text in line


def test_outputs_that_cannot_be(
    configure: Configure, learnable_cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(tmp_path / "conf", **SERIES)
    file = tmp_path / "file"
    file.touch()
    train = ["train", "--config", tmp_path / "conf", "--cube", learnable_cube, "--set"]
    for place, reason in (
        (file, "Not a directory"),
        (file / "deeper", "Not a directory"),
        ("/proc/nothing", "No such file or directory"),
        ("/dev/full", "Not a directory"),
    ):
        assert_one_line(run(capsys, *train, f"paths.out_folder={place}"), str(place), reason)
    out = ["--set", f"paths.out_folder={tmp_path}"]
    assert_one_line(run(capsys, *train, "paths.out_model_name=file", *out), str(file), "Not a directory")
    long = "x" * 300
    assert_one_line(run(capsys, *train, f"paths.out_model_name={long}", *out), "File name too long")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf", "file"]
    assert file.read_bytes() == b""
    assert_one_line(run(capsys, "demo", "--data-only", file / "demo"), str(file), "Not a directory")
    assert_one_line(run(capsys, "demo", "--data-only", "/proc/nothing"), "/proc: cannot be")
    weights = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, weights)
    convert = ["model", "convert", weights, "--config", tmp_path / "conf", "-o"]
    assert_one_line(run(capsys, *convert, file / "a.bundle"), str(file), "Not a directory")
    assert_one_line(run(capsys, *convert, f"/proc/{long}/a.bundle"), "/proc/")


def test_a_disk_that_fills_up_costs_nothing_that_is_finished(
    configure: Configure,
    learnable_cube: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(tmp_path, **SERIES)
    folder = tmp_path / "out" / "test_model"
    train = ["train", "--config", tmp_path, "--cube", learnable_cube]
    # The first file and others on the way: state, configuration, checkpoints, bundle, predictions, scores.
    seen = set()
    for number in (1, 2, 4, 5, 9, 13):
        monkeypatch.setattr(faults, "_reached", Counter())
        monkeypatch.setenv(faults.VARIABLE, f"file-rename:{number}:full")
        result = run(capsys, *train, *(["--overwrite"] if folder.exists() else []))
        assert_one_line(result, "No space left on device")
        seen.add(result[1].split(": ")[1])
        assert not (folder / "metrics.json").exists()
        assert not list(tmp_path.glob("out/*.lock"))
    assert len(seen) > 2
    monkeypatch.delenv(faults.VARIABLE)
    assert run(capsys, *train)[0] == 0
    assert (folder / "metrics.json").is_file()
    # A report and an evaluation.
    monkeypatch.setattr(faults, "_reached", Counter())
    monkeypatch.setenv(faults.VARIABLE, "file-rename:1:full")
    assert_one_line(run(capsys, "report", folder), "No space left on device", "report.html")
    evaluate = ["evaluate", "--config", tmp_path, "--cube", learnable_cube, "--predictions", folder / "predictions"]
    assert_one_line(run(capsys, *evaluate), "No space left on device")
    monkeypatch.delenv(faults.VARIABLE)
    file = tmp_path / "file"
    file.touch()
    assert_one_line(run(capsys, "report", folder, "--output", file / "a.html"), str(file), "Not a directory")
    assert_one_line(run(capsys, "report", folder, "--output", "/dev/full"), "/dev/full: is no file")
    assert Path("/dev/full").is_char_device()
    assert_one_line(run(capsys, *evaluate, "--output", file), str(file), "Not a directory")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_libraries_that_hide_the_systems_error(tmp_path: Path) -> None:
    tensor = torch.zeros(100_000)
    with pytest.raises(DataError, match=r"a\.ckpt: File too large\. What is finished"), file_size_limit(8192):
        WholeFiles().save_checkpoint({"a": tensor}, tmp_path / "a.ckpt")
    path = tmp_path / "a.safetensors"
    with pytest.raises(DataError, match=r"a\.safetensors: File too large"), file_size_limit(8192), refusals(path):
        save_file({"a": tensor}, path)
    with pytest.raises(DataError, match="starts no more threads"), refusals(path):
        raise RuntimeError("can't start new thread")
    with pytest.raises(ValueError, match="ours"), refusals(path):
        raise ValueError("ours")


def test_nothing_takes_the_place_of_a_device_or_folder(tmp_path: Path) -> None:
    for place in (Path("/dev/null"), tmp_path):
        with pytest.raises(FileExistsError), placed(place) as partial:
            partial.write_bytes(b"x")
    assert Path("/dev/null").is_char_device()
    with output_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with output_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").touch()
    assert (tmp_path / "a" / "b" / "result").exists()
