"""A region of a map from the windows that reach it: read once, predicted in batches, put together."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.inference.batches import BlockPixels, make_batch, read_block, valid_region
from flairhub.inference.map_plan import MapPlan, Output
from flairhub.inference.model_ref import LoadedNetwork, ModelRef, load
from flairhub.inference.resample import Taps, fine_span, needed_pixels, resample, taps
from flairhub.inference.window_outputs import DTYPES, NODATA, read_probabilities, window_outputs, without_numbers
from flairhub.inference.windows import AxisWindows, touching, weights_of
from flairhub.jobs import Stopped


@dataclass(frozen=True)
class Region:
    """A region of a map.

    Attributes:
        values: By task and output: (y, x) for class and confidence, (class, y, x) for probabilities and scaled, with
            their nodata values where the region has none, or lies outside the zone's area of interest.
        n_valid: Pixels with data.
        not_finite: By task, how many of them have no value because the network gave no finite logits.
    """

    values: dict[tuple[str, Output], NDArray[Any]]
    n_valid: int
    not_finite: dict[str, int]


def predict_region(
    plan: MapPlan,
    model: ModelRef,
    rows: tuple[int, int],
    cols: tuple[int, int],
    outputs: Sequence[Output],
    stop: threading.Event | None = None,
) -> Region:
    """Predict a region of a map: its pixels do not depend on where it begins and ends.

    Args:
        plan: Windows and output pixels.
        model: The network.
        rows: First row and one past the last, output pixels of the zone.
        cols: Likewise for columns.
        outputs: What to return.
        stop: When it is set, the region ends after the windows that are being computed.

    Raises:
        Stopped: `stop` was set.
    """
    area = plan.zone.aoi
    if area is None:
        return _predict_inside(plan, model, rows, cols, outputs, stop, None)
    inside = area.mask(rows, cols, plan.ratio)
    blank = _blank(plan, inside.shape, outputs)
    if not inside.any():
        return Region(blank, 0, {task: 0 for task, _ in plan.tasks})
    # Only what lies around the area is read.
    y, x = (slice(int(at.min()), int(at.max()) + 1) for at in np.nonzero(inside))
    spans = (rows[0] + y.start, rows[0] + y.stop), (cols[0] + x.start, cols[0] + x.stop)
    part = _predict_inside(plan, model, *spans, outputs, stop, inside[y, x])
    for key, values in part.values.items():
        blank[key][..., y, x] = values
    return replace(part, values=blank)


def _blank(plan: MapPlan, shape: tuple[int, int], outputs: Sequence[Output]) -> dict[tuple[str, Output], NDArray[Any]]:
    """A region without data."""
    return {
        (task, output): np.full(
            shape if output in ("class", "confidence") else (n, *shape), NODATA[output], dtype=DTYPES[output]
        )
        for task, n in plan.tasks
        for output in outputs
    }


def _predict_inside(
    plan: MapPlan,
    model: ModelRef,
    rows: tuple[int, int],
    cols: tuple[int, int],
    outputs: Sequence[Output],
    stop: threading.Event | None,
    inside: NDArray[np.bool_] | None,
) -> Region:
    """Predict a region, of which only the pixels `inside` are wanted; None = all."""
    if plan.ratio == 1:
        values, valid = _predict_fine(plan, model, rows, cols, outputs, stop, inside)
    else:
        down = taps(*rows, plan.rows.length, plan.ratio)
        across = taps(*cols, plan.cols.length, plan.ratio)
        wanted = None if inside is None else needed_pixels(inside, down, across)
        fine, fine_valid = _predict_fine(
            plan, model, (down.first, down.last), (across.first, across.last), ["probabilities"], stop, wanted
        )
        values, valid = _resampled(fine, fine_valid, down, across, outputs)
    if inside is not None:
        valid &= inside
    not_finite: dict[str, int] = {}
    for (task, output), array in values.items():
        if task not in not_finite:
            not_finite[task] = int((without_numbers(array, output) & valid).sum())
        array[..., ~valid] = NODATA[output]
    return Region(values, int(valid.sum()), not_finite)


def _predict_fine(
    plan: MapPlan,
    model: ModelRef,
    rows: tuple[int, int],
    cols: tuple[int, int],
    outputs: Sequence[Output],
    stop: threading.Event | None,
    wanted: NDArray[np.bool_] | None,
) -> tuple[dict[tuple[str, Output], NDArray[Any]], NDArray[np.bool_]]:
    """Outputs of a region of the finest grid, and where they are valid; windows without a wanted pixel are left out."""
    zone, shape = plan.zone, (rows[1] - rows[0], cols[1] - cols[0])
    row_windows, col_windows = _windows(plan, plan.rows, rows), _windows(plan, plan.cols, cols)
    region = _reach(plan.rows, row_windows), _reach(plan.cols, col_windows)
    pixels = read_block(zone, model.preparations, *region)
    valid = valid_region(zone, pixels, rows, cols, plan.style.drop_missing)
    parts = (_Part.of(plan, window, rows, cols) for window in product(row_windows, col_windows))
    asked = valid if wanted is None else valid & wanted
    needed = (part for part in parts if asked[part.target].any())
    run = _Run(plan, model, load(model), pixels, stop)
    if plan.style.blend:
        sums, weight = _blended(run, needed, shape)
        valid &= weight > 0
        probabilities = {task: values / np.where(weight > 0, weight, np.float32(1)) for task, values in sums.items()}
        return {
            (task, output): read_probabilities(values.astype(np.float32, copy=False), output)
            for task, values in probabilities.items()
            for output in outputs
        }, valid
    values = {
        (task, output): np.zeros((shape if output in ("class", "confidence") else (n, *shape)), dtype=DTYPES[output])
        for task, n in plan.tasks
        for output in outputs
    }
    for batch in _batched(needed, plan.sizes.batch_size):
        _predict_cores(run, batch, values, valid)
    return values, valid


def wants_one_shape(device: str) -> bool:
    """True where every batch holds as many windows: a GPU picks kernels by shape, which shows in the last bits."""
    return device.startswith("cuda")


@dataclass(frozen=True)
class _Run:
    """What all batches of a block share."""

    plan: MapPlan
    model: ModelRef
    network: LoadedNetwork
    pixels: BlockPixels
    stop: threading.Event | None

    def predict(
        self, parts: list[_Part], outputs: Sequence[Output], crop: tuple[slice, slice]
    ) -> tuple[dict[tuple[str, Output], NDArray[Any]], NDArray[np.bool_]]:
        """Outputs of the windows of `parts`, and which of them had data."""
        if self.stop is not None and self.stop.is_set():
            raise Stopped
        plan, starts, n_windows = self.plan, [part.start for part in parts], len(parts)
        if wants_one_shape(self.network.device):
            # The last batch of a block is filled up with its last window.
            starts += starts[-1:] * (plan.sizes.batch_size - n_windows)
        batch, has_data = make_batch(
            plan.zone, self.pixels, self.model.preparations, starts, plan.rows.window, self.network.device
        )
        size = (plan.rows.window, plan.cols.window)
        results = window_outputs(self.network, batch, size, plan.tasks, outputs, plan.style, crop)
        return {key: values[:n_windows] for key, values in results.items()}, has_data[:n_windows]


@dataclass(frozen=True)
class _Part:
    """A window of a block: where it starts, what of it is used, and where that goes."""

    window: tuple[int, int]
    start: tuple[int, int]
    source: tuple[slice, slice]
    target: tuple[slice, slice]

    @classmethod
    def of(cls, plan: MapPlan, window: tuple[int, int], rows: tuple[int, int], cols: tuple[int, int]) -> _Part:
        (y, source_y, target_y), (x, source_x, target_x) = (
            _share(axis, index, *span, plan.style.blend)
            for axis, index, span in zip((plan.rows, plan.cols), window, (rows, cols), strict=True)
        )
        return cls(window, (y, x), (source_y, source_x), (target_y, target_x))


def _share(axis: AxisWindows, index: int, first: int, last: int, whole: bool) -> tuple[int, slice, slice]:
    start = axis.start(index)
    low, high = (start, start + axis.window) if whole else axis.core(index)
    low, high = max(low, first), min(high, last)
    return start, slice(low - start, high - start), slice(low - first, high - first)


def block_region(plan: MapPlan, block: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the rows and columns that the windows of a block read, finest pixels; they may lie outside the zone.

    None = nothing: the block lies outside the zone's area of interest.
    """
    region = plan.on_zone(*plan.extent(block))
    if plan.zone.aoi is not None:
        around = plan.zone.aoi.around(*region, plan.ratio)
        if around is None:
            return None
        region = around
    spans = []
    for axis, span in zip((plan.rows, plan.cols), region, strict=True):
        spans.append(_reach(axis, _windows(plan, axis, fine_span(*span, axis.length, plan.ratio))))
    return spans[0], spans[1]


def _windows(plan: MapPlan, axis: AxisWindows, span: tuple[int, int]) -> range:
    return touching(axis, *span) if plan.style.blend else axis.covering(*span)


def _reach(axis: AxisWindows, windows: range) -> tuple[int, int]:
    return axis.start(windows[0]), axis.start(windows[-1]) + axis.window


def _batched(parts: Iterable[_Part], size: int) -> Iterator[list[_Part]]:
    iterator = iter(parts)
    while batch := list(islice(iterator, size)):
        yield batch


def _predict_cores(
    run: _Run, parts: list[_Part], values: dict[tuple[str, Output], NDArray[Any]], valid: NDArray[np.bool_]
) -> None:
    """Fill in the cores of some windows."""
    rows, cols = run.plan.rows, run.plan.cols
    core = slice(rows.crop, rows.crop + rows.step), slice(cols.crop, cols.crop + cols.step)
    outputs = tuple(dict.fromkeys(output for _, output in values))
    results, has_data = run.predict(parts, outputs, core)
    for key, array in values.items():
        for part, window in zip(parts, results[key], strict=True):
            y, x = _shifted(part.source[0], rows.crop), _shifted(part.source[1], cols.crop)
            array[..., part.target[0], part.target[1]] = window[..., y, x]
    for part in (part for part, data in zip(parts, has_data, strict=True) if not data):
        valid[part.target] = False


def _shifted(span: slice, by: int) -> slice:
    return slice(span.start - by, span.stop - by)


def _blended(
    run: _Run, needed: Iterable[_Part], shape: tuple[int, int]
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """Weighted sums of probabilities, (class, y, x) by task, and of weights, (y, x).

    Windows come in the order of their rows and columns, so a pixel's sum has the same bits in every block.
    """
    plan, everything = run.plan, (slice(None), slice(None))
    sums = {task: np.zeros((n, *shape), dtype=np.float32) for task, n in plan.tasks}
    total = np.zeros(shape, dtype=np.float32)
    for parts in _batched(needed, plan.sizes.batch_size):
        results, has_data = run.predict(parts, ("probabilities",), everything)
        for number, part in enumerate(parts):
            if not has_data[number]:
                continue
            weight = np.multiply.outer(
                *(
                    weights_of(axis, index, start + source.start, start + source.stop)
                    for axis, index, start, source in zip(
                        (plan.rows, plan.cols), part.window, part.start, part.source, strict=True
                    )
                )
            )
            total[part.target] += weight
            for task, array in sums.items():
                window = results[task, "probabilities"][number]
                array[:, part.target[0], part.target[1]] += window[:, part.source[0], part.source[1]] * weight
    return sums, total


def _resampled(
    fine: dict[tuple[str, Output], NDArray[Any]],
    fine_valid: NDArray[np.bool_],
    rows: Taps,
    cols: Taps,
    outputs: Sequence[Output],
) -> tuple[dict[tuple[str, Output], NDArray[Any]], NDArray[np.bool_]]:
    values: dict[tuple[str, Output], NDArray[Any]] = {}
    valid = np.zeros((len(rows.index), len(cols.index)), dtype=bool)
    for (task, _), probabilities in fine.items():
        means, valid = resample(probabilities, fine_valid, rows, cols)
        finite = np.isfinite(probabilities[0])
        if not finite.all():
            # What has no numbers counts as little as what has no data, but a pixel that lacks them is counted.
            means, known = resample(probabilities, fine_valid & finite, rows, cols)
            means[:, ~known] = np.nan
        for output in outputs:
            values[task, output] = read_probabilities(means, output)
    return values, valid
