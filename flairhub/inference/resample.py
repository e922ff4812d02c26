"""From the finest grid to an output grid, along one axis at a time.

Coarser: every output pixel is the area-weighted mean of the fine pixels it covers. Finer: linear interpolation
between pixel centres, the edge pixel repeated outside. The sums run tap by tap in a fixed order, so an output pixel
has the same bits however the axis is cut into blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import UsageError

MAX_DENOMINATOR = 10_000


@dataclass(frozen=True)
class Taps:
    """Which fine pixels make up a run of output pixels.

    Attributes:
        first: First fine pixel needed.
        last: One past the last fine pixel needed.
        index: (output, tap) positions relative to `first`.
        weight: (output, tap) float32, not negative; a fine pixel beyond the zone weighs 0.
    """

    first: int
    last: int
    index: NDArray[np.int64]
    weight: NDArray[np.float32]


def output_ratio(output_px_m: float | None, fine_res_m: float) -> Fraction:
    """Return how many finest pixels one output pixel spans.

    Raises:
        UsageError: Not positive, or no ratio of small whole numbers comes close enough to keep the grid.
    """
    if output_px_m is None:
        return Fraction(1)
    if not output_px_m > 0:
        raise UsageError(f"output_px_meters: got {output_px_m}, expected a positive number of metres.")
    ratio = Fraction(output_px_m / fine_res_m).limit_denominator(MAX_DENOMINATOR)
    if ratio <= 0 or abs(float(ratio) * fine_res_m / output_px_m - 1) > 1e-6:
        raise UsageError(
            f"output_px_meters: {output_px_m} m is no usable multiple of the finest pixel of {fine_res_m} m. "
            f"Use a multiple or a simple fraction of it."
        )
    return ratio


def output_length(length: int, ratio: Fraction) -> int:
    """Number of output pixels that cover `length` fine pixels; the last one may reach beyond them."""
    return -((-length * ratio.denominator) // ratio.numerator)


def fine_span(first: int, last: int, length: int, ratio: Fraction) -> tuple[int, int]:
    """Return the fine pixels that output pixels `[first, last)` are made of, of an axis of `length` fine pixels."""
    if ratio == 1:
        return first, last
    needed = taps(first, last, length, ratio)
    return needed.first, needed.last


def output_span(first: int, last: int, length: int, ratio: Fraction) -> tuple[int, int]:
    """Return the output pixels that fine pixels `[first, last)` are part of."""
    if ratio == 1:
        return first, last
    # One more on each side for what interpolation reaches.
    around = 0 if ratio >= 1 else math.ceil(1 / ratio)
    low, high = math.floor(first / ratio) - around, math.ceil(last / ratio) + around
    return max(low, 0), min(high, output_length(length, ratio))


def taps(first: int, last: int, length: int, ratio: Fraction) -> Taps:
    """Return the weights of output pixels `[first, last)`.

    Args:
        first: First output pixel.
        last: One past the last.
        length: Fine pixels of the whole axis.
        ratio: Fine pixels per output pixel.
    """
    outputs = np.arange(first, last, dtype=np.int64)
    index, weight = _area(outputs, ratio) if ratio >= 1 else _linear(outputs, ratio)
    if ratio >= 1:
        weight = np.where(index < length, weight, 0)
    index = np.clip(index, 0, length - 1)
    low, high = int(index.min()), int(index.max()) + 1
    return Taps(low, high, index - low, weight.astype(np.float32))


def _area(outputs: NDArray[np.int64], ratio: Fraction) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    # In units of 1/b of a fine pixel, output i covers [i * a, (i + 1) * a) and fine pixel j [j * b, (j + 1) * b).
    a, b = ratio.numerator, ratio.denominator
    start = outputs[:, None] * a
    n_taps = 1 if b == 1 and a == 1 else (a if b == 1 else a // b + 2)
    index = start // b + np.arange(n_taps)
    overlap = np.minimum(start + a, (index + 1) * b) - np.maximum(start, index * b)
    return index, np.maximum(overlap, 0) / a


def _linear(outputs: NDArray[np.int64], ratio: Fraction) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    a, b = ratio.numerator, ratio.denominator
    centre = (2 * outputs + 1) * a - b  # in units of 1/(2b) of a fine pixel, from the centre of fine pixel 0
    below = centre // (2 * b)
    share = (centre - below * 2 * b) / (2 * b)
    return np.stack([below, below + 1], axis=1), np.stack([1 - share, share], axis=1)


def needed_pixels(wanted: NDArray[np.bool_], rows: Taps, cols: Taps) -> NDArray[np.bool_]:
    """Return which fine pixels the wanted output pixels are made of.

    Args:
        wanted: (output y, output x).
        rows: Taps of the y axis.
        cols: Taps of the x axis.

    Returns:
        (y, x) of the fine pixels `[rows.first, rows.last)` by `[cols.first, cols.last)`.
    """
    return _needed(_needed(wanted, rows).T, cols).T


def _needed(wanted: NDArray[np.bool_], axis: Taps) -> NDArray[np.bool_]:
    """Which fine pixels along the first axis wanted output pixels are made of."""
    result = np.zeros((axis.last - axis.first, wanted.shape[1]), dtype=bool)
    for index, weight in zip(axis.index.T, axis.weight.T, strict=True):
        # Several output pixels may be made of one fine pixel.
        np.logical_or.at(result, index, wanted & (weight > 0)[:, None])
    return result


def apply_taps(values: NDArray[Any], rows: Taps, cols: Taps) -> NDArray[np.float32]:
    """Weighted sums over both axes.

    Args:
        values: (..., y, x) fine pixels `[rows.first, rows.last)` by `[cols.first, cols.last)`.
        rows: Taps of the y axis.
        cols: Taps of the x axis.

    Returns:
        (..., output y, output x) float32.
    """
    narrowed = np.zeros((*values.shape[:-1], len(cols.index)), dtype=np.float32)
    for tap in range(cols.index.shape[1]):
        narrowed += values[..., cols.index[:, tap]] * cols.weight[:, tap]
    result = np.zeros((*values.shape[:-2], len(rows.index), len(cols.index)), dtype=np.float32)
    for tap in range(rows.index.shape[1]):
        result += narrowed[..., rows.index[:, tap], :] * rows.weight[:, tap, None]
    return result


def resample(
    values: NDArray[np.float32], valid: NDArray[np.bool_], rows: Taps, cols: Taps
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Bring probabilities to the output grid.

    Args:
        values: (class, y, x) float32, probabilities of fine pixels.
        valid: (y, x), False = no data.
        rows: Taps of the y axis.
        cols: Taps of the x axis.

    Returns:
        (class, output y, output x) float32 means over the valid pixels, and their validity: an output pixel is valid
        when at least half of what it covers of the zone is.
    """
    weight = apply_taps(valid.astype(np.float32), rows, cols)
    inside = rows.weight.sum(axis=1)[:, None] * cols.weight.sum(axis=1)[None, :]
    sums = apply_taps(np.where(valid, values, np.float32(0)), rows, cols)
    enough = weight >= np.float32(0.4999) * inside
    means = sums / np.where(weight > 0, weight, np.float32(1))
    return means.astype(np.float32, copy=False), enough & (weight > 0)
