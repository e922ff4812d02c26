"""Per-band statistics as sums: pieces add up, the division comes last."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BandTally:
    """Sums over the valid pixels of one band.

    Attributes:
        count: Valid pixels.
        invalid: Pixels without data.
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


def tally_bands(values: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> list[BandTally]:
    """Tally an image or series.

    Args:
        values: (band, y, x) or (time, band, y, x).
        valid: (y, x) or (time, y, x) bool, where they hold data; None = everywhere.
    """
    return [_tally(values[..., band, :, :], valid) for band in range(values.shape[-3])]


def _tally(values: NDArray[Any], valid: NDArray[np.bool_] | None) -> BandTally:
    """Tally one band: exactly for integers of up to 16 bits, in an order that the shape decides for floats."""
    flat = values.reshape(-1) if valid is None else values[valid]
    if not flat.size:
        return BandTally(invalid=values.size)
    wide = flat.astype(np.float64)
    # Not a dot product: BLAS would start threads, and add in an order that depends on the processor.
    total, squares = wide.sum().item(), np.square(wide, out=wide).sum().item()
    if values.dtype.kind in "ui":
        total, squares = int(total), int(squares)
    return BandTally(flat.size, values.size - flat.size, flat.min().item(), flat.max().item(), total, squares)


@dataclass(frozen=True)
class Tally:
    """What reading some patches of a modality told.

    Attributes:
        bands: One tally per band, for images and series; empty before the first patch and for labels.
        classes: Pixels per stored value, 256 per level, for labels; likewise.
        nodata: (place in the cube, declared nodata) of the patches that have one that their pixels can hold.
        masked: Places of the patches with a stored mask.
    """

    bands: tuple[BandTally, ...] = ()
    classes: tuple[tuple[int, ...], ...] = ()
    nodata: tuple[tuple[int, float], ...] = ()
    masked: tuple[int, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            add_bands(self.bands, other.bands),
            tuple(
                tuple(a + b for a, b in zip(one, two, strict=True))
                for one, two in zip(self.classes, other.classes, strict=True)
            )
            if self.classes and other.classes
            else self.classes or other.classes,
            self.nodata + other.nodata,
            self.masked + other.masked,
        )

    def tables(self, n_patches: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return (patch,) declared nodata of a whole cube, NaN = none, and (patch,) which patches have a mask."""
        nodata, has_mask = np.full(n_patches, np.nan), np.zeros(n_patches, dtype=bool)
        for place, number in self.nodata:
            nodata[place] = number
        has_mask[list(self.masked)] = True
        return nodata, has_mask

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, the inverse of `from_json`; zero counts are left out."""
        return {
            "bands": [list(asdict(band).values()) for band in self.bands],
            "classes": [{str(i): n for i, n in enumerate(level) if n} for level in self.classes],
            "nodata": self.nodata,
            "masked": self.masked,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Tally:
        """Build from the dictionary of `to_json`."""
        return cls(
            tuple(BandTally(*values) for values in fields["bands"]),
            tuple(tuple(int(level.get(str(i), 0)) for i in range(256)) for level in fields["classes"]),
            tuple((int(place), float(number)) for place, number in fields["nodata"]),
            tuple(int(place) for place in fields["masked"]),
        )


def add_bands(one: Sequence[BandTally], two: Sequence[BandTally]) -> tuple[BandTally, ...]:
    """Add tallies band by band; an empty one is nothing."""
    if not one or not two:
        return tuple(one or two)
    return tuple(a + b for a, b in zip(one, two, strict=True))


def add_all(tallies: Iterable[Tally]) -> Tally:
    """Add tallies in job order, so that sums of floats are the same however jobs ran."""
    return reduce(operator.add, tallies, Tally())


def summarise(whole: Tally, bands: Sequence[str], n_classes: Sequence[int]) -> dict[str, Any]:
    """Return the attributes of a group.

    Args:
        whole: Of all its patches.
        bands: Band or level names.
        n_classes: Classes per level, for labels.
    """
    if n_classes:
        levels = whole.classes or tuple((0,) * 256 for _ in n_classes)
        return {
            "class_counts": [list(level[:count]) for level, count in zip(levels, n_classes, strict=True)],
            "ignored": [level[255] for level in levels],
        }
    tallied = whole.bands or tuple(BandTally() for _ in bands)
    return {"statistics": [{"band": name, **band.summary()} for name, band in zip(bands, tallied, strict=True)]}
