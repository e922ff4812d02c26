"""Options of the optimisation, and resuming from the middle of an epoch."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flairhub.errors import TrainingError
from flairhub.models import load_model
from flairhub.training import train
from flairhub.training.checkpoints import read_checkpoint
from flairhub.training.module import STATE_KEY, SegmentationModule

CROP = "ALL_LABEL-LPIS"
Configure = Callable[..., Any]
EVERYTHING: dict[str, Any] = {
    "modalities": {
        "inputs": {"AERIAL_RGBI": False, "SENTINEL2_TS": True},
        "pre_processings": {"use_augmentation": True},
    },
    "labels": [CROP],
    "hyperparams": {
        "num_epochs": 2,
        "batch_size": 1,
        "learning_rate": 0.01,
        "scheduler": "one_cycle_lr",
        "accumulate": 3,
        "gradient_clip": 0.5,
        "ema": 0.5,
        "losses": {"cross_entropy": 1, "dice": 0.5, "lovasz": 0.2, "focal": 0.3},
    },
    "saving": {"ckpt_every_n_steps": 1, "progress_rate": 1, "enable_progress_bar": True, "ckpt_verbose": True},
    "tasks": {"test_time_augmentation": True},
}


class Stop(Exception):
    """Stands for a kill."""


def with_section(name: str, **values: Any) -> dict[str, Any]:
    return {**EVERYTHING, name: {**EVERYTHING.get(name, {}), **values}}


@pytest.fixture(scope="module")
def whole(configure: Configure, learnable_cube: Path, tmp_path_factory: pytest.TempPathFactory):
    rates: list[float] = []
    original = SegmentationModule.optimizer_step

    def noted(self: SegmentationModule, *args: Any, **kwargs: Any) -> None:
        rates.append(self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"])
        original(self, *args, **kwargs)

    SegmentationModule.optimizer_step = noted  # type: ignore[method-assign]
    try:
        result = train(configure(tmp_path_factory.mktemp("whole"), **EVERYTHING), cube=learnable_cube)
    finally:
        SegmentationModule.optimizer_step = original  # type: ignore[method-assign]
    return result, rates


def test_accumulated_batches_make_one_step(whole) -> None:
    result, rates = whole
    # 8 patches, one per batch, three batches per step; the last step of an epoch has two.
    assert [entry["step"] for entry in result.history] == [3, 6]
    assert len(rates) == 6
    assert len(set(rates)) > 3


@pytest.mark.parametrize("stop_at", [4, 8, 14])
def test_resuming_inside_an_epoch_is_the_uninterrupted_run(
    whole, configure: Configure, learnable_cube: Path, tmp_path: Path, stop_at: int, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "train" and done == stop_at:
            raise Stop

    with pytest.raises(Stop):
        train(configure(tmp_path, **EVERYTHING), cube=learnable_cube, progress=stop)
    assert any("last.ckpt: step 1" in record.message for record in caplog.records if record.levelno == logging.WARNING)
    last = tmp_path / "out" / "test_model" / "checkpoints" / "last.ckpt"
    content = read_checkpoint(last)
    # The newest whole step; stopping after batch 14 comes before its step is saved.
    assert content["global_step"] == {4: 1, 8: 2, 14: 4}[stop_at]
    assert len(content[STATE_KEY]["history"]) == (1 if stop_at > 8 else 0)
    tasks = {"train_tasks": {"resume_training_from_ckpt": True}}
    resumed = configure(tmp_path, **with_section("tasks", **tasks), paths={"ckpt_model_path": str(last)})
    result = train(resumed, cube=learnable_cube)
    assert result.history == whole[0].history
    assert result.metrics["tasks"] == whole[0].metrics["tasks"]
    expected, actual = (load_model(r.bundle).network.state_dict() for r in (whole[0], result))
    assert all(torch.equal(actual[name], values) for name, values in expected.items())


def test_the_running_mean_is_what_is_scored_and_kept(whole) -> None:
    result, _ = whole
    content = read_checkpoint(result.folder / "checkpoints" / "best.ckpt")
    learning = content[STATE_KEY]["learning_weights"]
    kept = load_model(result.bundle).network.state_dict()
    assert all(torch.equal(content["state_dict"][f"model.{name}"], values) for name, values in kept.items())
    parameters = [name for name, _ in load_model(result.bundle).network.named_parameters()]
    assert any(not torch.equal(learning[f"model.{name}"], kept[name]) for name in parameters)
    assert content[STATE_KEY]["ema_updates"] == content["global_step"]


def test_each_option_changes_the_run(whole, configure: Configure, learnable_cube: Path, tmp_path: Path) -> None:
    base = whole[0].history[0]["val_loss"]
    for name, value in (("gradient_clip", 0), ("ema", 0), ("losses", {"cross_entropy": 1}), ("accumulate", 1)):
        section = with_section("hyperparams", num_epochs=1, **{name: value})
        section["tasks"] = {"predict": False}
        result = train(configure(tmp_path / name, **section), cube=learnable_cube)
        assert result.history[0]["val_loss"] != base, name


def test_gradients_are_clipped_to_the_norm(configure: Configure, learnable_cube: Path, tmp_path: Path) -> None:
    norms = []
    original = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, closure: Any = None) -> Any:
        loss = closure()
        gradients = [p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))
        return original(self, lambda: loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", noted)
        section = with_section("hyperparams", num_epochs=1, gradient_clip=0.05)
        train(configure(tmp_path, **{**section, "tasks": {"predict": False}}), cube=learnable_cube)
    assert norms == pytest.approx([0.05] * 3, rel=1e-3)


def test_weights_that_are_not_finite_are_never_saved(
    configure: Configure, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SegmentationModule.optimizer_step

    def spoiled(self: SegmentationModule, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.trainer.global_step == 2:
            with torch.no_grad():
                next(self.model.parameters()).fill_(np.nan)

    monkeypatch.setattr(SegmentationModule, "optimizer_step", spoiled)
    section = with_section("hyperparams", accumulate=1, ema=0)
    with pytest.raises(TrainingError, match="weights are not finite after step 3"):
        train(configure(tmp_path, **section), cube=learnable_cube)
    content = read_checkpoint(tmp_path / "out" / "test_model" / "checkpoints" / "last.ckpt")
    assert content["global_step"] == 2
    assert all(values.isfinite().all() for values in content["state_dict"].values())


def test_compile_is_asked_for(
    configure: Configure, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *args, **kwargs: compiled.append(type(self).__name__))
    section = with_section("hyperparams", num_epochs=1)
    section["tasks"] = {"predict": False}
    train(configure(tmp_path, **section, hardware={"compile": True, "precision": "32-true"}), cube=learnable_cube)
    assert compiled == ["Network"]


def test_validation_patches_are_drawn_in_the_log(whole) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(whole[0].folder / "logs"))
    log.Reload()
    tags = log.Tags()["images"]
    # Batches of one patch: one picture per epoch.
    assert len(tags) == 1
    assert tags[0].startswith(f"val/{CROP}/D0")
    pictures = log.Images(tags[0])
    assert [picture.step for picture in pictures] == [3, 6]
    assert (pictures[0].height, pictures[0].width) == (32, 3 * 32 + 2 * 4)
