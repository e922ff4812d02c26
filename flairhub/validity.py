"""The one rule that says where pixels hold data; everything that reads pixels calls it, nothing else looks at nodata.

A pixel without data is declared (a nodata value, a mask, an alpha band), not a number (NaN, infinity), or not there at
all (a hole of a mosaic, a block that was never written). Readers know the first and the last from their files and pass
them on; this module knows numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Nodata = float | Sequence[float | None] | None
"""A declared value without meaning: one for all bands, one per band (None = no such value), or none at all."""


def valid_pixels(
    values: NDArray[Any],
    nodata: Nodata = None,
    mask: NDArray[np.bool_] | None = None,
    channels: Sequence[int] | None = None,
    every_band: bool = False,
) -> NDArray[np.bool_] | None:
    """Return where an image, or each date of a series, holds data.

    A floating pixel needs a finite number other than nodata in every band that is used. An integer pixel is without
    data when all bands that are used hold nodata: a single band may hold that number by chance.

    Args:
        values: (band, y, x) or (time, band, y, x).
        nodata: Declared value, of all bands or per band.
        mask: What else is known, True = data; broadcasts to the result.
        channels: 1-based bands that are used; None = all.
        every_band: An integer pixel, too, needs all its bands (heights, of which differences are taken).

    Returns:
        (y, x) or (time, y, x) bool; None where every pixel holds data.
    """
    bands = range(values.shape[-3]) if channels is None else [channel - 1 for channel in channels]
    valid: NDArray[np.bool_] | None = None
    needs_all = values.dtype.kind == "f" or every_band
    for band in bands:
        band_valid = _band_valid(values[..., band, :, :], nodata_of(nodata, band))
        if needs_all:
            valid = valid if band_valid is None else band_valid if valid is None else valid & band_valid
            continue
        # One band without nodata numbers is enough: most images are done with after the first.
        valid = None if band_valid is None else band_valid if valid is None else valid | band_valid
        if valid is None or valid.all():
            valid = None
            break
    if mask is not None:
        shape = values.shape[:-3] + values.shape[-2:]
        valid = np.broadcast_to(mask, shape) if valid is None else valid & mask
    return None if valid is None or valid.all() else valid


def resized(valid: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return validity on another grid of the same extent: of the pixel under each centre.

    Args:
        valid: (..., y, x) bool.
        shape: (height, width) wanted.
    """
    if valid.shape[-2:] == tuple(shape):
        return valid
    rows, cols = (
        (2 * np.arange(wanted) + 1) * size // (2 * wanted) for wanted, size in zip(shape, valid.shape[-2:], strict=True)
    )
    return valid[..., rows[:, None], cols]


def nodata_of(nodata: Nodata, band: int) -> float | None:
    """Nodata of one band, counted from 0."""
    return nodata[band] if isinstance(nodata, Sequence) else nodata


def _band_valid(values: NDArray[Any], nodata: float | None) -> NDArray[np.bool_] | None:
    """Where one band, (..., y, x), holds a number that means something; None = everywhere."""
    if not values.size:
        return None
    if values.dtype.kind == "f":
        # As the file stores it: -3.4e38 written in decimal is another number in float32 than in float64.
        with np.errstate(over="ignore"):
            declared = np.nan if nodata is None else np.asarray(nodata, dtype=values.dtype)
        # Both carry NaN and infinity, and are several times faster than a look at each pixel.
        low, high = values.min(), values.max()
        if np.isfinite(low) and np.isfinite(high) and not low <= declared <= high:
            return None
        valid = np.isfinite(values)
        return valid if np.isnan(declared) else valid & (values != declared)
    number = stored_nodata(nodata, values.dtype)
    return None if number is None else values != np.asarray(int(number)).astype(values.dtype)


def stored_nodata(nodata: float | None, dtype: np.dtype[Any]) -> float | None:
    """Return the declared value, or None where pixels of this dtype cannot hold it (integers: 3.5, -1, NaN)."""
    if nodata is None or dtype.kind == "f":
        return nodata
    limits = np.iinfo(dtype)
    whole = np.isfinite(nodata) and nodata == np.floor(nodata)
    return nodata if whole and limits.min <= nodata <= limits.max else None
