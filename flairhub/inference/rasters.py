"""Source rasters of a zone: facts from the header, pixels by window."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from flairhub.errors import DataError, ZoneError
from flairhub.geo import GeoBox, geobox_of
from flairhub.inference.cubes import CUBES, ROI_VIEW, cube_dated, read_cube
from flairhub.inference.handles import borrowed
from flairhub.inference.mosaics import colourless_vrt, mosaic_files
from flairhub.inference.windows import mirrored
from flairhub.modalities import MODALITIES


@dataclass(frozen=True)
class RasterSource:
    """One raster of a zone, as its header describes it.

    Attributes:
        name: Modality or quality-mask name.
        path: GeoTIFF, VRT mosaic, or cube; absolute, because workers may run elsewhere.
        geobox: Its own grid.
        n_bands: Bands per date, or of the image.
        n_dates: Number of dates; 0 for images.
        dtype: numpy name of the pixel type.
        nodata: Declared nodata value, or None.
        has_mask: The file carries a validity mask.
        ratio: Finest pixels of the zone per pixel.
        stamp: Size in bytes and modification time in ns, to recognise the file later.
        driver: The only GDAL driver that opens it; `ZONE_CUBE` or `ROI_VIEW` for cubes.
        roi: Region of interest of a patch cube.
        warped: `geobox` is another grid than the file's: pixels are resampled while reading.
    """

    name: str
    path: str
    geobox: GeoBox
    n_bands: int
    n_dates: int
    dtype: str
    nodata: float | None
    has_mask: bool
    ratio: Fraction
    stamp: tuple[int, int]
    driver: str = "GTiff"
    roi: str = ""
    warped: bool = False

    @property
    def is_integer(self) -> bool:
        """True for integer pixel types."""
        return np.dtype(self.dtype).kind in "iu"

    @property
    def band_names(self) -> tuple[str, ...]:
        """The published names of the bands of one date; numbers where there are more or fewer bands."""
        names = MODALITIES[self.name].bands
        return names if len(names) == self.n_bands else tuple(str(i) for i in range(1, self.n_bands + 1))


def describe_raster(path: Path, name: str, key: str) -> RasterSource:
    """Read the header of a GeoTIFF.

    Args:
        path: The file; opened with the GTiff driver only, or a VRT mosaic (`.vrt`) of GeoTIFFs beside it.
        name: Modality or quality-mask name.
        key: Configuration key that names the file, for messages.

    Returns:
        The source with all bands as one image and ratio 1; the zone completes it.

    Raises:
        ZoneError: Missing, not a GeoTIFF, damaged, complex-valued, or of bands that differ in type.
        DataError: Not georeferenced or not north-up.
    """
    if not path.is_file():
        raise ZoneError(f"{key}: no file {path}. Expected a GeoTIFF.")
    driver, files = "GTiff", [path]
    if path.suffix.lower() == ".vrt":
        driver, files = "VRT", [path, *mosaic_files(path, key)]
    try:
        with rasterio.open(path, driver=driver, sharing=False) as dataset:
            geobox = geobox_of(dataset, f"{key}: {path}")
            dtypes, nodata, count = set(dataset.dtypes), dataset.nodata, dataset.count
            flags = dataset.mask_flag_enums[0]
            # A fourth band marked as alpha is infrared here far more often than transparency.
            has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
    except RasterioError as error:
        raise ZoneError(f"{key}: {path} does not open as a GeoTIFF ({error}).") from None
    if len(dtypes) > 1 or np.dtype(next(iter(dtypes))).kind not in "iuf":
        raise ZoneError(f"{key}: {path} has pixel type {', '.join(sorted(dtypes))}, expected one real number type.")
    if not geobox.crs_wkt:
        raise DataError(f"{key}: {path} has no CRS. Expected one, e.g. EPSG:2154; assign it to the file.")
    stats = [file.stat() for file in files]
    return RasterSource(
        name=name,
        path=str(path.absolute()),
        geobox=geobox,
        n_bands=count,
        n_dates=0,
        dtype=next(iter(dtypes)),
        nodata=nodata,
        has_mask=has_mask,
        ratio=Fraction(1),
        stamp=(sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)),
        driver=driver,
    )


def read_region(
    source: RasterSource, rows: tuple[int, int], cols: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Read a region in the source's own pixels; what lies outside the raster is its mirror image.

    Args:
        source: The raster.
        rows: First row and one past the last; may lie outside.
        cols: Likewise for columns.

    Returns:
        (band, y, x), or (time, band, y, x) for a series, in the native dtype; and the file's validity mask
        (y, x), None when it has none.

    Raises:
        DataError: The pixels cannot be read; the message names the file.
    """
    row_index, own_rows = _stored(rows, source.geobox.height)
    col_index, own_cols = _stored(cols, source.geobox.width)
    reader = _read_file if source.driver not in CUBES else read_cube
    values, mask = reader(source, own_rows, own_cols)
    if not (_is_run(row_index) and _is_run(col_index)):
        pick = np.ix_(row_index, col_index)
        values = values[..., pick[0], pick[1]]
        mask = None if mask is None else mask[pick]
    return values, mask


def read_dated(source: RasterSource, rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Return (time, y, x) where a series has an image of that date, for the region of `read_region`.

    None = everywhere: only the patches of a region of interest may differ in their dates.
    """
    if source.driver != ROI_VIEW or not source.n_dates:
        return None
    row_index, own_rows = _stored(rows, source.geobox.height)
    col_index, own_cols = _stored(cols, source.geobox.width)
    dated = cube_dated(source, own_rows, own_cols)
    return None if dated is None else dated[:, row_index[:, None], col_index[None, :]]


def _read_file(
    source: RasterSource, rows: tuple[int, int], cols: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    window = Window(cols[0], rows[0], cols[1] - cols[0], rows[1] - rows[0])
    mask: NDArray[np.bool_] | None
    try:
        with borrowed(source.path, source.driver) as dataset:
            if source.warped:
                values, mask = _read_warped(dataset, source, window)
            else:
                values = dataset.read(window=window)
                mask = dataset.read_masks(1, window=window) > 0 if source.has_mask else None
    except RasterioError as error:
        raise DataError(
            f"{source.path}: cannot read rows {rows[0]}-{rows[1] - 1}, columns {cols[0]}-{cols[1] - 1} ({error}). "
            f"The file is damaged or gone; restore it."
        ) from error
    if source.n_dates:
        values = values.reshape(source.n_dates, source.n_bands, *values.shape[1:])
    return values, mask


def _read_warped(dataset: Any, source: RasterSource, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Resample onto the source's grid: bilinear for images and series, nearest for masks and for the own grid."""
    box = source.geobox
    smooth = MODALITIES[source.name].is_input and source.ratio != 1
    options: dict[str, Any] = {
        "crs": box.crs_wkt,
        "transform": box.affine(),
        "height": box.height,
        "width": box.width,
        "resampling": Resampling.bilinear if smooth else Resampling.nearest,
        "add_alpha": True,
    }
    # Through a VRT without colours: GDAL would weigh by a fourth band that it takes for transparency.
    with rasterio.open(colourless_vrt(dataset), driver="VRT") as plain, WarpedVRT(plain, **options) as warped:
        bands = list(range(1, dataset.count + 1))
        return warped.read(bands, window=window), warped.read(dataset.count + 1, window=window) > 0


def _stored(span: tuple[int, int], length: int) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Which stored rows (or columns) a mirrored region needs: its places in the range, and the range."""
    index = mirrored(*span, length)
    first = int(index.min())
    return index - first, (first, int(index.max()) + 1)


def _is_run(positions: NDArray[np.int64]) -> bool:
    return bool((np.diff(positions) == 1).all())


def valid_pixels(
    source: RasterSource,
    values: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    channels: tuple[int, ...] | None,
    every_band: bool = False,
) -> NDArray[np.bool_]:
    """Return where the source has data.

    An integer pixel is missing when all its used bands hold the declared nodata value (a single band may hold it by
    chance); a floating pixel when one used band holds it or is not finite. A pixel of a series has data when one
    date has.

    Args:
        source: The raster.
        values: (..., band, y, x) as read.
        mask: (y, x) validity mask of the file.
        channels: 1-based bands that are used; None = all.
        every_band: An integer pixel, too, needs all its used bands (heights).

    Returns:
        (y, x) bool.
    """
    used = values if channels is None else values[..., [channel - 1 for channel in channels], :, :]
    valid: NDArray[np.bool_]
    if source.is_integer:
        valid = np.ones(used.shape[:-3] + used.shape[-2:], dtype=bool)
        if source.nodata is not None:
            differs = used != source.nodata
            valid = differs.all(axis=-3) if every_band else differs.any(axis=-3)
    else:
        finite = np.isfinite(used)
        if source.nodata is not None and not np.isnan(source.nodata):
            finite &= used != np.asarray(source.nodata, dtype=used.dtype)
        valid = finite.all(axis=-3)
    if source.n_dates:
        valid = np.asarray(valid.any(axis=0))
    return valid if mask is None else valid & mask


def to_finest(mask: NDArray[np.bool_], ratio: Fraction) -> NDArray[np.bool_]:
    """Spread a (y, x) mask to the finest grid: each finest pixel takes the pixel that holds its centre."""
    if ratio == 1:
        return mask
    rows, cols = (_holders(length, ratio) for length in mask.shape)
    return mask[rows[:, None], cols[None, :]]


def _holders(length: int, ratio: Fraction) -> NDArray[np.int64]:
    fine = np.arange(int(length * ratio), dtype=np.int64)
    return (2 * fine + 1) * ratio.denominator // (2 * ratio.numerator)
