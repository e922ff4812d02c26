"""Writing the made data set: its folder, rasters and tables, byte for byte the same whenever the values are."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.demo.seasons import Dates
from flairhub.errors import OutputExistsError
from flairhub.geo import geopackage_time
from flairhub.jobs import discard_folder, output_folder, refusals, remove_leftovers, write_text, writer_lock

CRS = "EPSG:2154"

MARKER = "flairhub-demo.json"
"""File that marks a folder as made by the demo."""


@contextmanager
def writing_demo(folder: str | Path) -> Iterator[None]:
    """Hold the right to write the folder of a demo.

    Raises:
        LockError: Another process makes a demo there.
        DataError: The system refuses: full disk, no permission, ...
    """
    root = Path(folder).expanduser().absolute()
    with ExitStack() as stack:
        stack.enter_context(refusals(root, what="cannot be read or written"))
        stack.enter_context(output_folder(root.parent))
        stack.enter_context(writer_lock(root, "demo"))
        yield


def prepare_folder(folder: Path, facts: Mapping[str, Any], overwrite: bool) -> tuple[str, ...] | None:
    """Make a folder ready for the made data set.

    Args:
        folder: Absolute path of the folder.
        facts: What the data depend on, noted in the marker.
        overwrite: Remove what an earlier demo left there.

    Returns:
        Ids of the patches that an equal call has finished there; None for an empty, marked folder.

    Raises:
        OutputExistsError: The folder holds something else, and overwriting is not asked for or not safe.
    """
    remove_leftovers(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; the demo needs a folder. Give another path.")
    if folder.is_dir() and any(folder.iterdir()):
        marker = _marker(folder)
        if marker is None:
            raise OutputExistsError(
                f"{folder} is not empty and was not made by the demo (no {MARKER} in it), so nothing is written into "
                "it. Give another folder."
            )
        if not overwrite:
            if marker.get("facts") != facts:
                raise OutputExistsError(
                    f"{folder} holds a demo of other data (seed {marker.get('facts', {}).get('seed')}). Give another "
                    "folder, or pass --overwrite to replace it."
                )
            if "patch_ids" in marker:
                return tuple(marker["patch_ids"])
        discard_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _mark(folder, facts)
    return None


def finish_folder(folder: Path, facts: Mapping[str, Any], patch_ids: Sequence[str]) -> None:
    """Note in the marker that the data set is whole."""
    _mark(folder, facts, patch_ids=list(patch_ids))


def _mark(folder: Path, facts: Mapping[str, Any], **more: Any) -> None:
    write_text(folder / MARKER, json.dumps({"made_by": "flairhub demo", "facts": facts, **more}) + "\n")


def _marker(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_raster(path: Path, values: NDArray, left_m: float, top_m: float, pixel_m: float, tiled: bool = False) -> None:
    """Write a GeoTIFF.

    Args:
        path: File to write; its folder must exist.
        values: (band, y, x) or, for series, (time, band, y, x): the dates' bands follow each other.
        left_m, top_m: Upper left corner in EPSG:2154.
        pixel_m: Pixel size in metres.
        tiled: Tiles of 256 px, for whole areas.
    """
    import rasterio
    from rasterio.transform import from_origin

    bands = values.reshape(-1, *values.shape[-2:])
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256} if tiled else {}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=bands.shape[0],
        height=bands.shape[1],
        width=bands.shape[2],
        dtype=bands.dtype.name,
        crs=CRS,
        transform=from_origin(left_m, top_m, pixel_m, pixel_m),
        compress="lzw",
        **layout,
    ) as target:
        target.write(bands)


def compact_dates(dates: Dates) -> list[str]:
    """Dates as `YYYYMMDD`."""
    return [str(date).replace("-", "") for date in dates.astype("datetime64[D]")]


def dates_json(dates: Dates) -> str:
    """Dates as the published JSON object, keyed by 1-based position."""
    return json.dumps({str(i): text for i, text in enumerate(compact_dates(dates), start=1)})


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_geopackage(
    path: Path, columns: Mapping[str, Sequence[str]], corners: NDArray[np.float64], size_m: float
) -> None:
    """Write a GeoPackage with one square per row.

    Args:
        path: File to write.
        columns: Attribute columns, equally long.
        corners: (row, 2) left and top of each square in EPSG:2154.
        size_m: Side of the squares in metres.
    """
    import geopandas
    import shapely

    left, top = corners[:, 0], corners[:, 1]
    squares = shapely.box(left, top - size_m, left + size_m, top)
    frame = geopandas.GeoDataFrame(dict(columns), geometry=squares, crs=CRS)
    with geopackage_time("2025-01-01"):
        frame.to_file(path, driver="GPKG", layer=path.stem, engine="pyogrio")
