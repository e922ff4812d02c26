"""Small pictures of single patches for the training log."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flairhub.class_raster import paint
from flairhub.data import PreparedBatch
from flairhub.tasks import Task

_GAP_PX = 4


def triptych(batch: PreparedBatch, position: int, classes: Tensor, task: Task) -> NDArray[np.uint8]:
    """Return input, truth and prediction of one patch side by side.

    The input is the finest image, or the mean of a series over its dates; its first three channels (or its first one)
    between their 1st and 99th percentiles.

    Args:
        batch: As the network takes it.
        position: Of the patch in the batch.
        classes: (y, x) predicted classes on the grid of the task's label.
        task: Colours.

    Returns:
        (y, x, 3) uint8.
    """
    truth = batch.targets[task.label][position].cpu().numpy()
    panels = [_view(batch, position, truth.shape), paint(truth, task), paint(classes.cpu().numpy(), task)]
    gap = np.full((truth.shape[0], _GAP_PX, 3), 255, np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)


def _view(batch: PreparedBatch, position: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    name = max(batch.inputs, key=lambda name: batch.inputs[name].shape[-1])
    values = batch.inputs[name][position].float().cpu().numpy()
    if values.ndim == 4:
        values = values[batch.masks[name][position].cpu().numpy()] if name in batch.masks else values
        values = values.mean(axis=0) if len(values) else np.zeros(values.shape[1:], np.float32)
    image = values[:3] if len(values) >= 3 else np.repeat(values[:1], 3, axis=0)
    low, high = np.percentile(image, (1, 99))
    image = (np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    rows, columns = (np.arange(size) * old // size for size, old in zip(shape, image.shape, strict=False))
    return image[rows][:, columns]
