"""Batches of a cube, read ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from flairhub.data.batch import Batch
from flairhub.data.batch_reader import BatchReader, Missing
from flairhub.data.checks import warn_of_old_nodata
from flairhub.data.preparation import Preparation
from flairhub.data.sampler import POOL_PATCHES, Sampler
from flairhub.data.workers import ReadingProcesses, Transform, transformed
from flairhub.errors import UsageError
from flairhub.tasks import Task

if TYPE_CHECKING:
    from flairhub.cube import Cube


class BatchLoader:
    """Iterable of `Batch`, one pass per epoch; Lightning takes it as a dataloader.

    Each thread reads whole batches, which come out in the sampler's order, so any number of threads gives the same
    batches. `state_dict` and `load_state_dict` keep the position inside an epoch.
    """

    def __init__(
        self,
        cube: Cube,
        indices: NDArray[np.int64],
        preparations: Mapping[str, Preparation],
        tasks: Sequence[Task],
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        threads: int = 2,
        prefetch: int = 2,
        pool_patches: int = POOL_PATCHES,
        missing: Missing = "error",
        pin_memory: bool = False,
        workers: int = 0,
        transform: Transform | None = None,
    ):
        """Check that the cube holds everything and plan the batches.

        Args:
            cube: Where the patches are.
            indices: (sample,) cube positions, each once.
            preparations: By modality to read.
            tasks: Labels to read; empty for prediction without truth.
            batch_size: Patches per batch.
            shuffle: New order in every epoch; without it storage order.
            seed: Seed of the order.
            epoch: First epoch.
            rank: This process among `world_size`, 0-based.
            world_size: Number of processes that share the patches.
            drop_last: Leave an incomplete last batch out, unless it is the only one.
            threads: Reading threads; 0 reads when asked.
            prefetch: Batches that wait finished, besides one per thread.
            pool_patches: Patches that are shuffled among each other.
            missing: `error`, or `drop` for zeros and `Batch.present` where a patch lacks a modality.
            pin_memory: Read into page-locked buffers, for fast copies to a GPU.
            workers: Reading processes instead of threads; the cube must be one that another process can open.
            transform: `transform(batch, rng)` changes every batch as it is stored, before it is normalised; its random
                numbers follow from seed, epoch and patches. It runs in the reading thread or process. With
                `workers` it must be picklable: a function of a module.

        Raises:
            CubeError: A modality is not in the cube.
            DataError: Patches lack a modality.
            UsageError: Impossible numbers, channels or levels.
        """
        for name, value in (("threads", threads), ("workers", workers)):
            if value < 0:
                raise UsageError(f"{name}: got {value}, expected at least 0.")
        self._reader = BatchReader(cube, dict(preparations), tuple(tasks), missing, pin_memory)
        indices = np.asarray(indices, dtype=np.int64)
        self._reader.check_patches(indices)
        warn_of_old_nodata(cube, preparations)
        names = [*preparations, *(task.label for task in tasks)]
        shards = [cube.array(name).shard_patches for name in names]
        self._sampler = Sampler(
            indices, batch_size, shuffle, seed, rank, world_size, drop_last, max(shards, default=1), pool_patches
        )
        self._threads, self._prefetch = threads, prefetch
        self._transform, self._seed = transform, seed
        self._processes: ReadingProcesses | None = None
        if workers:
            # Batches come back through shared memory, so the page-locked copy is made here.
            maker = partial(_reader_of, cube, dict(preparations), tuple(tasks), missing)
            self._processes = ReadingProcesses(workers, maker, transform, seed, pin_memory)
            self._ahead = workers + prefetch
        self._epoch, self._position = epoch, 0
        self._resume: tuple[int, int] | None = None

    @property
    def n_samples(self) -> int:
        """Patches of all ranks."""
        return len(self._sampler.indices)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; it decides the order."""
        self._epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and how many of its batches were yielded."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken: the next pass over that epoch starts behind those batches."""
        self._resume = int(state["epoch"]), int(state["position"])
        self._epoch = self._resume[0]

    def __len__(self) -> int:
        """Batches per epoch of this rank."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: epoch and position are looked up when the first batch is asked for.
        epoch, start = self._epoch, 0
        if self._resume is not None and self._resume[0] == epoch:
            start = self._resume[1]
        self._resume, self._position = None, start
        batches = self._sampler.batches(epoch)[start:]
        worker = get_worker_info()
        if worker is not None:  # torch's DataLoader takes turns among its processes
            batches = batches[worker.id :: worker.num_workers]
        read = partial(self._read, epoch=epoch)
        source: Iterator[Batch]
        if self._processes is not None:
            source = self._processes.batches(batches, epoch, self._ahead)
        else:
            source = self._read_ahead(batches, read) if self._threads else map(read, batches)
        while True:
            requested = perf_counter()
            batch = next(source, None)
            if batch is None:
                return
            self._position += 1
            yield replace(batch, waited_s=perf_counter() - requested)

    def _read(self, indices: NDArray[np.int64], epoch: int) -> Batch:
        batch = self._reader.read(indices)
        return batch if self._transform is None else transformed(batch, self._transform, self._seed, epoch)

    def close(self) -> None:
        """End reading processes, if there are any; the next pass starts new ones."""
        if self._processes is not None:
            self._processes.close()

    def _read_ahead(
        self, batches: Sequence[NDArray[np.int64]], read: Callable[[NDArray[np.int64]], Batch]
    ) -> Iterator[Batch]:
        todo = iter(batches)
        pending: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="flairhub-read") as pool:
            try:
                for chosen in islice(todo, self._threads + self._prefetch):
                    pending.append(pool.submit(read, chosen))
                while pending:
                    batch = pending.popleft().result()
                    for chosen in islice(todo, 1):
                        pending.append(pool.submit(read, chosen))
                    yield batch
            finally:
                for future in pending:
                    future.cancel()


def _reader_of(
    cube: Cube, preparations: dict[str, Preparation], tasks: tuple[Task, ...], missing: Missing
) -> Callable[[NDArray[np.int64]], Batch]:
    """Prepare a reading process: the cube opens where it is unpickled, if it is still the same."""
    return BatchReader(cube, preparations, tasks, missing).read
