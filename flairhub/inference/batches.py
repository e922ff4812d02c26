"""From source pixels to network batches: a block is read once, its windows are cut from memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flairhub.data.batch import Batch, PreparedBatch
from flairhub.data.prepare import Preparation, prepare_batch
from flairhub.inference.rasters import RasterSource, read_dated, read_region, to_finest, valid_pixels
from flairhub.inference.zone import Zone
from flairhub.timeseries import Series, SeriesPreparation, prepare_series


@dataclass(frozen=True)
class BlockPixels:
    """Source pixels of all windows of a block, each modality in its own pixels and native dtype.

    Attributes:
        top: First row of the region, finest pixels; may be negative (mirrored).
        left: First column.
        values: (band, y, x) or (time, band, y, x) by modality.
        valid: (y, x) bool by modality; None = everywhere.
        quality: (time, band, y, x) by series that is filtered.
        dated: (time, y, x) bool by series whose patches differ in their dates: where there is an image of that date.
    """

    top: int
    left: int
    values: Mapping[str, NDArray[Any]]
    valid: Mapping[str, NDArray[np.bool_] | None]
    quality: Mapping[str, NDArray[Any]]
    dated: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


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
    values, valid, quality, dated = {}, {}, {}, {}
    for name, preparation in preparations.items():
        source = zone.sources[name]
        values[name], mask = read_region(source, *_own(source, rows, cols))
        heights = getattr(preparation, "elevation", None) is not None
        good = valid_pixels(source, values[name], mask, preparation.channels, every_band=heights)
        valid[name] = None if good.all() else good
        if isinstance(preparation, SeriesPreparation) and preparation.cloud_filter is not None:
            quality[name] = read_region(zone.quality[name], *_own(zone.quality[name], rows, cols))[0]
        having = read_dated(source, *_own(source, rows, cols))
        if having is not None:
            dated[name] = having
    return BlockPixels(rows[0], cols[0], values, valid, quality, dated)


def _own(source: RasterSource, rows: tuple[int, int], cols: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns in the source's own pixels."""
    own_rows = (int(rows[0] / source.ratio), int(rows[1] / source.ratio))
    return own_rows, (int(cols[0] / source.ratio), int(cols[1] / source.ratio))


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
    if any_input and any(valid is None for valid in pixels.valid.values()):
        return ~result
    part = (
        slice(rows[0] - pixels.top, rows[1] - pixels.top),
        slice(cols[0] - pixels.left, cols[1] - pixels.left),
    )
    for name, valid in pixels.valid.items():
        if valid is not None:
            own = to_finest(valid, zone.sources[name].ratio)[part]
            result = result | own if any_input else result & own
    return result


def make_batch(
    zone: Zone,
    pixels: BlockPixels,
    preparations: Mapping[str, Preparation],
    starts: Sequence[tuple[int, int]],
    device: str,
) -> tuple[PreparedBatch, NDArray[np.bool_]]:
    """Cut windows from a block and prepare them as training does.

    Args:
        zone: The rasters.
        pixels: The block that holds the windows.
        preparations: By modality, in network order.
        starts: First row and column of every window, finest pixels.
        device: Where the network is.

    Returns:
        The batch, series padded to the longest with masked dates; and (window,) bool, False where no modality has
        anything to show (a series without a usable date and no image beside it).
    """
    inputs, dates, masks = {}, {}, {}
    has_data = np.zeros(len(starts), dtype=bool)
    for name, preparation in preparations.items():
        cuts = [_cut(zone, pixels, name, start) for start in starts]
        if isinstance(preparation, SeriesPreparation):
            series = [_prepared_series(zone, pixels, name, preparation, cut) for cut in cuts]
            inputs[name], dates[name], masks[name] = _pad(series)
            has_data |= masks[name].numpy().any(axis=1)
        else:
            inputs[name] = torch.from_numpy(np.stack([pixels.values[name][cut] for cut in cuts]))
            has_data[:] = True
    batch = Batch(inputs, dates, masks, {}, torch.arange(len(starts)))
    prepared = prepare_batch(batch, preparations, device)
    for name, values in prepared.inputs.items():
        valid = pixels.valid[name]
        if valid is not None:
            good = torch.from_numpy(np.stack([valid[_cut(zone, pixels, name, start)[1:]] for start in starts]))
            # An input that is nowhere in the window is dropped, as in training.
            somewhere = good.flatten(1).any(dim=1)
            if name in prepared.masks:
                prepared.masks[name] &= somewhere.to(device)[:, None]
            elif not somewhere.all():
                prepared.present[name] = somewhere.to(device)
            extra = (1,) * (values.ndim - 3)
            values = values.masked_fill(~good.view(len(starts), *extra, *good.shape[-2:]).to(device), 0.0)
        if not zone.sources[name].is_integer:
            values = torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        prepared.inputs[name] = values
    return prepared, has_data


def _cut(zone: Zone, pixels: BlockPixels, name: str, start: tuple[int, int]) -> tuple[Any, slice, slice]:
    ratio = zone.sources[name].ratio
    top, left = int((start[0] - pixels.top) / ratio), int((start[1] - pixels.left) / ratio)
    length = int(zone.window_px / ratio)
    return ..., slice(top, top + length), slice(left, left + length)


def _prepared_series(
    zone: Zone, pixels: BlockPixels, name: str, preparation: SeriesPreparation, cut: tuple[Any, slice, slice]
) -> Series:
    values, source = pixels.values[name][cut], zone.sources[name]
    if not source.is_integer and source.nodata is not None:
        values = np.where(values == np.asarray(source.nodata, dtype=values.dtype), np.nan, values).astype(values.dtype)
    quality = pixels.quality[name][cut] if name in pixels.quality else None
    dates = zone.dates[name]
    if name in pixels.dated:
        valid = pixels.valid[name]
        # A date counts where the whole window has an image of it; where there is no patch at all, none is expected.
        having = pixels.dated[name][cut] | (False if valid is None else ~valid[cut[1:]])
        keep = having.all(axis=(1, 2))
        values, dates, quality = values[keep], dates[keep], None if quality is None else quality[keep]
    return prepare_series(values, dates, quality, preparation)


def _pad(series: Sequence[Series]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n_times = max(1, *(len(one.offsets) for one in series))
    first = series[0].values
    values = np.zeros((len(series), n_times, *first.shape[1:]), dtype=np.result_type(*(one.values for one in series)))
    dates = np.zeros((len(series), n_times), dtype=np.int32)
    masks = np.zeros((len(series), n_times), dtype=bool)
    for row, one in enumerate(series):
        n_own = len(one.offsets)
        values[row, :n_own], dates[row, :n_own], masks[row, :n_own] = one.values, one.offsets, one.valid
    return torch.from_numpy(values), torch.from_numpy(dates), torch.from_numpy(masks)
