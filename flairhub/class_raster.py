"""Class rasters: one band of class indices, 255 where there is no class; their colours, names, files and file names.

Every colour of a picture, a GeoTIFF, a style or a catalogue comes from the row of the class in `flairhub.tasks`
through a function of this module.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import DataError, UsageError
from flairhub.geo import GeoBox
from flairhub.jobs import placed
from flairhub.tasks import IGNORE_INDEX, LabelClass, Language, Task, named_task, parse_colour

NO_CLASS_COLOUR = (235, 235, 235)
"""Grey of pixels without a label or outside the map, in pictures; in rasters they are transparent."""

_PREFIX = "PRED_"
_NOT_IN_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def paint(classes: NDArray[Any], task: Task) -> NDArray[np.uint8]:
    """Return the colours of a class raster as a picture.

    Args:
        classes: (y, x) class indices; what is no class of the task becomes grey.
        task: Gives the colours.

    Returns:
        (y, x, 3) uint8.
    """
    table = np.full((IGNORE_INDEX + 1, 3), NO_CLASS_COLOUR, np.uint8)
    for row in task.classes:
        table[row.index] = row.colour
    return table[np.asarray(classes).astype(np.uint8)]


def describe_band(dataset: Any, task: Task, language: Language | None = None) -> None:
    """Give the band of an open raster its colour table and its name.

    Args:
        dataset: `rasterio.DatasetWriter` without pixels so far: a TIFF takes no colour table once tiles are on disk.
        task: What the band shows.
        language: Write the class names as tags of the band, too, in this language.
    """
    opaque = {row.index: (*row.colour, 255) for row in task.classes}
    dataset.write_colormap(1, {**opaque, IGNORE_INDEX: (0, 0, 0, 0)})
    dataset.set_band_description(1, task.label)
    if language is not None:
        dataset.update_tags(1, **{f"CLASS_{index}": name for index, name in enumerate(task.names_in(language))})


def write_class_raster(path: Path, classes: NDArray[np.uint8], task: Task, grid: GeoBox | None) -> None:
    """Write a class raster as a GeoTIFF and read it back before it gets its name.

    Args:
        path: Final name; its folder is made.
        classes: (y, x) class indices, 255 = no class.
        task: Gives the colour table.
        grid: Georeferencing; None writes none.

    Raises:
        DataError: It cannot be written, or does not read back equal.
    """
    import rasterio
    from rasterio.errors import RasterioError

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
        profile["transform"] = grid.affine()
        if grid.crs_wkt:
            profile["crs"] = grid.crs_wkt
    try:
        with placed(path) as partial:
            with _ungeoreferenced_allowed(), rasterio.open(partial, "w", **profile) as target:
                describe_band(target, task)
                target.write(classes, 1)
            if not np.array_equal(read_class_raster(partial), classes):
                raise DataError(f"{path}: does not read back as written. Check the disk.")
    except (OSError, RasterioError) as error:
        raise DataError(f"{path}: cannot be written: {error}") from error


def read_class_raster(path: str | Path) -> NDArray[np.uint8]:
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
        what = "cannot be read" if Path(path).exists() else "is missing"
        raise DataError(f"{path}: {what}: {error}") from error


@contextmanager
def _ungeoreferenced_allowed() -> Iterator[None]:
    """Predictions without `georeferencing_output` have no transform, on purpose."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


# --- as attributes of an array


def class_attributes(task: Task) -> dict[str, Any]:
    """Return the class table of a map as attributes of its array; `task_of_attributes` reads them back.

    Returns:
        JSON-ready: `task`, `level`, `class_names`, `class_names_fr` and, by the CF conventions, `flag_values`,
        `flag_meanings` (words without blanks, separated by blanks) and `flag_colors` (`#rrggbb`, separated by blanks).
    """
    return {
        "task": task.label,
        "level": task.level,
        "class_names": list(task.names),
        "class_names_fr": list(task.names_in("fr")),
        "flag_values": [row.index for row in task.classes],
        "flag_meanings": " ".join("_".join(row.name.split()) for row in task.classes),
        "flag_colors": " ".join(row.css for row in task.classes),
    }


def task_of_attributes(attributes: Mapping[str, Any]) -> Task:
    """Return what a map shows, from the attributes of its array.

    Args:
        attributes: From `class_attributes`, also read back from a file; at least `class_names` or `flag_meanings`,
            or `CLASS_0`, `CLASS_1`, ..., as the maps on disk have them. What else is missing comes from the
            published nomenclature of the task.

    Raises:
        UsageError: They hold no class names, or values that are not 0..N-1.
    """
    label = str(attributes.get("task", attributes.get("long_name", "classes")))
    names = _names_of(attributes)
    task = named_task(label, int(attributes.get("level", 1)), dict(enumerate(names)))
    values = np.atleast_1d(attributes.get("flag_values", range(len(names)))).tolist()
    colours = str(attributes["flag_colors"]).split() if "flag_colors" in attributes else [r.css for r in task.classes]
    french = attributes.get("class_names_fr", task.names_in("fr"))
    if values != list(range(len(names))) or not len(names) == len(colours) == len(french):
        raise UsageError(
            f"attributes: {len(names)} class names, {len(french)} French ones, {len(colours)} colours, flag_values "
            f"{values}. Expected as many of each, of the values 0..{len(names) - 1}."
        )
    rows = enumerate(zip(names, french, colours, strict=True))
    return Task(label, task.level, tuple(LabelClass(i, en, str(fr), parse_colour(css)) for i, (en, fr, css) in rows))


def _names_of(attributes: Mapping[str, Any]) -> list[str]:
    if "class_names" in attributes:
        return [str(name) for name in np.atleast_1d(attributes["class_names"])]
    if "flag_meanings" in attributes:
        return [word.replace("_", " ") for word in str(attributes["flag_meanings"]).split()]
    names = {key: str(value) for key, value in attributes.items() if str(key).startswith("CLASS_")}
    if not names:
        raise UsageError(
            "no class names: the array has none of the attributes class_names, flag_meanings, CLASS_0. "
            "Give it those of a map: array.assign_attrs(maps['class'].attrs)."
        )
    try:
        return [names[f"CLASS_{i}"] for i in range(len(names))]
    except KeyError as error:
        raise UsageError(f"attributes: {error} is missing among {', '.join(names)}.") from None


# --- beside the raster


def category_xml(task: Task, language: Language = "en") -> str:
    """Return GDAL's sidecar (`.aux.xml`) with the class names of a map."""
    names = "".join(f"      <Category>{escape(_xml_text(name))}</Category>\n" for name in task.names_in(language))
    return (
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n'
        f"{names}    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n"
    )


def _xml_text(text: str) -> str:
    """Return a text without the characters that XML does not have, not even escaped."""
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def qgis_style(task: Task, language: Language = "en") -> str:
    """Return a QGIS style (`.qml`) with the colours and names of a class map."""
    entries = "".join(
        f'        <paletteEntry value="{row.index}" color="{row.css}" alpha="255" label={name}/>\n'
        for row, name in zip(task.classes, map(quoteattr, map(_xml_text, task.names_in(language))), strict=True)
    )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis version="3.22" styleCategories="Symbology">\n  <pipe>\n'
        '    <rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1">\n      <colorPalette>\n'
        f"{entries}      </colorPalette>\n    </rasterrenderer>\n  </pipe>\n</qgis>\n"
    )


def stac_classes(task: Task) -> list[dict[str, Any]]:
    """Return `classification:classes` of the STAC classification extension, both languages."""
    return [
        {"value": row.index, "name": row.name, "title": row.name_fr, "color_hint": row.css[1:].upper()}
        for row in task.classes
    ]


# --- names of prediction files


def prediction_name(domain: str, label: str, roi: str, cell: Sequence[int]) -> str:
    """Return the published name of a patch's prediction, `PRED_<label file name>`.

    Args:
        domain: Such as `D012-2019`.
        label: Label set.
        roi: Such as `AF-S1-27`.
        cell: Row and column of the patch in its ROI.
    """
    return f"{_PREFIX}{domain}_{label}_{roi}_{cell[0]}-{cell[1]}.tif"


def prediction_files(folder: Path) -> dict[str, Path]:
    """Return the prediction rasters of one label set in a folder, by patch id (`<domain>_<roi>_<row>-<col>`)."""
    files = {}
    for path in sorted(folder.glob(f"{_PREFIX}*.tif")):
        # The label set stands in the middle and has underscores of its own.
        domain, *_, roi, cell = path.stem.removeprefix(_PREFIX).split("_")
        files[f"{domain}_{roi}_{cell}"] = path
    return files
