"""Where a GeoTIFF lies, read from its tags: most of the time of opening a small file goes into building its CRS.

A data set has very few CRS. The first file with some GeoKeys is opened with all its georeferencing; when GDAL
finds the grid that the tags tell, later files with the same GeoKeys, byte by byte, have that CRS, and GDAL need not
build it again. Tags: TIFF 6.0, BigTIFF, OGC 19-008r4 (GeoTIFF 1.1).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import NamedTuple

from flairhub.geo import GeoBox

Read = Callable[[int, int], bytes]
"""`read(length, offset)`: bytes of a file, as `os.pread` without its descriptor."""

_SCALE, _TIE_POINT, _MATRIX = 33550, 33922, 34264
_KEYS = (34735, 34736, 34737)
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 11: 4, 12: 8, 16: 8}
_NEXT = -1
_RASTER_TYPE, _PIXEL_IS_POINT = 1025, 2
_MOST_ENTRIES = 200
_MOST_BYTES = 8192
_HEAD_BYTES = 1024

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
        tags = _first_directory(read)
        keys = [tags.get(tag, b"") for tag in _KEYS]
        order = tags[0].decode()
        if _MATRIX in tags or not keys[0] or _is_point(keys[0], order):
            return None
        scale = struct.unpack(order + "3d", tags[_SCALE])
        tie = struct.unpack(order + "6d", tags[_TIE_POINT])
    except (struct.error, KeyError, ValueError, OverflowError, OSError):
        return None
    if scale[0] <= 0 or scale[1] <= 0 or not all(map(math.isfinite, (*scale, *tie))):
        return None
    x_min, y_max = tie[3] - tie[0] * scale[0], tie[4] + tie[1] * scale[1]
    return GeoTags(tags[0] + b"|".join(keys), x_min, y_max, scale[0], scale[1], any(tags[_NEXT]))


def _first_directory(read: Read) -> dict[int, bytes]:
    """Return the wanted tags of the first image as stored.

    Under 0 the byte order, `<` or `>`; under `_NEXT` where the directory of the next image lies, zeros if nowhere.
    """
    head = read(_HEAD_BYTES, 0)
    order = {b"II": "<", b"MM": ">"}[head[:2]]
    (magic,) = struct.unpack_from(order + "H", head, 2)
    big = {42: False, 43: True}[magic]
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    count_format, entry_format, inline = (order + "Q", order + "HHQ", 8) if big else (order + "H", order + "HHI", 4)

    def at(offset: int, length: int) -> bytes:
        cached = head[offset : offset + length]
        data = cached if len(cached) == length else read(length, offset)
        if len(data) != length:
            raise ValueError("cut off")
        return data

    count_bytes, fields = struct.calcsize(count_format), struct.calcsize(entry_format)
    (count,) = struct.unpack(count_format, at(start, count_bytes))
    if count > _MOST_ENTRIES:
        raise ValueError("no plain directory")
    width = fields + inline
    table = at(start + count_bytes, count * width + inline)
    tags = {0: order.encode(), _NEXT: table[-inline:]}
    for place in range(0, count * width, width):
        tag, kind, number = struct.unpack_from(entry_format, table, place)
        if tag in (_SCALE, _TIE_POINT, _MATRIX, *_KEYS):
            length = _SIZES[kind] * number
            if length > _MOST_BYTES:
                raise ValueError("too long")
            value = table[place + fields : place + width]
            offset = int.from_bytes(value, "little" if order == "<" else "big")
            tags[tag] = value[:length] if length <= inline else at(offset, length)
    return tags


def _is_point(keys: bytes, order: str) -> bool:
    """True when pixels are points, whose corner GDAL shifts by half a pixel."""
    values = struct.unpack(f"{order}{len(keys) // 2}H", keys)
    return any(values[i] == _RASTER_TYPE and values[i + 3] == _PIXEL_IS_POINT for i in range(4, len(values) - 3, 4))
