"""Random fields over an area: smooth noise and irregular cells.

Everything is elementwise numpy on a regular pixel grid, so that equal seeds give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell_px: float, octaves: int = 2) -> Float:
    """Value noise: random lattice values, interpolated smoothly.

    Args:
        rng: Source of the lattice values.
        shape: (y, x) of the field.
        cell_px: Lattice spacing of the coarsest octave in pixels; each octave halves it and its amplitude.
        octaves: Number of octaves.

    Returns:
        (y, x) float32, mean about 0, range about -1 to 1.
    """
    total = np.zeros(shape, np.float32)
    amplitude, norm = 1.0, 0.0
    for _ in range(octaves):
        total += np.float32(amplitude) * _lattice_noise(rng, shape, cell_px)
        norm += amplitude
        amplitude, cell_px = amplitude / 2, cell_px / 2
    return total / np.float32(norm)


def _lattice_noise(rng: np.random.Generator, shape: tuple[int, int], cell_px: float) -> Float:
    counts = [int(size / cell_px) + 2 for size in shape]
    lattice = rng.uniform(-1, 1, counts).astype(np.float32)
    y, fy = _lattice_position(shape[0], cell_px)
    x, fx = _lattice_position(shape[1], cell_px)
    rows = lattice[y] * (1 - fy)[:, None] + lattice[y + 1] * fy[:, None]
    return np.asarray(rows[:, x] * (1 - fx) + rows[:, x + 1] * fx, np.float32)


def _lattice_position(size: int, cell_px: float) -> tuple[NDArray[np.intp], Float]:
    position = np.arange(size, dtype=np.float32) / np.float32(cell_px)
    index = position.astype(np.intp)
    fraction = position - index.astype(np.float32)
    return index, (fraction * fraction * (3 - 2 * fraction)).astype(np.float32)


@dataclass(frozen=True)
class Cells:
    """A division of an area into irregular polygons (Voronoi cells of jittered sites).

    Attributes:
        index: (y, x) int32, cell of each pixel.
        count: Number of cell indices (some may lie outside the area).
        edge: (y, x) float32, distance to the nearest cell border in metres.
        neighbour: (y, x) int32, cell on the other side of that border.
        along, across: (y, x) float32, offset from the cell's site in metres, in the rotated axes.
    """

    index: NDArray[np.int32]
    count: int
    edge: Float
    neighbour: NDArray[np.int32]
    along: Float
    across: Float

    def border_hash(self) -> NDArray[np.int32]:
        """(y, x) int32 in 0..99: a number of the nearest border, equal on its two sides."""
        low = np.minimum(self.index, self.neighbour)
        high = np.maximum(self.index, self.neighbour)
        return (low * 7919 + high * 104729) % 100


def irregular_cells(
    rng: np.random.Generator,
    shape: tuple[int, int],
    gsd_m: float,
    cell_m: tuple[float, float],
    *,
    jitter: float = 0.35,
    warp_m: float = 0.0,
    angle: float | None = None,
) -> Cells:
    """Divide an area into irregular cells.

    Args:
        rng: Source of the sites, the orientation and the warp.
        shape: (y, x) of the area in pixels.
        gsd_m: Pixel size in metres.
        cell_m: Mean cell length along and across the (random) orientation, in metres.
        jitter: Displacement of the sites as a fraction of the cell, below 0.5.
        warp_m: Amplitude by which borders meander, in metres.
        angle: Orientation in radians; drawn when None.
    """
    angle = rng.uniform(0, np.pi) if angle is None else angle
    along, across = _rotated_axes(shape, gsd_m, angle)
    if warp_m:
        along = along + np.float32(warp_m) * smooth_noise(rng, shape, 30 / gsd_m)
        across = across + np.float32(warp_m) * smooth_noise(rng, shape, 30 / gsd_m)
    size = np.array(cell_m, np.float32)
    u, v = along / size[0], across / size[1]
    u, v = u - u.min() + 1, v - v.min() + 1
    columns = int(u.max()) + 3
    count = columns * (int(v.max()) + 3)
    sites = rng.uniform(0.5 - jitter, 0.5 + jitter, (count, 2)).astype(np.float32)
    sites[:, 0] += np.arange(count) % columns
    sites[:, 1] += np.arange(count) // columns
    index, neighbour, offset, edge = _nearest_sites(u, v, sites, columns, size)
    return Cells(index, count, edge, neighbour, offset[0], offset[1])


def _rotated_axes(shape: tuple[int, int], gsd_m: float, angle: float) -> tuple[Float, Float]:
    y = (np.arange(shape[0], dtype=np.float32) * np.float32(gsd_m))[:, None]
    x = (np.arange(shape[1], dtype=np.float32) * np.float32(gsd_m))[None, :]
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cosine + y * sine, y * cosine - x * sine


def _nearest_sites(
    u: Float, v: Float, sites: Float, columns: int, size: Float
) -> tuple[NDArray[np.int32], NDArray[np.int32], tuple[Float, Float], Float]:
    """Nearest and second nearest site of every pixel, among the 3 x 3 lattice cells around it."""
    base = v.astype(np.int32) * columns + u.astype(np.int32)
    best = np.full(u.shape, np.inf, np.float32)
    second = best.copy()
    index, neighbour = base.copy(), base.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            candidate = base + (dy * columns + dx)
            site = sites[candidate]
            distance = ((u - site[..., 0]) * size[0]) ** 2 + ((v - site[..., 1]) * size[1]) ** 2
            closer, runner_up = distance < best, distance < second
            second = np.where(closer, best, np.where(runner_up, distance, second))
            neighbour = np.where(closer, index, np.where(runner_up, candidate, neighbour))
            best = np.where(closer, distance, best)
            index = np.where(closer, candidate, index)
    nearest, second_nearest = sites[index], sites[neighbour]
    gap = np.hypot(*((nearest - second_nearest) * size).transpose(2, 0, 1))
    edge = (second - best) / np.maximum(2 * gap, np.float32(1e-3))
    offset = ((u - nearest[..., 0]) * size[0], (v - nearest[..., 1]) * size[1])
    return index, neighbour, offset, edge.astype(np.float32)


def deal(rng: np.random.Generator, count: int, shares: Mapping[int, float], deck_size: int = 20) -> NDArray[np.int32]:
    """Deal `count` cells among kinds so that every stretch of cells holds each kind at its share.

    Args:
        rng: Source of the order.
        count: Number of cells.
        shares: Share of each kind; they are normalised.
        deck_size: Length of the stretches; shares are rounded to its parts, each kind at least once.

    Returns:
        (count,) int32, kind of each cell.
    """
    kinds, weights = np.array(list(shares)), np.array(list(shares.values()))
    deck = np.repeat(kinds, np.maximum(1, np.round(deck_size * weights / weights.sum()).astype(int)))
    decks = [rng.permutation(deck) for _ in range(count // len(deck) + 1)]
    return np.concatenate(decks)[:count].astype(np.int32)
