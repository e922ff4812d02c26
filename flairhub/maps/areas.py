"""Areas of the classes of a map, of all of it or by polygon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import UsageError
from flairhub.geo import area_note
from flairhub.maps.class_map import ClassMap, Span

if TYPE_CHECKING:
    import pandas as pd

M2_PER_HA = 10_000.0


def class_areas(mapped: ClassMap, language: Any = "en") -> pd.DataFrame:
    """Return one row per class, by class index: `name`, `pixels`, `ha` and `share` of the pixels with data.

    Where the CRS shows areas larger or smaller than they are, `.attrs["note"]` says so.

    Raises:
        UsageError: The map has no CRS, or a geographic one.
    """
    box = mapped.metric_box()
    counts = np.zeros(mapped.task.n_classes, dtype=np.int64)
    for _, classes, _ in mapped.pieces():
        counts += _count(classes, len(counts))
    return _table(counts, mapped, box.pixel_m2, language)


def polygon_areas(mapped: ClassMap, polygons: Any, language: Any = "en") -> pd.DataFrame:
    """Return one row per polygon and class, indexed by both, with the columns of `class_areas`.

    Args:
        mapped: The map.
        polygons: GeoDataFrame or GeoSeries in any CRS; its index names the polygons. A pixel belongs to each polygon
            that holds its centre.
        language: Of the class names.

    Raises:
        UsageError: The polygons have no CRS or an index with doubles, or the map has no CRS in metres or feet.
    """
    import pandas as pd

    box = mapped.metric_box()
    if polygons.crs is None:
        raise UsageError("the polygons have no CRS: polygons.set_crs('EPSG:...').")
    if not polygons.index.is_unique:
        raise UsageError("the polygons' index names some twice: polygons.reset_index().")
    shapes = list(polygons.geometry.to_crs(box.crs_wkt))
    counts = np.zeros((len(shapes), mapped.task.n_classes), dtype=np.int64)
    for rows, classes, _ in mapped.pieces():
        for i, shape in enumerate(shapes):
            inside = _inside(mapped, shape, rows, classes)
            if inside is not None:
                counts[i] += _count(inside, counts.shape[1])
    tables = [_table(row, mapped, box.pixel_m2, language) for row in counts]
    name = polygons.index.name or "polygon"
    if not tables:
        return _table(counts.sum(axis=0), mapped, 0.0, language).iloc[:0]
    return pd.concat(tables, keys=polygons.index, names=[name, "class"])


def _inside(mapped: ClassMap, shape: Any, rows: Span, classes: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Classes of the pixels of a piece whose centre lies in a polygon."""
    from rasterio.features import geometry_mask

    box = mapped.geobox
    if shape is None or shape.is_empty:
        return None
    left, bottom, right, top = shape.bounds
    first, last = (int(np.floor((x - box.x_min) / box.x_res)) for x in (left, right))
    upper, lower = (int(np.floor((box.y_max - y) / box.y_res)) for y in (top, bottom))
    first, last = max(first, 0), min(last + 1, box.width)
    upper, lower = max(upper, rows[0]), min(lower + 1, rows[1])
    if first >= last or upper >= lower:
        return None
    window = box.crop(upper, first, lower - upper, last - first)
    mask = geometry_mask([shape], (window.height, window.width), window.affine(), invert=True)
    selected: NDArray[np.uint8] = classes[upper - rows[0] : lower - rows[0], first:last][mask]
    return selected


def _count(classes: NDArray[np.uint8], n_classes: int) -> NDArray[np.int64]:
    return np.bincount(classes.ravel(), minlength=n_classes)[:n_classes].astype(np.int64)


def _table(counts: NDArray[np.int64], mapped: ClassMap, pixel_m2: float, language: Any) -> pd.DataFrame:
    import pandas as pd

    total = counts.sum()
    table = pd.DataFrame(
        {
            "name": list(mapped.task.names_in(language)),
            "pixels": counts,
            "ha": counts * (pixel_m2 / M2_PER_HA),
            "share": counts / total if total else np.full(len(counts), np.nan),
        },
        index=pd.RangeIndex(len(counts), name="class"),
    )
    if note := area_note(mapped.geobox):
        table.attrs["note"] = note
    return table
