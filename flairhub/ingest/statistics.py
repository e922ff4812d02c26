"""Per-band statistics as sums: pieces add up, the division comes last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
    if values.dtype == np.uint8:
        return _tally_histogram(np.bincount(values.reshape(-1), minlength=256), nodata)
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
    exact = flat.astype(np.float64 if values.dtype.kind == "f" else np.int64)
    low, high, total, squares = flat.min().item(), flat.max().item(), exact.sum().item(), exact.dot(exact).item()
    return BandTally(flat.size, size - flat.size, low, high, total, squares)


def _tally_histogram(histogram: NDArray[np.int64], nodata: float | None) -> BandTally:
    invalid = 0
    if nodata is not None and nodata in range(256):
        invalid, histogram = int(histogram[int(nodata)]), histogram.copy()
        histogram[int(nodata)] = 0
    found = np.flatnonzero(histogram)
    if not len(found):
        return BandTally(invalid=invalid)
    count = histogram[found]
    return BandTally(
        int(count.sum()),
        invalid,
        int(found[0]),
        int(found[-1]),
        int((count * found).sum()),
        int((count * found * found).sum()),
    )


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
            _added(self.bands, other.bands),
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


def _added(one: Sequence[BandTally], two: Sequence[BandTally]) -> tuple[BandTally, ...]:
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
