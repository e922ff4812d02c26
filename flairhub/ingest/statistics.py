"""Per-band statistics as sums: pieces add up, the division comes last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2**16
"""Values that are widened at a time."""

_ROW = 256
"""Bytes whose squares are summed at a time."""


@dataclass(frozen=True)
class BandTally:
    """Sums over the valid pixels of one band.

    Attributes:
        count: Valid pixels.
        invalid: NaN, infinite or declared nodata pixels.
        low: Minimum; None when nothing is valid.
        high: Maximum.
        total: Sum.
        squares: Sum of squares.
    """

    count: int = 0
    invalid: int = 0
    low: float | None = None
    high: float | None = None
    total: float = 0
    squares: float = 0

    def __add__(self, other: BandTally) -> BandTally:
        lows = [low for low in (self.low, other.low) if low is not None]
        highs = [high for high in (self.high, other.high) if high is not None]
        return BandTally(
            self.count + other.count,
            self.invalid + other.invalid,
            min(lows, default=None),
            max(highs, default=None),
            self.total + other.total,
            self.squares + other.squares,
        )

    def summary(self) -> dict[str, Any]:
        """Return min, max, mean, std, count, invalid; None where nothing is valid."""
        mean = std = None
        if self.count:
            mean = self.total / self.count
            std = math.sqrt(max(0.0, self.squares / self.count - mean * mean))
        return {
            "min": self.low,
            "max": self.high,
            "mean": mean,
            "std": std,
            "count": self.count,
            "invalid": self.invalid,
        }


def tally_bands(values: NDArray[Any], nodata: float | None) -> list[BandTally]:
    """Tally an image or series.

    Args:
        values: (band, y, x) or (time, band, y, x).
        nodata: Declared value without meaning, or None.
    """
    return [_tally(values[..., band, :, :], nodata) for band in range(values.shape[-3])]


def _tally(values: NDArray[Any], nodata: float | None) -> BandTally:
    flat = values.reshape(-1)
    size = flat.size
    if values.dtype.kind == "f":
        low, high = (flat.min(), flat.max()) if size else (np.nan, np.nan)
        if nodata is not None or not (np.isfinite(low) and np.isfinite(high)):
            valid = np.isfinite(flat)
            if nodata is not None:
                valid &= flat != np.asarray(nodata, dtype=values.dtype)
            flat = flat[valid]
    elif nodata is not None:
        flat = flat[flat != nodata]
    if not flat.size:
        return BandTally(invalid=size)
    total, squares = _sums(flat)
    return BandTally(flat.size, size - flat.size, flat.min().item(), flat.max().item(), total, squares)


def _sums(flat: NDArray[Any]) -> tuple[float, float]:
    """Return the sum and the sum of squares: exact for integers of up to 16 bits, in a fixed order for floats.

    One pass over blocks that stay in the processor's cache. No BLAS on long vectors: it would start threads, and add in
    an order that depends on the processor.
    """
    if flat.dtype == np.uint8:
        return _sums_of_bytes(flat)
    exact = int if flat.dtype.kind in "ui" else float
    total, squares = exact(0), exact(0)
    buffer = np.empty(min(_BLOCK, flat.size), dtype=np.float64)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        wide = buffer[: block.size]
        np.copyto(wide, block)
        total += exact(wide.sum())
        np.multiply(wide, wide, out=wide)
        squares += exact(wide.sum())
    return total, squares


def _sums_of_bytes(flat: NDArray[np.uint8]) -> tuple[int, int]:
    """Like `_sums`, in float32: 256 squares of bytes add up to less than 2**24, so every step is exact."""
    whole = flat.size - flat.size % _ROW
    rest = flat[whole:].astype(np.int64)
    total, squares = int(rest.sum()), int((rest * rest).sum())
    buffer = np.empty((min(_BLOCK, whole) // _ROW, _ROW), dtype=np.float32)
    ones = np.ones(_ROW, dtype=np.float32)
    for start in range(0, whole, _BLOCK):
        block = flat[start : min(start + _BLOCK, whole)].reshape(-1, _ROW)
        rows = buffer[: len(block)]
        np.copyto(rows, block)
        total += int(np.vecdot(rows, ones).sum(dtype=np.float64))
        squares += int(np.vecdot(rows, rows).sum(dtype=np.float64))
    return total, squares


def histogram(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each of the 256 values occurs: (256,) int64.

    Two bytes are counted at a time, which halves the work of `numpy.bincount`.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    even = flat.size - flat.size % 2
    pairs = np.bincount(flat[:even].view(np.uint16), minlength=2**16).reshape(256, 256)
    counts = pairs.sum(axis=0) + pairs.sum(axis=1)
    counts[flat[even:]] += 1
    return counts


@dataclass(frozen=True)
class Tally:
    """What reading some patches of a modality told.

    Attributes:
        bands: One tally per band, for images and series; empty before the first patch and for labels.
        classes: Pixels per stored value, 256 per level, for labels; likewise.
    """

    bands: tuple[BandTally, ...] = ()
    classes: tuple[tuple[int, ...], ...] = ()

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            add_bands(self.bands, other.bands),
            tuple(
                tuple(a + b for a, b in zip(one, two, strict=True))
                for one, two in zip(self.classes, other.classes, strict=True)
            )
            if self.classes and other.classes
            else self.classes or other.classes,
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, the inverse of `from_json`; trailing zero counts are left out."""
        return {
            "bands": [list(asdict(band).values()) for band in self.bands],
            "classes": [{str(i): n for i, n in enumerate(level) if n} for level in self.classes],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Tally:
        """Build from the dictionary of `to_json`."""
        return cls(
            tuple(BandTally(*values) for values in fields["bands"]),
            tuple(tuple(int(level.get(str(i), 0)) for i in range(256)) for level in fields["classes"]),
        )


def add_bands(one: Sequence[BandTally], two: Sequence[BandTally]) -> tuple[BandTally, ...]:
    """Add tallies band by band; an empty one is nothing."""
    if not one or not two:
        return tuple(one or two)
    return tuple(a + b for a, b in zip(one, two, strict=True))


def summarise(tallies: Iterable[Tally], bands: Sequence[str], n_classes: Sequence[int]) -> dict[str, Any]:
    """Return the attributes of a group.

    Args:
        tallies: In job order, so that sums of floats are the same however jobs ran.
        bands: Band or level names.
        n_classes: Classes per level, for labels.
    """
    whole = Tally()
    for tally in tallies:
        whole = whole + tally
    if n_classes:
        levels = whole.classes or tuple((0,) * 256 for _ in n_classes)
        return {
            "class_counts": [list(level[:count]) for level, count in zip(levels, n_classes, strict=True)],
            "ignored": [level[255] for level in levels],
        }
    tallied = whole.bands or tuple(BandTally() for _ in bands)
    return {"statistics": [{"band": name, **band.summary()} for name, band in zip(bands, tallied, strict=True)]}
