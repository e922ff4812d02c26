"""Batches and single patches as torch datasets, for any training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.utils.data import Dataset, IterableDataset

from flairhub.data.batch import Batch, PreparedBatch
from flairhub.data.batch_reader import BatchReader, Missing
from flairhub.data.loader import BatchLoader
from flairhub.data.preparation import Preparation
from flairhub.tasks import Task

if TYPE_CHECKING:
    from flairhub.cube import Cube

Prepare = Callable[[Batch, int], PreparedBatch]
"""From a batch as it is stored, and the epoch, to what the network takes."""


class BatchDataset(IterableDataset[Batch | PreparedBatch]):
    """Batches of a split in the order of training, read ahead by threads.

    A plain loop and Lightning take it as it is, `torch.utils.data.DataLoader` with `batch_size=None`; processes of
    `torch.distributed` and of a DataLoader share the batches. A pass that gave its last batch moves on to the next
    epoch, which has an order of its own; behind a DataLoader with worker processes, which work on copies, call
    `set_epoch`.
    """

    def __init__(self, make: Callable[[int, int], BatchLoader], prepare: Prepare | None = None):
        """Read nothing yet.

        Args:
            make: Returns the loader of a rank among a number of processes.
            prepare: Applied to every batch; None gives batches as they are stored.
        """
        self._make, self._prepare = make, prepare
        self._epoch, self._position, self._start = 0, 0, 0
        self._loader: BatchLoader | None = None
        self._share = (0, 0)
        self._current()

    def __getstate__(self) -> dict[str, Any]:
        # Buffers and threads stay in their process.
        return {**self.__dict__, "_loader": None}

    def _current(self) -> BatchLoader:
        """The loader of this process: processes may be joined after the dataset was made."""
        joined = distributed.is_available() and distributed.is_initialized()
        share = (distributed.get_rank(), distributed.get_world_size()) if joined else (0, 1)
        if self._loader is None or share != self._share:
            self._loader, self._share = self._make(*share), share
        return self._loader

    @property
    def n_samples(self) -> int:
        """Patches of all processes."""
        return self._current().n_samples

    def __len__(self) -> int:
        """Batches per epoch of this process."""
        return len(self._current())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass: it decides order and augmentation."""
        self._epoch, self._position, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches were given out."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken: the next pass starts behind those batches."""
        self.set_epoch(int(state["epoch"]))
        self._start = self._position = int(state["position"])

    def __iter__(self) -> Iterator[Batch | PreparedBatch]:
        loader, epoch, start = self._current(), self._epoch, self._start
        self._position, self._start = start, 0
        loader.load_state_dict({"epoch": epoch, "position": start})
        for batch in loader:
            self._position += 1
            if self._epoch == epoch and self._position == len(loader):
                # Before the last batch is given out: who knows the length, as Lightning, asks for no more.
                self.set_epoch(epoch + 1)
            yield batch if self._prepare is None else self._prepare(batch, epoch)


class PatchDataset(Dataset[dict[str, Any]]):
    """Patches of a split by number or id, in storage order: random access, also from several processes."""

    def __init__(
        self,
        cube: Cube,
        indices: NDArray[np.int64],
        preparations: Mapping[str, Preparation],
        tasks: Sequence[Task],
        missing: Missing = "error",
        prepare: Prepare | None = None,
    ):
        """Check that the cube holds everything.

        Args:
            cube: Where the patches are.
            indices: (patch,) cube positions.
            preparations: By modality to read.
            tasks: Labels to read.
            missing: As for `BatchLoader`.
            prepare: Applied to every patch; None gives values as they are stored.

        Raises:
            CubeError: A modality is not in the cube.
            DataError: Patches lack a modality.
            UsageError: Channels or levels that do not exist.
        """
        self.cube, self.indices = cube, np.asarray(indices, dtype=np.int64)
        self._arguments = (cube, dict(preparations), tuple(tasks), missing)
        self._prepare = prepare
        self._reader: BatchReader | None = BatchReader(*self._arguments)
        self._reader.check_patches(self.indices)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    @property
    def patch_ids(self) -> list[str]:
        """Ids of the patches, in order."""
        return [self.cube.patch_ids[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | str) -> dict[str, Any]:
        """Return one patch.

        Args:
            key: Number within the split, negative from its end, or patch id.

        Returns:
            `inputs`, `dates`, `masks`, `targets`, `valid` (y, x) and `present`, by modality or task, as in `Batch` or
            `PreparedBatch` without the dimension `patch`; `index` in the cube and `patch_id`. Default collation makes
            batches of them, where series have as many dates each.

        Raises:
            IndexError: A number beyond the split.
            KeyError: An id that is not in the split.
        """
        index = self.indices[self._number(key) if isinstance(key, str) else key]
        if self._reader is None:
            self._reader = BatchReader(*self._arguments)
        batch: Batch | PreparedBatch = self._reader.read(np.array([index]))
        if self._prepare is not None:
            assert isinstance(batch, Batch)
            batch = self._prepare(batch, 0)

        def one(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            # A copy: the memory of the batch is used again.
            return {name: tensor[0].clone() for name, tensor in tensors.items()}

        everywhere = {
            name: torch.ones(values.shape[-2:], dtype=torch.bool)
            for name, values in batch.inputs.items()
            if name not in batch.valid
        }
        return {
            "inputs": one(batch.inputs),
            "dates": one(batch.dates),
            "masks": one(batch.masks),
            "targets": one(batch.targets),
            "valid": {**one(batch.valid), **everywhere},
            "present": {name: bool(batch.present[name][0]) if name in batch.present else True for name in batch.inputs},
            "index": int(index),
            "patch_id": self.cube.patch_ids[index],
        }

    def _number(self, patch_id: str) -> int:
        try:
            return self.patch_ids.index(patch_id)
        except ValueError:
            raise KeyError(f"{patch_id} is not among the {len(self)} patches of this split.") from None
