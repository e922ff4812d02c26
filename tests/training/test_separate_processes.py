"""Killed trainings, and trainings of several processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flairhub.config import TrainConfig
from flairhub.models import load_model
from flairhub.training import TrainResult, run, train
from flairhub.training.checkpoints import read_checkpoint
from tests.helpers import separate_run
from tests.helpers.separate_run import plain_layers

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
    _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, errors.decode()
    checkpoints = killed / "out" / "test_model" / "checkpoints"
    assert [path.name for path in checkpoints.glob("*.partial")] == ["new.ckpt.partial"]
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
        resume = {"tasks": RESUME, "paths": {"ckpt_model_path": str(last)}} if last.exists() else {}
        configure(killed, **SERIES, **resume)
        progress.unlink(missing_ok=True)
        process = start(killed, learnable_cube)
        steps = chance.randint(1, 4)
        while process.poll() is None and (not progress.exists() or progress.read_text().count("train") < steps):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        process.kill()
        _, errors = process.communicate()
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, errors.decode()
            break
        kills += 1
        seen = max(int(line.split()[1]) for line in progress.read_text().splitlines() if line.startswith("train "))
        if last.exists():
            assert read_checkpoint(last)["global_step"] >= seen - 1
        if seen >= 11:
            break
    assert kills >= 2
    paths = {"ckpt_model_path": str(last)}
    assert_same(train(configure(killed, **SERIES, tasks=RESUME, paths=paths), cube=learnable_cube), whole)


def shortened(source: Path, target: Path) -> str:
    """Write a CSV without its last line."""
    target.write_text("\n".join(source.read_text().splitlines()[:-1]) + "\n")
    return str(target)


def test_two_processes_are_one_on_the_same_global_batches(
    configure: Configure, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three validation and three test patches: one process has more of them than the other."""
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
    monkeypatch.setattr(run, "build_network", run.build_network)  # restored at the end
    found = {}
    for world in (1, 2):
        folder = tmp_path / str(world)
        # Without momentum or scaling: Adam turns rounding differences of tiny gradients into whole steps.
        hyper = {"num_epochs": 2, "batch_size": 2 // world, "learning_rate": 0.01, "optimizer": "sgd"}
        hardware = {"accelerator": "cpu", "precision": "32-true", "gpus_per_node": world}
        hardware |= {"strategy": "ddp"} if world == 2 else {}
        config = configure(folder, **sections, hyperparams=hyper, hardware=hardware)
        if world == 1:
            plain_layers()
            train(config, cube=learnable_cube)
        else:
            process = start(folder, learnable_cube, "--plain-layers")
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors.decode()
        found[world] = folder / "out" / "test_model"
    one, two = (json.loads((found[world] / "history.json").read_text()) for world in (1, 2))
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one] == [4, 8]
    for a, b in zip(one, two, strict=True):
        for key, value in a.items():
            # A pixel between two classes may fall to the other one.
            close = {"abs": 3e-3} if "miou" in key else {"rel": 2e-4}
            assert b[key] == pytest.approx(value, **close), key
    weights = [read_checkpoint(found[world] / "checkpoints" / "last.ckpt")["state_dict"] for world in (1, 2)]
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, rtol=2e-3, atol=2e-4, msg=name)
    metrics = [json.loads((found[world] / "metrics.json").read_text())["tasks"] for world in (1, 2)]
    for task in (LAND, CROP):
        assert metrics[0][task]["n_patches"] == metrics[1][task]["n_patches"] == 3
        assert len(list((found[2] / "predictions" / task).iterdir())) == 3
        matrices = [np.load(found[world] / "confusion" / f"{task}.npy") for world in (1, 2)]
        np.testing.assert_array_equal(matrices[1].sum(axis=1), matrices[0].sum(axis=1))
        assert matrices[0].sum() == 3 * 32 * 32
        assert np.abs(matrices[1] - matrices[0]).sum() <= 0.01 * matrices[0].sum()
