"""Window arithmetic along one axis: integers only, no files.

Windows lie on one grid over the whole zone, whatever is computed in one go, so the output of a pixel never depends
on blocks, batches or workers. All numbers are pixels of the finest modality unless said otherwise.

    start(i) = i * step - offset         first pixel that window i reads; always on the lattice
    core(i)  = start(i) + crop ...       the `step` pixels that window i writes; cores tile the axis without overlap

The *lattice* is the smallest number of finest pixels in which every modality has whole pixels (ratio 8 -> 8,
ratio 51.2 -> 256). A window starts on it and is a multiple of it, so that every modality reads whole pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import UsageError

CHUNK_PX = 1024
"""Longest chunk of a stored map, output pixels."""

MOST_CHUNKS = 32
"""Chunks along an axis of a block, at most: of a block of 2048 pixels none is shorter than 64."""


@dataclass(frozen=True)
class AxisWindows:
    """All windows along one axis of a zone.

    Attributes:
        length: Zone length.
        window: Window length, halo included.
        step: Length of a core and distance of windows; a multiple of the lattice.
        crop: Pixels cut off at the start of a window; at least the margin.
        offset: How far the first window starts before the zone; a multiple of the lattice.
    """

    length: int
    window: int
    step: int
    crop: int
    offset: int

    @property
    def phase(self) -> int:
        """How far the first core starts before the zone: 0 unless the margin is off the lattice."""
        return self.offset - self.crop

    @property
    def count(self) -> int:
        """Number of windows that cover the zone."""
        return -(-(self.length + self.phase) // self.step)

    def start(self, index: int) -> int:
        """First pixel that window `index` reads; may lie outside the zone."""
        return index * self.step - self.offset

    def core(self, index: int) -> tuple[int, int]:
        """Pixels that window `index` writes, `[first, last)`, inside the zone."""
        first = index * self.step - self.phase
        return max(first, 0), min(first + self.step, self.length)

    def covering(self, first: int, last: int) -> range:
        """Indices of the windows whose cores hold the pixels `[first, last)`."""
        return range((first + self.phase) // self.step, -(-(last + self.phase) // self.step))


def plan_axis(length: int, window: int, margin: int, lattice: int) -> AxisWindows:
    """Lay windows over an axis.

    The step is `window - 2 * margin` rounded down to the lattice; what the rounding leaves over widens both margins.

    Args:
        length: Zone length, a multiple of the lattice.
        window: Window length, a multiple of the lattice.
        margin: Pixels to cut off on each side, at least.
        lattice: See the module.

    Raises:
        UsageError: The window is off the lattice or the margin leaves nothing of it.
    """
    if window < 1 or margin < 0:
        raise UsageError(f"img_pixels_detection: {window}, margin: {margin}. Expected at least 1 px and 0 px.")
    if window % lattice:
        below, above = window // lattice * lattice, -(-window // lattice) * lattice
        fitting = f"{above}" if not below else f"{below} or {above}"
        raise UsageError(
            f"img_pixels_detection: {window} px hold no whole number of pixels of every modality, which takes "
            f"multiples of {lattice} px. Use {fitting}."
        )
    step = (window - 2 * margin) // lattice * lattice
    if step < 1:
        raise UsageError(
            f"margin: {margin} px on each side leave {max(window - 2 * margin, 0)} of the {window} px of "
            f"img_pixels_detection, expected at least {lattice}. Use a margin of at most {(window - lattice) // 2} px."
        )
    crop = (window - step) // 2
    return AxisWindows(length, window, step, crop, -(-crop // lattice) * lattice)


def map_span(first: int, last: int, ratio: Fraction, axis: AxisWindows, n_out: int) -> tuple[int, int]:
    """Widen a range of output pixels to the nearest that begin with cores, so that blocks can begin there, too.

    Where no output pixel begins with a core the range stays as it is.
    """
    border, spacing = core_borders(ratio, axis)
    if not spacing:
        return first, last
    low = 0 if first < border else border + (first - border) // spacing * spacing
    return low, min(border + max(0, -((border - last) // spacing)) * spacing, n_out)


def block_edges(n_out: int, block: int, ratio: Fraction, axis: AxisWindows, start: int = 0) -> tuple[int, ...]:
    """Cut an output axis into blocks of at most `block` pixels, at the borders of cores where possible.

    All blocks have one length, but for a shorter last one and, where cores start before the zone, a shorter first one.
    The edges inside are multiples of a chunk length that a map can be stored with (`chunk_length`).

    A cut elsewhere than at the border of a core changes nothing but the time taken: the windows at the cut are computed
    for both blocks. That happens where blocks are shorter than cores, where no output pixel starts with a core, and
    where cores start before the zone by so little that only tiny chunks would divide all edges.

    Args:
        n_out: Output pixels along the axis, counted from `start`.
        block: Largest block, output pixels.
        ratio: Finest pixels per output pixel.
        axis: The windows.
        start: Output pixels of the zone that come before, as `map_span` gives it.

    Returns:
        Edges in output pixels, from 0 to `n_out`.
    """
    if block < 1:
        raise UsageError(f"block_px: got {block}, expected at least 1.")
    if n_out <= block:
        return 0, n_out
    border, spacing = core_borders(ratio, axis)
    border = (border - start - 1) % spacing + 1 if spacing else 0
    first, length = _first_and_regular(block, border, spacing)
    return (0, *range(first, n_out, length), n_out)


def core_borders(ratio: Fraction, axis: AxisWindows) -> tuple[int, int]:
    """The first output pixel above 0 that starts with a core, and how far apart such pixels are; (0, 0) = none."""
    # Pixel e starts at fine pixel e * a / b, cores start at i * step - phase: e * a = -phase * b modulo step * b.
    a, modulus = ratio.numerator, axis.step * ratio.denominator
    common = gcd(a, modulus)
    distance, rest = divmod(-axis.phase * ratio.denominator, common)
    if rest:
        return 0, 0
    spacing = modulus // common
    return (distance * pow(a // common, -1, spacing) - 1) % spacing + 1, spacing


def _first_and_regular(block: int, border: int, spacing: int) -> tuple[int, int]:
    """Length of the first block and of the others: those between half the largest and the largest that share the
    longest chunk."""
    if not 0 < spacing <= block:
        return block, block
    longest = block // spacing * spacing
    if border == spacing:
        return longest, longest
    choices = [
        (gcd(first, length), length, first)
        for length in range(longest, longest // 2, -spacing)
        for first in range(border, length, spacing)
    ]
    chunk, length, first = max(choices)
    return (first, length) if chunk * MOST_CHUNKS >= length else (block, block)


def chunk_length(edges: Sequence[int]) -> int:
    """Return the length of the chunks of a map whose blocks have these edges: it divides every edge but the last.

    Where a divisor allows it chunks are shorter than blocks, so that reading a part of a map costs little.
    """
    inner = gcd(*edges[:-1])
    if not inner:
        return min(edges[-1], CHUNK_PX)
    divisors = (inner // pieces for pieces in range(1, 4 * inner // CHUNK_PX + 1) if inner % pieces == 0)
    return next((length for length in divisors if length <= CHUNK_PX), inner)


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
    weights = taper(axis)
    total = np.zeros(last - first)
    for other in touching(axis, first, last):
        start = axis.start(other)
        low, high = max(first, start), min(last, start + axis.window)
        total[low - first : high - first] += weights[low - start : high - start]
    start = axis.start(index)
    return (weights[first - start : last - start] / total).astype(np.float32)
