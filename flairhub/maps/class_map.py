"""A class map in xarray, however it is backed: its classes, its grid, and its pixels row by row."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rioxarray  # noqa: F401  (adds `.rio`)
import xarray as xr
from numpy.typing import NDArray
from rasterio.crs import CRS

from flairhub.class_raster import task_of_attributes
from flairhub.errors import DataError, UsageError
from flairhub.geo import ALIGNMENT_TOLERANCE_PX, GeoBox, crs_name, metres_per_unit
from flairhub.inference import checksum_of, scaled_confidence
from flairhub.tasks import IGNORE_INDEX, Task

ROWS = 2048
"""Rows that are read in one go where the map has no chunks."""

Span = tuple[int, int]


@dataclass(frozen=True)
class ClassMap:
    """A class map in xarray.

    Attributes:
        classes: (y, x) class indices; 255 or NaN = no data.
        task: Its classes.
        geobox: Its grid; `crs_wkt` is empty where the map has no CRS.
        confidence: (y, x) float 0-1, NaN = no data; None = unknown.
    """

    classes: xr.DataArray
    task: Task
    geobox: GeoBox
    confidence: xr.DataArray | None = None

    def pieces(self) -> Iterator[tuple[Span, NDArray[np.uint8], NDArray[np.uint8] | None]]:
        """Yield all rows, piece by piece, each block of a dask array computed once.

        Yields:
            Rows, (row, x) classes with 255 = no data, and (row, x) confidence scaled as on disk.

        Raises:
            DataError: Values that are no class of the task.
        """
        edges = np.append(np.arange(0, self.geobox.height, ROWS), self.geobox.height)
        if self.classes.chunks is not None:
            edges = np.append(0, np.cumsum(self.classes.chunks[0]))
        layers = {"classes": self.classes.variable}
        if self.confidence is not None:
            layers["confidence"] = self.confidence.variable
        both = xr.Dataset(layers)
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            rows = both.isel(y=slice(start, stop)).compute()
            confidence = None if self.confidence is None else scaled_confidence(rows["confidence"].values)
            yield (start, stop), self._indices(rows["classes"].values), confidence

    def _indices(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        if values.dtype.kind == "f":
            values = np.where(np.isnan(values), IGNORE_INDEX, values)
        wrong = np.unique(values[~np.isin(values, [*range(self.task.n_classes), IGNORE_INDEX])])
        if wrong.size:
            raise DataError(
                f"{self.task.label}: class values {wrong[:10].tolist()}, expected 0..{self.task.n_classes - 1} or "
                f"{IGNORE_INDEX}. Is it the right array? It shows {', '.join(self.task.names[:3])}, ..."
            )
        return values.astype(np.uint8)

    def values(self) -> NDArray[np.uint8]:
        """Return all classes, (y, x), 255 = no data."""
        return np.concatenate([classes for _, classes, _ in self.pieces()])

    @contextmanager
    def stored(self, folder: Path) -> Iterator[StoredMap]:
        """Compute the map once into a file without a name, for writers that read it more than once."""
        shape = (self.geobox.height, self.geobox.width)
        names = ["class"] if self.confidence is None else ["class", "confidence"]
        with ExitStack() as stack:
            arrays = {}
            for name in names:
                file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
                arrays[name] = np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
            for rows, classes, confidence in self.pieces():
                layers = (classes,) if confidence is None else (classes, confidence)
                for array, values in zip(arrays.values(), layers, strict=True):
                    array[slice(*rows)] = values
            yield StoredMap(arrays)

    def metric_box(self) -> GeoBox:
        """Return the grid.

        Raises:
            UsageError: Its unit is no length, or unknown.
        """
        if not self.geobox.crs_wkt:
            raise UsageError("the map has no CRS. Give it one: maps.rio.write_crs('EPSG:2154').")
        if metres_per_unit(self.geobox.crs_wkt) is None:
            name = crs_name(self.geobox.crs_wkt)
            raise UsageError(
                f"the map's CRS {name} does not count in metres, nor in feet. Warp it: maps.rio.reproject(...)."
            )
        return self.geobox


@dataclass(frozen=True)
class StoredMap:
    """`class` and `confidence` of a map, (y, x) uint8, to read as `flairhub.inference` reads its blocks."""

    arrays: Mapping[str, NDArray[np.uint8]]

    def read(self, array: str, rows: Span, cols: Span) -> NDArray[np.uint8]:
        """Return (y, x) of a range of rows and of columns."""
        return np.asarray(self.arrays[array][slice(*rows), slice(*cols)])

    def checksums(self, array: str) -> Iterator[tuple[Span, Span, int]]:
        """Yield rows, columns and checksum of the pieces of a layer."""
        height, width = self.arrays[array].shape
        for top in range(0, height, ROWS):
            rows = top, min(top + ROWS, height)
            yield rows, (0, width), checksum_of(self.read(array, rows, (0, width)))


def class_map(array: xr.DataArray, confidence: xr.DataArray | None = None) -> ClassMap:
    """Read the class table and the grid of a map.

    Args:
        array: (y, x), or with further dimensions of length one; its attributes hold the class table.
        confidence: Of the same pixels, 0-1.

    Raises:
        UsageError: Other dimensions, no class table, or an irregular, south-up or rotated grid.
    """
    plane = plane_of(array)
    sure = None if confidence is None else plane_of(confidence)
    return ClassMap(plane, task_of_attributes(array.attrs), grid_of(plane), sure)


def plane_of(array: xr.DataArray) -> xr.DataArray:
    """Return an array as (y, x), without dimensions of length one."""
    plane = array.squeeze([name for name, size in array.sizes.items() if size == 1 and name not in ("y", "x")])
    if set(plane.dims) != {"y", "x"}:
        raise UsageError(f"a class map has the dimensions (y, x), got {array.dims} of sizes {array.shape}.")
    return plane.transpose("y", "x")


def grid_of(array: xr.DataArray) -> GeoBox:
    """Return the grid of an array from its coordinates; the transform beside them gives the exact numbers."""
    if "x" not in array.coords or "y" not in array.coords:
        raise UsageError("the map has no coordinates x and y, centres of its pixels.")
    # Without decode_coords="all" xarray leaves the grid mapping of a stored map behind.
    crs = array.rio.crs or array.attrs.get("proj:wkt2", array.attrs.get("proj:code"))
    wkt = CRS.from_user_input(crs).to_wkt() if crs else ""
    stored = array.rio.transform()
    x_min, x_res = _axis(array["x"].values.astype(np.float64), stored.a, stored.c, "x")
    y_max, y_res = _axis(-array["y"].values.astype(np.float64), -stored.e, -stored.f, "y")
    return GeoBox(wkt, x_min, -y_max, x_res, y_res, array.sizes["y"], array.sizes["x"])


def _axis(centres: NDArray[np.float64], stored_res: float, stored_start: float, name: str) -> tuple[float, float]:
    """Left edge and pixel size of an axis that rises."""
    if not centres.size:
        raise UsageError(f"the map has no pixel along {name}.")
    res = (centres[-1] - centres[0]) / (len(centres) - 1) if len(centres) > 1 else stored_res
    even = centres[0] + res * np.arange(len(centres))
    if not res > 0 or np.abs(centres - even).max() > ALIGNMENT_TOLERANCE_PX * res:
        raise UsageError(f"the map's coordinate {name} is not regular and north-up (x rising, y falling).")
    start = centres[0] - res / 2
    # A slice keeps the transform of the whole: its start is a whole number of pixels away.
    if stored_res > 0 and abs(stored_res - res) * len(centres) <= ALIGNMENT_TOLERANCE_PX * res:
        away = round((start - stored_start) / stored_res)
        exact = stored_start + away * stored_res
        if abs(exact - start) <= ALIGNMENT_TOLERANCE_PX * res:
            return exact, stored_res
    return float(start), float(res)
