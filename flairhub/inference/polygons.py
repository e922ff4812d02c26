"""Class maps as polygons: piece by piece, joined across the borders of pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize, shapes
from rasterio.transform import Affine
from shapely.geometry import shape as to_shape

from flairhub.geo import GeoBox
from flairhub.tasks import IGNORE_INDEX

Span = tuple[int, int]
ReadPiece = Callable[[Span, Span], tuple[NDArray[np.uint8], NDArray[np.float32]]]
PolygonFormat = Literal["gpkg", "parquet"]


@dataclass
class Polygons:
    """Polygons of a class map, in pixel coordinates (column, row).

    Attributes:
        geometry: Polygons; exact, because all coordinates are whole numbers.
        classes: Class of each.
        confidence: Sum of the pixels' confidence of each.
    """

    geometry: list[Any] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)


def trace(read: ReadPiece, height: int, width: int, piece_px: int) -> Polygons:
    """Trace the areas of equal class, connected by pixel edges; no data is left out.

    Args:
        read: Returns classes and confidence (0-1), both (y, x), of a range of rows and of columns.
        height: Of the map.
        width: Of the map.
        piece_px: How much is traced in one go; the result does not depend on it, but for the order of vertices.
    """
    found = Polygons()
    parent: list[int] = []
    above: NDArray[np.int64] | None = None
    for top in range(0, height, piece_px):
        rows = top, min(top + piece_px, height)
        bottom = np.full(width, -1, dtype=np.int64)
        upper = np.full(width, -1, dtype=np.int64)
        left: NDArray[np.int64] | None = None
        for first in range(0, width, piece_px):
            cols = first, min(first + piece_px, width)
            ids = _trace_piece(found, *read(rows, cols), rows[0], cols[0])
            parent.extend(range(len(parent), len(found.classes)))
            if left is not None:
                _join(parent, found.classes, left, ids[:, 0])
            left = ids[:, -1]
            upper[cols[0] : cols[1]], bottom[cols[0] : cols[1]] = ids[0], ids[-1]
        if above is not None:
            _join(parent, found.classes, above, upper)
        above = bottom
    return _dissolved(found, parent)


def _trace_piece(
    found: Polygons, classes: NDArray[np.uint8], confidence: NDArray[np.float32], top: int, left: int
) -> NDArray[np.int64]:
    """Add the polygons of a piece and return which one every pixel belongs to, -1 = none."""
    move = Affine.translation(left, top)
    traced = list(shapes(classes, mask=classes != IGNORE_INDEX, connectivity=4, transform=move))
    first = len(found.classes)
    if not traced:
        return np.full(classes.shape, -1, dtype=np.int64)
    burnt = [(geometry, number + 1) for number, (geometry, _) in enumerate(traced)]
    ids = rasterize(burnt, out_shape=classes.shape, transform=move, dtype="int32").astype(np.int64) - 1
    inside = ids >= 0
    sums = np.bincount(ids[inside], weights=confidence[inside].astype(np.float64), minlength=len(traced))
    found.geometry += [to_shape(geometry) for geometry, _ in traced]
    found.classes += [int(value) for _, value in traced]
    found.confidence += sums.tolist()
    return np.where(inside, ids + first, -1)


def _join(parent: list[int], classes: Sequence[int], a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
    """Mark polygons of one class that share an edge as one."""
    both = (a >= 0) & (b >= 0)
    for one, other in np.unique(np.stack([a[both], b[both]], axis=1), axis=0).tolist():
        if classes[one] == classes[other]:
            roots = sorted((_root(parent, one), _root(parent, other)))
            parent[roots[1]] = roots[0]


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _dissolved(found: Polygons, parent: list[int]) -> Polygons:
    members: dict[int, list[int]] = {}
    for index in range(len(parent)):
        members.setdefault(_root(parent, index), []).append(index)
    result = Polygons()
    for root, parts in members.items():
        geometry = found.geometry[root]
        if len(parts) > 1:
            # Seams leave vertices on straight lines.
            geometry = shapely.union_all([found.geometry[part] for part in parts]).simplify(0)
        result.geometry.append(geometry)
        result.classes.append(found.classes[root])
        result.confidence.append(float(sum(found.confidence[part] for part in parts)))
    return result


def write_polygons(
    polygons: Polygons, names: Sequence[str], box: GeoBox, path: Path, kind: PolygonFormat, min_area_m2: float = 0.0
) -> None:
    """Write polygons with `class`, `name`, `area_m2` and `confidence` (mean over their pixels, 0-1).

    Args:
        polygons: From `trace`.
        names: Class names in index order.
        box: Grid of the map.
        path: File to write.
        kind: GeoPackage or GeoParquet.
        min_area_m2: Smaller polygons are left out.
    """
    import geopandas
    import pyogrio

    pixels = shapely.area(np.array(polygons.geometry, dtype=object)) if polygons.geometry else np.zeros(0)
    area_m2 = pixels * box.x_res * box.y_res
    keep = np.flatnonzero(area_m2 >= min_area_m2)

    def placed(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([box.x_min + xy[:, 0] * box.x_res, box.y_max - xy[:, 1] * box.y_res])

    geometry = [shapely.transform(polygons.geometry[index], placed) for index in keep]
    columns = {
        "class": [polygons.classes[index] for index in keep],
        "name": [names[polygons.classes[index]] for index in keep],
        "area_m2": area_m2[keep],
        "confidence": [polygons.confidence[index] / pixels[index] for index in keep],
    }
    frame = geopandas.GeoDataFrame(columns, geometry=geometry, crs=box.crs_wkt)
    if kind == "parquet":
        frame.to_parquet(path)
        return
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2000-01-01T00:00:00.000Z"})
    try:
        frame.to_file(path, driver="GPKG", layer="polygons", engine="pyogrio", geometry_type="Polygon")
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
