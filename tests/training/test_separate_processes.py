"""Killed trainings, and trainings of several processes."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flairhub.config import TrainConfig
from flairhub.models import load_model
from flairhub.training import TrainResult, train
from flairhub.training.checkpoints import read_checkpoint
from tests.helpers import separate_run
from tests.helpers.waiting import HANG_S

LAND, CROP = "AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS"
Configure = Callable[..., TrainConfig]
SCRIPT = Path(separate_run.__file__)
SERIES: dict[str, Any] = {
    "modalities": {
        "inputs": {"AERIAL_RGBI": False, "SENTINEL2_TS": True},
        "pre_processings": {"use_augmentation": True},
    },
    "labels": [CROP],
    "hyperparams": {"num_epochs": 3, "batch_size": 2, "learning_rate": 0.01},
    "saving": {"ckpt_every_n_steps": 1, "progress_rate": 1, "enable_progress_bar": True},
}
RESUME = {"train_tasks": {"resume_training_from_ckpt": True}}


def start(config: Path, cube: Path, *options: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), str(config), str(cube), str(config / "progress.txt"), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def assert_same(result: TrainResult, expected: TrainResult) -> None:
    assert result.history == expected.history
    assert result.metrics["tasks"] == expected.metrics["tasks"]
    there, here = (load_model(entry.bundle).network.state_dict() for entry in (expected, result))
    assert all(torch.equal(here[name], values) for name, values in there.items())


def test_a_kill_inside_a_checkpoint_costs_one_interval(
    configure: Configure, learnable_cube: Path, tmp_path: Path
) -> None:
    whole = train(configure(tmp_path / "whole", **SERIES), cube=learnable_cube)
    killed = tmp_path / "killed"
    configure(killed, **SERIES)
    # Checkpoints of steps 1, 2, 3, of the first epoch (4 steps), of step 5; the sixth is torn.
    process = start(killed, learnable_cube, "--die-in-checkpoint", "6")
    _, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == -signal.SIGKILL, errors.decode()
    checkpoints = killed / "out" / "test_model" / "checkpoints"
    (partial,) = checkpoints.glob("*.partial")
    assert partial.name.startswith(".new.ckpt.")
    content = read_checkpoint(checkpoints / "last.ckpt")
    assert content["global_step"] == 5
    paths = {"ckpt_model_path": str(checkpoints / "last.ckpt")}
    result = train(configure(killed, **SERIES, tasks=RESUME, paths=paths), cube=learnable_cube)
    assert_same(result, whole)
    assert not list(checkpoints.glob("*.partial"))


@pytest.mark.slow
def test_random_kills_end_in_the_uninterrupted_run(configure: Configure, learnable_cube: Path, tmp_path: Path) -> None:
    whole = train(configure(tmp_path / "whole", **SERIES), cube=learnable_cube)
    killed = tmp_path / "killed"
    last = killed / "out" / "test_model" / "checkpoints" / "last.ckpt"
    chance, kills = random.Random(2), 0
    progress = killed / "progress.txt"
    for _ in range(5):
        # The same configuration every time: the same command continues.
        configure(killed, **SERIES)
        progress.unlink(missing_ok=True)
        # The first one lives until there is a checkpoint.
        where = [str(chance.randint(1 if last.exists() else 2, 4)), str(chance.random() * 0.05)]
        process = start(killed, learnable_cube, "--die-after-step", *where)
        _, errors = process.communicate(timeout=HANG_S)
        if process.returncode != -signal.SIGPROF:
            assert process.returncode == 0, errors.decode()
            break
        kills += 1
        seen = max(int(line.split()[1]) for line in progress.read_text().splitlines() if line.startswith("train "))
        if last.exists():
            assert read_checkpoint(last)["global_step"] >= seen - 1
        if seen >= 11:
            break
    assert kills >= 2
    assert_same(train(configure(killed, **SERIES), cube=learnable_cube), whole)


def shortened(source: Path, target: Path) -> str:
    """Write a CSV without its last line."""
    target.write_text("\n".join(source.read_text().splitlines()[:-1]) + "\n")
    return str(target)


def test_two_processes_are_one_on_the_same_global_batches(
    configure: Configure, learnable_cube: Path, tmp_path: Path
) -> None:
    """Three validation and three test patches: one process has more of them than the other.

    In float64, for the order of a sum is the only difference: a wrong weight of a patch is 1e-2, rounding about 1e-14.
    """
    full = configure(tmp_path / "full").paths
    csvs = {key: shortened(Path(str(getattr(full, key))), tmp_path / f"{key}.csv") for key in ("val_csv", "test_csv")}
    sections: dict[str, Any] = {
        "modalities": {
            "pre_processings": {"use_augmentation": True},
            "aux_loss": {"AERIAL_RGBI": True, "SENTINEL2_TS": True},
        },
        "labels_configs": {LAND: {"value_weights": {"default": 1, "default_exceptions": {0: 3.0, 6: 0.2}}}},
        "paths": csvs,
    }
    folders = {}
    for world in (1, 2):
        folder = tmp_path / str(world)
        # Without momentum or scaling: Adam turns rounding differences of tiny gradients into whole steps.
        hyper = {"num_epochs": 2, "batch_size": 2 // world, "learning_rate": 0.01, "optimizer": "sgd"}
        hardware = {"accelerator": "cpu", "precision": "32-true", "gpus_per_node": world}
        hardware |= {"strategy": "ddp"} if world == 2 else {}
        configure(folder, **sections, hyperparams=hyper, hardware=hardware)
        process = start(folder, learnable_cube, "--exact-layers")
        _, errors = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, errors.decode()
        folders[world] = folder / "out" / "test_model"
    one, two = (json.loads((folders[world] / "history.json").read_text()) for world in (1, 2))
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one] == [4, 8]
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-9)
    weights = [read_checkpoint(folders[world] / "checkpoints" / "last.ckpt")["state_dict"] for world in (1, 2)]
    sizes = [float(values.abs().max()) for values in weights[0].values() if values.dtype == torch.float64]
    assert len(sizes) > 100
    # Of the largest weight: biases that a norm follows have no gradient, and are nothing but rounding.
    size = max(sizes)
    assert 0.1 < size < 10
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, rtol=1e-9, atol=1e-9 * size, msg=name)
    metrics = [json.loads((folders[world] / "metrics.json").read_text())["tasks"] for world in (1, 2)]
    for task in (LAND, CROP):
        assert metrics[0][task]["n_patches"] == metrics[1][task]["n_patches"] == 3
        assert len(list((folders[2] / "predictions" / task).iterdir())) == 3
        matrices = [np.load(folders[world] / "confusion" / f"{task}.npy") for world in (1, 2)]
        assert matrices[0].sum() == 3 * 32 * 32
        np.testing.assert_array_equal(matrices[1], matrices[0])
