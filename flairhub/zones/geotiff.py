"""GeoTIFFs as they are opened: kept open between reads, with what their headers say about missing pixels.

Open rasters are kept so that GDAL's block cache decodes a source tile once for neighbouring blocks.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from flairhub.validity import Nodata

MAX_OPEN = 32
"""Rasters kept open per process."""

MOST_BLOCKS = 500_000
"""A file of more blocks is looked through for blocks that were never written at each read, not when it is opened."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SPOTS, _SPOT_PX = 5, 64
"""A band is looked at in so many squares per axis of so many pixels."""

SIDECARS = (".msk", ".MSK", ".aux.xml", ".ovr", ".OVR", ".msk.ovr")
"""Files beside a raster that GDAL reads with it: masks, nodata and georeferencing, overviews."""

WORLD_FILES = (".tfw", ".TFW", ".tifw", ".wld", ".WLD")
"""Files that take the place of the raster's ending: its georeferencing."""

Stamp = tuple[int, int, str]
"""Total size in bytes, latest time of change in ns, and a digest of both file by file, empty for a single file."""

_Key = tuple[int, str, int, int, int]
Span = tuple[int, int]


@dataclass
class _Handle:
    """An open raster; one thread reads at a time, as GDAL wants it."""

    dataset: Any
    lock: threading.Lock = field(default_factory=threading.Lock)


_OPEN: OrderedDict[_Key, _Handle] = OrderedDict()
_GUARD = threading.Lock()


@contextmanager
def borrowed(path: str, driver: str = "GTiff") -> Iterator[Any]:
    """Yield an open raster for this thread alone.

    A file that was replaced or changed since it was opened is opened anew; forked processes open their own.

    Args:
        path: The file.
        driver: The only driver that may open it.

    Raises:
        rasterio.errors.RasterioError: It does not open.
    """
    handle = _handle(path, driver)
    with handle.lock:
        # Another thread may have put it out of the pool between the look-up and the lock.
        if handle.dataset.closed:
            handle.dataset = rasterio.open(path, driver=driver, sharing=False)
        yield handle.dataset


def close_all() -> None:
    """Close the rasters that no thread is reading."""
    with _GUARD:
        for key in list(_OPEN):
            _close(key)


def _handle(path: str, driver: str) -> _Handle:
    try:
        stat = os.stat(path)
    except OSError as error:
        raise rasterio.errors.RasterioIOError(str(error)) from error
    key = (os.getpid(), path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    with _GUARD:
        if key not in _OPEN:
            for other in [other for other in _OPEN if other[1] == path]:
                _close(other)
            _OPEN[key] = _Handle(rasterio.open(path, driver=driver, sharing=False))
            for other in list(_OPEN)[: max(0, len(_OPEN) - MAX_OPEN)]:
                _close(other)
        _OPEN.move_to_end(key)
        return _OPEN[key]


def _close(key: _Key) -> None:
    handle = _OPEN[key]
    if handle.lock.acquire(blocking=False):
        try:
            del _OPEN[key]
            if key[0] == os.getpid():
                handle.dataset.close()
        finally:
            handle.lock.release()


@dataclass(frozen=True)
class MissingFacts:
    """What a header says about pixels without data.

    Attributes:
        nodata: Declared value, for all bands or per band.
        masked: The bands whose masks count: one where the file has one mask for all, every band where each has its
            own, none otherwise.
        alpha: Number of the band that is marked as opacity; None = none.
        sparse: Some blocks may never have been written.
    """

    nodata: Nodata
    masked: tuple[int, ...]
    alpha: int | None
    sparse: bool


def missing_facts(dataset: Any) -> MissingFacts:
    """Read what the header of an open raster says about pixels without data."""
    nodata: tuple[float | None, ...] = tuple(dataset.nodatavals)
    alphas = [band for band, meaning in enumerate(dataset.colorinterp, start=1) if meaning == ColorInterp.alpha]
    masked = []
    for band, flags in enumerate(dataset.mask_flag_enums, start=1):
        # An alpha band makes a mask for the others: whether it is one is for the caller to say.
        if MaskFlags.all_valid in flags or MaskFlags.nodata in flags or MaskFlags.alpha in flags:
            continue
        masked.append(band)
        if MaskFlags.per_dataset in flags:
            break
    return MissingFacts(
        nodata[0] if len(set(map(repr, nodata))) == 1 else nodata,
        tuple(masked),
        alphas[-1] if alphas else None,
        dataset.driver == "GTiff" and _has_unwritten(dataset),
    )


def read_masks(dataset: Any, bands: Sequence[int], rows: Span, cols: Span) -> NDArray[np.bool_] | None:
    """Return (y, x) where all of the masks of `bands` say that there is data; None without bands.

    Args:
        dataset: An open raster.
        bands: 1-based.
        rows: First row and one past the last, pixels of the file.
        cols: Likewise for columns.
    """
    if not bands:
        return None
    masks = dataset.read_masks(list(bands), window=window_of(rows, cols)) > 0
    return np.asarray(masks.all(axis=0))


def written_pixels(dataset: Any, rows: Span, cols: Span) -> NDArray[np.bool_] | None:
    """Return (band, y, x), or (1, y, x) where bands share blocks, of what was ever written; None = all of it.

    GDAL gives nodata or zeros for blocks that were never written (a download that broke off, `SPARSE_OK`).
    """
    height, width = dataset.block_shapes[0]
    result: NDArray[np.bool_] | None = None
    n_planes = _block_planes(dataset)
    blocks = product(range(rows[0] // height, -(-rows[1] // height)), range(cols[0] // width, -(-cols[1] // width)))
    for row, col in blocks:
        for plane in range(n_planes):
            if _is_written(dataset, row, col, plane):
                continue
            if result is None:
                result = np.ones((n_planes, rows[1] - rows[0], cols[1] - cols[0]), dtype=bool)
            top, left = max(row * height - rows[0], 0), max(col * width - cols[0], 0)
            result[plane, top : (row + 1) * height - rows[0], left : (col + 1) * width - cols[0]] = False
    return result


def window_of(rows: Span, cols: Span) -> Window:
    """The window of a region, as rasterio takes it."""
    return Window(cols[0], rows[0], cols[1] - cols[0], rows[1] - rows[0])


def looks_like_opacity(dataset: Any, band: int) -> bool:
    """Whether a band marked as alpha is one: it holds only 0 and the highest number, in squares spread over the raster.

    GDAL marks the fourth band of every four-band file of bytes as alpha unless it is told not to, infrared included.
    """
    most = np.iinfo(dataset.dtypes[band - 1]).max if np.dtype(dataset.dtypes[band - 1]).kind in "iu" else 1
    for row, col in product(*(_spots(length) for length in (dataset.height, dataset.width))):
        try:
            values = dataset.read(band, window=window_of(row, col))
        except RasterioError:
            # Whoever reads these pixels says what is wrong with them.
            return False
        if not np.isin(values, (0, most)).all():
            return False
    return True


def _spots(length: int) -> list[Span]:
    size = min(_SPOT_PX, length)
    return [(int(first), int(first) + size) for first in np.unique(np.linspace(0, length - size, _SPOTS).astype(int))]


def _block_planes(dataset: Any) -> int:
    """Bands that have blocks of their own: 1 where all bands of a pixel lie together."""
    together = dataset.interleaving is not None and dataset.interleaving.value == "PIXEL"
    return 1 if together else int(dataset.count)


def _is_written(dataset: Any, row: int, col: int, plane: int) -> bool:
    return dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=plane + 1) is not None


def _has_unwritten(dataset: Any) -> bool:
    height, width = dataset.block_shapes[0]
    shape = -(-dataset.height // height), -(-dataset.width // width)
    n_planes = _block_planes(dataset)
    if shape[0] * shape[1] * n_planes > MOST_BLOCKS:
        return True
    everything = product(range(shape[0]), range(shape[1]), range(n_planes))
    return not all(_is_written(dataset, *block) for block in everything)


def stamp_of(paths: Sequence[str | Path]) -> Stamp:
    """What tells some files and their sidecars from others.

    Raises:
        OSError: One of the files is gone.
    """
    facts: list[tuple[str, int, int]] = []
    for path in map(str, paths):
        stem = os.path.splitext(path)[0]
        stat = os.stat(path)
        facts.append((path, stat.st_size, stat.st_mtime_ns))
        for beside in (*(path + ending for ending in SIDECARS), *(stem + ending for ending in WORLD_FILES)):
            with suppress(FileNotFoundError):
                stat = os.stat(beside)
                facts.append((beside, stat.st_size, stat.st_mtime_ns))
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:32] if len(facts) > 1 else ""
    return sum(size for _, size, _ in facts), max(changed for *_, changed in facts), digest


def foreign_sidecar(path: str, overviews: Mapping[str, str]) -> str | None:
    """Return what a raster has GDAL open beside it that is no part of it; None = nothing.

    Masks and overviews are opened with any driver, so a text that names other files would do, and metadata can name
    any file as the one with the overviews.

    Args:
        path: The raster.
        overviews: Its metadata of the domain OVERVIEWS.
    """
    named = [value for key, value in overviews.items() if key.upper() == "OVERVIEW_FILE"]
    if named:
        return f"names {named[0]!r} as the file of its overviews"
    for ending in SIDECARS:
        if ending == ".aux.xml":
            continue
        with suppress(FileNotFoundError), open(path + ending, "rb") as stream:
            if stream.read(4) not in _TIFF:
                return f"has {os.path.basename(path)}{ending} beside it, which is no TIFF"
    return None
