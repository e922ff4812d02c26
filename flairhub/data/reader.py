"""From cube positions to a batch: what one prefetch thread does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flairhub.data.batch import Batch
from flairhub.data.buffers import BufferRing
from flairhub.data.checks import check_present, check_request, named, stored_averages
from flairhub.data.prepare import Preparation
from flairhub.errors import DataError
from flairhub.modalities import modality
from flairhub.prepare import ImagePreparation
from flairhub.tasks import IGNORE_INDEX, Task
from flairhub.timeseries import Averages, Series, SeriesPreparation, day_offsets, prepare_series, series_of_averages

if TYPE_CHECKING:
    from flairhub.cube import Cube

Missing = Literal["error", "drop"]


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
            DataError: NaN or infinite values, labels outside the nomenclature, series without a usable date; the
                message names the patches.
        """
        inputs: dict[str, Tensor] = {}
        dates: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        present: dict[str, Tensor] = {}
        for name, preparation in self.preparations.items():
            here = np.logical_and.reduce([self.cube.present(source)[indices] for source in self._sources(name)])
            if isinstance(preparation, ImagePreparation):
                inputs[name] = self._read_image(name, indices, here)
            else:
                inputs[name], dates[name], masks[name], here = self._read_series(name, preparation, indices, here)
            if not here.all():
                present[name] = torch.from_numpy(here)
        targets = {task.label: self._read_target(task, indices) for task in self.tasks}
        return Batch(inputs, dates, masks, targets, torch.from_numpy(indices.copy()), present)

    def _sources(self, name: str) -> list[str]:
        """The modality itself and, where its dates are filtered while reading, the quality mask."""
        preparation, mask = self.preparations[name], modality(name).quality_mask
        filters = isinstance(preparation, SeriesPreparation) and preparation.cloud_filter is not None
        return [name, mask] if filters and mask is not None and name not in self._averages else [name]

    def _read_image(self, name: str, indices: NDArray[np.int64], here: NDArray[np.bool_]) -> Tensor:
        array = self.cube.array(name)
        buffer, values = self._ring.take((len(indices), *array.shape[1:]), array.dtype)
        _read_present(array.read_into, indices, here, values)
        self._check_finite(name, indices, values)
        return buffer

    def _read_series(
        self, name: str, preparation: SeriesPreparation, indices: NDArray[np.int64], here: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor, Tensor, NDArray[np.bool_]]:
        series = dict.fromkeys(range(len(indices)))
        positions = np.flatnonzero(here)
        if len(positions):
            read = self._averaged if name in self._averages else self._prepared
            series.update(zip(positions.tolist(), read(name, preparation, indices[here]), strict=True))
        found = [series[i] for i in range(len(indices))]
        usable = np.array([entry is not None and bool(entry.valid.any()) for entry in found])
        empty = indices[here & ~usable]
        if len(empty) and self.missing == "error":
            raise DataError(
                f"{name}: no usable date in patches {named(self.cube, empty)}. Loosen the cloud filter, take the "
                "patches out of the split, or set modalities.missing: drop."
            )
        return *self._padded(name, preparation, [s if u else None for s, u in zip(found, usable, strict=True)]), usable

    def _prepared(self, name: str, preparation: SeriesPreparation, indices: NDArray[np.int64]) -> list[Series]:
        info, sources = self.cube.series(name), self._sources(name)
        values = self._read_raw(name, indices)
        quality = self._read_raw(sources[1], indices) if len(sources) > 1 else None
        found = []
        for i, index in enumerate(indices):
            count = int(info.n_dates[index])
            try:
                found.append(
                    prepare_series(
                        values[i, :count],
                        info.dates[index, :count],
                        None if quality is None else quality[i, :count],
                        preparation,
                    )
                )
            except DataError as error:
                raise DataError(f"{name}, patch {self.cube.patch_ids[index]}: {error}") from error
        self._check_finite(name, indices, [entry.values for entry in found])
        return found

    def _read_raw(self, name: str, indices: NDArray[np.int64]) -> NDArray[Any]:
        array = self.cube.array(name)
        values = np.empty((len(indices), *array.shape[1:]), dtype=array.dtype)
        array.read_into(indices, values)
        return values

    def _averaged(self, name: str, preparation: SeriesPreparation, indices: NDArray[np.int64]) -> list[Series]:
        stored = self._averages[name]
        values = self.cube.read_average(name, stored.average, indices)
        self._check_finite(name, indices, values)
        found = []
        for i, index in enumerate(indices):
            # Mid-period days lie in the year of the first kept date, so each day's own year is the right one.
            offsets = day_offsets(stored.dates[index], preparation.ref_date)
            found.append(series_of_averages(Averages(values[i], offsets, stored.n_observations[index]), preparation))
        return found

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

    def _read_target(self, task: Task, indices: NDArray[np.int64]) -> Tensor:
        array = self.cube.array(task.label)
        here = self.cube.present(task.label)[indices]
        buffer, values = self._ring.take((len(indices), *array.shape[2:]), np.dtype(np.uint8))
        _read_present(partial(array.read_into, level=task.level), indices, here, values, IGNORE_INDEX)
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

    def _check_finite(self, name: str, indices: NDArray[np.int64], values: Any) -> None:
        """`values`: one array per patch, or one array of all."""
        if np.asarray(values[0]).dtype.kind != "f":
            return
        # Minimum and maximum carry NaN and infinity, and are faster than looking at every pixel's kind.
        wrong = [
            index
            for index, patch in zip(indices, values, strict=True)
            if patch.size and not (np.isfinite(patch.min()) and np.isfinite(patch.max()))
        ]
        if wrong:
            raise DataError(
                f"{name}: NaN or infinite pixels in patches {named(self.cube, np.array(wrong))}. Fill them in the "
                "source files and ingest again, or take the patches out of the split."
            )


def _read_present(
    read_into: Callable[[NDArray[np.int64], NDArray[Any]], None],
    indices: NDArray[np.int64],
    here: NDArray[np.bool_],
    values: NDArray[Any],
    absent: int = 0,
) -> None:
    """Read the patches that exist straight into `values`; the value `absent` for the others."""
    if here.all():
        read_into(indices, values)
        return
    values[~here] = absent
    if here.any():
        found = np.empty((int(here.sum()), *values.shape[1:]), dtype=values.dtype)
        read_into(indices[here], found)
        values[here] = found
