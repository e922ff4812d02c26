"""GeoTIFFs and VRT mosaics as rasters of a zone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from flairhub.errors import DataError, ZoneError
from flairhub.geo import geobox_of
from flairhub.modalities import MODALITIES
from flairhub.zones.geotiff import (
    Span,
    Stamp,
    borrowed,
    foreign_sidecar,
    looks_like_opacity,
    missing_facts,
    read_masks,
    stamp_of,
    window_of,
    written_pixels,
)
from flairhub.zones.mosaics import Coverage, Mosaic, band_coverages, read_mosaic
from flairhub.zones.raster import Raster


@dataclass(frozen=True, eq=False)
class FileRaster(Raster):
    """A GeoTIFF or VRT mosaic.

    Attributes:
        path: The file; absolute, because workers may run elsewhere.
        driver: The only GDAL driver that opens it.
        stamp: Of the file, its sidecars, and the tiles of a mosaic with theirs.
        masked: Bands whose masks count.
        opacity: Number of an alpha band beyond the bands of the modality; never data.
        sparse: Blocks may never have been written.
        patchy: A mosaic with holes, or of tiles with pixels without data.
    """

    path: str = ""
    driver: str = "GTiff"
    stamp: Stamp = (0, 0, "")
    masked: tuple[int, ...] = ()
    opacity: int | None = None
    sparse: bool = False
    patchy: bool = False

    @property
    def where(self) -> str:
        return self.path

    @property
    def may_be_masked(self) -> bool:
        return bool(self.masked) or self.opacity is not None or self.sparse or self.patchy

    def facts(self) -> dict[str, Any]:
        size, changed_ns, digest = self.stamp
        facts = {"path": self.path, "size": size, "mtime_ns": changed_ns, "driver": self.driver}
        return {**facts, "files": digest} if digest else facts

    def is_changed(self) -> bool:
        try:
            tiles = _mosaic(self.path, self.stamp).files if self.driver == "VRT" else []
            return stamp_of([self.path, *tiles]) != self.stamp
        except (OSError, ZoneError):
            return True

    def load(self, rows: Span, cols: Span) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        try:
            with borrowed(self.path, self.driver) as dataset:
                values, mask = self._values(dataset, rows, cols), self._mask(dataset, rows, cols)
            known = mask if not self.patchy else self._covered(mask, rows, cols)
        except RasterioError as error:
            raise DataError(
                f"{self.path}: cannot read rows {rows[0]}-{rows[1] - 1}, columns {cols[0]}-{cols[1] - 1} ({error}). "
                f"The file is damaged or gone; restore it."
            ) from error
        if self.dates is not None:
            values = values.reshape(*self.leading, *values.shape[1:])
        return values, known

    def _values(self, dataset: Any, rows: Span, cols: Span) -> NDArray[Any]:
        bands = None if self.opacity is None else [b for b in range(1, dataset.count + 1) if b != self.opacity]
        return np.asarray(dataset.read(bands, window=window_of(rows, cols)))

    def _mask(self, dataset: Any, rows: Span, cols: Span) -> NDArray[np.bool_] | None:
        mask = read_masks(dataset, self.masked, rows, cols)
        if self.opacity is not None:
            opaque = dataset.read(self.opacity, window=window_of(rows, cols)) > 0
            mask = opaque if mask is None else mask & opaque
        written = written_pixels(dataset, rows, cols) if self.sparse else None
        if written is None:
            return mask
        kept = self._per_date(list(written)) if len(written) > 1 else written[0]
        return kept if mask is None else kept & mask

    def _per_date(self, bands: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """What all data bands of an image, or of each date of a series, have: (y, x) or (time, y, x)."""
        data = np.stack([band for number, band in enumerate(bands, start=1) if number != self.opacity])
        return np.asarray(data.reshape(*self.leading, *data.shape[1:]).all(axis=-3))

    def _covered(self, mask: NDArray[np.bool_] | None, rows: Span, cols: Span) -> NDArray[np.bool_]:
        coverages = band_coverages(_mosaic(self.path, self.stamp), rows, cols)
        known = self._per_date([one.known for one in coverages]) & self._tile_numbers(coverages)
        return known if mask is None else known & mask

    def _tile_numbers(self, coverages: Sequence[Coverage]) -> Any:
        """Where the numbers of the tiles mean something: as for nodata of a file, by all bands or by one."""
        if all(one.numbers is None for one in coverages):
            return True
        shape = coverages[0].known.shape
        data = [one for number, one in enumerate(coverages, start=1) if number != self.opacity]
        numbers = np.stack([np.ones(shape, bool) if one.numbers is None else one.numbers for one in data])
        numbers = numbers.reshape(*self.leading, *shape)
        strict = np.dtype(self.dtype).kind == "f" or MODALITIES[self.name].is_elevation
        return numbers.all(axis=-3) if strict else numbers.any(axis=-3)


@lru_cache(maxsize=16)
def _mosaic(path: str, stamp: Stamp) -> Mosaic:
    """The mosaic of a VRT, checked anew in every process that opens it."""
    return read_mosaic(Path(path), path)


def open_file(
    path: Path,
    name: str,
    key: str,
    dates: NDArray[np.datetime64] | None = None,
    dates_path: Path | None = None,
    bands: Sequence[str] | None = None,
) -> FileRaster:
    """Open a GeoTIFF or a VRT mosaic as a raster: its header is read, no pixel.

    Args:
        path: The file; opened with the GTiff driver only, or a VRT mosaic (`.vrt`) of GeoTIFFs beside it.
        name: Modality or quality-mask name.
        key: Configuration key that names the file, for messages.
        dates: (time,) datetime64[D], of a series.
        dates_path: Where the dates come from, for messages.
        bands: Names of the bands of the file (of one date), instead of the published ones in their order.

    Raises:
        ZoneError: Missing, not a GeoTIFF, damaged, complex-valued, of bands that differ in type, or a series whose
            bands and dates do not fit.
        DataError: Not georeferenced or not north-up.
    """
    if not path.is_file():
        raise ZoneError(f"{key}: no file {path}. Expected a GeoTIFF.")
    where, opened = f"{key}: {path}", path.absolute()
    mosaic = None
    if path.suffix.lower() == ".vrt":
        # Its names are relative to the file that a symbolic link leads to.
        mosaic, opened = read_mosaic(path, where), path.resolve()
    driver = "GTiff" if mosaic is None else "VRT"
    # Before it is opened: what replaces it meanwhile is noticed at the first read.
    stamp = stamp_of([opened, *(mosaic.files if mosaic else ())])
    try:
        with rasterio.open(opened, driver=driver, sharing=False) as dataset:
            geobox = geobox_of(dataset, f"{key}: {path}")
            dtypes, count, missing = set(dataset.dtypes), dataset.count, missing_facts(dataset)
            foreign = foreign_sidecar(str(opened), dataset.tags(ns="OVERVIEWS"))
            is_opacity = missing.alpha is not None and looks_like_opacity(dataset, missing.alpha)
    except RasterioError as error:
        raise ZoneError(f"{key}: {path} does not open as a GeoTIFF ({error}).") from None
    if foreign is not None:
        raise ZoneError(f"{where} {foreign}. Expected a plain GeoTIFF.")
    if len(dtypes) > 1 or np.dtype(next(iter(dtypes))).kind not in "iuf":
        raise ZoneError(f"{key}: {path} has pixel type {', '.join(sorted(dtypes))}, expected one real number type.")
    if not geobox.crs_wkt:
        raise DataError(f"{key}: {path} has no CRS. Expected one, e.g. EPSG:2154; assign it to the file.")
    expected = _named_bands(bands, name, key)
    n_expected = len(expected) * (1 if dates is None else len(dates))
    # A fourth band marked as alpha is infrared more often than opacity; one beyond the modality's bands is never data.
    surplus = missing.alpha is not None and missing.alpha > n_expected
    n_bands = count - surplus
    if dates is not None:
        if n_bands != n_expected:
            raise ZoneError(
                f"{path} has {n_bands} bands, but {dates_path} has {len(dates)} dates x "
                f"{len(expected)} bands per date of {name} ({', '.join(expected)}) = {n_expected}. "
                f"Every image needs its date and all its bands, date by date."
            )
        n_bands = len(expected)
    if bands is not None and n_bands != len(expected):
        raise ZoneError(
            f"{key}: {path} has {n_bands} bands, but `bands` names {len(expected)} ({', '.join(expected)})."
        )
    nodata = missing.nodata
    if isinstance(nodata, Sequence):
        nodata = _per_band(nodata, missing.alpha if surplus else None, n_bands, f"{key}: {path}")
    return FileRaster(
        name=name,
        geobox=geobox,
        bands=expected if len(expected) == n_bands else tuple(str(i) for i in range(1, n_bands + 1)),
        dates=dates,
        dtype=next(iter(dtypes)),
        nodata=nodata,
        alpha=missing.alpha if is_opacity and not surplus else None,
        path=str(opened),
        driver=driver,
        stamp=stamp,
        masked=missing.masked,
        opacity=missing.alpha if surplus else None,
        sparse=missing.sparse,
        patchy=mosaic is not None and mosaic.has_gaps(),
    )


def _named_bands(given: Sequence[str] | None, name: str, key: str) -> tuple[str, ...]:
    """The bands of a file; names that mean a published band become it, others stay and are never used."""
    row = MODALITIES[name]
    if given is None:
        return row.bands
    names = tuple(row.published_band(label) or label for label in given)
    if len(set(names)) < len(names) or not set(names) & set(row.bands):
        raise ZoneError(
            f"{key}: `bands` says {', '.join(given)}, expected different names, some of them of {name} "
            f"({', '.join(row.bands)})."
        )
    return names


def _per_band(
    nodata: Sequence[float | None], opacity: int | None, n_bands: int, where: str
) -> float | tuple[float | None, ...] | None:
    """Nodata per band of one date; every date must have the same."""
    data = [value for number, value in enumerate(nodata, start=1) if number != opacity]
    dates = [data[first : first + n_bands] for first in range(0, len(data), n_bands)]
    per_date = {repr(values): values for values in dates}
    if len(per_date) > 1:
        raise ZoneError(f"{where}: its dates declare different nodata values ({', '.join(per_date)}). Declare one.")
    values = tuple(next(iter(per_date.values())))
    return values[0] if len(set(map(repr, values))) == 1 else values
