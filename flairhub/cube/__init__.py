"""The cube: on-disk format, reader, lazy views. See docs/cube-format.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flairhub.cube.cube import Cube, open_cube
from flairhub.cube.reader import ArrayReader
from flairhub.cube.table import AverageInfo, PatchTable, SeriesInfo

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ArrayReader", "AverageInfo", "Cube", "PatchTable", "SeriesInfo", "open_cube", "open_roi"]


def open_roi(cube: Any, roi: str) -> xr.DataTree:
    """Return one ROI as lazy mosaics; see `flairhub.cube.roi.open_roi`."""
    from flairhub.cube.roi import open_roi as open_roi_of_cube

    return open_roi_of_cube(cube, roi)
