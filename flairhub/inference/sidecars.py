"""What a run writes beside its maps when asked: confidence, polygons, tile footprints, a STAC item."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.class_raster import stac_classes
from flairhub.errors import UsageError
from flairhub.geo import GeoBox, geopackage_time
from flairhub.inference.map_plan import MapPlan
from flairhub.inference.outputs import CONFIDENCE_SCALE, Layer, MapSource, map_name, stored_probability
from flairhub.inference.polygons import PolygonFormat, Span, trace, write_polygons
from flairhub.tasks import IGNORE_INDEX, Language, Task
from flairhub.version import __version__
from flairhub.zones import Zone

_PIECE_PX = 2048


@dataclass(frozen=True)
class Extras:
    """Files beside the maps.

    Attributes:
        confidence: A raster of the highest probability per task.
        polygons: Format of the polygons; None = none.
        min_area_m2: Smaller polygons are left out.
        stac: A STAC item.
        language: Of the class names in all files.
    """

    confidence: bool = False
    polygons: PolygonFormat | None = None
    min_area_m2: float = 0.0
    stac: bool = False
    language: Language = "en"

    @property
    def stores_confidence(self) -> bool:
        """Blocks keep their confidence: the raster or the polygons need it."""
        return self.confidence or self.polygons is not None

    def check(self, output_type: str) -> None:
        """Raise UsageError when something asked for cannot be written."""
        if self.polygons is not None and output_type != "argmax":
            raise UsageError(f"write_polygons: needs output_type argmax, got {output_type}.")
        if self.polygons == "parquet" and find_spec("pyarrow") is None:
            raise UsageError(
                "write_polygons: parquet needs the package pyarrow. Install it (pip install pyarrow), or use gpkg."
            )

    def names(self, name: str, tasks: Sequence[Task]) -> list[str]:
        """Names of the files."""
        files = [f"{name}_{task.label}_polygons.{self.polygons}" for task in tasks if self.polygons]
        files += [map_name(name, task.label, "confidence") for task in tasks if self.confidence]
        return files + ([f"{name}_stac.json"] if self.stac else [])


NONE = Extras()


def write_task_polygons(
    extras: Extras, source: MapSource, task: Task, arrays: tuple[str, str | None], box: GeoBox, path: Path
) -> None:
    """Trace a finished class map.

    Args:
        extras: What is wanted.
        source: The map.
        task: Gives the names.
        arrays: Of the classes and of the confidence; without the latter polygons have no such column.
        box: Grid of the map.
        path: File to write.
    """
    assert extras.polygons is not None
    class_array, confidence_array = arrays

    def read(rows: Span, cols: Span) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        classes = source.read(class_array, rows, cols)
        if confidence_array is None:
            return classes, np.zeros(classes.shape, np.float32)
        return classes, stored_probability(source.read(confidence_array, rows, cols))

    polygons = trace(read, box.height, box.width, _PIECE_PX)
    path.unlink(missing_ok=True)
    names, known = task.names_in(extras.language), confidence_array is not None
    write_polygons(polygons, names, box, path, extras.polygons, extras.min_area_m2, known)


def write_tiles(plan: MapPlan, path: Path) -> None:
    """Write the footprints of all windows, or those of the area of interest, as a GeoPackage.

    Columns: `window_row`, `window_col`; `row`, `col`, `height`, `width` of the pixels the window writes (its geometry),
    finest pixels; `read_row`, `read_col`, `read_px`: what it reads, halo included, may lie outside the zone.
    """
    import geopandas
    import shapely

    rows = _axis_table(plan.rows)
    cols = _axis_table(plan.cols)
    row, col = plan.windows()
    box = plan.zone.geobox
    top, bottom, left, right = rows[row, 0], rows[row, 1], cols[col, 0], cols[col, 1]
    geometry = shapely.box(
        box.x_min + left * box.x_res,
        box.y_max - bottom * box.y_res,
        box.x_min + right * box.x_res,
        box.y_max - top * box.y_res,
    )
    columns = {
        "window_row": row,
        "window_col": col,
        "row": top,
        "col": left,
        "height": bottom - top,
        "width": right - left,
        "read_row": rows[row, 2],
        "read_col": cols[col, 2],
        "read_px": np.full(len(row), plan.rows.window),
    }
    frame = geopandas.GeoDataFrame(columns, geometry=geometry, crs=box.crs_wkt)
    with geopackage_time():
        frame.to_file(path, driver="GPKG", layer="tiles", engine="pyogrio")


def _axis_table(axis: Any) -> NDArray[np.int64]:
    """(window, 3): first and last pixel written, first pixel read."""
    return np.array([(*axis.core(index), axis.start(index)) for index in range(axis.count)], dtype=np.int64)


def stac_item(
    plan: MapPlan, tasks: Sequence[Task], name: str, files: Mapping[str, tuple[Layer, Task]], tags: Mapping[str, str]
) -> str:
    """Return a STAC 1.0 item as JSON text, with the projection and classification extensions.

    Its geometry is the outline of the area of interest, else that of the map.
    Its time is the span of the zone's series; without a series, when the rasters were last changed.

    Args:
        plan: Of the map.
        tasks: What was mapped.
        name: Id of the item.
        files: Layer and task by file name; the item lies beside them.
        tags: Of the maps.
    """
    from rasterio.crs import CRS

    box = plan.geobox
    crs = CRS.from_wkt(box.crs_wkt)
    geometry, bbox = _footprint(plan)
    properties: dict[str, Any] = {
        **_time(plan.zone),
        "proj:epsg": crs.to_epsg(),
        "proj:shape": [box.height, box.width],
        "proj:transform": [*box.transform, 0.0, 0.0, 1.0],
        "processing:software": {"flairhub": __version__},
        **{key.lower().replace("flairhub_", "flairhub:"): value for key, value in sorted(tags.items())},
    }
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
            "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
        ],
        "id": name,
        "geometry": geometry,
        "bbox": bbox,
        "properties": properties,
        "links": [],
        "assets": {Path(file).stem: _asset(file, layer, task, box) for file, (layer, task) in files.items()},
    }
    return json.dumps(item, indent=1, ensure_ascii=False) + "\n"


def _footprint(plan: MapPlan) -> tuple[Any, list[float]]:
    """GeoJSON of the area of interest, else of the map, and its bounds; longitude, latitude."""
    from rasterio.warp import transform_bounds

    if plan.zone.aoi is None:
        box = plan.geobox
        west, south, east, north = (
            round(value, 8) for value in transform_bounds(box.crs_wkt, "EPSG:4326", *box.bounds)
        )
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        return {"type": "Polygon", "coordinates": [ring]}, [west, south, east, north]
    import geopandas
    import shapely
    from shapely.geometry.polygon import orient

    area = geopandas.GeoSeries([plan.zone.aoi.outline(plan.zone.geobox)], crs=plan.zone.geobox.crs_wkt)
    shape = shapely.transform(area.to_crs("EPSG:4326").iloc[0], lambda xy: np.round(xy, 8))
    polygons = [orient(polygon) for polygon in shapely.get_parts(shape)]
    geometry = polygons[0] if len(polygons) == 1 else shapely.multipolygons(polygons)
    return json.loads(shapely.to_geojson(geometry)), list(geometry.bounds)


def _time(zone: Zone) -> dict[str, Any]:
    days = np.concatenate(list(zone.dates.values())) if zone.dates else np.array([], dtype="datetime64[D]")
    if days.size:
        return {
            "datetime": None,
            "start_datetime": f"{days.min()}T00:00:00Z",
            "end_datetime": f"{days.max()}T23:59:59Z",
        }
    newest = max(raster.facts()["mtime_ns"] for raster in zone.rasters.values()) / 1e9
    return {"datetime": datetime.fromtimestamp(int(newest), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}


def _asset(file: str, layer: Layer, task: Task, box: GeoBox) -> dict[str, Any]:
    asset: dict[str, Any] = {
        "href": f"./{file}",
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "title": f"{task.label}, {layer}",
    }
    if layer == "argmax":
        asset["classification:classes"] = stac_classes(task)
    if layer == "confidence":
        asset["raster:bands"] = [
            {"nodata": IGNORE_INDEX, "scale": 1 / CONFIDENCE_SCALE, "spatial_resolution": box.x_res_m}
        ]
    return asset
