"""A map in xarray as files: the ones that a run writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flairhub.class_raster import category_xml, qgis_style
from flairhub.errors import OutputExistsError, UsageError
from flairhub.inference import Extras, MapSpec, PolygonFormat, write_map, write_task_polygons
from flairhub.jobs import temporary_name, write_text
from flairhub.maps.class_map import ClassMap
from flairhub.tasks import Language
from flairhub.version import __version__

_FORMATS: dict[str, PolygonFormat] = {".gpkg": "gpkg", ".parquet": "parquet"}


def write_cog(mapped: ClassMap, path: Path, language: Language = "en", overwrite: bool = False) -> Path:
    """Write a Cloud Optimized GeoTIFF with colour table and names, and its `.aux.xml` and `.qml` beside it.

    Raises:
        OutputExistsError: The file exists.
        UsageError: The name does not end with .tif, or the map has no CRS in metres.
        ZoneError: It does not read back as written.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise UsageError(f"{path}: a GeoTIFF is written. Name a file that ends with .tif.")
    spec = MapSpec(mapped.task, "argmax", mapped.metric_box(), {"FLAIRHUB_VERSION": __version__}, True, language)
    with _unfinished(path, overwrite) as target:
        with mapped.stored(target.parent) as store:
            write_map(spec, store, target)
        write_text(target.with_name(f"{target.name}.aux.xml"), category_xml(mapped.task, language))
        write_text(target.with_suffix(".qml"), qgis_style(mapped.task, language))
    return path


def write_polygon_file(
    mapped: ClassMap, path: Path, min_area_m2: float = 0.0, language: Language = "en", overwrite: bool = False
) -> Path:
    """Write the areas of equal class as polygons: `class`, `name`, `area_m2` and, where it is known, `confidence`.

    Raises:
        OutputExistsError: The file exists.
        UsageError: The name ends with neither .gpkg nor .parquet, pyarrow is missing, or the map has no CRS in metres.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"{path}: polygons are written as GeoPackage (.gpkg) or GeoParquet (.parquet).")
    extras = Extras(polygons=_FORMATS[path.suffix.lower()], min_area_m2=min_area_m2, language=language)
    extras.check("argmax")
    box = mapped.metric_box()
    with _unfinished(path, overwrite) as target, mapped.stored(target.parent) as store:
        arrays = "class", None if mapped.confidence is None else "confidence"
        write_task_polygons(extras, store, mapped.task, arrays, box, target)
    return path


@contextmanager
def _unfinished(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yield the same name in a folder of its own; at the end all files in it go to their places, `path` last."""
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists already. Choose another name, or pass overwrite=True.")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_name(path)
    folder.mkdir()
    try:
        yield folder / path.name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            file.replace(path.with_name(file.name))
    finally:
        shutil.rmtree(folder)
