"""The area of interest of a zone: polygons in its pixels, and which pixels have their centre in them.

Polygons are cut into parts of few vertices along borders of pixels, where no centre lies, and found through a tree: a
question costs what lies near the place, of however many or large polygons.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product
from threading import Lock
from typing import Any

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray

from flairhub.geo import GeoBox
from flairhub.zones.raster import Span

_TILE_PX = 256
"""Pixels are decided in squares of this length, counted from the zone's corner: the same way for every region."""

_MOST_VERTICES = 256
_MOST_PREPARED = 8
_MOST_OUTLINED = 20_000
_CELLS = 64
_ONE = Fraction(1)


@dataclass(frozen=True, eq=False)
class Area:
    """Polygons in finest pixels of a zone: x = column, y = row, whole numbers at the borders of pixels.

    Small, and can be pickled; a process prepares the polygons of an area once.

    Attributes:
        name: What names it in messages and tags.
        digest: sha256 of the polygons.
        packed: The polygons, clipped to the zone: compressed WKB.
        bounds: (left, top, right, bottom), finest pixels.
        n_repaired: Geometries that were invalid, and were made valid.
        reaches_beyond: Some of what was given lies outside the zone.
    """

    name: str
    digest: str
    packed: bytes
    bounds: tuple[float, float, float, float]
    n_repaired: int = 0
    reaches_beyond: bool = False

    @classmethod
    def of(cls, name: str, polygons: NDArray[Any]) -> Area:
        """Make an area of valid polygons that lie in the zone, (polygon,), in finest pixels."""
        parts = _cut(polygons)
        wkb = shapely.to_wkb(shapely.multipolygons(parts))
        bounds = shapely.total_bounds(parts).tolist()
        return cls(name, hashlib.sha256(wkb).hexdigest(), zlib.compress(wkb, 1), tuple(bounds))

    def __repr__(self) -> str:
        return f"<Area {self.name}: {self.n_px:.0f} px>"

    @property
    def n_px(self) -> float:
        """Its size in finest pixels; what several polygons cover counts once."""
        return _prepared(self).n_px

    def outline(self, box: GeoBox) -> Any:
        """Return it as one shapely geometry in the CRS of the zone, whose grid is `box`.

        Of very many polygons or vertices it is the squares that hold them, 1/64 of its length each.
        """
        prepared = _prepared(self)
        shape = shapely.union_all(prepared.parts if prepared.is_simple else prepared.cells[prepared.members[0]])

        def placed(xy: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.column_stack([box.x_min + xy[:, 0] * box.x_res, box.y_max - xy[:, 1] * box.y_res])

        return shapely.transform(shape, placed)

    def mask(self, rows: Span, cols: Span, ratio: Fraction = _ONE) -> NDArray[np.bool_]:
        """Return which pixels have their centre inside.

        Args:
            rows: First row and one past the last.
            cols: Likewise for columns.
            ratio: Finest pixels per pixel.

        Returns:
            (y, x) bool.
        """
        result = np.zeros((rows[1] - rows[0], cols[1] - cols[0]), dtype=bool)
        for top, left, tile in self._tiles(rows, cols, ratio):
            size = _TILE_PX
            y = slice(max(rows[0], top), min(rows[1], top + size))
            x = slice(max(cols[0], left), min(cols[1], left + size))
            target = slice(y.start - rows[0], y.stop - rows[0]), slice(x.start - cols[0], x.stop - cols[0])
            result[target] = tile[y.start - top : y.stop - top, x.start - left : x.stop - left]
        return result

    def touches(self, rows: ArrayLike, cols: ArrayLike, ratio: Fraction = _ONE) -> NDArray[np.bool_]:
        """Return which regions hold a pixel whose centre is inside.

        Args:
            rows: (region, 2): first row and one past the last.
            cols: (region, 2): likewise for columns.
            ratio: Finest pixels per pixel.

        Returns:
            (region,) bool.
        """
        y, x = np.asarray(rows).reshape(-1, 2), np.asarray(cols).reshape(-1, 2)
        scale, prepared = float(ratio), _prepared(self)
        boxes = shapely.box(x[:, 0] * scale, y[:, 0] * scale, x[:, 1] * scale, y[:, 1] * scale)
        region, part = prepared.tree.query(boxes, predicate="intersects")
        pieces = prepared.clipped(part, boxes[region])
        # Jarník: a shape holds as many points of a lattice as its area, give or take its perimeter.
        sure = shapely.area(pieces) > 2 * scale * shapely.length(pieces)
        result = np.zeros(len(boxes), dtype=bool)
        result[region[sure]] = True
        for index in np.setdiff1d(region, np.flatnonzero(result)).tolist():
            span = tuple(y[index].tolist()), tuple(x[index].tolist())
            result[index] = any(self.mask(*part, ratio).any() for part in _pieces(*span))
        return result

    def around(self, rows: Span, cols: Span, ratio: Fraction = _ONE) -> tuple[Span, Span] | None:
        """Return the rows and columns of a region beyond which nothing of it is inside; None = nothing is.

        It looks at polygons, not at pixels: the outermost may have their centre outside.
        """
        prepared, scale = _prepared(self), float(ratio)
        box = shapely.box(cols[0] * scale, rows[0] * scale, cols[1] * scale, rows[1] * scale)
        near = prepared.tree.query(box, predicate="intersects")
        if not near.size:
            return None
        left, top, right, bottom = shapely.total_bounds(prepared.clipped(near, box)) / scale
        y = max(rows[0], int(np.floor(top))), min(rows[1], int(np.ceil(bottom)))
        x = max(cols[0], int(np.floor(left))), min(cols[1], int(np.ceil(right)))
        return (y, x) if y[0] < y[1] and x[0] < x[1] else None

    def _tiles(self, rows: Span, cols: Span, ratio: Fraction) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
        """First row, first column and mask of the tiles of a region that have something inside."""
        from rasterio.features import rasterize
        from rasterio.transform import Affine

        size, scale, prepared = _TILE_PX, float(ratio), _prepared(self)
        tiles = list(product(range(rows[0] // size, -(-rows[1] // size)), range(cols[0] // size, -(-cols[1] // size))))
        corners = np.array(tiles, dtype=np.float64).reshape(-1, 2) * size * scale
        y, x, length = corners[:, 0], corners[:, 1], size * scale
        tile, part = prepared.tree.query(shapely.box(x, y, x + length, y + length))
        order = np.argsort(tile, kind="stable")
        starts = np.flatnonzero(np.diff(tile[order], prepend=-1))
        for index, members in zip(tile[order][starts].tolist(), np.split(part[order], starts[1:]), strict=False):
            top, left = (number * size for number in tiles[index])
            transform = Affine(scale, 0.0, left * scale, 0.0, scale, top * scale)
            burnt = rasterize(prepared.parts[members], (size, size), transform=transform, dtype="uint8")
            yield top, left, burnt.astype(bool)


def _pieces(rows: Span, cols: Span) -> Iterator[tuple[Span, Span]]:
    """Tile by tile: a search ends at the first pixel."""
    size = _TILE_PX
    for row, col in product(range(rows[0] // size, -(-rows[1] // size)), range(cols[0] // size, -(-cols[1] // size))):
        yield (
            (max(rows[0], row * size), min(rows[1], (row + 1) * size)),
            (max(cols[0], col * size), min(cols[1], (col + 1) * size)),
        )


class _Prepared:
    """Polygons of an area with the tree that finds them."""

    def __init__(self, packed: bytes):
        self.parts: NDArray[Any] = shapely.get_parts(shapely.from_wkb(zlib.decompress(packed)))
        self.tree = shapely.STRtree(self.parts)

    def clipped(self, part: NDArray[np.int64], boxes: Any) -> NDArray[Any]:
        """Parts by number, each clipped to its box, or all to one."""
        clipped = self.parts[part]
        boxes = np.broadcast_to(boxes, clipped.shape)
        a, b = shapely.bounds(clipped), shapely.bounds(boxes)
        beyond = (a[:, :2] < b[:, :2]).any(axis=1) | (a[:, 2:] > b[:, 2:]).any(axis=1)
        clipped[beyond] = shapely.intersection(clipped[beyond], boxes[beyond])
        return clipped

    @property
    def is_simple(self) -> bool:
        return int(shapely.get_num_coordinates(self.parts).sum()) <= _MOST_OUTLINED

    @cached_property
    def cells(self) -> NDArray[Any]:
        """Squares, 64 along the longer side, that cover all parts; of whole pixels."""
        left, top, right, bottom = shapely.total_bounds(self.parts)
        size = max(1, int(np.ceil(max(right - left, bottom - top) / _CELLS)))
        x, y = np.meshgrid(np.arange(np.floor(left), right, size), np.arange(np.floor(top), bottom, size))
        return np.asarray(shapely.box(x, y, x + size, y + size)).ravel()

    @cached_property
    def members(self) -> NDArray[np.int64]:
        """(2, pair): cell and part, of those that meet."""
        return np.asarray(self.tree.query(self.cells, predicate="intersects"))

    @cached_property
    def n_px(self) -> float:
        """Area. Cell by cell: the union of very many polygons in one go takes minutes."""
        cell, part = self.members
        pieces = self.clipped(part, self.cells[cell])
        order = np.argsort(cell, kind="stable")
        groups = np.split(pieces[order], np.flatnonzero(np.diff(cell[order])) + 1)
        return float(sum(shapely.union_all(group).area if len(group) > 1 else group[0].area for group in groups))


_PREPARED: OrderedDict[str, _Prepared] = OrderedDict()
_GUARD = Lock()


def _prepared(area: Area) -> _Prepared:
    with _GUARD:
        if area.digest not in _PREPARED:
            _PREPARED[area.digest] = _Prepared(area.packed)
            while len(_PREPARED) > _MOST_PREPARED:
                _PREPARED.popitem(last=False)
        _PREPARED.move_to_end(area.digest)
        return _PREPARED[area.digest]


def polygons_in(geometries: NDArray[Any]) -> NDArray[Any]:
    """Return the polygons among geometries and in their collections, those without area left out."""
    parts = shapely.get_parts(shapely.get_parts(geometries))
    return parts[(shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & (shapely.area(parts) > 0)]


def _cut(polygons: NDArray[Any]) -> NDArray[Any]:
    """Halve large polygons along borders of pixels until they are small."""
    small, large = [], list(polygons)
    while large:
        polygon = large.pop()
        left, top, right, bottom = polygon.bounds
        wide = right - left >= bottom - top
        low, high = (left, right) if wide else (top, bottom)
        middle = round((low + high) / 2)
        if not low < middle < high or shapely.get_num_coordinates(polygon) <= _MOST_VERTICES:
            small.append(polygon)
            continue
        for first, last in ((low, middle), (middle, high)):
            box = (first, top, last, bottom) if wide else (left, first, right, last)
            half = shapely.clip_by_rect(polygon, *box)
            if not half.is_valid:  # as the quick way may be where rings touch
                half = shapely.intersection(polygon, shapely.box(*box))
            large += polygons_in(np.array([half])).tolist()
    return np.array(small)
