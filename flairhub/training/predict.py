"""From a trained network to classes, patch by patch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flairhub.data import BatchLoader, Preparation, prepare_batch
from flairhub.progress import Progress, silent
from flairhub.training.forward import mean_probabilities, network_output


@dataclass(frozen=True)
class Prediction:
    """Classes of one patch.

    Attributes:
        index: Position in the cube.
        classes: By task, (y, x) uint8, the most probable class.
        truth: By task, (y, x) uint8, 255 = ignore.
    """

    index: int
    classes: Mapping[str, NDArray[np.uint8]]
    truth: Mapping[str, NDArray[np.uint8]]


def predict_patches(
    network: nn.Module,
    loader: BatchLoader,
    preparations: Mapping[str, Preparation],
    *,
    device: torch.device | str = "cpu",
    precision: str = "32-true",
    augment: bool = False,
    progress: Progress = silent,
) -> Iterator[Prediction]:
    """Yield the prediction of every patch of the loader, in its order.

    Args:
        network: Put into evaluation mode and moved to the device.
        loader: In storage order, nothing dropped.
        preparations: By modality, the ones the loader was made with.
        device: Where to compute.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        augment: Average the probabilities over the eight symmetries of the square.
        progress: Told about finished patches.
    """
    network = network.to(device).eval()
    done = 0
    progress("predict", 0, loader.n_samples)
    for batch in loader:
        # Entered per batch: a generator must not leave its caller in inference mode.
        with torch.inference_mode(), _autocast(device, precision):
            prepared = prepare_batch(batch, preparations, device)
            scores = mean_probabilities(network, prepared) if augment else network_output(network, prepared)[0]
            classes = {task: values.argmax(dim=1).to(torch.uint8).cpu().numpy() for task, values in scores.items()}
        truth = {task: values.numpy() for task, values in batch.targets.items()}
        for i, index in enumerate(batch.index.tolist()):
            yield Prediction(
                index,
                {task: values[i] for task, values in classes.items()},
                {task: values[i] for task, values in truth.items()},
            )
        done += len(batch)
        progress("predict", done, loader.n_samples)


def _autocast(device: torch.device | str, precision: str) -> Any:
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    if precision not in kinds:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=kinds[precision])
