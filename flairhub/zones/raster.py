"""A raster of a zone: one protocol for files, mosaics, resampled rasters, zone cubes and regions of patch cubes.

What a raster is made of decides only how its pixels are loaded. Where they hold data is decided here, once for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import DataError
from flairhub.geo import GeoBox
from flairhub.modalities import MODALITIES
from flairhub.validity import Nodata, valid_pixels

Span = tuple[int, int]
"""First row (or column) and one past the last."""


@dataclass(frozen=True)
class Pixels:
    """A region of a raster.

    Attributes:
        values: (band, y, x), or (time, band, y, x) for a series, in the raster's dtype.
        valid: (y, x), or (time, y, x), bool, where there is data; None = everywhere.
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_] | None

    @property
    def anywhere(self) -> NDArray[np.bool_] | None:
        """(y, x) bool, where the image, or at least one date of the series, has data; None = everywhere."""
        if self.valid is None or self.valid.ndim == 2:
            return self.valid
        somewhere = np.asarray(self.valid.any(axis=0))
        return None if somewhere.all() else somewhere


@dataclass(frozen=True, eq=False)
class Raster(ABC):
    """One modality of a zone, or the quality mask of a series, before its pixels are read. Small, and can be pickled.

    Attributes:
        name: Modality.
        geobox: Its grid.
        bands: Names of its bands, of one date.
        dates: (time,) datetime64[D] of a series; None for images.
        dtype: numpy name.
        nodata: Declared value without meaning, for all bands or per band.
        alpha: Number (from 1) of a band that is marked as opacity and may be data all the same: where it is none of
            the channels that are used it says where there is data.
    """

    name: str
    geobox: GeoBox
    bands: tuple[str, ...]
    dates: NDArray[np.datetime64] | None
    dtype: str
    nodata: Nodata = None
    alpha: int | None = None

    @property
    @abstractmethod
    def where(self) -> str:
        """What names it in messages: its file, or its cube."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What tells these pixels from others: path, size, time of change, ...; JSON-ready."""

    @abstractmethod
    def load(self, rows: Span, cols: Span) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Return a region inside the raster.

        Returns:
            Values as in `Pixels`, and what is known of their validity apart from the numbers (masks, holes, blocks
            never written): (y, x) or (time, y, x) bool, None = nothing.

        Raises:
            FlairhubError: It cannot be read; the message names the file or store.
        """

    def is_changed(self) -> bool:
        """Whether the source is no longer as it was when the raster was opened, as far as its stamps tell."""
        return False

    def check_unchanged(self) -> None:
        """Compare the stamps of the source again: what was read before and after a change is of two sources.

        Raises:
            DataError: It has changed.
        """
        if self.is_changed():
            raise DataError(
                f"{self.name}: {self.where} was changed, replaced or removed after it had been opened (or a tile or "
                f"sidecar of it), so that pixels of two versions would be mixed. Put the former one back and run again "
                f"to continue, or start over with the present one (--overwrite)."
            )

    @property
    def may_be_masked(self) -> bool:
        """Whether `load` may know of pixels without data."""
        return True

    @property
    def origin(self) -> Raster:
        """The raster that holds the pixels: itself, or the one it is made of."""
        return self

    def with_origin(self, origin: Raster) -> Raster:
        """Return the same raster, made of `origin`, which has the same grid as its own."""
        return origin

    def reach(self, rows: Span, cols: Span) -> tuple[Span, Span] | None:
        """Rows and columns of `origin` that `load` needs for a region; None = none."""
        return rows, cols

    def inside(self, rows: Span, cols: Span) -> tuple[Span, Span]:
        """Rows and columns of this raster that `read` needs for a region that may lie outside."""
        height, width = self.geobox.height, self.geobox.width
        return tuple(  # type: ignore[return-value]
            (first, last) if first >= 0 and last <= length else _inside((first, last), length)[1]
            for (first, last), length in ((rows, height), (cols, width))
        )

    @property
    def has_names(self) -> bool:
        """Whether its bands have names; otherwise they are numbered."""
        return not all(band.isdigit() for band in self.bands)

    @property
    def n_dates(self) -> int:
        """Number of dates; 0 for images."""
        return 0 if self.dates is None else len(self.dates)

    @property
    def leading(self) -> tuple[int, ...]:
        """Lengths of the axes before y and x: (band,) or (time, band)."""
        return (len(self.bands),) if self.dates is None else (len(self.dates), len(self.bands))

    @property
    def bytes_per_px(self) -> int:
        """Bytes of a pixel, all bands and dates."""
        return int(np.prod(self.leading)) * np.dtype(self.dtype).itemsize

    def read(self, rows: Span, cols: Span, channels: Sequence[int] | None = None) -> Pixels:
        """Read a region; what lies outside the raster is its mirror image.

        Args:
            rows: First row and one past the last, own pixels; may lie outside.
            cols: Likewise for columns.
            channels: 1-based bands that are used, by which images are judged; None = all. All bands are returned. The
                dates of a series are judged by all their bands, so that stored means and computed ones agree.

        Raises:
            FlairhubError: It cannot be read, or has changed since it was opened; the message names the file or store.
        """
        row_index, inside_rows = _inside(rows, self.geobox.height)
        col_index, inside_cols = _inside(cols, self.geobox.width)
        values, mask = self.load(inside_rows, inside_cols)
        self.check_unchanged()
        row, used = MODALITIES[self.name], None if self.dates is not None else channels
        if self.alpha is not None and used is not None and self.alpha not in used:
            opaque = values[..., self.alpha - 1, :, :] > 0
            mask = opaque if mask is None else mask & opaque
        valid = valid_pixels(values, self.nodata, mask, used, every_band=row.is_elevation)
        if _is_run(row_index) and _is_run(col_index):
            return Pixels(values, valid)
        rows_at, cols_at = row_index[:, None], col_index[None, :]
        return Pixels(values[..., rows_at, cols_at], None if valid is None else valid[..., rows_at, cols_at])


def mirrored(first: int, last: int, length: int) -> NDArray[np.int64]:
    """Return the positions inside an axis that stand for `[first, last)`: outside it is reflected at its edges.

    The edge itself is the mirror, the edge pixel counts on both sides, so that pixels of every size stay in
    register. Axes shorter than the reach are reflected again and again.

    Returns:
        (last - first,) positions in `[0, length)`.
    """
    positions = np.arange(first, last) % (2 * length)
    return np.where(positions < length, positions, 2 * length - 1 - positions)


def _inside(span: Span, length: int) -> tuple[NDArray[np.int64], Span]:
    """Which rows (or columns) a mirrored region needs: its places in a range inside the raster, and the range."""
    index = mirrored(*span, length)
    first = int(index.min())
    return index - first, (first, int(index.max()) + 1)


def _is_run(positions: NDArray[np.int64]) -> bool:
    return bool((np.diff(positions) == 1).all())


def json_dates(dates: NDArray[np.datetime64] | None) -> list[str]:
    """Dates as JSON-ready text; none for images."""
    return [] if dates is None else [str(day) for day in dates]


def identity(raster: Raster) -> Mapping[str, Any]:
    """All that decides a raster's pixels, grid, dates and validity: JSON-ready."""
    box = raster.geobox
    nodata = raster.nodata
    return {
        "name": raster.name,
        "grid": [box.crs_wkt, *box.transform, box.height, box.width],
        "bands": list(raster.bands),
        "dates": json_dates(raster.dates),
        "dtype": raster.dtype,
        "nodata": [repr(value) for value in nodata] if isinstance(nodata, Sequence) else repr(nodata),
        "alpha": raster.alpha,
        "source": raster.facts(),
    }
