"""Reading one source GeoTIFF: header first, pixels only when the header is what the plan expects."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import DataError
from flairhub.geo import ALIGNMENT_TOLERANCE_PX, GeoBox, crs_name, geobox_of, same_crs
from flairhub.ingest.archives import MOST_BYTES, read_member, split_member
from flairhub.ingest.geotags import read_geotags
from flairhub.tiff import read_with

MOST_PX = 8192
"""Largest accepted width or height of a patch."""

GDAL_OPTIONS: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_NUM_THREADS": "1",
    "GDAL_CACHEMAX": 64 * 2**20,
    "GDAL_HTTP_MAX_RETRY": "0",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
}
"""No sidecar files, no network, one thread per process."""


@dataclass(frozen=True)
class Expectation:
    """What every file of a modality must be.

    Attributes:
        modality: Name, for messages.
        bands: Bands per file, or per date of a series.
        is_series: Files hold several dates.
        dtype: Dtype to store; files of another numeric dtype are converted when nothing is lost.
        height: Pixels.
        width: Pixels.
        crs_wkt: CRS.
        footprint: (width, height) in CRS units.
        reference: The file that these facts were taken from.
    """

    modality: str
    bands: int
    is_series: bool
    dtype: str
    height: int
    width: int
    crs_wkt: str
    footprint: tuple[float, float]
    reference: str


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    Attributes:
        box: Its grid.
        count: Bands in the file.
        dtype: Its dtype.
    """

    box: GeoBox
    count: int
    dtype: str


@dataclass(frozen=True)
class Raster:
    """The pixels of a file.

    Attributes:
        values: (band, y, x), the file's dtype.
        origin: (x_min, y_max).
        nodata: Declared value without meaning, or None. GeoTIFFs have one for all bands.
        mask: (y, x) bool, where the file's internal mask and its surplus alpha band see data; None = everywhere.
    """

    values: NDArray[Any]
    origin: tuple[float, float]
    nodata: float | None
    mask: NDArray[np.bool_] | None = None


@contextmanager
def gdal() -> Iterator[None]:
    """Settings under which source files are read."""
    import rasterio
    import rasterio.errors

    # Files whose grid is known from their tags are opened without it: only here is that no reason to warn.
    ignored = rasterio.errors.NotGeoreferencedWarning
    warnings.filterwarnings("ignore", category=ignored, module=__name__.replace(".", r"\."))
    with rasterio.Env(**GDAL_OPTIONS):
        yield


def read_header(path: str) -> Header:
    """Return a file's header, refusing what no patch can be.

    Raises:
        DataError: Not a readable GeoTIFF, not north-up, or larger than any patch.
    """
    with _open(path) as (dataset, box, _):
        _check_bomb(path, dataset)
        return Header(box, dataset.count, dataset.dtypes[0])


def read_raster(path: str, expected: Expectation, n_dates: int | None, masks: bool = True) -> Raster:
    """Check a file's header, then read it whole.

    Args:
        path: Local file.
        expected: What it must be.
        n_dates: Dates of the patch, for series.
        masks: Read the internal mask, and take an alpha band beyond the expected ones for one.

    Raises:
        DataError: Not what is expected, truncated, sparse, or damaged: names file, key, expected and found.
    """
    import rasterio.errors

    with _open(path) as (dataset, box, more):
        alpha = _surplus_alpha(dataset, expected, n_dates) if masks else None
        _check_bands(path, dataset.count - (alpha is not None), expected, n_dates)
        _check_grid(path, box, expected)
        _check_bomb(path, dataset)
        dtypes = set(dataset.dtypes)
        if len(dtypes) > 1 or np.dtype(dataset.dtypes[0]).kind not in "uif":
            raise DataError(
                f"{path}: dtype {', '.join(sorted(dtypes))}, expected {expected.dtype} ({expected.modality}) "
                "or a real numeric dtype that converts to it without loss."
            )
        try:
            values = dataset.read()
            mask = _internal_mask(dataset) if masks and more else None
        except (rasterio.errors.RasterioError, OSError) as error:
            raise DataError(f"{path}: truncated or damaged, its pixels cannot be read: {_cause(error)}") from error
        _check_sparse(path, dataset, values)
        if alpha is not None:
            opaque, values = values[alpha] != 0, np.delete(values, alpha, axis=0)
            mask = opaque if mask is None else mask & opaque
        return Raster(values, (box.x_min, box.y_max), dataset.nodata, None if mask is None or mask.all() else mask)


def lossless(
    values: NDArray[Any], dtype: str, path: str, valid: NDArray[np.bool_] | None = None
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return `values` as `dtype`, and what the new numbers cannot tell any more; floats are rounded to shorter ones.

    Args:
        values: (..., band, y, x).
        dtype: numpy name.
        path: For messages.
        valid: (..., y, x) bool, where the numbers mean something; None = everywhere.

    Returns:
        The values, 0 where a number that means nothing does not fit into an integer dtype; and (..., y, x) bool, False
        at these pixels, None when there are none.

    Raises:
        DataError: A value would change by more than the rounding of floats; the message names the file and the first
            such value.
    """
    target = np.dtype(dtype)
    if values.dtype == target:
        return values, None
    with np.errstate(invalid="ignore", over="ignore"):
        converted = values.astype(target)
        if values.dtype.kind == target.kind == "f":
            # Heights of double precision are rounded: what a float32 keeps of them is finer than any survey.
            changed = np.isinf(converted) & np.isfinite(values)
        else:
            changed = converted.astype(values.dtype) != values
    if values.dtype.kind in "ui" and target.kind in "ui":
        # Casting back wraps around: -1 and 255 would look equal through uint8.
        limits = np.iinfo(target)
        changed |= (values < limits.min) | (values > limits.max)
    if not changed.any():
        return converted, None
    lost = changed if valid is None else changed & valid[..., None, :, :]
    if lost.any():
        raise DataError(f"{path}: dtype {values.dtype} value {values[lost][0]} does not fit {target} without loss.")
    if target.kind == "f":
        return converted, None
    converted[changed] = 0
    return converted, ~changed.any(axis=-3)


def _surplus_alpha(dataset: Any, expected: Expectation, n_dates: int | None) -> int | None:
    """0-based place of an alpha band beyond the expected bands; one among them is what the modality says it is."""
    wanted = expected.bands * (1 if n_dates is None else n_dates)
    if dataset.count != wanted + 1:
        return None
    names = [colour.name for colour in dataset.colorinterp]
    return names.index("alpha") if names.count("alpha") == 1 else None


def _internal_mask(dataset: Any) -> NDArray[np.bool_] | None:
    """(y, x) bool of a mask inside the file, which GDAL keeps for all bands together; None when it has none."""
    flags = {flag.name for flag in dataset.mask_flag_enums[0]}
    if "per_dataset" not in flags or "alpha" in flags:
        return None
    return np.asarray(dataset.read_masks(1) != 0)


@contextmanager
def _open(path: str) -> Iterator[tuple[Any, GeoBox, bool]]:
    """Open a file, or a member of an archive from memory, with the GTiff driver.

    Also give its grid, and whether it may hold a mask: asking GDAL takes longer than reading a small series.
    """
    import rasterio.errors
    from rasterio.io import DatasetReader, MemoryFile

    member = split_member(path)
    # Not left to opening: a named pipe would wait for a writer, a device may have no end.
    if member is None and not os.path.isfile(path):
        raise DataError(f"{path}: no such file.")
    content = None if member is None else read_member(member)
    raw = None if content is None else lambda length, offset: content[offset : offset + length]
    tags = read_with(path, read_geotags) if raw is None else read_geotags(raw)
    known = tags is not None and tags.box(0, 0) is not None
    options = {"driver": "GTiff", "sharing": False, **({"GEOREF_SOURCES": "NONE"} if known else {})}
    with ExitStack() as stack:
        try:
            if content is None:
                # Not rasterio.open: it sets up and takes down all of GDAL's settings again for every file.
                source: Any = DatasetReader(Path(path).absolute(), **options)
            else:
                source = DatasetReader(stack.enter_context(MemoryFile(content)).name, **options)
        except (rasterio.errors.RasterioError, OSError) as error:
            size = os.path.getsize(path) if content is None else len(content)
            raise DataError(f"{path}: not a readable GeoTIFF ({size} bytes): {_cause(error)}") from error
        dataset = stack.enter_context(source)
        box = tags.box(dataset.height, dataset.width) if tags is not None else None
        if box is None:
            box = geobox_of(dataset, path, raw)
            if not all(map(math.isfinite, (box.x_min, box.y_max, box.x_res, box.y_res))):
                raise DataError(f"{path}: no georeferencing found: its transform {box.transform} is not finite.")
            if tags is not None:
                tags.learn(box)
        yield dataset, box, tags is None or tags.more


def _check_bomb(path: str, dataset: Any) -> None:
    n_bytes = dataset.width * dataset.height * dataset.count * np.dtype(dataset.dtypes[0]).itemsize
    if max(dataset.width, dataset.height) > MOST_PX or n_bytes > MOST_BYTES:
        raise DataError(
            f"{path}: declares {dataset.width} x {dataset.height} px x {dataset.count} bands "
            f"({n_bytes / 2**20:.0f} MiB); patches have at most {MOST_PX} px per side and {MOST_BYTES >> 20} MiB."
        )


def _check_bands(path: str, count: int, expected: Expectation, n_dates: int | None) -> None:
    if not expected.is_series:
        if count != expected.bands:
            raise DataError(f"{path}: {count} bands, expected {expected.bands} ({expected.modality}).")
        return
    if count % expected.bands:
        raise DataError(
            f"{path}: {count} bands is no multiple of {expected.bands}, the bands per date of {expected.modality}."
        )
    if count // expected.bands != n_dates:
        raise DataError(
            f"{path}: {count // expected.bands} images ({count} bands / {expected.bands} of {expected.modality}) but "
            f"{n_dates} dates in the metadata. Every image needs its date."
        )


def _check_grid(path: str, box: GeoBox, expected: Expectation) -> None:
    if (box.height, box.width) != (expected.height, expected.width):
        raise DataError(
            f"{path}: size {box.width} x {box.height} px, expected {expected.width} x {expected.height} px as in "
            f"{expected.reference}. All patches of {expected.modality} have one size."
        )
    if not same_crs(box.crs_wkt, expected.crs_wkt):
        raise DataError(
            f"{path}: CRS {crs_name(box.crs_wkt)}, expected {crs_name(expected.crs_wkt)} as in {expected.reference}."
        )
    footprint = (box.width * box.x_res, box.height * box.y_res)
    tolerance = ALIGNMENT_TOLERANCE_PX * min(box.x_res, box.y_res)
    if any(abs(a - b) > tolerance for a, b in zip(footprint, expected.footprint, strict=True)):
        raise DataError(
            f"{path}: footprint {footprint[0]:g} x {footprint[1]:g} m, expected {expected.footprint[0]:g} x "
            f"{expected.footprint[1]:g} m as in {expected.reference} (tolerance {ALIGNMENT_TOLERANCE_PX} px)."
        )


def _check_sparse(path: str, dataset: Any, values: NDArray[Any]) -> None:
    """GDAL gives nodata or zeros for blocks that were never written; a patch without pixels is not a black one.

    Only blocks that begin with such a value are looked up.
    """
    rows, cols = dataset.block_shapes[0]
    first = values[:, ::rows, ::cols]
    empty = first == 0
    if dataset.nodata is not None:
        # How a nodata value that the dtype cannot hold is written is up to GDAL: then every block is looked up.
        empty = np.ones_like(empty)
    if dataset.interleaving and dataset.interleaving.value == "PIXEL":
        empty = empty.all(axis=0, keepdims=True)
    for band, y, x in np.argwhere(empty):
        if dataset.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=int(band) + 1) is None:
            raise DataError(f"{path}: sparse: block {x}, {y} of band {band + 1} was never written.")


def _cause(error: BaseException) -> str:
    """The innermost message: rasterio's own says no more than 'see the previous exception'."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
