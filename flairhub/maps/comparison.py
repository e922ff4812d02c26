"""A map against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.class_raster import read_class_raster
from flairhub.confusion import Scores, confusion_matrix, strict_scores
from flairhub.errors import DataError, UsageError
from flairhub.geo import ALIGNMENT_TOLERANCE_PX, GeoBox, crs_name, geobox_of, same_crs
from flairhub.maps.class_map import ClassMap, grid_of, plane_of
from flairhub.tasks import IGNORE_INDEX, Task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Comparison:
    """Confusion of a map with the truth.

    Attributes:
        task: The classes.
        matrix: (class, class) int64 pixels, rows = truth, columns = map.
        ignored: Indices of classes that are not evaluated.
        unmapped_px: Pixels with truth where the map has no data; they do not count.
    """

    task: Task
    matrix: NDArray[np.int64] = field(repr=False)
    ignored: tuple[int, ...] = ()
    unmapped_px: int = 0

    @cached_property
    def scores(self) -> Scores:
        """Scores per class where only truth is ignored."""
        return strict_scores(self.matrix, self.ignored)

    @property
    def miou(self) -> float:
        """Mean IoU of the classes that are true or mapped; NaN when there is none."""
        return self.scores.mean("iou")

    @property
    def overall_accuracy(self) -> float:
        """Share of right pixels; NaN without a pixel."""
        return self.scores.overall_accuracy

    @property
    def table(self) -> pd.DataFrame:
        """One row per evaluated class, by class index: name, IoU, F-score, precision, recall (0-1), true pixels."""
        import pandas as pd

        columns = {name: getattr(self.scores, name) for name in ("iou", "f_score", "precision", "recall")}
        names = [self.task.names[index] for index in self.scores.classes]
        index = pd.Index(self.scores.classes, name="class")
        return pd.DataFrame({"name": names, **columns, "support_px": self.scores.support}, index=index)

    def __repr__(self) -> str:
        return (
            f"<Comparison {self.task.label}: mIoU {self.miou:.4f}, overall accuracy {self.overall_accuracy:.4f}, "
            f"{int(self.matrix.sum())} pixels>"
        )

    def _repr_html_(self) -> str:
        present = self.table.dropna(subset=["iou"])
        return f"<p>{escape(repr(self))}</p>{present.to_html(float_format='{:.4f}'.format)}"


def compare(mapped: ClassMap, truth: Any, ignored: Sequence[int | str] = ()) -> Comparison:
    """Count a map against the truth.

    Args:
        mapped: The map.
        truth: Path of a class raster (GeoTIFF), a DataArray with coordinates, both of which may reach beyond the map,
            or an array (y, x) of the map's pixels. 255 or NaN = no truth.
        ignored: Classes that are not evaluated, by index or English name.

    Raises:
        DataError: The grids differ, or values are no classes.
        UsageError: An unknown class.
    """
    wanted = _truth(mapped, truth)
    matrix = np.zeros((mapped.task.n_classes,) * 2, dtype=np.int64)
    unmapped = 0
    for rows, classes, _ in mapped.pieces():
        true = wanted[slice(*rows)]
        lacking = (classes == IGNORE_INDEX) & (true != IGNORE_INDEX)
        unmapped += int(lacking.sum())
        matrix += confusion_matrix(np.where(lacking, IGNORE_INDEX, true), classes, len(matrix))
    return Comparison(mapped.task, matrix, tuple(_index(mapped.task, one) for one in ignored), unmapped)


def _index(task: Task, name: int | str) -> int:
    if name in task.names:
        return task.names.index(str(name))
    if isinstance(name, str) or not 0 <= name < task.n_classes:
        raise UsageError(f"ignored: {name!r} is no class of {task.label}: {', '.join(task.names)}.")
    return int(name)


def _truth(mapped: ClassMap, truth: Any) -> NDArray[np.int64]:
    """(y, x) of the map's pixels."""
    import xarray as xr

    if isinstance(truth, (str, Path)):
        values: Any = read_class_raster(truth)
        return _integers(_cut(values, _file_box(truth), mapped.geobox, str(truth)))
    if isinstance(truth, xr.DataArray):
        plane = plane_of(truth)
        return _integers(_cut(plane, grid_of(plane), mapped.geobox, "truth"))
    values = np.asarray(truth)
    if values.shape != mapped.classes.shape:
        raise DataError(f"truth has shape {values.shape}, the map {mapped.classes.shape}: they must be equal.")
    return _integers(values)


def _file_box(path: str | Path) -> GeoBox:
    import rasterio

    with rasterio.open(path, driver="GTiff") as source:
        return geobox_of(source, str(path))


def _integers(values: Any) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), IGNORE_INDEX, array)
    return array.astype(np.int64)


def _cut(values: Any, box: GeoBox, wanted: GeoBox, where: str) -> Any:
    """The part of an array that lies under the map."""
    shift = (wanted.x_min - box.x_min) / box.x_res, (box.y_max - wanted.y_max) / box.y_res
    col, row = round(shift[0]), round(shift[1])
    drift = abs(box.x_res - wanted.x_res) * wanted.width, abs(box.y_res - wanted.y_res) * wanted.height
    off = max(abs(shift[0] - col), abs(shift[1] - row), drift[0] / box.x_res, drift[1] / box.y_res)
    inside = row >= 0 and col >= 0 and row + wanted.height <= box.height and col + wanted.width <= box.width
    same = same_crs(box.crs_wkt, wanted.crs_wkt) or not (box.crs_wkt and wanted.crs_wkt)
    if off > ALIGNMENT_TOLERANCE_PX or not inside or not same:
        raise DataError(
            f"{where}: lies on another grid or does not cover the map: {_described(box)}; map: {_described(wanted)}. "
            "Warp it onto the map's grid: truth.rio.reproject_match(maps)."
        )
    return values[row : row + wanted.height, col : col + wanted.width]


def _described(box: GeoBox) -> str:
    return f"{crs_name(box.crs_wkt)}, {box.width} x {box.height} px of {box.x_res:g} m from ({box.x_min}, {box.y_max})"
