"""The eight symmetries of the square, applied to whole batches on their device."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flairhub.errors import UsageError

N_SYMMETRIES = 8
FLIP_Y, FLIP_X, TRANSPOSE = 1, 2, 4


def dihedral_codes(index: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
    """Return one of the eight symmetries for every patch.

    The choice follows from (seed, epoch, patch) alone: batch size, order, ranks and resuming do not change it.

    Args:
        index: (patch,) cube positions.
        seed: Seed of the run.
        epoch: Epoch, 0-based.

    Returns:
        (patch,) int64 on the CPU, sums of `FLIP_Y`, `FLIP_X` and `TRANSPOSE`.
    """
    return torch.from_numpy((_hashed(index, seed, epoch) >> np.uint64(61)).astype(np.int64))


def _hashed(index: NDArray[np.int64], *keys: int) -> NDArray[np.uint64]:
    """(patch,) uniform 64-bit numbers that follow from the keys and the patch alone."""
    key = np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]
    # splitmix64 (Steele, Lea & Flood 2014): a hash that is uniform in its upper bits.
    with np.errstate(over="ignore"):
        z = np.asarray(index).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return z


def apply_dihedral(values: Tensor, codes: Tensor) -> Tensor:
    """Turn and flip every patch by its code: first the flips, then the transposition.

    Args:
        values: (patch, ..., y, x). Not changed.
        codes: (patch,) int64 on the CPU.

    Returns:
        Same shape and dtype.

    Raises:
        UsageError: The patches are not square.
    """
    if values.shape[-1] != values.shape[-2]:
        raise UsageError(
            f"augmentation needs square patches, got {values.shape[-2]} x {values.shape[-1]} px. "
            "Set modalities.pre_processings.use_augmentation: false."
        )
    result = torch.empty_like(values)
    for code in codes.unique().tolist():
        chosen = torch.nonzero(codes == code).flatten().to(values.device)
        result[chosen] = _transformed(values[chosen], code)
    return result


def undo_dihedral(values: Tensor, code: int) -> Tensor:
    """Bring predictions back to the original orientation.

    Args:
        values: (..., y, x) in the orientation that `apply_dihedral` gave with `code`.
        code: The one symmetry of all patches.
    """
    if code & TRANSPOSE:
        values = values.transpose(-1, -2)
    flips = [axis for bit, axis in ((FLIP_Y, -2), (FLIP_X, -1)) if code & bit]
    return values.flip(flips) if flips else values


@dataclass(frozen=True)
class Photometric:
    """Random changes of brightness and contrast, per patch and modality.

    An image x of mean m and standard deviation s (over its bands and pixels) becomes m + (x - m) * (1 + c) + b * s.

    Attributes:
        brightness: Largest |b|.
        contrast: Largest |c|, below 1.
        seed: Of the run.
        epoch: 0-based.
    """

    brightness: float
    contrast: float
    seed: int
    epoch: int

    def apply(self, values: Tensor, name: str, index: NDArray[np.int64], valid: Tensor | None = None) -> Tensor:
        """Return the changed images.

        Args:
            values: (patch, channel, y, x) float32. Not changed.
            name: Modality, which decides the random numbers together with seed, epoch and patch.
            index: (patch,) cube positions.
            valid: (patch, y, x) bool, pixels that mean and standard deviation are of; None = all.
        """
        number = zlib.crc32(name.encode())
        draws = [_hashed(index, self.seed, self.epoch, number, turn) / 2.0**63 - 1 for turn in (0, 1)]
        shift, stretch = (torch.from_numpy(draw).to(values).view(-1, 1, 1, 1) for draw in draws)
        if valid is None:
            mean = values.mean(dim=(1, 2, 3), keepdim=True)
            deviation = values.std(dim=(1, 2, 3), correction=0, keepdim=True)
        else:
            weight, size = valid[:, None], values.shape[1] * valid.sum(dim=(1, 2)).clamp(min=1).view(-1, 1, 1, 1)
            mean = (values * weight).sum(dim=(1, 2, 3), keepdim=True) / size
            deviation = (((values - mean) * weight).square().sum(dim=(1, 2, 3), keepdim=True) / size).sqrt()
        return mean + (values - mean) * (1 + self.contrast * stretch) + self.brightness * shift * deviation


def _transformed(values: Tensor, code: int) -> Tensor:
    flips = [axis for bit, axis in ((FLIP_Y, -2), (FLIP_X, -1)) if code & bit]
    if flips:
        values = values.flip(flips)
    return values.transpose(-1, -2) if code & TRANSPOSE else values
