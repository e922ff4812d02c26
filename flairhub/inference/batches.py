"""From source pixels to network batches: a block is read once, its windows are cut from memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from flairhub.data import Batch, Preparation, PreparedBatch, prepare_batch
from flairhub.timeseries import Series, SeriesPreparation, prepare_series
from flairhub.validity import resized
from flairhub.zones import Pixels, Raster, Zone


@dataclass(frozen=True)
class BlockPixels:
    """Source pixels of all windows of a block, each modality in its own pixels and native dtype.

    Attributes:
        top: First row of the region, finest pixels; may be negative (mirrored).
        left: First column.
        inputs: By modality.
        quality: By series that is filtered.
    """

    top: int
    left: int
    inputs: Mapping[str, Pixels]
    quality: Mapping[str, Pixels]


def read_block(
    zone: Zone, preparations: Mapping[str, Preparation], rows: tuple[int, int], cols: tuple[int, int]
) -> BlockPixels:
    """Read a region of every modality the network takes.

    Args:
        zone: The rasters.
        preparations: By modality, what the network takes.
        rows: First row and one past the last, finest pixels on the lattice; may lie outside the zone.
        cols: Likewise for columns.
    """
    regions = source_regions(zone, preparations, rows, cols)
    inputs, quality = {}, {}
    for name, preparation in preparations.items():
        inputs[name] = zone.rasters[name].read(*regions[name], preparation.channels)
        if filters_clouds(preparation):
            quality[name] = zone.quality[name].read(*regions[zone.quality[name].name])
    return BlockPixels(rows[0], cols[0], inputs, quality)


def source_regions(
    zone: Zone, preparations: Mapping[str, Preparation], rows: tuple[int, int], cols: tuple[int, int]
) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """Return what `read_block` reads: rows and columns of every modality and quality mask, in its own pixels."""
    regions = {}
    for name, preparation in preparations.items():
        regions[name] = _scaled(rows, zone.ratio(name)), _scaled(cols, zone.ratio(name))
        if filters_clouds(preparation):
            regions[zone.quality[name].name] = regions[name]
    return regions


def filters_clouds(preparation: Preparation) -> bool:
    """Whether an input needs the quality mask of its series."""
    return isinstance(preparation, SeriesPreparation) and preparation.cloud_filter is not None


def _scaled(span: tuple[int, int], ratio: Fraction) -> tuple[int, int]:
    """A range of finest pixels in pixels of a raster."""
    return int(span[0] / ratio), int(span[1] / ratio)


def valid_region(
    zone: Zone, pixels: BlockPixels, rows: tuple[int, int], cols: tuple[int, int], any_input: bool = False
) -> NDArray[np.bool_]:
    """Return where every modality has data, on the finest grid.

    Args:
        zone: The rasters.
        pixels: The block.
        rows: First row and one past the last, finest pixels inside the block.
        cols: Likewise for columns.
        any_input: Where at least one modality has data, instead of all.

    Returns:
        (y, x) bool.
    """
    result = np.full((rows[1] - rows[0], cols[1] - cols[0]), not any_input, dtype=bool)
    part = (
        slice(rows[0] - pixels.top, rows[1] - pixels.top),
        slice(cols[0] - pixels.left, cols[1] - pixels.left),
    )
    for name, one in pixels.inputs.items():
        anywhere, ratio = one.anywhere, zone.ratio(name)
        if anywhere is None:
            if any_input:
                return np.ones_like(result)
            continue
        height, width = anywhere.shape
        on_finest = resized(anywhere, (int(height * ratio), int(width * ratio)))[part]
        result = result | on_finest if any_input else result & on_finest
    return result


def make_batch(
    zone: Zone,
    pixels: BlockPixels,
    preparations: Mapping[str, Preparation],
    starts: Sequence[tuple[int, int]],
    window_px: int,
    device: str,
) -> tuple[PreparedBatch, NDArray[np.bool_]]:
    """Cut windows from a block and prepare them as training does.

    Args:
        zone: The rasters.
        pixels: The block that holds the windows.
        preparations: By modality, in network order.
        starts: First row and column of every window, finest pixels.
        window_px: Window length, finest pixels.
        device: Where the network is.

    Returns:
        The batch, series padded to the longest with masked dates; and (window,) bool, False where no modality has
        anything to show (a series without a usable date and no image beside it).
    """
    inputs: dict[str, torch.Tensor] = {}
    dates: dict[str, torch.Tensor] = {}
    masks: dict[str, torch.Tensor] = {}
    valid: dict[str, torch.Tensor] = {}
    present: dict[str, torch.Tensor] = {}
    has_data = np.zeros(len(starts), dtype=bool)
    for name, preparation in preparations.items():
        cuts = [_cut(pixels, start, window_px, zone.ratio(name)) for start in starts]
        source = pixels.inputs[name]
        if isinstance(preparation, SeriesPreparation):
            series = [_prepared_series(zone.rasters[name], pixels, preparation, cut) for cut in cuts]
            inputs[name], dates[name], masks[name] = _pad(series)
            has_data |= masks[name].numpy().any(axis=1)
            continue
        inputs[name] = torch.from_numpy(np.stack([source.values[(..., *cut)] for cut in cuts]))
        has_data[:] = True
        if source.valid is not None:
            windows = np.stack([source.valid[cut] for cut in cuts])
            valid[name] = torch.from_numpy(windows)
            # An input that is nowhere in the window is dropped, as in training.
            somewhere = windows.any(axis=(1, 2))
            if not somewhere.all():
                present[name] = torch.from_numpy(somewhere)
    batch = Batch(inputs, dates, masks, {}, torch.arange(len(starts)), present, valid)
    return prepare_batch(batch, preparations, device), has_data


def _cut(pixels: BlockPixels, start: tuple[int, int], window_px: int, ratio: Fraction) -> tuple[slice, slice]:
    top, left = int((start[0] - pixels.top) / ratio), int((start[1] - pixels.left) / ratio)
    length = int(window_px / ratio)
    return slice(top, top + length), slice(left, left + length)


def _prepared_series(
    raster: Raster, pixels: BlockPixels, preparation: SeriesPreparation, cut: tuple[slice, slice]
) -> Series:
    assert raster.dates is not None
    source, quality = pixels.inputs[raster.name], pixels.quality.get(raster.name)
    return prepare_series(
        source.values[(..., *cut)],
        raster.dates,
        None if quality is None else quality.values[(..., *cut)],
        preparation,
        _part(source.valid, cut),
        None if quality is None else _part(quality.valid, cut),
    )


def _part(valid: NDArray[np.bool_] | None, cut: tuple[slice, slice]) -> NDArray[np.bool_] | None:
    return None if valid is None else valid[(..., *cut)]


def _pad(series: Sequence[Series]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n_times = max(1, *(len(one.offsets) for one in series))
    first = series[0].values
    values = np.zeros((len(series), n_times, *first.shape[1:]), dtype=np.result_type(*(one.values for one in series)))
    dates = np.zeros((len(series), n_times), dtype=np.int32)
    masks = np.zeros((len(series), n_times), dtype=bool)
    for row, one in enumerate(series):
        length = len(one.offsets)
        values[row, :length], dates[row, :length], masks[row, :length] = one.values, one.offsets, one.valid
    return torch.from_numpy(values), torch.from_numpy(dates), torch.from_numpy(masks)
