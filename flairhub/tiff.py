"""The georeferencing tags of a TIFF, as its bytes hold them: TIFF 6.0, BigTIFF, OGC 19-008r4 (GeoTIFF 1.1)."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import TypeVar

Read = Callable[[int, int], bytes]
"""`read(length, offset)`: bytes of a file, as `os.pread` without its descriptor."""

Result = TypeVar("Result")

SCALE, TIE_POINT, MATRIX = 33550, 33922, 34264
KEYS = (34735, 34736, 34737)
NEXT = -1
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 11: 4, 12: 8, 16: 8}
_MOST_ENTRIES = 200
_MOST_BYTES = 8192
_HEAD_BYTES = 1024


def first_directory(read: Read) -> dict[int, bytes]:
    """Return the georeferencing tags of the first image as stored.

    Under 0 the byte order, `<` or `>`; under `NEXT` where the directory of the next image lies, zeros if nowhere.

    Raises:
        ValueError, KeyError, struct.error: It is no TIFF, cut off, or has more tags than any plain file.
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
    tags = {0: order.encode(), NEXT: table[-inline:]}
    for place in range(0, count * width, width):
        tag, kind, number = struct.unpack_from(entry_format, table, place)
        if tag in (SCALE, TIE_POINT, MATRIX, *KEYS):
            length = _SIZES[kind] * number
            if length > _MOST_BYTES:
                raise ValueError("too long")
            value = table[place + fields : place + width]
            offset = int.from_bytes(value, "little" if order == "<" else "big")
            tags[tag] = value[:length] if length <= inline else at(offset, length)
    return tags


def read_with(path: str, parse: Callable[[Read], Result]) -> Result | None:
    """Return what `parse` makes of the bytes of a file; None where it does not open."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return parse(lambda length, offset: os.pread(descriptor, length, offset))
    finally:
        os.close(descriptor)


def has_no_place(read: Read) -> bool:
    """Return True for a TIFF with a pixel size and nothing that says where its pixels lie; GDAL takes (0, 0) then."""
    try:
        tags = first_directory(read)
    except (struct.error, KeyError, ValueError, OverflowError, OSError):
        return False
    # A tie point has six numbers of eight bytes.
    return SCALE in tags and MATRIX not in tags and len(tags.get(TIE_POINT, b"")) < 48
