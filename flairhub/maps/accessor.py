"""The accessors: methods of maps in xarray, thin over the functions of this room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from flairhub.class_raster import task_of_attributes
from flairhub.errors import UsageError
from flairhub.maps.areas import class_areas, polygon_areas
from flairhub.maps.class_map import ClassMap, class_map
from flairhub.maps.comparison import Comparison, compare
from flairhub.maps.map_files import write_cog, write_polygon_file
from flairhub.tasks import Language, Task

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_CLASS, _CONFIDENCE = "class", "confidence"


class MapAccessor:
    """`maps["class"].flairhub`: one class map."""

    def __init__(self, array: xr.DataArray, confidence: xr.DataArray | None = None):
        """Take the map; its class table is read when it is needed."""
        self._array, self._confidence = array, confidence

    @property
    def _map(self) -> ClassMap:
        # Not kept: attributes may be changed, and xarray keeps the accessor as long as the array.
        return class_map(self._array, self._confidence)

    @property
    def task(self) -> Task:
        """What the map shows: label set, level, classes with names and colours."""
        return task_of_attributes(self._array.attrs)

    def names(self, language: Language = "en") -> dict[int, str]:
        """Return the class names by class index, in English or French."""
        return dict(enumerate(self.task.names_in(language)))

    def plot(
        self,
        ax: Axes | None = None,
        *,
        title: str | None = None,
        language: Language = "en",
        legend: bool = True,
        scale_bar: bool = True,
    ) -> Axes:
        """Draw the map in its published colours, in its own coordinates, so that polygons can be drawn over it.

        Args:
            ax: Where to; without it a figure of the map's shape is made.
            title: Above the map.
            language: Of the class names.
            legend: List the classes present.
            scale_bar: Draw a scale bar; needs a CRS in metres.

        Returns:
            The axes.
        """
        from flairhub.maps.drawing import draw

        return draw(self._map, ax, title, language, legend, scale_bar)

    def areas(self, polygons: Any = None, *, language: Language = "en") -> pd.DataFrame:
        """Return pixels, hectares and shares of the classes, of the whole map or by polygon.

        Args:
            polygons: GeoDataFrame or GeoSeries in any CRS; a pixel belongs to each polygon that holds its centre.
            language: Of the class names.

        Returns:
            By class index, or by polygon and class index: `name`, `pixels`, `ha`, `share` of the pixels with data.
        """
        if polygons is None:
            return class_areas(self._map, language)
        return polygon_areas(self._map, polygons, language)

    def to_cog(self, path: str | Path, *, language: Language = "en", overwrite: bool = False) -> Path:
        """Write a Cloud Optimized GeoTIFF with colours and names, as `flairhub zonal` does; see `write_cog`."""
        return write_cog(self._map, Path(path), language, overwrite)

    def to_polygons(
        self, path: str | Path, *, min_area_m2: float = 0.0, language: Language = "en", overwrite: bool = False
    ) -> Path:
        """Write the areas of equal class as polygons (.gpkg or .parquet), as `flairhub zonal` does."""
        return write_polygon_file(self._map, Path(path), min_area_m2, language, overwrite)

    def compare(self, truth: Any, *, ignored: Sequence[int | str] = ()) -> Comparison:
        """Count the map against the truth: confusion matrix, IoU table.

        Args:
            truth: A class raster (path or DataArray) on the map's grid, also a larger one, or an array (y, x).
            ignored: Classes that are not evaluated, by index or English name.
        """
        return compare(self._map, truth, ignored)


class MapsAccessor:
    """`maps.flairhub`: the class maps of a Dataset, as `predict_zone` makes them; one per task."""

    def __init__(self, maps: xr.Dataset):
        """Take the maps."""
        self._maps = maps

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that have a class map."""
        return tuple(self._by_task())

    def _by_task(self) -> dict[str, str]:
        """Name of the variable by task."""
        names = [str(name) for name in self._maps.data_vars if name == _CLASS or str(name).startswith(f"{_CLASS}_")]
        return {str(self._maps[name].attrs.get("task", name)): name for name in names}

    def of(self, task: str | None = None) -> MapAccessor:
        """Return the map of one task, with its confidence where the Dataset has it.

        Raises:
            UsageError: There is no class map, several without a choice, or none of that task.
        """
        known = self._by_task()
        if not known:
            shown = ", ".join(map(str, self._maps.data_vars)) or "none"
            raise UsageError(f"the Dataset has no class map (a variable named class or class_<task>), it has {shown}.")
        if task is None and len(known) > 1:
            raise UsageError(f"the Dataset has several class maps, choose one: task= {', '.join(known)}.")
        if task is not None and task not in known:
            raise UsageError(f"no class map of {task!r}, there are {', '.join(known)}.")
        name = known[task] if task is not None else next(iter(known.values()))
        confidence = _CONFIDENCE + name.removeprefix(_CLASS)
        maps = self._maps
        mapping = maps[name].encoding.get("grid_mapping", maps[name].attrs.get("grid_mapping"))
        if mapping in maps.data_vars:  # what xarray makes of it without decode_coords="all"
            maps = maps.set_coords(mapping)
        return MapAccessor(maps[name], maps.get(confidence))

    def names(self, language: Language = "en", *, task: str | None = None) -> dict[int, str]:
        """Return the class names by class index; see `MapAccessor.names`."""
        return self.of(task).names(language)

    def plot(self, ax: Axes | None = None, *, task: str | None = None, **options: Any) -> Axes:
        """Draw the map; see `MapAccessor.plot`."""
        return self.of(task).plot(ax, **options)

    def areas(self, polygons: Any = None, *, task: str | None = None, language: Language = "en") -> pd.DataFrame:
        """Return pixels, hectares and shares of the classes; see `MapAccessor.areas`."""
        return self.of(task).areas(polygons, language=language)

    def to_cog(self, path: str | Path, *, task: str | None = None, **options: Any) -> Path:
        """Write a Cloud Optimized GeoTIFF; see `MapAccessor.to_cog`."""
        return self.of(task).to_cog(path, **options)

    def to_polygons(self, path: str | Path, *, task: str | None = None, **options: Any) -> Path:
        """Write polygons, with their confidence where the Dataset has it; see `MapAccessor.to_polygons`."""
        return self.of(task).to_polygons(path, **options)

    def compare(self, truth: Any, *, task: str | None = None, ignored: Sequence[int | str] = ()) -> Comparison:
        """Count the map against the truth; see `MapAccessor.compare`."""
        return self.of(task).compare(truth, ignored=ignored)


def accessor_of(maps: xr.DataArray | xr.Dataset) -> MapAccessor | MapsAccessor:
    """Return what `.flairhub` is of an array or a Dataset."""
    return MapsAccessor(maps) if isinstance(maps, xr.Dataset) else MapAccessor(maps)
