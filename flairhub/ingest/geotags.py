"""Where a GeoTIFF lies, read from its tags: most of the time of opening a small file goes into building its CRS.

A data set has very few CRS. The first file with some GeoKeys is opened with all its georeferencing; when GDAL
finds the grid that the tags tell, later files with the same GeoKeys, byte by byte, have that CRS, and GDAL need not
build it again. Tags: TIFF 6.0, BigTIFF, OGC 19-008r4 (GeoTIFF 1.1).
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

from flairhub.geo import GeoBox
from flairhub.tiff import KEYS, MATRIX, NEXT, SCALE, TIE_POINT, Read, first_directory

_RASTER_TYPE, _PIXEL_IS_POINT = 1025, 2

_known: dict[bytes, str] = {}
"""CRS (WKT) by GeoKeys."""


class GeoTags(NamedTuple):
    """The georeferencing tags of a plain north-up file.

    Attributes:
        keys: Byte order and GeoKeys as stored.
        x_min: Left edge.
        y_max: Upper edge.
        x_res: Pixel width, above 0.
        y_res: Pixel height, above 0.
        more: The file holds another image, such as a mask.
    """

    keys: bytes
    x_min: float
    y_max: float
    x_res: float
    y_res: float
    more: bool = False

    def box(self, height: int, width: int) -> GeoBox | None:
        """Return the grid when the CRS of these GeoKeys is known."""
        wkt = _known.get(self.keys)
        return None if wkt is None else GeoBox(wkt, *self[1:5], height, width)

    def learn(self, box: GeoBox) -> None:
        """Remember the CRS, if the grid that GDAL found is the one of the tags."""
        if box.crs_wkt and (box.x_min, box.y_max, box.x_res, box.y_res) == self[1:5]:
            if len(_known) >= 64:
                _known.clear()
            _known[self.keys] = box.crs_wkt


def read_geotags(read: Read) -> GeoTags | None:
    """Return the tags of a file, or None when anything about them is unusual: then GDAL must look.

    Args:
        read: Gives bytes of the file.
    """
    try:
        tags = first_directory(read)
        keys = [tags.get(tag, b"") for tag in KEYS]
        order = tags[0].decode()
        if MATRIX in tags or not keys[0] or _is_point(keys[0], order):
            return None
        scale = struct.unpack(order + "3d", tags[SCALE])
        tie = struct.unpack(order + "6d", tags[TIE_POINT])
    except (struct.error, KeyError, ValueError, OverflowError, OSError):
        return None
    if scale[0] <= 0 or scale[1] <= 0 or not all(map(math.isfinite, (*scale, *tie))):
        return None
    x_min, y_max = tie[3] - tie[0] * scale[0], tie[4] + tie[1] * scale[1]
    return GeoTags(tags[0] + b"|".join(keys), x_min, y_max, scale[0], scale[1], any(tags[NEXT]))


def _is_point(keys: bytes, order: str) -> bool:
    """True when pixels are points, whose corner GDAL shifts by half a pixel."""
    values = struct.unpack(f"{order}{len(keys) // 2}H", keys)
    return any(values[i] == _RASTER_TYPE and values[i + 3] == _PIXEL_IS_POINT for i in range(4, len(values) - 3, 4))
