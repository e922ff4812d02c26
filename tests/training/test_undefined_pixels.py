"""Logits that are not finite numbers: no class, counted, and an error when there are many."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flairhub.class_raster import read_class_raster
from flairhub.confusion import ConfusionSums
from flairhub.errors import TrainingError
from flairhub.tasks import default_task
from flairhub.training import predict, train
from flairhub.training.logits import batch_confusion, most_probable
from flairhub.training.losses import TaskObjective
from flairhub.training.metrics import metrics_report

CROP = "ALL_LABEL-LPIS"
Configure = Callable[..., Any]


def test_the_most_probable_class_needs_finite_logits() -> None:
    logits = torch.zeros(1, 3, 1, 5)
    logits[0, 2, 0, :] = 1
    logits[0, 0, 0, 1], logits[0, 1, 0, 2], logits[0, 1, 0, 3] = torch.nan, torch.inf, -torch.inf
    assert most_probable(logits).tolist() == [[[2, 255, 255, 255, 2]]]
    assert most_probable(logits.half()).dtype == torch.uint8
    counts = batch_confusion(logits, torch.tensor([[[2, 2, 2, 2, 1]]], dtype=torch.uint8))
    assert counts.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 1]]


def sums_with(undefined: int) -> ConfusionSums:
    """4000 pixels, so many of them without a class."""
    task = default_task(CROP)
    truth = np.full((40, 100), 3, np.uint8)
    classes = np.full((40, 100), 3, np.uint8)
    classes.reshape(-1)[:undefined] = 255
    sums = ConfusionSums([task])
    sums.add(CROP, 0, "D012-2019", truth, classes)
    return sums


def test_few_undefined_pixels_are_counted_and_many_are_an_error() -> None:
    task = default_task(CROP)
    objective = TaskObjective(task, 1.0, np.ones(task.n_classes, np.float32), {})
    report = metrics_report(sums_with(4), [objective])["tasks"][CROP]
    assert report["undefined_px"] == 4
    assert report["strict"]["per_class"]["Maize"]["support_px"] == 3996
    with pytest.raises(TrainingError, match=rf"{CROP}: the network gives no finite numbers for 5 of 4000 pixels"):
        metrics_report(sums_with(5), [objective])
    other = ConfusionSums([task])
    other.add(CROP, 1, "D012-2019", np.array([[255, 1]], np.uint8), np.array([[255, 255]], np.uint8))
    assert sums_with(4).join([other]).undefined(CROP) == 5


@pytest.mark.parametrize("augment", [False, True])
def test_a_run_with_undefined_pixels(
    configure: Configure, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: bool
) -> None:
    original = predict.network_output

    def poisoned(*arguments: Any, **options: Any) -> Any:
        logits, aux = original(*arguments, **options)
        logits[CROP][:, 5, 0, 0] = torch.nan
        return logits, aux

    monkeypatch.setattr(predict, "network_output", poisoned)
    monkeypatch.setattr("flairhub.training.logits.network_output", poisoned)
    sections: dict[str, Any] = {
        "modalities": {"inputs": {"AERIAL_RGBI": False, "SENTINEL2_TS": True}},
        "labels": [CROP],
        "hyperparams": {"num_epochs": 1, "batch_size": 8, "learning_rate": 1e-3},
    }
    config = configure(tmp_path, **sections, tasks={"test_time_augmentation": augment})
    if augment:
        # Eight symmetries carry the pixel into all four corners: 16 of 4096 pixels.
        with pytest.raises(TrainingError, match=r"no finite numbers for 16 of 4096 pixels .* No score is given"):
            train(config, cube=learnable_cube)
        assert not (tmp_path / "out" / "test_model" / "metrics.json").exists()
        return
    result = train(config, cube=learnable_cube)
    assert result.metrics["tasks"][CROP]["undefined_px"] == 4
    for path in result.predictions[CROP].iterdir():
        classes = read_class_raster(path)
        assert np.argwhere(classes == 255).tolist() == [[0, 0]]
    again = train(configure(tmp_path, **sections, tasks={"metrics_only": True}), cube=learnable_cube)
    assert again.metrics["tasks"] == result.metrics["tasks"]
    assert json.loads((result.folder / "metrics.json").read_text())["tasks"][CROP]["undefined_px"] == 4
