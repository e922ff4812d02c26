"""An area of interest from what users have: a vector file, geometries, a bounding box, in any CRS."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from flairhub.errors import UsageError, ZoneError
from flairhub.geo import GeoBox, crs_name, same_crs
from flairhub.zones.area import Area, polygons_in
from flairhub.zones.vector_files import read_geometries
from flairhub.zones.zone import Zone

log = logging.getLogger(__name__)

GEOJSON_CRS = "EPSG:4326"
_KEYS = ("path", "layer", "where", "bbox", "geometry", "crs")
_EARTH_M = 6.4e6
_BEND_PX = 0.001
"""How far a straight edge may be off its curve in another CRS, in pixels."""

_SNAP = 2.0**20
"""Vertices lie on whole parts of a pixel: a border meant to be one of pixels is one."""


def with_area(zone: Zone, aoi: Any, key: str = "aoi") -> Zone:
    """Return a zone of which only an area is mapped.

    Args:
        zone: The zone.
        aoi: None; the path of a vector file; a shapely geometry, several, a GeoSeries or GeoDataFrame; GeoJSON as a
            dictionary; (x min, y min, x max, y max); or a mapping that says more: `path` with `layer` and `where`,
            `bbox` or `geometry`, each with `crs`. Geometries and boxes without CRS are in the zone's, GeoJSON is in
            EPSG:4326.
        key: What names it in messages.

    Returns:
        The zone with its area; without one when it covers the whole zone.

    Raises:
        ZoneError: No such file or layer, no CRS, no polygon, or none that overlaps the zone.
        UsageError: It is none of these.
    """
    if aoi is None:
        return zone
    geometries, crs, name = _geometries(aoi, zone.geobox, key)
    where = f"{key}: {name}"
    polygons, n_repaired = _polygons(geometries, where)
    area = _area(polygons, crs, zone.geobox, where)
    if area is not None:
        beyond = _reaches_beyond(polygons, crs, zone.geobox)
        area = replace(area, name=name, n_repaired=n_repaired, reaches_beyond=beyond)
    if n_repaired:
        log.warning("%s: %d invalid geometries were repaired. Look at the map's border.", where, n_repaired)
    return zone if area is None else replace(zone, aoi=area)


def _geometries(aoi: Any, box: GeoBox, key: str) -> tuple[NDArray[Any], str, str]:
    """Geometries, their CRS as WKT, and what names them."""
    if isinstance(aoi, str | Path):
        aoi = {"path": aoi}
    stated = None
    if isinstance(aoi, Mapping) and "type" not in aoi:
        wrong = [str(name) for name in aoi if name not in _KEYS]
        what = [name for name in ("path", "bbox", "geometry") if aoi.get(name) is not None]
        if wrong or len(what) != 1:
            raise UsageError(
                f"{key}: got the keys {', '.join(map(str, aoi)) or 'none'}, expected one of path, bbox or geometry, "
                f"with crs, and for a file layer and where."
            )
        if what != ["path"] and (aoi.get("layer") is not None or aoi.get("where") is not None):
            raise UsageError(f"{key}: layer and where choose from a file, but {what[0]} is given.")
        stated = None if aoi.get("crs") is None else _crs(aoi["crs"], key)
        if what == ["path"]:
            path, layer, where = Path(aoi["path"]), aoi.get("layer"), aoi.get("where")
            geometries, crs = read_geometries(path, layer, where, key)
            name = str(path) + (f", layer {layer}" if layer else "") + (f", where {where}" if where else "")
            return geometries, _agreed(crs, stated, f"{key}: {path}", "Assign one to the file"), name
        aoi = aoi[what[0]]
        if what == ["bbox"]:
            return _of_bbox(aoi, key), stated or box.crs_wkt, "the bbox"
    if isinstance(aoi, Mapping):
        return _of_geojson(aoi, key), stated or _crs(_member_crs(aoi), key), "the GeoJSON"
    if hasattr(aoi, "to_crs") and hasattr(aoi, "geometry"):
        crs = None if aoi.crs is None else aoi.crs.to_wkt()
        name, remedy = f"the {type(aoi).__name__}", "set_crs('EPSG:...')"
        return np.asarray(aoi.geometry.values, dtype=object), _agreed(crs, stated, f"{key}: {name}", remedy), name
    if hasattr(aoi, "__geo_interface__") and not isinstance(aoi, shapely.Geometry):
        aoi = shapely.geometry.shape(aoi.__geo_interface__)
    if isinstance(aoi, shapely.Geometry):
        return np.array([aoi], dtype=object), stated or box.crs_wkt, "the geometry"
    if isinstance(aoi, Sequence | np.ndarray):
        if len(aoi) and all(isinstance(one, shapely.Geometry) for one in aoi):
            return np.array(list(aoi), dtype=object), stated or box.crs_wkt, "the geometries"
        return _of_bbox(aoi, key), stated or box.crs_wkt, "the bbox"
    raise UsageError(
        f"{key}: got {type(aoi).__name__}, expected the path of a vector file, a geometry, a GeoDataFrame, GeoJSON, or "
        f"a bbox (x min, y min, x max, y max)."
    )


def _crs(given: Any, key: str) -> str:
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        # Of pyproj and rasterio, too, which write themselves.
        return str(CRS.from_user_input(given if isinstance(given, int | str) else given.to_wkt()).to_wkt())
    except (CRSError, AttributeError, ValueError):
        raise UsageError(f"{key}: crs: {given!r} is no CRS. Expected one such as EPSG:2154.") from None


def _agreed(crs: str | None, stated: str | None, name: str, remedy: str) -> str:
    if crs is None and stated is None:
        raise ZoneError(f"{name} has no CRS. {remedy}, or state it: crs: EPSG:2154.")
    if crs is not None and stated is not None and not same_crs(crs, stated):
        raise ZoneError(f"{name} is in {crs_name(crs)}, but crs says {crs_name(stated)}. Leave crs out.")
    return crs or stated or ""


def _member_crs(aoi: Mapping[str, Any]) -> Any:
    """CRS of a GeoJSON object: EPSG:4326, unless it has the member `crs` of the first GeoJSON."""
    member = aoi.get("crs")
    if isinstance(member, Mapping):
        member = member.get("properties", {}).get("name")
    return GEOJSON_CRS if member is None else member


def _of_bbox(given: Any, key: str) -> NDArray[Any]:
    try:
        left, bottom, right, top = (float(value) for value in given)
    except (TypeError, ValueError):
        raise UsageError(f"{key}: bbox: got {given!r}, expected four numbers: x min, y min, x max, y max.") from None
    if not np.isfinite([left, bottom, right, top]).all():
        raise UsageError(f"{key}: bbox: got {given!r}, expected finite numbers.")
    for axis, low, high in (("x", left, right), ("y", bottom, top)):
        if not low < high:
            raise UsageError(
                f"{key}: bbox: {axis} min {low:g} is not below {axis} max {high:g}. Expected x min, y min, x max, "
                f"y max; across the antimeridian with an x max above 180."
            )
    return np.array([shapely.box(left, bottom, right, top)])


def _of_geojson(given: Mapping[str, Any], key: str) -> NDArray[Any]:
    kind = given.get("type")
    try:
        if kind == "FeatureCollection":
            members = [feature["geometry"] for feature in given["features"]]
        else:
            members = [given["geometry"] if kind == "Feature" else given]
        return np.array([shapely.geometry.shape(one) for one in members if one], dtype=object)
    except Exception as error:
        # Whatever a malformed dictionary makes shapely raise.
        raise ZoneError(
            f"{key}: {kind!r} does not read as GeoJSON ({type(error).__name__}: {error}). Expected a Polygon, "
            f"MultiPolygon, Feature or FeatureCollection."
        ) from None


def _polygons(geometries: NDArray[Any], name: str) -> tuple[NDArray[Any], int]:
    """Valid polygons of geometries, and how many had to be repaired."""
    given = np.array([one for one in geometries if one is not None and not one.is_empty], dtype=object)
    if not given.size:
        raise ZoneError(f"{name} holds no geometry. Expected polygons.")
    given = shapely.force_2d(given)
    if not np.isfinite(shapely.get_coordinates(given)).all():
        raise ZoneError(f"{name} has vertices that are no finite numbers. Repair it.")
    polygonal = shapely.get_dimensions(given) == 2
    if not polygonal.any():
        kinds = sorted({one.geom_type for one in given})
        raise ZoneError(f"{name} holds {', '.join(kinds)}, expected polygons. Buffer them, or take another layer.")
    invalid = polygonal & ~shapely.is_valid(given)
    given[invalid] = shapely.make_valid(given[invalid])
    polygons = polygons_in(given)
    if not polygons.size:
        raise ZoneError(f"{name} holds polygons without area. Repair them.")
    return polygons, int(invalid.sum())


def _area(polygons: NDArray[Any], crs: str, box: GeoBox, name: str) -> Area | None:
    """The area in pixels of a zone; None when it is all of it.

    Raises:
        ZoneError: It does not overlap the zone, or holds no centre of a pixel.
    """
    placed = polygons if same_crs(crs, box.crs_wkt) else _projected(polygons, crs, box)

    def to_pixels(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        pixels = np.column_stack([(xy[:, 0] - box.x_min) / box.x_res, (box.y_max - xy[:, 1]) / box.y_res])
        return np.rint(pixels * _SNAP) / _SNAP

    inside = shapely.transform(placed, to_pixels)
    frame = shapely.box(0, 0, box.width, box.height)
    shapely.prepare(frame)
    inside = inside[shapely.intersects(frame, inside)]
    inside = polygons_in(np.where(shapely.is_valid(inside), inside, shapely.make_valid(inside)))
    beyond = ~shapely.covers(frame, inside)
    inside = polygons_in(np.where(beyond, shapely.intersection(inside, frame), inside))
    if not inside.size:
        raise ZoneError(_apart(polygons, crs, box, name))
    area = Area.of(name, inside)
    if area.bounds == (0, 0, box.width, box.height) and area.n_px >= box.width * box.height * (1 - 1e-9):
        return None
    if not area.touches([[0, box.height]], [[0, box.width]]).all():
        raise ZoneError(
            f"{name} holds no centre of a pixel of the zone: it is {area.n_px:.2g} px of {box.x_res:g}. "
            f"Is it in other units?"
        )
    return area


def _projected(polygons: NDArray[Any], crs: str, box: GeoBox) -> NDArray[Any]:
    """Polygons near a zone in its CRS; edges are straight in their own CRS, and get vertices to bend in the zone's."""
    import geopandas

    frames = _surroundings(box, crs)
    if frames is not None:
        near = [polygons[shapely.intersects(frame, polygons)] for frame in frames]
        clipped = [shapely.intersection(part, frame) for part, frame in zip(near, frames, strict=True)]
        polygons = polygons_in(np.concatenate(clipped))
        # A chord of length c is off its arc by c^2 / 8r.
        longest_m = np.sqrt(8 * _EARTH_M * _BEND_PX * box.x_res)
        n_segments = np.ceil(max(box.width * box.x_res, box.height * box.y_res) / longest_m)
        left, bottom, right, top = shapely.bounds(frames[0])
        polygons = shapely.segmentize(polygons, max(right - left, top - bottom) / n_segments)
    series = geopandas.GeoSeries(polygons, crs=crs).to_crs(box.crs_wkt)
    result = np.asarray(series.values, dtype=object)
    bounds = shapely.bounds(result)
    return np.asarray(result[np.isfinite(bounds).all(axis=1)])


def _surroundings(box: GeoBox, crs: str) -> list[Any] | None:
    """Rectangles in another CRS that hold the zone; None = unknown."""
    from rasterio.crs import CRS

    bounds = _bounds_in(box, crs)
    if bounds is None:
        return None
    left, bottom, right, top = bounds
    geographic = CRS.from_wkt(crs).is_geographic
    if geographic and left > right:
        right += 360
    x, y = 0.01 * (right - left), 0.01 * (top - bottom)
    # Longitudes may count on, from below -180 or beyond 180.
    shifts = (-360, 0, 360) if geographic else (0,)
    return [shapely.box(left - x + shift, bottom - y, right + x + shift, top + y) for shift in shifts]


def _bounds_in(box: GeoBox, crs: str) -> tuple[float, float, float, float] | None:
    from rasterio.errors import RasterioError
    from rasterio.warp import transform_bounds

    if same_crs(crs, box.crs_wkt):
        return box.bounds
    try:
        bounds = transform_bounds(box.crs_wkt, crs, *box.bounds, densify_pts=51)
    except (RasterioError, ValueError):
        return None
    return bounds if np.isfinite(bounds).all() else None


def _reaches_beyond(polygons: NDArray[Any], crs: str, box: GeoBox) -> bool:
    there = _bounds_in(box, crs)
    if there is None:
        return True
    left, bottom, right, top = shapely.total_bounds(polygons)
    x, y = (there[2] - there[0]) / box.width, (there[3] - there[1]) / box.height
    return bool(left < there[0] - x or bottom < there[1] - y or right > there[2] + x or top > there[3] + y)


def _apart(polygons: NDArray[Any], crs: str, box: GeoBox, name: str) -> str:
    """What to say of polygons that do not overlap the zone."""
    left, bottom, right, top = shapely.total_bounds(polygons).tolist()
    there = _bounds_in(box, crs)
    text = f"{name} covers {_listed((left, bottom, right, top))} in {crs_name(crs)}, the zone "
    text += f"{_listed(box.bounds)} in {crs_name(box.crs_wkt)}"
    if there is not None and not same_crs(crs, box.crs_wkt):
        text += f", which is {_listed(there)} there"
    text += ": they do not overlap (left, bottom, right, top)."
    if there is not None and bottom < there[2] and top > there[0] and left < there[3] and right > there[1]:
        return f"{text} With x and y exchanged they would: expected longitude, latitude, or easting, northing."
    if same_crs(crs, box.crs_wkt) and max(map(abs, (left, right))) <= 180 and max(map(abs, (bottom, top))) <= 90:
        return f"{text} These look like degrees: state crs: EPSG:4326."
    if there is not None and max(map(abs, there)) <= 180 and max(abs(left), abs(right)) > 540:
        return f"{text} These are no degrees, but {crs_name(crs)} counts in them (GeoJSON is EPSG:4326)."
    return text


def _listed(bounds: Sequence[float]) -> str:
    return "(" + ", ".join(f"{bound:.6f}".rstrip("0").rstrip(".") for bound in bounds) + ")"
