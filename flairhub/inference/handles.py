"""Open rasters, kept between reads so that GDAL's block cache decodes a source tile once for neighbouring blocks."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import rasterio

MAX_OPEN = 32
"""Rasters kept open per process."""

_Key = tuple[int, str, int, int, int]


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
