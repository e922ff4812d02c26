"""A region of a map from the windows that reach it: read once, predicted in batches, put together."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flairhub.data import FLIP_X, FLIP_Y, PreparedBatch, undo_dihedral
from flairhub.errors import ZoneError
from flairhub.inference.batches import BlockPixels, make_batch, read_block, valid_region
from flairhub.inference.map_plan import MapPlan, Output, Style
from flairhub.inference.model_ref import LoadedNetwork, ModelRef, load
from flairhub.inference.resample import Taps, resample, taps
from flairhub.inference.windows import AxisWindows, touching, weights_of
from flairhub.jobs import Stopped
from flairhub.not_finite import finite_pixels
from flairhub.tasks import IGNORE_INDEX

OUTPUTS: tuple[Output, ...] = ("class", "confidence", "probabilities", "scaled")
"""`class` uint8; `confidence` = highest probability and `probabilities` float32; `scaled` = uint8
round(255 x probability)."""

NODATA: dict[Output, Any] = {"class": IGNORE_INDEX, "confidence": np.nan, "probabilities": np.nan, "scaled": 0}
DTYPES: dict[Output, str] = {"class": "uint8", "confidence": "float32", "probabilities": "float32", "scaled": "uint8"}

_FLIPS = (0, FLIP_Y, FLIP_X, FLIP_Y | FLIP_X)


@dataclass(frozen=True)
class Region:
    """A region of a map.

    Attributes:
        values: By task and output: (y, x) for class and confidence, (class, y, x) for probabilities and scaled, with
            their nodata values where the region has none.
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
        rows: First row and one past the last, output pixels.
        cols: Likewise for columns.
        outputs: What to return.
        stop: When it is set, the region ends after the windows that are being computed.

    Raises:
        Stopped: `stop` was set.
    """
    if plan.ratio == 1:
        values, valid = _predict_fine(plan, model, rows, cols, outputs, stop)
    else:
        down = taps(*rows, plan.rows.length, plan.ratio)
        across = taps(*cols, plan.cols.length, plan.ratio)
        fine, fine_valid = _predict_fine(
            plan, model, (down.first, down.last), (across.first, across.last), ["probabilities"], stop
        )
        values, valid = _resampled(fine, fine_valid, down, across, outputs)
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
) -> tuple[dict[tuple[str, Output], NDArray[Any]], NDArray[np.bool_]]:
    zone, shape = plan.zone, (rows[1] - rows[0], cols[1] - cols[0])
    row_windows, col_windows = _windows(plan, plan.rows, rows), _windows(plan, plan.cols, cols)
    region = _reach(plan.rows, row_windows), _reach(plan.cols, col_windows)
    pixels = read_block(zone, model.preparations, *region)
    valid = valid_region(zone, pixels, rows, cols, plan.style.drop_missing)
    parts = (_Part.of(plan, window, rows, cols) for window in product(row_windows, col_windows))
    needed = (part for part in parts if valid[part.target].any())
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


def block_region(plan: MapPlan, block: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the rows and columns that the windows of a block read, finest pixels; they may lie outside the zone."""
    spans = []
    for axis, (first, last) in zip((plan.rows, plan.cols), plan.extent(block), strict=True):
        if plan.ratio != 1:
            fine = taps(first, last, axis.length, plan.ratio)
            first, last = fine.first, fine.last
        spans.append(_reach(axis, _windows(plan, axis, (first, last))))
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


def window_outputs(
    network: LoadedNetwork,
    batch: PreparedBatch,
    size: tuple[int, int],
    tasks: Sequence[tuple[str, int]],
    outputs: Sequence[Output],
    style: Style,
    crop: tuple[slice, slice] = (slice(None), slice(None)),
) -> dict[tuple[str, Output], NDArray[Any]]:
    """Predict windows.

    Args:
        network: The network; this function takes its lock.
        batch: The windows.
        size: Window height and width in finest pixels.
        tasks: (name, number of classes).
        outputs: What to read out.
        style: Precision and flips.
        crop: Rows and columns of a window to read out.

    Returns:
        By task and output: (window, y, x) or (window, class, y, x); where a logit is not finite class is 255,
        confidence and probabilities are NaN, scaled is 0 for all classes.

    Raises:
        ZoneError: The network does not give a task or its number of classes.
    """
    with network.lock, torch.inference_mode():
        if not style.flips:
            logits = _cropped(_logits(network, batch, size, tasks, style), crop)
            return {
                (task, output): _read_out(values, output).cpu().numpy()
                for task, values in logits.items()
                for output in outputs
            }
        sums: dict[str, torch.Tensor] = {}
        for code in _FLIPS:
            logits = _logits(network, _flipped(batch, code), size, tasks, style)
            turned = _cropped({task: undo_dihedral(values, code) for task, values in logits.items()}, crop)
            for task, values in turned.items():
                part = _probabilities(values)
                sums[task] = sums[task] + part if task in sums else part
        return {
            (task, output): from_probabilities(values / len(_FLIPS), output, dim=1).cpu().numpy()
            for task, values in sums.items()
            for output in outputs
        }


def from_probabilities(probabilities: torch.Tensor, output: Output, dim: int) -> torch.Tensor:
    """Read class, confidence or scaled values from probabilities, NaN where there are none; `dim` holds the classes."""
    if output == "class":
        return _classes(probabilities, dim)
    if output == "confidence":
        return probabilities.amax(dim=dim)
    if output == "probabilities":
        return torch.where(finite_pixels(probabilities, dim).unsqueeze(dim), probabilities, torch.nan)
    return (probabilities.nan_to_num(0.0) * 255).round().to(torch.uint8)


def _classes(scores: torch.Tensor, dim: int) -> torch.Tensor:
    """The class of the largest score, 255 where a score is not finite."""
    return torch.where(finite_pixels(scores, dim), scores.argmax(dim=dim).to(torch.uint8), IGNORE_INDEX)


def _logits(
    network: LoadedNetwork,
    batch: PreparedBatch,
    size: tuple[int, int],
    tasks: Sequence[tuple[str, int]],
    style: Style,
) -> dict[str, torch.Tensor]:
    kind = network.device.split(":")[0]
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=style.bf16):
        dates, masks, present = batch.dates or None, batch.masks or None, batch.present or None
        logits = network.network(batch.inputs, dates, masks, size=size, present=present).logits
    for task, expected in tasks:
        if task not in logits or logits[task].shape[1] != expected:
            given = "none" if task not in logits else f"{logits[task].shape[1]} classes"
            raise ZoneError(f"the network gives {given} for task {task}, expected {expected} classes.")
    return {task: logits[task] for task, _ in tasks}


def _cropped(logits: dict[str, torch.Tensor], crop: tuple[slice, slice]) -> dict[str, torch.Tensor]:
    # Before anything is computed from them: most of a window with a wide margin is thrown away.
    return {task: values[..., crop[0], crop[1]].float() for task, values in logits.items()}


def _read_out(logits: torch.Tensor, output: Output) -> torch.Tensor:
    return _classes(logits, 1) if output == "class" else from_probabilities(_probabilities(logits), output, dim=1)


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the classes; NaN for all of them where a logit is not finite."""
    # The sum of minus infinity and numbers has a softmax, but no meaning.
    return torch.where(finite_pixels(logits, 1).unsqueeze(1), logits, torch.nan).softmax(dim=1)


def _flipped(batch: PreparedBatch, code: int) -> PreparedBatch:
    # A flip undoes itself.
    return replace(batch, inputs={name: undo_dihedral(values, code) for name, values in batch.inputs.items()})


def read_probabilities(probabilities: NDArray[np.float32], output: Output) -> NDArray[Any]:
    """The same for numpy, classes first: (class, y, x)."""
    return from_probabilities(torch.from_numpy(probabilities), output, dim=0).numpy()


def without_numbers(values: NDArray[Any], output: Output) -> NDArray[np.bool_]:
    """Return (y, x) where what was read out says that the logits are not finite."""
    if output == "class":
        return np.asarray(values == IGNORE_INDEX)
    if output == "confidence":
        return np.isnan(values)
    # A pixel with probabilities has one that is not 0 on the scale to 255.
    return np.asarray(np.isnan(values[0]) if output == "probabilities" else ~values.any(axis=0))
