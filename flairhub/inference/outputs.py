"""Maps on disk: GeoTIFF and COG with colours, names and tags; tile footprints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import dask.array as da
import numpy as np
import rasterio
import rasterio.shutil
import xarray as xr
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from flairhub.class_raster import class_attributes, describe_band
from flairhub.errors import ZoneError
from flairhub.geo import GeoBox, same_crs
from flairhub.inference.lazy_map import described, variable_name
from flairhub.inference.map_plan import MapPlan
from flairhub.inference.map_store import Span, checksum_of
from flairhub.progress import Progress, silent
from flairhub.tasks import IGNORE_INDEX, Language, Task

OutputType = Literal["argmax", "class_prob"]
Layer = Literal["argmax", "class_prob", "confidence"]

CONFIDENCE_SCALE = 254
"""Confidence is stored as round(254 x probability), so that 255 is free for no data."""

_PIECE_PX = 2048
"""Pixels that are written in one go, along y and x: whole tiles."""

_ARRAYS: dict[Layer, str] = {"argmax": "class", "class_prob": "probabilities", "confidence": "confidence"}


class MapSource(Protocol):
    """A finished map that files are written from: the blocks of a run, or a map that was computed."""

    def read(self, array: str, rows: Span, cols: Span) -> NDArray[np.uint8]:
        """Return (y, x), or (class, y, x), of a range of rows and of columns of an array, named as in `MapSpec`."""

    def checksums(self, array: str) -> Iterable[tuple[Span, Span, int]]:
        """Rows, columns and checksum (`checksum_of`) of regions that cover an array."""


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
        array: Array of the map store.
        mask: Array of the map store that holds the validity, for `class_prob`.
    """

    task: Task
    output_type: Layer
    geobox: GeoBox
    tags: Mapping[str, str]
    cog: bool
    language: Language = "en"
    array: str = "class"
    mask: str | None = None

    @classmethod
    def of(
        cls, plan: MapPlan, task: Task, tasks: Sequence[Task], layer: Layer, tags: Mapping[str, str], cog: bool,
        language: Language = "en",
    ) -> MapSpec:  # fmt: skip
        """Describe one raster of a run over `tasks`."""
        mask = variable_name("valid", task, tasks) if layer == "class_prob" else None
        array = variable_name(_ARRAYS[layer], task, tasks)
        return cls(task, layer, plan.geobox, tags, cog, language, array, mask)

    @property
    def n_bands(self) -> int:
        """Bands of the raster."""
        return self.task.n_classes if self.output_type == "class_prob" else 1

    @property
    def title(self) -> str:
        """What is reported while it is written."""
        return f"{self.task.label}_confidence" if self.output_type == "confidence" else self.task.label

    @property
    def tile_px(self) -> int:
        """Tile of the file; smaller for small maps so that they have overviews, too."""
        return 512 if max(self.geobox.height, self.geobox.width) > 1024 else 256


def map_name(output_name: str, task: str, output_type: Layer) -> str:
    """File name of a map: `<output_name>_<task>_<output_type>.tif`."""
    return f"{output_name}_{task}_{output_type}.tif"


def stored_bands(task: Task, output_type: OutputType) -> int:
    """Bytes of a pixel in the map store: its class, or its probabilities and its validity."""
    return 1 if output_type == "argmax" else task.n_classes + 1


def stored_maps(plan: MapPlan, tasks: Sequence[Task], output_type: OutputType, confidence: bool) -> xr.Dataset:
    """Return the map that a run stores, without its pixels; all uint8.

    `class` (y, x), 255 = no data; or `probabilities` (class_name, y, x), round(255 x probability), with `valid` (y, x),
    1 = data; and `confidence` (y, x), round(254 x highest probability), 255 = no data. With several tasks every name
    ends in `_<task>`.
    """
    height, width = plan.geobox.height, plan.geobox.width
    variables = {}
    for task in tasks:
        attributes: dict[str, dict[str, Any]] = {"class": {**class_attributes(task), "_FillValue": IGNORE_INDEX}}
        if output_type == "class_prob":
            validity = {"flag_values": [0, 1], "flag_meanings": "no_data data"}
            attributes = {"probabilities": {"scale_factor": 1 / 255}, "valid": validity}
        if confidence:
            attributes["confidence"] = {"scale_factor": 1 / CONFIDENCE_SCALE, "_FillValue": IGNORE_INDEX}
        for kind, facts in attributes.items():
            leading = {variable_name("class_name", task, tasks): task.n_classes} if kind == "probabilities" else {}
            array = da.zeros((*leading.values(), height, width), dtype="uint8", chunks=-1)
            variable = xr.Variable((*leading, "y", "x"), array, {"task": task.label, **facts})
            chunks = (*leading.values(), *plan.chunks)
            variable.encoding = {"chunks": chunks, "fill_value": facts.get("_FillValue", 0)}
            variables[variable_name(kind, task, tasks)] = variable
    return described(plan, tasks, variables)


def write_map(spec: MapSpec, source: MapSource, path: Path, progress: Progress = silent) -> None:
    """Write a map from its blocks, read it back and compare with the checksums of the blocks.

    Args:
        spec: The map.
        source: Its pixels.
        path: Where to; the caller moves it to its name afterwards.
        progress: Told about finished pieces.

    Raises:
        ZoneError: A block is damaged, or what was read back differs from what was written.
    """
    plain = path.with_suffix(".plain.tif") if spec.cog else path
    _write_tiled(spec, source, plain, progress)
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
    _compare(spec, source, path, progress)


def _write_tiled(spec: MapSpec, source: MapSource, path: Path, progress: Progress) -> None:
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
            values = source.read(spec.array, rows, cols)
            window = Window(cols[0], rows[0], cols[1] - cols[0], rows[1] - rows[0])
            dataset.write(values if values.ndim == 3 else values[None], window=window)
            if spec.mask is not None:
                dataset.write_mask(source.read(spec.mask, rows, cols) * np.uint8(255), window=window)
            progress(f"write {spec.title}", done, len(pieces))


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


def _compare(spec: MapSpec, source: MapSource, path: Path, progress: Progress) -> None:
    with rasterio.open(path, driver="GTiff", sharing=False) as dataset:
        _compare_header(spec, dataset, path)
        expected = [(spec.array, *region) for region in source.checksums(spec.array)]
        if spec.mask is not None:
            expected += [(spec.mask, *region) for region in source.checksums(spec.mask)]
        for done, (name, rows, cols, checksum) in enumerate(expected, start=1):
            window = Window(cols[0], rows[0], cols[1] - cols[0], rows[1] - rows[0])
            values = dataset.read(window=window) if name == spec.array else dataset.dataset_mask(window=window) > 0
            if checksum_of(values.astype(np.uint8, copy=False)) != checksum:
                if checksum_of(source.read(name, rows, cols)) != checksum:
                    raise ZoneError(f"{path.name}: {name} is damaged at {window}. Run again to repair it.")
                raise ZoneError(f"{path}: pixels at {window} differ from what was written. The disk may be failing.")
            progress(f"check {spec.title}", done, len(expected))


def _compare_header(spec: MapSpec, dataset: Any, path: Path) -> None:
    nodata = None if spec.output_type == "class_prob" else IGNORE_INDEX
    wanted = (spec.geobox.height, spec.geobox.width, spec.n_bands, nodata)
    written = (dataset.height, dataset.width, dataset.count, dataset.nodata)
    if wanted != written or not same_crs(dataset.crs.to_wkt() if dataset.crs else "", spec.geobox.crs_wkt):
        raise ZoneError(f"{path}: height, width, bands, nodata are {written}, expected {wanted}. The write failed.")
