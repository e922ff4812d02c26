"""How a zone is cut into windows and blocks for a model: known before any pixel is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flairhub.data import Preparation
from flairhub.errors import UsageError, ZoneError
from flairhub.geo import GeoBox
from flairhub.inference.model_ref import ModelRef
from flairhub.inference.resample import fine_span, output_length, output_ratio, output_span
from flairhub.inference.windows import AxisWindows, block_edges, chunk_length, map_span, plan_axis, touching
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import SeriesPreparation, check_channels
from flairhub.zones import Raster, Zone

Output = Literal["class", "confidence", "probabilities", "scaled"]

DEFAULT_WINDOW_PX = 512
"""Window of a model that does not say what it was trained at."""

MOST_OF_ZONE, MOST_OF_TRAINED = 4, 2
"""A window has at most so many times the zone's longer side, or so many times the default window: what lies outside of
the zone is its mirror image, and costs as much memory as the zone."""

MAX_BLOCK_PX = 2048
BLOCK_BYTES = 256_000_000
"""Default blocks have at most so many pixels along an axis and so many bytes of source pixels."""


@dataclass(frozen=True)
class Sizes:
    """Windows and output pixels of a map.

    Attributes:
        window_px: Window length in finest pixels, halo included.
        margin_px: Pixels cut off on each side of a window, at least.
        output_px_m: Pixel of the maps in metres; None = the finest grid.
        batch_size: Windows per call of the network.
    """

    window_px: int
    margin_px: int
    output_px_m: float | None = None
    batch_size: int = 1


@dataclass(frozen=True)
class Style:
    """How windows become a map.

    Attributes:
        blend: Overlapping windows are averaged with smooth weights; otherwise their margins are cropped.
        bf16: The network computes in bfloat16 where torch's autocast finds that safe.
        flips: Probabilities are the mean over the window and its three mirror images: four passes.
        drop_missing: An input without data is dropped as in training, and a pixel has no data only where every input
            lacks it; otherwise where any does.
    """

    blend: bool = False
    bf16: bool = False
    flips: bool = False
    drop_missing: bool = False


PLAIN = Style()


@dataclass(frozen=True)
class MapPlan:
    """How a zone is cut into windows and blocks: facts only, small.

    A zone with an area of interest has a map of the windows around that area; the map's pixels are the zone's.

    Attributes:
        zone: The rasters.
        rows: Windows along y.
        cols: Windows along x.
        ratio: Finest pixels per output pixel.
        row_edges: Block edges along y, pixels of the map.
        col_edges: Block edges along x.
        origin: Row and column of the zone's output grid at which the map begins.
        sizes: Of windows and output pixels.
        tasks: (name, number of classes) of what is predicted.
        style: Blending, precision, flips, missing inputs.
    """

    zone: Zone
    rows: AxisWindows
    cols: AxisWindows
    ratio: Fraction
    row_edges: tuple[int, ...]
    col_edges: tuple[int, ...]
    origin: tuple[int, int]
    sizes: Sizes
    tasks: tuple[tuple[str, int], ...]
    style: Style = PLAIN

    @property
    def geobox(self) -> GeoBox:
        """Grid of the maps; its last row and column may reach beyond the zone by part of a pixel."""
        whole = output_geobox(self.zone, self.ratio)
        return whole.crop(*self.origin, self.row_edges[-1], self.col_edges[-1])

    @property
    def coords(self) -> dict[str, NDArray[np.float64]]:
        """Centres of the map's pixels, `y` and `x`: the very numbers of the map of the whole zone."""
        centres = output_geobox(self.zone, self.ratio).coords()
        starts, lengths = self.origin, (self.row_edges[-1], self.col_edges[-1])
        return {name: centres[name][o : o + n] for name, o, n in zip(("y", "x"), starts, lengths, strict=True)}

    @property
    def n_blocks(self) -> tuple[int, int]:
        """Blocks along y and x."""
        return len(self.row_edges) - 1, len(self.col_edges) - 1

    @property
    def n_windows(self) -> int:
        """Windows that cover the zone, or its area of interest."""
        return self.rows.count * self.cols.count if self.zone.aoi is None else len(self.windows()[0])

    @property
    def recompute_factor(self) -> float:
        """Pixels the network sees per pixel of the zone, or of its area of interest."""
        box, area = self.zone.geobox, self.zone.aoi
        return self.n_windows * self.rows.window**2 / (box.height * box.width if area is None else area.n_px)

    @property
    def chunks(self) -> tuple[int, int]:
        """Chunk of a stored map along y and x: no chunk lies in two blocks."""
        return chunk_length(self.row_edges), chunk_length(self.col_edges)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Row and column numbers of all blocks."""
        return product(range(self.n_blocks[0]), range(self.n_blocks[1]))

    def blocks_inside(self) -> list[tuple[int, int]]:
        """Row and column numbers of the blocks that hold a pixel of the area of interest; all without one."""
        blocks = list(self.blocks())
        if self.zone.aoi is None:
            return blocks
        spans = np.array([self.on_zone(*self.extent(block)) for block in blocks])
        touched = self.zone.aoi.touches(spans[:, 0], spans[:, 1], self.ratio)
        return [block for block, inside in zip(blocks, touched.tolist(), strict=True) if inside]

    def windows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column numbers of the windows that are computed where all pixels hold data."""
        axes = self.rows, self.cols
        if self.zone.aoi is None:
            numbers = np.meshgrid(*(np.arange(axis.count) for axis in axes), indexing="ij")
            return numbers[0].ravel(), numbers[1].ravel()
        spans, ranges = [], []
        for axis, first, edges in zip(axes, self.origin, (self.row_edges, self.col_edges), strict=True):
            low, high = fine_span(first, first + edges[-1], axis.length, self.ratio)
            chosen = touching(axis, low, high) if self.style.blend else axis.covering(low, high)
            ranges.append(np.array(chosen))
            reach = [self._output_reach(axis, index) for index in chosen]
            spans.append(np.array(reach))
        row, col = (numbers.ravel() for numbers in np.meshgrid(*map(np.arange, map(len, ranges)), indexing="ij"))
        inside = self.zone.aoi.touches(spans[0][row], spans[1][col], self.ratio)
        return ranges[0][row[inside]], ranges[1][col[inside]]

    def _output_reach(self, axis: AxisWindows, index: int) -> tuple[int, int]:
        """Output pixels of the zone that a window is part of."""
        start = axis.start(index)
        first, last = (max(start, 0), min(start + axis.window, axis.length)) if self.style.blend else axis.core(index)
        return output_span(first, last, axis.length, self.ratio)

    def on_zone(self, rows: tuple[int, int], cols: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return a region of the map in pixels of the zone's output grid."""
        row, col = self.origin
        return (rows[0] + row, rows[1] + row), (cols[0] + col, cols[1] + col)

    def extent(self, block: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """First row and one past the last, and the same for columns, of a block in pixels of the map."""
        row, col = block
        return (self.row_edges[row], self.row_edges[row + 1]), (self.col_edges[col], self.col_edges[col + 1])


def map_sizes(
    zone: Zone,
    window_px: int | None = None,
    margin_px: int | None = None,
    output_px_m: float | None = None,
    batch_size: int | None = None,
    model: ModelRef | None = None,
) -> Sizes:
    """Return the sizes that are given, else those of the configuration that opened the zone, else those of the model.

    A model's window is what it was trained at, in whole pixels of every modality, and its margin an eighth of that.

    Raises:
        UsageError: No window is given, no configuration opened the zone, and no model helps.
    """
    given = {"window_px": window_px, "margin_px": margin_px, "output_px_m": output_px_m, "batch_size": batch_size}
    chosen = {**zone.suggested, **{key: value for key, value in given.items() if value is not None}}
    if "window_px" not in chosen:
        if model is None:
            raise UsageError(
                "window_px: not given, and no configuration opened the zone. Pass window_px and margin_px."
            )
        chosen["window_px"] = _trained_window(zone, model)
        chosen.setdefault("margin_px", chosen["window_px"] // 8)
    return Sizes(**{"margin_px": 0, **chosen})


def _trained_window(zone: Zone, model: ModelRef) -> int:
    """Pixels of a training sample on the finest grid, rounded down to the lattice."""
    known = [name for name in model.preparations if name in model.sizes and name in zone.rasters]
    lead = min(known, key=zone.ratio, default=None)
    window = DEFAULT_WINDOW_PX if lead is None else int(model.sizes[lead] * zone.ratio(lead))
    return max(window // zone.lattice_px, 1) * zone.lattice_px


def plan_axes(zone: Zone, sizes: Sizes) -> tuple[AxisWindows, AxisWindows]:
    """Lay windows over a zone along y and x.

    Raises:
        UsageError: Window and margin do not fit the modalities' pixels, or the window is far larger than the zone.
    """
    longest = max(zone.geobox.height, zone.geobox.width)
    if sizes.window_px > max(MOST_OF_ZONE * longest, MOST_OF_TRAINED * DEFAULT_WINDOW_PX):
        raise UsageError(
            f"img_pixels_detection: {sizes.window_px} px, but the zone has only {zone.geobox.height} x "
            f"{zone.geobox.width} px. A window holds at most {MOST_OF_ZONE} times the longer side (a digit too many?)."
        )
    lattice = zone.lattice_px
    rows = plan_axis(zone.geobox.height, sizes.window_px, sizes.margin_px, lattice)
    return rows, plan_axis(zone.geobox.width, sizes.window_px, sizes.margin_px, lattice)


def output_ratio_of(zone: Zone, sizes: Sizes) -> Fraction:
    """Return the finest pixels of a zone per output pixel.

    Raises:
        UsageError: The output pixel is larger than the zone, or fits its pixels in no simple ratio.
    """
    box = zone.geobox
    size_m, pixel_m = max(box.height, box.width) * box.x_res_m, box.x_res_m
    if sizes.output_px_m is not None and sizes.output_px_m > size_m:
        raise UsageError(f"output_px_meters: {sizes.output_px_m:g} m, but the zone is only {size_m:g} m long.")
    return output_ratio(sizes.output_px_m, pixel_m)


def output_geobox(zone: Zone, ratio: Fraction) -> GeoBox:
    """Grid of maps with `ratio` finest pixels per pixel."""
    box = zone.geobox
    height, width = output_length(box.height, ratio), output_length(box.width, ratio)
    x_res, y_res = float(box.x_res * ratio), float(box.y_res * ratio)
    return GeoBox(box.crs_wkt, box.x_min, box.y_max, x_res, y_res, height, width)


def plan_map(
    zone: Zone,
    model: ModelRef,
    sizes: Sizes,
    block_px: int | None = None,
    style: Style = PLAIN,
) -> MapPlan:
    """Lay windows and blocks over a zone and check that the model can read it.

    Args:
        zone: The rasters.
        model: What the network takes and predicts.
        sizes: Of windows and output pixels.
        block_px: Largest block in output pixels; None = 2048, or less where that is more than 256 MB of pixels.
        style: Blending, precision, flips, missing inputs.

    Raises:
        ZoneError: The zone lacks an input of the model, or its bands do not fit.
        UsageError: Window, margin, block or batch size cannot be.
    """
    check_inputs(zone, model)
    rows, cols = plan_axes(zone, sizes)
    ratio = output_ratio_of(zone, sizes)
    if sizes.batch_size < 1:
        raise UsageError(f"batch_size: got {sizes.batch_size}, expected at least 1.")
    block = default_block(zone, model, rows.step, ratio, style) if block_px is None else block_px
    (top, bottom), (left, right) = _map_extent(zone, rows, cols, ratio)
    row_edges = block_edges(bottom - top, block, ratio, rows, top)
    col_edges = block_edges(right - left, block, ratio, cols, left)
    names = tuple((task.label, task.n_classes) for task in model.tasks)
    return MapPlan(zone, rows, cols, ratio, row_edges, col_edges, (top, left), sizes, names, style)


def _map_extent(
    zone: Zone, rows: AxisWindows, cols: AxisWindows, ratio: Fraction
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the zone's output grid that are mapped: the cores of the windows around its area."""
    height, width = output_length(rows.length, ratio), output_length(cols.length, ratio)
    if zone.aoi is None:
        return (0, height), (0, width)
    left, top, right, bottom = (bound / float(ratio) for bound in zone.aoi.bounds)
    spans = (int(top), min(math.ceil(bottom), height)), (int(left), min(math.ceil(right), width))
    return map_span(*spans[0], ratio, rows, height), map_span(*spans[1], ratio, cols, width)


def source_bytes_per_px(zone: Zone, names: list[str]) -> float:
    """Bytes of source pixels per finest pixel of a zone."""
    return sum(zone.rasters[name].bytes_per_px / float(zone.ratio(name)) ** 2 for name in names)


def default_block(zone: Zone, model: ModelRef, step: int, ratio: Fraction = Fraction(1), style: Style = PLAIN) -> int:
    """Return a block length in output pixels that bounds the memory of a block, at least one window's core."""
    per_px = source_bytes_per_px(zone, list(model.preparations))
    if ratio != 1 or style.blend:
        per_px += 4 * sum(task.n_classes for task in model.tasks)
    fine = max(int((BLOCK_BYTES / per_px) ** 0.5), step)
    return min(MAX_BLOCK_PX, max(1, int(fine / ratio)))


def fitted(zone: Zone, model: ModelRef) -> ModelRef:
    """Return the model with its channels counted in the zone's bands, which go by name where they have names.

    Raises:
        ZoneError: A raster lacks a band that the model takes.
    """
    preparations = {
        name: _by_name(zone.rasters[name], preparation, model.bands.get(name, ()))
        if name in zone.rasters
        else preparation
        for name, preparation in model.preparations.items()
    }
    # The channels now count the bands of the rasters: fitting again changes nothing.
    bands = {
        name: zone.rasters[name].bands if preparations[name] != preparation else model.bands.get(name, ())
        for name, preparation in model.preparations.items()
    }
    return replace(model, preparations=preparations, bands=bands)


def _by_name(raster: Raster, preparation: Preparation, bands: tuple[str, ...]) -> Preparation:
    wanted = [
        bands[channel - 1] for channel in preparation.channels or range(1, len(bands) + 1) if channel <= len(bands)
    ]
    if not bands or raster.bands == bands or not raster.has_names:
        return preparation
    missing = [band for band in wanted if band not in raster.bands]
    if missing:
        raise ZoneError(
            f"{raster.name}: the model takes {', '.join(wanted)}, but {raster.where} has {', '.join(raster.bands)}: "
            f"{', '.join(missing)} is missing."
        )
    if isinstance(preparation, ImagePreparation) and preparation.elevation is not None:
        raise ZoneError(
            f"{raster.name}: {raster.where} has the bands {', '.join(raster.bands)}, expected {', '.join(bands)}, "
            f"in this order."
        )
    return replace(preparation, channels=tuple(raster.bands.index(band) + 1 for band in wanted))


def check_inputs(zone: Zone, model: ModelRef) -> None:
    """Raise ZoneError unless the zone has what the model takes."""
    for name, preparation in model.preparations.items():
        raster = zone.rasters.get(name)
        if raster is None:
            raise ZoneError(
                f"the model takes {name}, but the zone has only {', '.join(zone.rasters)}. "
                f"Enable modalities.inputs.{name} and give its raster."
            )
        n_bands = len(raster.bands)
        try:
            check_channels(preparation.channels or (), n_bands)
        except UsageError as error:
            raise ZoneError(f"{name}: {raster.where}: {error}{_hint(raster, model.bands.get(name, ()))}") from None
        if isinstance(preparation, SeriesPreparation) != (raster.dates is not None):
            raise ZoneError(f"{name}: the model and the zone disagree on whether it is a time series.")
        if isinstance(preparation, SeriesPreparation):
            if preparation.cloud_filter is not None and name not in zone.quality:
                raise ZoneError(
                    f"{name}: the model filters clouds, but the zone has no quality mask. "
                    f"Give modalities.{name}.filter_clouds_img_path (with cube: ingest again with it)."
                )
        elif preparation.elevation is not None and n_bands != 2:
            raise ZoneError(f"{name}: {raster.where} has {n_bands} bands, expected 2 (DSM, DTM).")
        elif preparation.means and len(preparation.means) != preparation.n_channels(n_bands):
            raise ZoneError(
                f"{name}: {raster.where} gives {preparation.n_channels(n_bands)} channels, but the model "
                f"normalises {len(preparation.means)}."
            )


def _hint(raster: Raster, bands: tuple[str, ...]) -> str:
    """How to say which bands a raster has, where the model knows its bands by name and the raster does not."""
    if not bands or raster.has_names:
        return ""
    return (
        f" The model counts {', '.join(bands)}; say which bands the raster has: modalities.{raster.name}.bands: [...], "
        f"or names as band coordinate."
    )
