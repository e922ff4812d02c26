"""Prediction rasters: one GeoTIFF per patch, named and georeferenced like its label file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import DataError
from flairhub.geo import GeoBox
from flairhub.tasks import IGNORE_INDEX, Task
from flairhub.training.folder import write_atomically

if TYPE_CHECKING:
    from flairhub.cube import Cube


def prediction_name(cube: Cube, index: int, label: str) -> str:
    """Return `PRED_<label file name>` of a patch."""
    table = cube.patches
    domain, roi = table.domain[index], table.roi[index]
    return f"PRED_{domain}_{label}_{roi}_{table.row[index]}-{table.col[index]}.tif"


def label_grid(cube: Cube, index: int, label: str) -> GeoBox:
    """Return the grid of a patch's label."""
    table = cube.patches
    height, width = cube.array(label).shape[-2:]
    x_res, y_res = table.footprint_m[0] / width, table.footprint_m[1] / height
    return GeoBox(table.crs_wkt, float(table.x_min[index]), float(table.y_max[index]), x_res, y_res, height, width)


def write_prediction(path: Path, classes: NDArray[np.uint8], task: Task, grid: GeoBox | None) -> None:
    """Write a class raster and read it back before it gets its name.

    Args:
        path: Final name.
        classes: (y, x) class indices.
        task: Gives the colour table.
        grid: Georeferencing; None writes none.

    Raises:
        DataError: It cannot be written, or does not read back equal.
    """
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": classes.shape[0],
        "width": classes.shape[1],
        "nodata": IGNORE_INDEX,
        "compress": "deflate",
    }
    if grid is not None:
        from rasterio.crs import CRS
        from rasterio.transform import Affine

        profile["transform"] = Affine(*grid.transform)
        if grid.crs_wkt:
            profile["crs"] = CRS.from_wkt(grid.crs_wkt)

    def write(partial: Path) -> None:
        import rasterio
        from rasterio.errors import RasterioError

        try:
            with _ungeoreferenced_allowed():
                with rasterio.open(partial, "w", **profile) as target:
                    # The colour table first: it cannot be added to pixels that are on disk.
                    target.write_colormap(1, colour_table(task))
                    target.set_band_description(1, task.label)
                    target.write(classes, 1)
                written = read_classes(partial)
        except RasterioError as error:
            raise DataError(f"{path}: cannot be written: {error}") from error
        if not np.array_equal(written, classes):
            raise DataError(f"{path}: does not read back as written. Check the disk.")

    write_atomically(path, write)


def colour_table(task: Task) -> dict[int, tuple[int, int, int, int]]:
    """Return the RGBA colours of a task's classes; nodata is transparent."""
    colours = {row.index: (*row.colour, 255) for row in task.classes}
    return {**colours, IGNORE_INDEX: (0, 0, 0, 0)}


def read_classes(path: Path) -> NDArray[np.uint8]:
    """Return (y, x) uint8 of a class raster.

    Raises:
        DataError: Missing, unreadable, several bands, or not uint8.
    """
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with _ungeoreferenced_allowed(), rasterio.open(path, driver="GTiff") as source:
            if source.count != 1 or source.dtypes[0] != "uint8":
                raise DataError(f"{path}: got {source.count} bands of {source.dtypes[0]}, expected 1 of uint8.")
            values: NDArray[np.uint8] = source.read(1)
            return values
    except RasterioError as error:
        what = "cannot be read" if path.exists() else "is missing"
        raise DataError(f"{path}: {what}: {error}") from error


@contextmanager
def _ungeoreferenced_allowed() -> Iterator[None]:
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
