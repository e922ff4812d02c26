"""Transforms for other processes, which import them by name."""

import os
from dataclasses import replace

import numpy as np
import torch

from flairhub.data import Batch


def noisy(batch: Batch, rng: np.random.Generator) -> Batch:
    """Add noise to the image."""
    image = batch.inputs["AERIAL_RGBI"]
    noise = torch.from_numpy(rng.integers(0, 50, image.shape, dtype=np.uint8))
    return replace(batch, inputs={**batch.inputs, "AERIAL_RGBI": image + noise})


def shuffled(batch: Batch, rng: np.random.Generator) -> Batch:
    """Return other patches than asked for."""
    return replace(batch, index=batch.index.flip(0))


def deadly(batch: Batch, rng: np.random.Generator) -> Batch:
    """Take the process down."""
    os._exit(3)
