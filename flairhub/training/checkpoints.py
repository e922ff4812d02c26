"""Lightning checkpoints: what may be resumed, and how their weights come into a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flairhub.errors import TrainingError, WeightsError
from flairhub.models import read_pickled
from flairhub.training.module import STATE_KEY
from flairhub.training.run_folder import write_atomically

PREFIX = "model."


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, loaded without running code from it; its checksums fit.

    Raises:
        WeightsError: Missing, damaged, or not a checkpoint.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint. Correct paths.ckpt_model_path.")
    content = read_pickled(path)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise WeightsError(f"{path}: holds no state_dict; expected a checkpoint of Lightning.")
    return content


def check_resumable(path: Path, network: Mapping[str, Any], epochs: int) -> None:
    """Check that training can go on from a checkpoint.

    Args:
        path: The checkpoint.
        network: JSON of the configured network's spec.
        epochs: Configured number of epochs.

    Raises:
        WeightsError: Missing or damaged.
        TrainingError: It holds weights only, belongs to another network, or has done all epochs.
    """
    finished = len(_full_state(path, network)["history"])
    if finished >= epochs:
        raise TrainingError(
            f"{path}: has finished epoch {finished} and hyperparams.num_epochs is {epochs}: nothing "
            "is left to train. Raise num_epochs, or set tasks.train: false."
        )


def finished_state(path: Path, network: Mapping[str, Any], epochs: int, config_sha256: str) -> dict[str, Any] | None:
    """Return what the last checkpoint of a stopped run remembers when its training was over; None when it was not.

    Args:
        path: The checkpoint.
        network: JSON of the configured network's spec.
        epochs: Configured number of epochs.
        config_sha256: Of the configuration; early stopping by another one does not count.

    Raises:
        WeightsError: Missing or damaged.
        TrainingError: It holds weights only, or belongs to another network.
    """
    state = _full_state(path, network)
    stopped = state.get("stopped") and state.get("config_sha256") == config_sha256
    return state if stopped or len(state["history"]) >= epochs else None


def _full_state(path: Path, network: Mapping[str, Any]) -> dict[str, Any]:
    content = read_checkpoint(path)
    state: dict[str, Any] | None = content.get(STATE_KEY)
    if state is None or not content.get("optimizer_states"):
        raise TrainingError(
            f"{path}: holds weights but no optimizer state of flairhub, so training cannot be resumed from it. Give "
            "checkpoints/last.ckpt of a run, or set init_weights_only_from_ckpt: true to start from its weights."
        )
    if state["network"] != dict(network):
        names = sorted(set(state["network"]) | set(network))
        different = [name for name in names if state["network"].get(name) != network.get(name)]
        details = "; ".join(
            f"{name}: {state['network'].get(name)} there, {network.get(name)} here" for name in different
        )
        raise TrainingError(
            f"{path}: belongs to another network than the configured one ({details}). Resume with the configuration "
            "of that run."
        )
    return state


def load_weights(network: nn.Module, path: Path) -> None:
    """Load the network's weights from a checkpoint of this run, strictly.

    Raises:
        WeightsError: Missing, damaged, or of another network.
    """
    state = read_checkpoint(path)["state_dict"]
    weights = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise WeightsError(f"{path}: {error}") from error


def strip_optimizer(path: Path) -> None:
    """Rewrite a checkpoint with weights only."""
    content = read_checkpoint(path)
    for name in ("optimizer_states", "lr_schedulers", "loops"):
        content.pop(name, None)
    if STATE_KEY in content:
        content[STATE_KEY].pop("learning_weights", None)

    def write(partial: Path) -> None:
        # To a stream: to a path torch would write the temporary name into the file.
        with partial.open("wb") as stream:
            torch.save(content, stream)

    write_atomically(path, write)
