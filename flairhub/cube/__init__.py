"""The cube: on-disk format, reader, lazy views. See docs/cube-format.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flairhub.cube.cube import Cube, open_cube
from flairhub.cube.reader import ArrayReader
from flairhub.cube.table import AverageInfo, PatchTable, SeriesInfo

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ArrayReader", "AverageInfo", "Cube", "PatchTable", "SeriesInfo", "open_cube", "open_roi"]


def open_roi(cube: Cube | str | Path, roi: str) -> xr.DataTree:
    """Return one ROI as lazy mosaics over the cube's chunks.

    Args:
        cube: An open cube, its path or URL.
        roi: Name of the ROI, see `flairhub.cube.roi.open_roi`, which says what is returned.

    Raises:
        CubeError: No cube, unknown or ambiguous ROI, or patches that do not lie on one lattice.
    """
    return open_cube(cube).roi(roi)
