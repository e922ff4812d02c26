"""What stops, skips or ends a training."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flairhub.cube import open_cube
from flairhub.errors import TrainingError
from flairhub.models import load_model
from flairhub.training import losses, train
from flairhub.training.checkpoints import read_checkpoint
from flairhub.training.module import SegmentationModule, step_seed
from tests.helpers.makers import PatchFiles

CROP = "ALL_LABEL-LPIS"
Configure = Callable[..., Any]
SERIES_ONLY: dict[str, Any] = {
    "modalities": {"inputs": {"AERIAL_RGBI": False, "SENTINEL2_TS": True}},
    "labels": [CROP],
    "tasks": {"predict": False},
}


def weights(values: dict[int, float], default: float) -> dict[str, Any]:
    return {CROP: {"value_weights": {"default": default, "default_exceptions": values}}}


def test_batches_without_a_weighted_pixel_are_skipped_and_counted(
    configure: Configure, learnable: PatchFiles, learnable_cube: Path, tmp_path: Path
) -> None:
    config = configure(
        tmp_path,
        **SERIES_ONLY,
        labels_configs=weights({1: 1.0}, 0.0),
        hyperparams={"num_epochs": 2, "batch_size": 1, "learning_rate": 1e-3, "optim_weight_decay": 0.5},
    )
    train_ids = [patch_id for patch_id in learnable.patch_ids if learnable.splits[patch_id] == "train"]
    without = sum(learnable.arrays[CROP][patch_id][0, 0, 0] == 3 for patch_id in train_ids)
    assert 0 < without < len(train_ids)
    result = train(config, cube=learnable_cube)
    assert result.skipped_batches == 2 * without
    for entry in result.history:
        assert entry["train_loss"] < 5
        assert entry["val_loss"] < 5
    state = read_checkpoint(result.folder / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(values.isfinite().all() for values in state.values())


def test_validation_without_a_weighted_pixel_is_an_error(
    configure: Configure, learnable_cube: Path, tmp_path: Path
) -> None:
    config = configure(tmp_path, **SERIES_ONLY, labels_configs=weights({7: 1.0}, 0.0))
    with pytest.raises(TrainingError, match="no pixel of the validation patches has a class with weight"):
        train(config, cube=learnable_cube)


def test_a_loss_that_is_not_finite_stops_and_names_the_patches(
    configure: Configure, learnable: PatchFiles, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = losses.weighted_cross_entropy

    def poisoned(*args: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return original(*args) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(losses, "weighted_cross_entropy", poisoned)
    config = configure(tmp_path, **SERIES_ONLY)
    with pytest.raises(TrainingError, match="epoch 1: the loss is nan for the batch of patches") as caught:
        train(config, cube=learnable_cube)
    named = [patch_id for patch_id in open_cube(learnable_cube).patch_ids if patch_id in str(caught.value)]
    assert len(named) == 4
    assert all(learnable.splits[patch_id] == "train" for patch_id in named)
    assert caught.value.exit_code == 1
    for name in ("last.ckpt", "best.ckpt"):
        content = read_checkpoint(tmp_path / "out" / "test_model" / "checkpoints" / name)
        assert content["epoch"] == 0
        assert all(values.isfinite().all() for values in content["state_dict"].values())


def test_ctrl_c_is_an_interrupt_and_keeps_finished_epochs(
    configure: Configure, learnable_cube: Path, tmp_path: Path
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "train" and done == 3:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    config = configure(tmp_path, **SERIES_ONLY, saving={"enable_progress_bar": True, "progress_rate": 1})
    with pytest.raises(KeyboardInterrupt):
        train(config, cube=learnable_cube, progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    last = read_checkpoint(tmp_path / "out" / "test_model" / "checkpoints" / "last.ckpt")
    assert last["epoch"] == 0


def test_a_run_can_be_prolonged_in_another_folder(
    configure: Configure, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([2.0, 1.0, 4.0, 3.0])
    monkeypatch.setattr(SegmentationModule, "_validation_loss", lambda self: next(values))
    monitor = {"ckpt_monitor": "val_loss", "ckpt_monitor_mode": "min", "ckpt_save_also_last": True}
    hyper = {"batch_size": 8, "learning_rate": 1e-3, "scheduler": "reduce_on_plateau"}
    first = train(
        configure(tmp_path, **SERIES_ONLY, saving=monitor, hyperparams={"num_epochs": 2, **hyper}), cube=learnable_cube
    )
    sections = {**SERIES_ONLY, "tasks": {"predict": False, "train_tasks": {"resume_training_from_ckpt": True}}}
    paths = {"out_model_name": "longer", "ckpt_model_path": str(first.folder / "checkpoints" / "last.ckpt")}
    longer = configure(tmp_path, **sections, paths=paths, saving=monitor, hyperparams={"num_epochs": 4, **hyper})
    result = train(longer, cube=learnable_cube)
    assert [entry["val_loss"] for entry in result.history] == [2.0, 1.0, 4.0, 3.0]
    # The best epoch lies in the first folder; here it is the best one of the new epochs.
    assert load_model(first.bundle).manifest["training"]["epoch"] == 1
    assert load_model(result.bundle).manifest["training"]["epoch"] == 3


def test_early_stopping_and_plateau_follow_the_validation(
    configure: Configure, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([3.0, 2.0, 2.5, 2.6, 2.7, 2.8])
    monkeypatch.setattr(SegmentationModule, "_validation_loss", lambda self: next(values))
    config = configure(
        tmp_path,
        **SERIES_ONLY,
        hyperparams={
            "num_epochs": 20,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "scheduler": "reduce_on_plateau",
            "plateau_patience": 1,
            "optimizer": "sgd",
        },
        saving={"ckpt_monitor": "val_loss", "ckpt_monitor_mode": "min", "ckpt_earlystopping_patience": 3},
    )
    result = train(config, cube=learnable_cube)
    assert [entry["val_loss"] for entry in result.history] == [3.0, 2.0, 2.5, 2.6, 2.7]
    assert [entry["lr"] for entry in result.history] == [1e-3, 1e-3, 1e-3, 1e-3, 5e-4]
    assert read_checkpoint(result.folder / "checkpoints" / "best.ckpt")["epoch"] == 1


def test_any_number_of_reading_threads_gives_the_same_run(
    configure: Configure, learnable_cube: Path, tmp_path: Path
) -> None:
    histories = []
    for threads in (0, 3):
        sections = {**SERIES_ONLY, "hardware": {"threads": threads, "precision": "32-true"}}
        config = configure(tmp_path / str(threads), **sections, hyperparams={"num_epochs": 2, "batch_size": 4})
        histories.append(train(config, cube=learnable_cube).history)
    assert histories[0] == histories[1]


def test_steps_and_ranks_have_their_own_random_numbers() -> None:
    seeds = {step_seed(seed, step, rank) for seed in (0, 1) for step in range(50) for rank in range(3)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
