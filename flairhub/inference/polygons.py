"""Class maps as polygons: piece by piece, joined across the borders of pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize, shapes
from rasterio.transform import Affine
from shapely.geometry import shape as to_shape

from flairhub.geo import GeoBox, area_note, geopackage_time
from flairhub.tasks import IGNORE_INDEX

Span = tuple[int, int]
ReadPiece = Callable[[Span, Span], tuple[NDArray[np.uint8], NDArray[np.float32]]]
PolygonFormat = Literal["gpkg", "parquet"]

AREA_KEY = "AREA"
"""Metadata of polygons that says how far `area_m2` is from the area on the ground."""


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


@dataclass
class _Open:
    """Parts of areas that may go on below, by number.

    Attributes:
        geometry: Polygon of each part.
        classes: Class of each.
        confidence: Sum of the pixels' confidence of each.
        parent: A part of the same area with a smaller number, or the part itself.
        count: Parts so far, those that have ended included.
    """

    geometry: dict[int, Any] = field(default_factory=dict)
    classes: dict[int, int] = field(default_factory=dict)
    confidence: dict[int, float] = field(default_factory=dict)
    parent: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def add(self, geometry: Any, value: int, confidence: float) -> None:
        number, self.count = self.count, self.count + 1
        self.geometry[number], self.classes[number], self.confidence[number] = geometry, value, confidence
        self.parent[number] = number

    def root(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def join(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        """Mark parts of one class that share an edge as one area."""
        both = (a >= 0) & (b >= 0)
        for one, other in np.unique(np.stack([a[both], b[both]], axis=1), axis=0).tolist():
            if self.classes[one] == self.classes[other]:
                roots = sorted((self.root(one), self.root(other)))
                self.parent[roots[1]] = roots[0]

    def finished(self, lowest: NDArray[np.int64]) -> Polygons:
        """Give up and return the areas that have no part in the lowest row (column,), -1 = none."""
        going_on = {self.root(number) for number in np.unique(lowest[lowest >= 0]).tolist()}
        members: dict[int, list[int]] = {}
        for number in self.parent:
            root = self.root(number)
            if root not in going_on:
                members.setdefault(root, []).append(number)
        result = Polygons()
        for root, parts in members.items():
            geometry = self.geometry[root]
            if len(parts) > 1:
                # Seams leave vertices on straight lines.
                geometry = shapely.union_all([self.geometry[part] for part in parts]).simplify(0)
            result.geometry.append(geometry)
            result.classes.append(self.classes[root])
            result.confidence.append(float(sum(self.confidence[part] for part in parts)))
        for number in [number for parts in members.values() for number in parts]:
            del self.geometry[number], self.classes[number], self.confidence[number], self.parent[number]
        return result


def trace(read: ReadPiece, height: int, width: int, piece_px: int) -> Iterator[Polygons]:
    """Trace the areas of equal class, connected by pixel edges; no data is left out.

    Areas are joined across pieces, and given as soon as they end: only those that go on below stay in memory.

    Args:
        read: Returns classes and confidence (0-1), both (y, x), of a range of rows and of columns.
        height: Of the map.
        width: Of the map.
        piece_px: How much is traced in one go; the areas do not depend on it, only the order of polygons and vertices.

    Yields:
        The areas that end in a row of pieces, for every row.
    """
    areas = _Open()
    above: NDArray[np.int64] | None = None
    for top in range(0, height, piece_px):
        rows = top, min(top + piece_px, height)
        bottom = np.full(width, -1, dtype=np.int64)
        upper = np.full(width, -1, dtype=np.int64)
        left: NDArray[np.int64] | None = None
        for first in range(0, width, piece_px):
            cols = first, min(first + piece_px, width)
            numbers = _trace_piece(areas, *read(rows, cols), rows[0], cols[0])
            if left is not None:
                areas.join(left, numbers[:, 0])
            left = numbers[:, -1]
            upper[cols[0] : cols[1]], bottom[cols[0] : cols[1]] = numbers[0], numbers[-1]
        if above is not None:
            areas.join(above, upper)
        above = bottom
        last = rows[1] == height
        yield areas.finished(np.full(0, -1, dtype=np.int64) if last else bottom)


def _trace_piece(
    areas: _Open, classes: NDArray[np.uint8], confidence: NDArray[np.float32], top: int, left: int
) -> NDArray[np.int64]:
    """Add the polygons of a piece and return the number of the one that every pixel belongs to, -1 = none."""
    move = Affine.translation(left, top)
    traced = list(shapes(classes, mask=classes != IGNORE_INDEX, connectivity=4, transform=move))
    first = areas.count
    if not traced:
        return np.full(classes.shape, -1, dtype=np.int64)
    burnt = [(geometry, number + 1) for number, (geometry, _) in enumerate(traced)]
    ids = rasterize(burnt, out_shape=classes.shape, transform=move, dtype="int32").astype(np.int64) - 1
    inside = ids >= 0
    sums = np.bincount(ids[inside], weights=confidence[inside].astype(np.float64), minlength=len(traced))
    for (geometry, value), total in zip(traced, sums.tolist(), strict=True):
        areas.add(to_shape(geometry), int(value), total)
    return np.where(inside, ids + first, -1)


def write_polygons(
    polygons: Iterable[Polygons],
    names: Sequence[str],
    box: GeoBox,
    path: Path,
    kind: PolygonFormat,
    min_area_m2: float = 0.0,
    with_confidence: bool = True,
) -> None:
    """Write polygons with `class`, `name`, `area_m2` and `confidence` (mean over their pixels, 0-1).

    Where the CRS shows areas larger or smaller than they are, the layer's metadata say so under `AREA`.

    Args:
        polygons: From `trace`. A GeoPackage is written batch by batch; GeoParquet needs all of them in memory.
        names: Class names in index order.
        box: Grid of the map.
        path: File to write; must not exist.
        kind: GeoPackage or GeoParquet.
        min_area_m2: Smaller polygons are left out.
        with_confidence: Write the column `confidence`.
    """
    left_out = [] if with_confidence else ["confidence"]
    note = area_note(box)
    frames = (_frame(batch, names, box, min_area_m2).drop(columns=left_out) for batch in polygons)
    if kind == "parquet":
        import pandas as pd

        pd.concat(list(frames), ignore_index=True).to_parquet(path)
        if note:
            _note_in_parquet(path, note)
        return
    with geopackage_time():
        for frame in frames:
            if len(frame) or not path.exists():
                mode = "a" if path.exists() else "w"
                options: dict[str, Any] = {
                    "layer": "polygons",
                    "engine": "pyogrio",
                    "geometry_type": "Polygon",
                    "mode": mode,
                }
                if note and mode == "w":
                    options["layer_metadata"] = {AREA_KEY: note}
                frame.to_file(path, driver="GPKG", **options)


def _note_in_parquet(path: Path, note: str) -> None:
    from pyarrow import parquet

    table = parquet.read_table(path)
    parquet.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), AREA_KEY: note}), path)


def _frame(polygons: Polygons, names: Sequence[str], box: GeoBox, min_area_m2: float) -> Any:
    """Polygons on the map, as a GeoDataFrame."""
    import geopandas

    pixels = shapely.area(np.array(polygons.geometry, dtype=object)) if polygons.geometry else np.zeros(0)
    area_m2 = pixels * box.pixel_m2
    keep = np.flatnonzero(area_m2 >= min_area_m2)

    def placed(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([box.x_min + xy[:, 0] * box.x_res, box.y_max - xy[:, 1] * box.y_res])

    columns = {
        "class": np.array([polygons.classes[index] for index in keep], dtype=np.int64),
        "name": np.array([names[polygons.classes[index]] for index in keep], dtype=object),
        "area_m2": area_m2[keep],
        "confidence": np.array([polygons.confidence[index] / pixels[index] for index in keep], dtype=np.float64),
    }
    geometry = [shapely.transform(polygons.geometry[index], placed) for index in keep]
    return geopandas.GeoDataFrame(columns, geometry=geometry, crs=box.crs_wkt)
