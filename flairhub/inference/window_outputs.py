"""From the inputs of windows to what is read out of the network's logits: classes, confidence, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flairhub.data import FLIP_X, FLIP_Y, PreparedBatch, undo_dihedral
from flairhub.errors import ZoneError
from flairhub.inference.map_plan import Output, Style
from flairhub.inference.model_ref import LoadedNetwork
from flairhub.not_finite import finite_pixels
from flairhub.tasks import IGNORE_INDEX

OUTPUTS: tuple[Output, ...] = ("class", "confidence", "probabilities", "scaled")
"""`class` uint8; `confidence` = highest probability and `probabilities` float32; `scaled` = uint8
round(255 x probability)."""

NODATA: dict[Output, Any] = {"class": IGNORE_INDEX, "confidence": np.nan, "probabilities": np.nan, "scaled": 0}
DTYPES: dict[Output, str] = {"class": "uint8", "confidence": "float32", "probabilities": "float32", "scaled": "uint8"}

_FLIPS = (0, FLIP_Y, FLIP_X, FLIP_Y | FLIP_X)


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
        By task and output: (window, y, x) or (window, class, y, x); where a logit is not finite class is 255,
        confidence and probabilities are NaN, scaled is 0 for all classes.

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
                part = _probabilities(values)
                sums[task] = sums[task] + part if task in sums else part
        return {
            (task, output): from_probabilities(values / len(_FLIPS), output, dim=1).cpu().numpy()
            for task, values in sums.items()
            for output in outputs
        }


def from_probabilities(probabilities: torch.Tensor, output: Output, dim: int) -> torch.Tensor:
    """Read class, confidence or scaled values from probabilities, NaN where there are none; `dim` holds the classes."""
    if output == "class":
        return _classes(probabilities, dim)
    if output == "confidence":
        return probabilities.amax(dim=dim)
    if output == "probabilities":
        return torch.where(finite_pixels(probabilities, dim).unsqueeze(dim), probabilities, torch.nan)
    return (probabilities.nan_to_num(0.0) * 255).round().to(torch.uint8)


def _classes(scores: torch.Tensor, dim: int) -> torch.Tensor:
    """The class of the largest score, 255 where a score is not finite."""
    return torch.where(finite_pixels(scores, dim), scores.argmax(dim=dim).to(torch.uint8), IGNORE_INDEX)


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
        logits = network.network(batch.inputs, dates, masks, size=size, present=present).logits
    for task, expected in tasks:
        if task not in logits or logits[task].shape[1] != expected:
            given = "none" if task not in logits else f"{logits[task].shape[1]} classes"
            raise ZoneError(f"the network gives {given} for task {task}, expected {expected} classes.")
    return {task: logits[task] for task, _ in tasks}


def _cropped(logits: dict[str, torch.Tensor], crop: tuple[slice, slice]) -> dict[str, torch.Tensor]:
    # Before anything is computed from them: most of a window with a wide margin is thrown away.
    return {task: values[..., crop[0], crop[1]].float() for task, values in logits.items()}


def _read_out(logits: torch.Tensor, output: Output) -> torch.Tensor:
    return _classes(logits, 1) if output == "class" else from_probabilities(_probabilities(logits), output, dim=1)


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the classes; NaN for all of them where a logit is not finite."""
    # The sum of minus infinity and numbers has a softmax, but no meaning.
    return torch.where(finite_pixels(logits, 1).unsqueeze(1), logits, torch.nan).softmax(dim=1)


def _flipped(batch: PreparedBatch, code: int) -> PreparedBatch:
    # A flip undoes itself.
    return replace(batch, inputs={name: undo_dihedral(values, code) for name, values in batch.inputs.items()})


def read_probabilities(probabilities: NDArray[np.float32], output: Output) -> NDArray[Any]:
    """The same for numpy, classes first: (class, y, x)."""
    return from_probabilities(torch.from_numpy(probabilities), output, dim=0).numpy()


def without_numbers(values: NDArray[Any], output: Output) -> NDArray[np.bool_]:
    """Return (y, x) where what was read out says that the logits are not finite."""
    if output == "class":
        return np.asarray(values == IGNORE_INDEX)
    if output == "confidence":
        return np.isnan(values)
    # A pixel with probabilities has one that is not 0 on the scale to 255.
    return np.asarray(np.isnan(values[0]) if output == "probabilities" else ~values.any(axis=0))
