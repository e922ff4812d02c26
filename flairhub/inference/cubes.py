"""Cubes as sources of a zone: a zone cube, or one region of interest of a patch cube."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.roi_zone import RoiZone, open_roi_zone
from flairhub.cube.zone import ZoneCube, open_zone_cube
from flairhub.cube.zone_spec import Span

ZONE_CUBE, ROI_VIEW = "zone cube", "region of interest"
CUBES = (ZONE_CUBE, ROI_VIEW)
"""What stands in `RasterSource.driver` where no GDAL driver opens it."""

_MOST_OPEN = 16


class CubeSource(Protocol):
    """What names a raster in a cube: a `RasterSource`."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def roi(self) -> str: ...
    @property
    def stamp(self) -> tuple[int, int]: ...


_OPEN: OrderedDict[Any, ZoneCube | RoiZone] = OrderedDict()
_GUARD = threading.Lock()


def cube_stamp(area: ZoneCube | RoiZone) -> tuple[int, int]:
    """Return what tells another cube at the same path: its plan as a number, and its time of change in ns."""
    plan = int(str(area.attributes["plan"])[:15], 16)
    file = area.path / "zarr.json"
    return plan, file.stat().st_mtime_ns if file.is_file() else 0


def read_cube(source: CubeSource, rows: Span, cols: Span) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return a region inside a raster: values (..., y, x) in native dtype, and the validity mask (y, x) or None.

    Raises:
        CubeError: A chunk is absent or damaged; names store, array and chunk.
    """
    return _opened(source).read(source.name, rows, cols)


def cube_dated(source: CubeSource, rows: Span, cols: Span) -> NDArray[np.bool_] | None:
    """Return (time, y, x) where a series of a region of interest has an image of that date; None = everywhere."""
    area = _opened(source)
    assert isinstance(area, RoiZone)
    return area.read_dated(source.name, rows, cols)


def same_dates(source: CubeSource) -> bool:
    """True unless patches of a region of interest differ in their dates."""
    area = _opened(source)
    return isinstance(area, ZoneCube) or area.same_dates(source.name)


def _opened(source: CubeSource) -> ZoneCube | RoiZone:
    """Return the open cube of a source; a process opens it once."""
    # Of a region only what is read is laid out: another modality of it may have trouble of its own.
    name = source.name if source.roi else None
    key = source.path, source.roi, source.stamp, name
    with _GUARD:
        if key not in _OPEN:
            _OPEN[key] = open_zone_cube(source.path) if name is None else open_roi_zone(source.path, source.roi, [name])
            while len(_OPEN) > _MOST_OPEN:
                _OPEN.popitem(last=False)
        _OPEN.move_to_end(key)
        return _OPEN[key]
