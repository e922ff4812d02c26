"""Blending overlapping windows: smooth weights that sum to one, the same however the zone is cut into blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flairhub.inference.windows import AxisWindows


def taper(axis: AxisWindows) -> NDArray[np.float64]:
    """Return the (window,) weight of every pixel of a window: 1 inside, a squared sine over the overlap."""
    overlap = axis.window - axis.step
    if not overlap:
        return np.ones(axis.window)
    position = np.arange(axis.window) + 0.5
    ramp = np.minimum(np.minimum(position, axis.window - position) / overlap, 1.0)
    return np.asarray(np.sin(np.pi / 2 * ramp) ** 2)


def touching(axis: AxisWindows, first: int, last: int) -> range:
    """Indices of the windows that reach into the pixels `[first, last)`."""
    low = (first + axis.offset - axis.window) // axis.step + 1
    high = -(-(last + axis.offset) // axis.step)
    return range(max(low, 0), min(high, axis.count))


def weights_of(axis: AxisWindows, index: int, first: int, last: int) -> NDArray[np.float32]:
    """Return the (pixel,) weights of a window for `[first, last)`, a range inside the window and the zone.

    Over all windows of the axis the weights of a pixel sum to one.
    """
    own = taper(axis)
    total = np.zeros(last - first)
    for other in touching(axis, first, last):
        start = axis.start(other)
        low, high = max(first, start), min(last, start + axis.window)
        total[low - first : high - first] += own[low - start : high - start]
    start = axis.start(index)
    return (own[first - start : last - start] / total).astype(np.float32)
