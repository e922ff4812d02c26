"""Calling the network on a batch of windows and reading its logits out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from flairhub.data.augment import FLIP_X, FLIP_Y, undo_dihedral
from flairhub.data.batch import PreparedBatch
from flairhub.errors import ZoneError
from flairhub.inference.network import LoadedNetwork

Output = Literal["class", "confidence", "probabilities", "scaled"]

_FLIPS = (0, FLIP_Y, FLIP_X, FLIP_Y | FLIP_X)


@dataclass(frozen=True)
class Style:
    """How windows become a map.

    Attributes:
        blend: Overlapping windows are averaged with smooth weights; otherwise their margins are cropped.
        bf16: The network computes in bfloat16 where torch's autocast finds that safe.
        flips: Probabilities are the mean over the window and its three mirror images: four passes.
        drop_missing: An input without data is dropped as in training, and a pixel has no data only where every input
            lacks it; otherwise where any does.
    """

    blend: bool = False
    bf16: bool = False
    flips: bool = False
    drop_missing: bool = False


PLAIN = Style()


def window_outputs(
    network: LoadedNetwork,
    batch: PreparedBatch,
    size: tuple[int, int],
    tasks: Sequence[tuple[str, int]],
    outputs: Sequence[Output],
    style: Style,
    crop: tuple[slice, slice] = (slice(None), slice(None)),
) -> dict[tuple[str, Output], NDArray[Any]]:
    """Predict windows.

    Args:
        network: The network; this function takes its lock.
        batch: The windows.
        size: Window height and width in finest pixels.
        tasks: (name, number of classes).
        outputs: What to read out.
        style: Precision and flips.
        crop: Rows and columns of a window to read out.

    Returns:
        By task and output: (window, y, x) or (window, class, y, x).

    Raises:
        ZoneError: The network does not give a task or its number of classes.
    """
    with network.lock, torch.inference_mode():
        if not style.flips:
            logits = _cropped(_logits(network, batch, size, tasks, style), crop)
            return {
                (task, output): _read_out(values, output).cpu().numpy()
                for task, values in logits.items()
                for output in outputs
            }
        sums: dict[str, torch.Tensor] = {}
        for code in _FLIPS:
            logits = _logits(network, _flipped(batch, code), size, tasks, style)
            turned = _cropped({task: undo_dihedral(values, code) for task, values in logits.items()}, crop)
            for task, values in turned.items():
                part = values.softmax(dim=1)
                sums[task] = sums[task] + part if task in sums else part
        return {
            (task, output): from_probabilities(values / len(_FLIPS), output, dim=1).cpu().numpy()
            for task, values in sums.items()
            for output in outputs
        }


def from_probabilities(probabilities: torch.Tensor, output: Output, dim: int) -> torch.Tensor:
    """Read class, confidence or scaled values from probabilities; `dim` holds the classes."""
    if output == "class":
        return probabilities.argmax(dim=dim).to(torch.uint8)
    if output == "confidence":
        return probabilities.amax(dim=dim)
    return probabilities if output == "probabilities" else (probabilities * 255).round().to(torch.uint8)


def _logits(
    network: LoadedNetwork,
    batch: PreparedBatch,
    size: tuple[int, int],
    tasks: Sequence[tuple[str, int]],
    style: Style,
) -> dict[str, torch.Tensor]:
    kind = network.device.split(":")[0]
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=style.bf16):
        dates, masks, present = batch.dates or None, batch.masks or None, batch.present or None
        found = network.network(batch.inputs, dates, masks, size=size, present=present).logits
    for task, expected in tasks:
        if task not in found or found[task].shape[1] != expected:
            given = "none" if task not in found else f"{found[task].shape[1]} classes"
            raise ZoneError(f"the network gives {given} for task {task}, expected {expected} classes.")
    return {task: found[task] for task, _ in tasks}


def _cropped(logits: dict[str, torch.Tensor], crop: tuple[slice, slice]) -> dict[str, torch.Tensor]:
    # Before anything is computed from them: most of a window with a wide margin is thrown away.
    return {task: values[..., crop[0], crop[1]].float() for task, values in logits.items()}


def _read_out(logits: torch.Tensor, output: Output) -> torch.Tensor:
    if output == "class":
        return logits.argmax(dim=1).to(torch.uint8)
    return from_probabilities(logits.softmax(dim=1), output, dim=1)


def _flipped(batch: PreparedBatch, code: int) -> PreparedBatch:
    # A flip undoes itself.
    return replace(batch, inputs={name: undo_dihedral(values, code) for name, values in batch.inputs.items()})


def read_probabilities(probabilities: NDArray[np.float32], output: Output) -> NDArray[Any]:
    """The same for numpy, classes first: (class, y, x)."""
    return from_probabilities(torch.from_numpy(probabilities), output, dim=0).numpy()
