"""Maps on disk: GeoTIFF and COG with colours, names and tags; tile footprints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from flairhub.class_raster import describe_band
from flairhub.errors import ZoneError
from flairhub.geo import GeoBox, same_crs
from flairhub.progress import Progress, silent
from flairhub.tasks import IGNORE_INDEX, Language, Task

OutputType = Literal["argmax", "class_prob"]
Layer = Literal["argmax", "class_prob", "confidence"]

CONFIDENCE_SCALE = 254
"""Confidence is stored as round(254 x probability), so that 255 is free for no data."""

Span = tuple[int, int]

_PIECE_PX = 2048
"""Pixels that are written and compared in one go, along y and x: whole tiles."""


class MapStore(Protocol):
    """Finished maps that files are written from: the blocks of a run, or a map that was computed."""

    def read(self, array: str, rows: Span, cols: Span) -> NDArray[np.uint8]:
        """Return (band, y, x) of a range of rows and of columns of an array, named as in `MapSpec.array`."""


def scaled_confidence(probability: NDArray[Any]) -> NDArray[np.uint8]:
    """Confidence as it is stored: 0-1 becomes 0-254, NaN 255."""
    unknown = np.isnan(probability)
    scaled = np.rint(np.where(unknown, 0, probability) * CONFIDENCE_SCALE)
    return np.where(unknown, IGNORE_INDEX, scaled).astype(np.uint8)


def stored_probability(scaled: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Confidence 0-1 of what is stored; 0 where there is no data."""
    return np.where(scaled == IGNORE_INDEX, 0, scaled / np.float32(CONFIDENCE_SCALE)).astype(np.float32)


@dataclass(frozen=True)
class MapSpec:
    """One raster to write.

    Attributes:
        task: What it shows.
        output_type: `argmax`: one band of classes, 255 = no data. `class_prob`: one band per class,
            round(255 x probability), a validity mask inside the file. `confidence`: one band,
            round(254 x highest probability), 255 = no data.
        geobox: Its grid.
        tags: Dataset tags.
        cog: Cloud-optimised with overviews; otherwise a tiled GeoTIFF.
        language: Of the class names.
    """

    task: Task
    output_type: Layer
    geobox: GeoBox
    tags: Mapping[str, str]
    cog: bool
    language: Language = "en"

    @property
    def n_bands(self) -> int:
        """Bands of the raster."""
        return self.task.n_classes if self.output_type == "class_prob" else 1

    @property
    def array(self) -> str:
        """Array of the block store."""
        return confidence_array(self.task.label) if self.output_type == "confidence" else self.task.label

    @property
    def tile_px(self) -> int:
        """Tile of the file; smaller for small maps so that they have overviews, too."""
        return 512 if max(self.geobox.height, self.geobox.width) > 1024 else 256


def map_name(output_name: str, task: str, output_type: Layer) -> str:
    """File name of a map: `<output_name>_<task>_<output_type>.tif`."""
    return f"{output_name}_{task}_{output_type}.tif"


def confidence_array(task: str) -> str:
    """Array of the block store that holds a task's confidence."""
    return f"{task}_confidence"


def stored_bands(task: Task, output_type: OutputType) -> int:
    """Bands of the block store: those of the map and, for probabilities, the validity."""
    return 1 if output_type == "argmax" else task.n_classes + 1


def write_map(spec: MapSpec, store: MapStore, path: Path, progress: Progress = silent) -> None:
    """Write a map from its blocks, read it back and compare.

    Args:
        spec: The map.
        store: Its blocks.
        path: Where to; the caller moves it to its name afterwards.
        progress: Told about finished pieces.

    Raises:
        ZoneError: What was read back differs from what was written.
    """
    plain = path.with_suffix(".plain.tif") if spec.cog else path
    _write_tiled(spec, store, plain, progress)
    if spec.cog:
        resampling = "MODE" if spec.output_type == "argmax" else "AVERAGE"
        # The header needs room for tags and colours before the first tile.
        rasterio.shutil.copy(
            plain,
            path,
            driver="COG",
            COMPRESS="DEFLATE",
            BLOCKSIZE=spec.tile_px,
            OVERVIEW_RESAMPLING=resampling,
            OVERVIEWS="IGNORE_EXISTING",
            BIGTIFF="IF_SAFER",
        )
        plain.unlink()
    _compare(spec, store, path, progress)


def _write_tiled(spec: MapSpec, store: MapStore, path: Path, progress: Progress) -> None:
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": spec.n_bands,
        "height": spec.geobox.height,
        "width": spec.geobox.width,
        "crs": spec.geobox.crs_wkt,
        "transform": spec.geobox.affine(),
        "tiled": True,
        "blockxsize": spec.tile_px,
        "blockysize": spec.tile_px,
        "compress": "deflate",
        "interleave": "pixel",
        "photometric": "MINISBLACK",
        "alpha": "NO",
        "bigtiff": "IF_SAFER",
    }
    if spec.output_type != "class_prob":
        profile["nodata"] = IGNORE_INDEX
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as dataset:
        dataset.update_tags(**spec.tags)
        _describe(spec, dataset)
        pieces = list(_pieces(spec.geobox))
        for done, (rows, cols) in enumerate(pieces, start=1):
            values = store.read(spec.array, rows, cols)
            window = Window(cols[0], rows[0], cols[1] - cols[0], rows[1] - rows[0])
            dataset.write(values[: spec.n_bands], window=window)
            if spec.output_type == "class_prob":
                dataset.write_mask(values[-1], window=window)
            progress(f"write {spec.array}", done, len(pieces))


def _describe(spec: MapSpec, dataset: Any) -> None:
    if spec.output_type == "confidence":
        dataset.scales = (1 / CONFIDENCE_SCALE,)
        dataset.set_band_description(1, "confidence")
        return
    if spec.output_type == "argmax":
        describe_band(dataset, spec.task, spec.language)
        return
    dataset.colorinterp = [ColorInterp.gray, *([ColorInterp.undefined] * (spec.n_bands - 1))]
    for band, name in enumerate(spec.task.names_in(spec.language), start=1):
        dataset.set_band_description(band, name)


def _pieces(box: GeoBox) -> Iterator[tuple[Span, Span]]:
    for row in range(0, box.height, _PIECE_PX):
        for col in range(0, box.width, _PIECE_PX):
            yield (row, min(row + _PIECE_PX, box.height)), (col, min(col + _PIECE_PX, box.width))


def _compare(spec: MapSpec, store: MapStore, path: Path, progress: Progress) -> None:
    pieces = list(_pieces(spec.geobox))
    with rasterio.open(path, driver="GTiff", sharing=False) as dataset:
        _compare_header(spec, dataset, path)
        for done, (rows, cols) in enumerate(pieces, start=1):
            window = Window(cols[0], rows[0], cols[1] - cols[0], rows[1] - rows[0])
            written = dataset.read(window=window)
            if spec.output_type == "class_prob":
                written = np.concatenate([written, dataset.dataset_mask(window=window)[None]])
            if not np.array_equal(written, store.read(spec.array, rows, cols)):
                raise ZoneError(f"{path}: pixels at {window} differ from what was written. The disk may be failing.")
            progress(f"check {spec.array}", done, len(pieces))


def _compare_header(spec: MapSpec, dataset: Any, path: Path) -> None:
    nodata = None if spec.output_type == "class_prob" else IGNORE_INDEX
    wanted = (spec.geobox.height, spec.geobox.width, spec.n_bands, nodata)
    written = (dataset.height, dataset.width, dataset.count, dataset.nodata)
    if wanted != written or not same_crs(dataset.crs.to_wkt() if dataset.crs else "", spec.geobox.crs_wkt):
        raise ZoneError(f"{path}: height, width, bands, nodata are {written}, expected {wanted}. The write failed.")
