"""From cube positions to a batch: what one prefetch thread does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flairhub.data.batch import Batch
from flairhub.data.buffers import BufferRing
from flairhub.data.checks import check_present, check_request, named, stored_averages
from flairhub.data.preparation import Preparation, targets_with_data
from flairhub.errors import DataError
from flairhub.modalities import modality
from flairhub.prepare import ImagePreparation
from flairhub.tasks import IGNORE_INDEX, Task
from flairhub.timeseries import (
    Averages,
    CloudFilter,
    Series,
    SeriesPreparation,
    day_offsets,
    keep_dates,
    prepare_series,
    series_of_averages,
)
from flairhub.validity import valid_pixels

if TYPE_CHECKING:
    from flairhub.cube import Cube

Missing = Literal["error", "drop"]

_CHECKED_AT_ONCE = 16
_MOST_PROBLEMS = 20


class BatchReader:
    """Reads patches of a cube side by side into a ring of buffers; safe to call from several threads."""

    def __init__(
        self,
        cube: Cube,
        preparations: Mapping[str, Preparation],
        tasks: Sequence[Task],
        missing: Missing = "error",
        pin_memory: bool = False,
    ):
        """Check that the cube holds what will be asked for.

        Args:
            cube: Where the patches are.
            preparations: By modality to read; series are filtered, averaged and padded here, images stay as stored.
            tasks: Labels to read.
            missing: What happens to a patch without one of the modalities: `error`, or `drop` = zeros and `present`
                False.
            pin_memory: Read into page-locked buffers, for fast copies to a GPU.

        Raises:
            CubeError: A modality or a quality mask is not in the cube.
            UsageError: Channels or levels that do not exist.
        """
        self.cube, self.preparations, self.tasks = cube, dict(preparations), tuple(tasks)
        self.missing = missing
        self._ring = BufferRing(pin_memory)
        self._averages = stored_averages(cube, self.preparations)
        check_request(
            cube, self.preparations, self.tasks, [s for name in self.preparations for s in self._sources(name)]
        )

    def check_patches(self, indices: NDArray[np.int64]) -> None:
        """Check once, before any pixel is read, that the patches have what is asked for.

        Raises:
            DataError: Patches lack a modality; the message names them.
        """
        if self.missing == "error":
            sources = [source for name in self.preparations for source in self._sources(name)]
            check_present(self.cube, [*sources, *(task.label for task in self.tasks)], indices)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Read patches.

        Args:
            indices: (patch,) cube positions.

        Raises:
            CubeError: Damaged or absent chunks.
            DataError: Images without a valid pixel, series without a usable date, labels outside the nomenclature; the
                message names the patches.
        """
        inputs: dict[str, Tensor] = {}
        dates: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        present: dict[str, Tensor] = {}
        valid: dict[str, Tensor] = {}
        for name in self.preparations:
            inputs[name], pixels, has, times = self.read_input(name, indices)
            if times is not None:
                dates[name], masks[name] = times
            if not has.all():
                present[name] = torch.from_numpy(has)
            if pixels is not None:
                valid[name] = pixels
        targets = {task.label: self.read_target(task, indices) for task in self.tasks}
        batch = Batch(inputs, dates, masks, targets, torch.from_numpy(indices.copy()), present, valid)
        return replace(batch, left_out=_leave_out(batch))

    def read_input(
        self, name: str, indices: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor | None, NDArray[np.bool_], tuple[Tensor, Tensor] | None]:
        """Return values, where they hold data, which patches have the input, day offsets and masks of a series.

        Errors as in `read`.
        """
        preparation = self.preparations[name]
        has = np.logical_and.reduce([self.cube.present(source)[indices] for source in self._sources(name)])
        if isinstance(preparation, ImagePreparation):
            return *self._read_image(name, preparation, indices, has), None
        values, dates, masks, pixels, has = self._read_series(name, preparation, indices, has)
        return values, pixels, has, (dates, masks)

    def _sources(self, name: str) -> list[str]:
        """The modality itself and, where its dates are filtered while reading, the quality mask."""
        preparation, mask = self.preparations[name], modality(name).quality_mask
        filters = isinstance(preparation, SeriesPreparation) and preparation.cloud_filter is not None
        return [name, mask] if filters and mask is not None and name not in self._averages else [name]

    def _read_image(
        self, name: str, preparation: ImagePreparation, indices: NDArray[np.int64], has: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor | None, NDArray[np.bool_]]:
        """Values, where they hold data, and which patches have the modality: one without a valid pixel does not."""
        array = self.cube.array(name)
        buffer, values = self._ring.take((len(indices), *array.shape[1:]), array.dtype)
        _read_present(array.read_into, indices, has, values)
        heights = preparation.elevation is not None
        valid = self.cube.read_valid(name, indices, None if heights else preparation.channels, heights, values)
        if valid is None:
            return buffer, None, has
        empty = has & ~valid.any(axis=(1, 2))
        if empty.any() and self.missing == "error":
            raise DataError(
                f"{name}: no pixel with data in patches {named(self.cube, indices[empty])}. Take the patches out of "
                "the split, or set modalities.missing: drop."
            )
        values[empty] = 0
        return buffer, self._on_ring(valid), has & ~empty

    def _on_ring(self, values: NDArray[Any]) -> Tensor:
        buffer, target = self._ring.take(values.shape, values.dtype)
        np.copyto(target, values)
        return buffer

    def _read_series(
        self, name: str, preparation: SeriesPreparation, indices: NDArray[np.int64], has: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, NDArray[np.bool_]]:
        """Values, day offsets, masks, where some date holds data, and which patches have a usable date."""
        positions = np.flatnonzero(has)
        series: list[Series | None] = [None] * len(indices)
        if len(positions):
            read = self._averaged if name in self._averages else self._prepared
            for position, entry in zip(positions, read(name, preparation, indices[has]), strict=True):
                series[position] = entry if entry.valid.any() else None
        usable = np.array([entry is not None for entry in series])
        empty = indices[has & ~usable]
        if len(empty) and self.missing == "error":
            raise DataError(
                f"{name}: no usable date in patches {named(self.cube, empty)}. Loosen the cloud filter, take the "
                "patches out of the split, or set modalities.missing: drop."
            )
        return *self._padded(name, preparation, series), self._observed(series), usable

    def _observed(self, series: Sequence[Series | None]) -> Tensor | None:
        """(patch, y, x) bool, where some date holds data; None when that is everywhere in the usable series."""
        partial_ones = {i: entry.observed for i, entry in enumerate(series) if entry and entry.observed is not None}
        if not partial_ones:
            return None
        shape = next(iter(partial_ones.values())).shape
        result = np.ones((len(series), *shape), dtype=bool)
        for position, observed in partial_ones.items():
            result[position] = observed
        return self._on_ring(result)

    def _prepared(self, name: str, preparation: SeriesPreparation, indices: NDArray[np.int64]) -> list[Series]:
        info, sources = self.cube.series(name), self._sources(name)
        values, valid = self._read_raw(name, indices)
        quality, quality_valid = self._read_raw(sources[1], indices) if len(sources) > 1 else (None, None)
        result = []
        for i, index in enumerate(indices):
            count = int(info.n_dates[index])
            images, known, clouds, clouds_known = (
                None if array is None else array[i, :count] for array in (values, valid, quality, quality_valid)
            )
            assert images is not None
            try:
                days = info.dates[index, :count]
                result.append(prepare_series(images, days, clouds, preparation, known, clouds_known))
            except DataError as error:
                raise DataError(f"{name}, patch {self.cube.patch_ids[index]}: {error}") from error
        return result

    def _read_raw(self, name: str, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        array = self.cube.array(name)
        values = np.empty((len(indices), *array.shape[1:]), dtype=array.dtype)
        array.read_into(indices, values)
        # On all bands, whatever the network takes: stored averages are made before anyone chooses.
        return values, self.cube.read_valid(name, indices, values=values)

    def _averaged(self, name: str, preparation: SeriesPreparation, indices: NDArray[np.int64]) -> list[Series]:
        stored = self._averages[name]
        values = self.cube.read_average(name, stored.average, indices)
        result = []
        for i, index in enumerate(indices):
            # Mid-period days lie in the year of the first kept date, so each day's own year is the right one.
            offsets = day_offsets(stored.dates[index], preparation.ref_date)
            means, count = values[i], stored.n_observations[index]
            observed = valid_pixels(means)
            if observed is not None:
                means = np.where(observed[:, None], means, np.float32(0))
                observed &= (count > 0)[:, None, None]
            result.append(series_of_averages(Averages(means, offsets, count, observed), preparation))
        return result

    def _padded(
        self, name: str, preparation: SeriesPreparation, series: list[Series | None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        array = self.cube.array(name)
        first = next((entry for entry in series if entry is not None), None)
        dtype = array.dtype if first is None else first.values.dtype
        longest = max([1, *(len(entry.offsets) for entry in series if entry is not None)])
        sample = (preparation.n_channels(array.shape[2]), *array.shape[-2:])
        buffer, values = self._ring.take((len(series), longest, *sample), np.dtype(dtype))
        offsets = np.zeros((len(series), longest), dtype=np.int32)
        valid = np.zeros((len(series), longest), dtype=bool)
        for i, entry in enumerate(series):
            count = 0 if entry is None else len(entry.offsets)
            values[i, count:] = 0
            if entry is not None:
                values[i, :count], offsets[i, :count], valid[i, :count] = entry.values, entry.offsets, entry.valid
        return buffer, torch.from_numpy(offsets), torch.from_numpy(valid)

    def read_target(self, task: Task, indices: NDArray[np.int64]) -> Tensor:
        """Return the labels of patches, (patch, y, x) uint8; errors as in `read`."""
        array = self.cube.array(task.label)
        has = self.cube.present(task.label)[indices]
        buffer, values = self._ring.take((len(indices), *array.shape[2:]), np.dtype(np.uint8))
        _read_present(partial(array.read_into, level=task.level), indices, has, values, IGNORE_INDEX)
        # Unsigned arithmetic: one comparison finds n_classes..254 and lets 255 pass.
        beyond = values - np.uint8(task.n_classes) < IGNORE_INDEX - task.n_classes
        if beyond.any():
            wrong = indices[beyond.any(axis=(1, 2))]
            raise DataError(
                f"{task.label}, level {task.level}: class values {np.unique(values[beyond])[:10].tolist()} in patches "
                f"{named(self.cube, wrong)}, expected 0..{task.n_classes - 1} or {IGNORE_INDEX}. "
                "Declare the classes in labels_configs.value_name."
            )
        return buffer


def check_values(
    cube: Cube,
    indices: NDArray[np.int64],
    preparations: Mapping[str, Preparation],
    tasks: Sequence[Task],
    missing: Missing = "error",
) -> None:
    """Read what may be unusable of some patches, so that a run ends before its first step and not after its last.

    What the tables of the cube show to be usable is not read.

    Args:
        cube: Where the patches are.
        indices: (patch,) cube positions.
        preparations: By modality.
        tasks: Labels.
        missing: See `BatchReader`.

    Raises:
        DataError: Images without a valid pixel, series without a usable date, labels outside the nomenclature; the
            message names the patches.
    """
    inputs = preparations if missing == "error" else {}
    doubtful = {name: _doubtful(cube, name, entry, indices) for name, entry in inputs.items()}
    reader = BatchReader(cube, {name: inputs[name] for name, some in doubtful.items() if len(some)}, tasks, missing)
    reads: list[tuple[Callable[[NDArray[np.int64]], Any], NDArray[np.int64]]] = []
    reads += [(partial(reader.read_input, name), doubtful[name]) for name in reader.preparations]
    reads += [(partial(reader.read_target, task), indices) for task in tasks if _may_exceed(cube, task)]
    problems: list[str] = []
    for read, some in reads:
        for part in _parts(some):
            try:
                read(part)
            except DataError as error:
                problems.append(str(error))
                if len(problems) == _MOST_PROBLEMS:
                    raise DataError("\n".join(problems)) from None
    if problems:
        raise DataError("\n".join(problems))


def _parts(indices: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(indices), _CHECKED_AT_ONCE):
        yield indices[start : start + _CHECKED_AT_ONCE]


def _doubtful(cube: Cube, name: str, preparation: Preparation, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Patches of which the cube's tables and quality masks do not show that they have a pixel, or date, to use."""
    statistics = cube.info(name).get("statistics")
    if statistics is None or any(entry["invalid"] for entry in statistics):
        return indices
    if isinstance(preparation, ImagePreparation):
        # A few bands of integers can hold nodata alone where all of them together do not.
        few = preparation.channels is not None or preparation.elevation is not None
        dtype = cube.array(name).dtype
        return indices if few and dtype.kind != "f" and not cube.validity(name).everywhere(dtype) else indices[:0]
    present = indices[cube.present(name)[indices]]
    stored = stored_averages(cube, {name: preparation}).get(name)
    if stored is not None:
        return present[~stored.n_observations[present].any(axis=1)]
    mask = modality(name).quality_mask
    if preparation.cloud_filter is None or mask is None:
        return present[cube.series(name).n_dates[present] == 0]
    # All dates hold data, so the mask decides: a tenth of the bytes of its series.
    present = present[cube.present(mask)[present]]
    kept = [_has_clear_date(cube, name, mask, preparation.cloud_filter, part) for part in _parts(present)]
    return present[~np.concatenate(kept)] if kept else present


def _has_clear_date(
    cube: Cube, name: str, mask: str, rule: CloudFilter, indices: NDArray[np.int64]
) -> NDArray[np.bool_]:
    quality = cube.read(mask, indices)
    valid = cube.read_valid(mask, indices, values=quality)
    counts = cube.series(name).n_dates[indices].tolist()
    return np.array(
        [
            keep_dates(quality[i, :count], rule, None, None if valid is None else valid[i, :count]).any()
            for i, count in enumerate(counts)
        ]
    )


def _may_exceed(cube: Cube, task: Task) -> bool:
    """True unless the cube's counts show that no label is outside the nomenclature."""
    counts = cube.info(task.label).get("class_counts")
    return counts is None or any(counts[task.level - 1][task.n_classes :])


def _leave_out(batch: Batch) -> int:
    """Ignore targets where no input holds data, in the batch's own memory; return how many labelled pixels that are.

    In the reading thread, so that whoever looks at the labels on the CPU sees what counts.
    """
    left_out = 0
    for name, target in targets_with_data(batch).items():
        labels = batch.targets[name]
        if target is not labels:
            left_out += int((target != labels).sum())
            labels.copy_(target)
    return left_out


def _read_present(
    read_into: Callable[[NDArray[np.int64], NDArray[Any]], None],
    indices: NDArray[np.int64],
    has: NDArray[np.bool_],
    values: NDArray[Any],
    absent: int = 0,
) -> None:
    """Read the patches that exist straight into `values`; the value `absent` for the others."""
    if has.all():
        read_into(indices, values)
        return
    values[~has] = absent
    if has.any():
        result = np.empty((int(has.sum()), *values.shape[1:]), dtype=values.dtype)
        read_into(indices[has], result)
        values[has] = result
