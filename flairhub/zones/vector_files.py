"""Vector files: the geometries of one layer, filtered, with the CRS that the file states."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import ZoneError

FORMATS = {
    ".gpkg": "GPKG",
    ".geojson": "GeoJSON",
    ".json": "GeoJSON",
    ".shp": "ESRI Shapefile",
    ".fgb": "FlatGeobuf",
}
"""GDAL's driver by suffix; GeoParquet is read by geopandas."""

_BEGINNINGS = {
    "GPKG": b"SQLite format 3\0",
    "GeoJSON": b"{",
    "ESRI Shapefile": b"\x00\x00\x27\x0a",
    "FlatGeobuf": b"fgb",
}

_PARQUET = (".parquet", ".geoparquet")


def read_geometries(path: Path, layer: str | None, where: str | None, key: str) -> tuple[NDArray[Any], str | None]:
    """Read the geometries of a vector file.

    Args:
        path: GeoPackage, GeoJSON, Shapefile, FlatGeobuf or GeoParquet.
        layer: Which layer; None = the only one that has geometries.
        where: Filter by attributes, in SQL as OGR knows it; None = all features.
        key: Configuration key that names it, for messages.

    Returns:
        (feature,) shapely geometries, None where a feature has none; and the CRS as WKT, None = none.

    Raises:
        ZoneError: No such file or layer, a file that cannot be read, a filter that cannot be or that nothing passes.
    """
    where_from = f"{key}: {path}"
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ZoneError(f"{key}: no file {path}. Expected a vector file ({', '.join([*FORMATS, *_PARQUET])}).")
    if suffix not in FORMATS and suffix not in _PARQUET:
        expected = f"{', '.join([*FORMATS, *_PARQUET])} (GeoPackage, GeoJSON, Shapefile, FlatGeobuf, GeoParquet)"
        raise ZoneError(f"{where_from} is no vector file by its name. Expected {expected}.")
    source: Any = path
    if suffix in _PARQUET:
        frame = _read_parquet(path, where_from)
        if layer is not None:
            raise ZoneError(f"{where_from}: a GeoParquet file has no layers. Leave layer out.")
        if where is None:
            return _result(frame, where_from)
        # GDAL filters what it has written itself: one language of filters for all formats.
        source = BytesIO()
        frame.to_file(source, driver="GPKG", engine="pyogrio")
        source = source.getvalue()
    else:
        layer = _layer(path, FORMATS[suffix], layer, where_from)
    return _result(_read(source, layer, where, where_from), where_from, where)


def _layer(path: Path, driver: str, wanted: str | None, where_from: str) -> str:
    """Check the file's format and choose its layer."""
    import pyogrio

    # GDAL opens what a file is, not what its name says, and some formats name other files or addresses.
    with path.open("rb") as file:
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n" if driver == "GeoJSON" else b"")
    if not start.startswith(_BEGINNINGS[driver]):
        raise ZoneError(f"{where_from} is no {driver} file inside. Is it damaged, or another format?")
    try:
        rows = [(str(name), kind) for name, kind in pyogrio.list_layers(path)]
        if wanted is None:
            spatial = [name for name, kind in rows if kind is not None]
            if len(spatial) > 1:
                raise ZoneError(f"{where_from} has the layers {', '.join(spatial)}. Choose one: layer.")
            if not spatial:
                raise ZoneError(f"{where_from} has no layer with geometries.")
            wanted = spatial[0]
        if wanted not in [name for name, _ in rows]:
            listed = ", ".join(name for name, _ in rows)
            raise ZoneError(f"{where_from} has no layer {wanted!r}, only {listed}.")
        actual = pyogrio.read_info(path, layer=wanted)["driver"]
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise ZoneError(f"{where_from} does not open as {driver} ({error}).") from None
    if actual != driver:
        raise ZoneError(f"{where_from} is {actual} inside, expected {driver} by its name.")
    return wanted


def _read(source: Any, layer: str | None, where: str | None, where_from: str) -> Any:
    import pyogrio

    try:
        # Some drivers filter by the columns that are read.
        read: list[str] | None = [] if where is None else None
        return pyogrio.read_dataframe(source, layer=layer, where=where, columns=read, force_2d=True)
    except (ValueError, RuntimeError, OSError) as error:
        if where is None:
            raise ZoneError(f"{where_from} cannot be read ({error}). Is it damaged?") from None
        columns = ", ".join(pyogrio.read_info(source, layer=layer)["fields"]) or "none"
        reason = str(error).splitlines()[0]
        raise ZoneError(
            f"{where_from}: where: {where!r} does not work ({reason}). Its columns are {columns}."
        ) from None


def _result(frame: Any, where_from: str, where: str | None = None) -> tuple[NDArray[Any], str | None]:
    if not hasattr(frame, "geometry") or not len(frame):
        what = "holds no feature" if where is None else f"has no feature that passes where: {where!r}"
        raise ZoneError(f"{where_from} {what}.")
    crs = frame.crs
    return np.asarray(frame.geometry.values, dtype=object), None if crs is None else crs.to_wkt()


def _read_parquet(path: Path, where_from: str) -> Any:
    from importlib.util import find_spec

    import geopandas

    if find_spec("pyarrow") is None:
        raise ZoneError(f"{where_from}: GeoParquet needs the package pyarrow. pip install flairhub[parquet].")
    try:
        return geopandas.read_parquet(path)
    except Exception as error:
        # Whatever pyarrow raises; a file without geometries is a ValueError.
        raise ZoneError(f"{where_from} does not open as GeoParquet ({str(error).splitlines()[0]}).") from None
