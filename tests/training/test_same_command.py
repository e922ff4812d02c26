"""The same command again: a stopped run continues, a finished one says so, one of another configuration is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flairhub.cli import main
from flairhub.config import TrainConfig
from flairhub.errors import LockError, OutputExistsError, WeightsError
from flairhub.models import load_model
from flairhub.report import write_html
from flairhub.training import TrainResult, evaluate, phases, predict, train
from flairhub.training.run_folder import RunFolder
from tests.helpers.makers import PatchFiles

CROP = "ALL_LABEL-LPIS"
Configure = Callable[..., TrainConfig]
SERIES: dict[str, Any] = {
    "modalities": {"inputs": {"AERIAL_RGBI": False, "SENTINEL2_TS": True}},
    "labels": [CROP],
    "hyperparams": {"num_epochs": 2, "batch_size": 4, "learning_rate": 0.01},
    "saving": {"ckpt_save_also_last": False, "progress_rate": 1, "enable_progress_bar": True, "log_images": 0},
}


class Stop(Exception):
    """Stands for a kill: nothing in the library expects it."""


@pytest.fixture(scope="module")
def whole(configure: Configure, learnable_cube: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """An uninterrupted run."""
    return train(configure(tmp_path_factory.mktemp("whole"), **SERIES), cube=learnable_cube)


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same(result: TrainResult, expected: TrainResult) -> None:
    assert result.history == expected.history
    assert result.metrics["tasks"] == expected.metrics["tasks"]
    assert result.skipped_batches == expected.skipped_batches
    for name in ("best.bundle/weights.safetensors", "history.json", f"confusion/{CROP}.npy", f"patches/{CROP}.csv"):
        assert (result.folder / name).read_bytes() == (expected.folder / name).read_bytes(), name
    rasters = sorted(path.name for path in expected.predictions[CROP].iterdir())
    assert sorted(path.name for path in result.predictions[CROP].iterdir()) == rasters
    for name in rasters:
        assert (result.predictions[CROP] / name).read_bytes() == (expected.predictions[CROP] / name).read_bytes()
    assert sorted(path.name for path in (result.folder / "checkpoints").iterdir()) == ["best.ckpt"]


def raising(*arguments: Any, **options: Any) -> Any:
    raise Stop


def stop_at(place: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, int], None] | None:
    """Have the next run stop at a place; return the progress to give to it."""
    stage, _, number = place.partition(" ")
    if number:

        def progress(now: str, done: int, total: int) -> None:
            if (now, done) == (stage, int(number)):
                raise Stop

        return progress
    if place == "write_class_raster":
        # The first one is written.
        write = predict.write_class_raster
        calls = iter([write])
        monkeypatch.setattr(predict, place, lambda *arguments: next(calls, raising)(*arguments))
        return None
    monkeypatch.setattr(phases, place, raising)
    return None


PLACES = [
    "train 1",
    "train 3",
    "load_weights",
    "save_bundle",
    "finish_checkpoints",
    "write_class_raster",
    "write_report",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_run_stopped_anywhere_continues_with_the_same_command(
    whole: TrainResult,
    configure: Configure,
    learnable_cube: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    config = configure(tmp_path, **SERIES)
    with monkeypatch.context() as patches, pytest.raises(Stop):
        train(config, cube=learnable_cube, progress=stop_at(place, patches))
    steps: list[str] = []
    result = train(config, cube=learnable_cube, progress=lambda stage, done, total: steps.append(f"{stage} {done}"))
    assert_same(result, whole)
    # What was finished is not done again: an epoch has two steps.
    expected = {"train 1": 4, "train 3": 2}.get(place, 0)
    assert sum(step.startswith("train") for step in steps) == expected
    assert result.metrics["config_sha256"] == load_model(result.bundle).manifest["training"]["config_sha256"]
    assert not result.already_complete
    again = train(config, cube=learnable_cube)
    assert again.already_complete
    assert_same(again, whole)


def test_early_stopping_is_not_forgotten(
    configure: Configure, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flairhub.training.module import SegmentationModule

    monkeypatch.setattr(SegmentationModule, "_validation_loss", lambda self: 1.0 + len(self.history))
    stops = {"ckpt_monitor": "val_loss", "ckpt_monitor_mode": "min", "ckpt_earlystopping_patience": 1}
    sections = {**SERIES, "saving": {**SERIES["saving"], **stops}, "tasks": {"predict": False}}
    sections["hyperparams"] = {**SERIES["hyperparams"], "num_epochs": 5}
    config = configure(tmp_path, **sections)
    with monkeypatch.context() as patches, pytest.raises(Stop):
        train(config, cube=learnable_cube, progress=stop_at("save_bundle", patches))
    result = train(config, cube=learnable_cube)
    assert [entry["val_loss"] for entry in result.history] == [1.0, 2.0]
    assert load_model(result.bundle).manifest["training"]["epoch"] == 0


def test_a_finished_run_says_so(whole: TrainResult, learnable_cube: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state_of(whole.folder)
    command = ["train", "--config", str(whole.folder.parents[1]), "--cube", str(learnable_cube)]
    # The command line writes the cube into the configuration, which makes it another one.
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "holds results of a finished run with another configuration" in message
    assert "--overwrite" in message
    assert state_of(whole.folder) == before


def test_the_command_says_that_nothing_is_to_do(
    configure: Configure, learnable_cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(tmp_path, **{**SERIES, "hyperparams": {**SERIES["hyperparams"], "num_epochs": 1}})
    command = ["train", "--config", str(tmp_path), "--cube", str(learnable_cube)]
    main(command)
    folder = tmp_path / "out" / "test_model"
    before = state_of(folder)
    assert "complete already" not in capsys.readouterr().out
    main(command)
    shown = capsys.readouterr().out
    assert f"{folder}: complete already, nothing to do." in shown
    assert CROP in shown
    assert state_of(folder) == before
    # A raster that has gone is made again, from the model that is there.
    lost = sorted((folder / "predictions" / CROP).iterdir())[0]
    content = lost.read_bytes()
    lost.unlink()
    main(command)
    assert "complete already" not in capsys.readouterr().out
    assert lost.read_bytes() == content
    assert (folder / "best.bundle" / "weights.safetensors").read_bytes() == before["best.bundle/weights.safetensors"]
    # A damaged model is made again from the best checkpoint, too.
    weights = folder / "best.bundle" / "weights.safetensors"
    weights.write_bytes(b"damaged")
    main([*command, "--set", "saving.ckpt_save_also_last=false", "--overwrite"])
    main([*command, "--set", "saving.ckpt_save_also_last=false"])
    assert "complete already" in capsys.readouterr().out


@pytest.mark.parametrize("finished", [False, True])
def test_another_configuration_is_refused(
    configure: Configure,
    learnable_cube: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finished: bool,
) -> None:
    sections = {**SERIES, "tasks": {"predict": False}}
    config = configure(tmp_path, **sections)
    if finished:
        train(config, cube=learnable_cube)
    else:
        with pytest.raises(Stop):
            train(config, cube=learnable_cube, progress=stop_at("train 3", monkeypatch))
    folder = tmp_path / "out" / "test_model"
    before = state_of(folder)
    other = configure(tmp_path, **{**sections, "hyperparams": {**SERIES["hyperparams"], "seed": 7}})
    kind = "a finished" if finished else "an unfinished"
    with pytest.raises(OutputExistsError, match=rf"holds results of {kind} run with another configuration \(check"):
        train(other, cube=learnable_cube)
    assert state_of(folder) == before
    # Other patches under the same names, too.
    table = config.paths.train_csv
    assert table is not None
    lines = table.read_text().splitlines()
    shorter = tmp_path / "train.csv"
    shorter.write_text("\n".join(lines) + "\n")
    moved = configure(tmp_path / "moved", **sections, paths={"train_csv": str(shorter)})
    if not finished:
        with pytest.raises(Stop):
            train(moved, cube=learnable_cube, progress=stop_at("train 3", monkeypatch))
        shorter.write_text("\n".join(lines[:-1]) + "\n")
        with pytest.raises(OutputExistsError, match="an unfinished run with another patches of the splits"):
            train(moved, cube=learnable_cube)


def test_the_published_keys_give_the_same_run(
    whole: TrainResult, configure: Configure, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stop):
        train(configure(tmp_path, **SERIES), cube=learnable_cube, progress=stop_at("train 3", monkeypatch))
    last = tmp_path / "out" / "test_model" / "checkpoints" / "last.ckpt"
    keys = {
        "tasks": {"train_tasks": {"resume_training_from_ckpt": True}},
        "paths": {"ckpt_model_path": str(last)},
    }
    result = train(configure(tmp_path, **SERIES, **keys), cube=learnable_cube)
    assert_same(result, whole)
    # The keys again, although a finished run need not keep its last checkpoint; and the plain command knows it, too.
    assert not last.exists()
    assert train(configure(tmp_path, **SERIES, **keys), cube=learnable_cube).already_complete
    again = train(configure(tmp_path, **SERIES), cube=learnable_cube)
    assert again.already_complete
    assert again.metrics["config_sha256"] == result.metrics["config_sha256"]


def test_a_damaged_last_checkpoint_is_named(
    configure: Configure, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, **SERIES)
    with pytest.raises(Stop):
        train(config, cube=learnable_cube, progress=stop_at("train 3", monkeypatch))
    last = tmp_path / "out" / "test_model" / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content)
    with pytest.raises(WeightsError, match=r"last\.ckpt: damaged.* Pass --overwrite to train anew\."):
        train(config, cube=learnable_cube)


def test_predicting_again(whole: TrainResult, configure: Configure, learnable_cube: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(whole.bundle or "", tmp_path / "copy.bundle"))
    sections = {**SERIES, "tasks": {"train": False}, "paths": {"ckpt_model_path": str(bundle)}}
    config = configure(tmp_path, **sections)
    first = train(config, cube=learnable_cube)
    assert first.metrics["tasks"] == whole.metrics["tasks"]
    again = train(config, cube=learnable_cube)
    assert again.already_complete
    assert again.metrics["tasks"] == whole.metrics["tasks"]
    # Other weights under the same name are another run.
    manifest = bundle / "model.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(OutputExistsError, match="holds predictions already"):
        train(config, cube=learnable_cube)


def test_one_writer_per_folder(
    whole: TrainResult,
    configure: Configure,
    learnable: PatchFiles,
    learnable_cube: Path,
    tmp_path: Path,
) -> None:
    config = configure(tmp_path, **SERIES)
    folder = Path(shutil.copytree(whole.folder, tmp_path / "out" / "test_model"))
    before = state_of(folder)
    holder = rf"test_model is in use: process {os.getpid()} on .* \(since 20.*\) is writing this run"
    with RunFolder(folder).writing():
        for overwrite in (False, True):
            with pytest.raises(LockError, match=holder):
                train(config, cube=learnable_cube, overwrite=overwrite)
        predictions = folder / "predictions" / CROP
        for output in (None, folder, folder / "deep" / "er"):
            with pytest.raises(LockError, match=holder):
                evaluate(config, predictions, cube=learnable_cube, output=output, overwrite=True)
        with pytest.raises(LockError, match=holder):
            write_html(folder)
    assert state_of(folder) == before
    assert not (tmp_path / "out" / "test_model.lock").exists()
    # A scoring inside the run keeps a training out.
    link = tmp_path / "link"
    link.symlink_to(folder)

    def training_meanwhile(stage: str, done: int, total: int) -> None:
        with pytest.raises(LockError, match=holder):
            train(config, cube=learnable_cube, overwrite=True)

    scored = evaluate(config, link / "predictions", cube=learnable_cube, progress=training_meanwhile)
    assert (
        json.loads((folder / "predictions" / "scores" / "metrics.json").read_text())["tasks"] == scored.metrics["tasks"]
    )


def test_null_stands_for_undefined_losses(
    configure: Configure, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flairhub.training.losses import Criterion

    monkeypatch.setattr(Criterion, "has_weight", lambda self, targets: False)
    sections = {**SERIES, "hyperparams": {**SERIES["hyperparams"], "num_epochs": 1}}
    config = configure(tmp_path, **sections)
    result = train(config, cube=learnable_cube)
    text = (result.folder / "history.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))[0]["train_loss"] is None
    assert result.skipped_batches == 2
    assert write_html(result.folder, cube=learnable_cube).is_file()
    again = train(config, cube=learnable_cube)
    assert again.already_complete
    assert again.skipped_batches == 2
    assert torch.isnan(torch.tensor(again.history[0]["train_loss"]))
