"""Batches read and transformed in processes of their own: for transforms written in Python, which hold the GIL."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
import torch.multiprocessing  # tensors travel through shared memory
from numpy.typing import NDArray

from flairhub.data.batch import Batch
from flairhub.errors import DataError, FlairhubError, UsageError

Transform = Callable[[Batch, np.random.Generator], Batch]
"""Changes a batch as it is stored: `transform(batch, rng)` returns a new one with the same patches."""

ReaderMaker = Callable[[], Callable[[NDArray[np.int64]], Batch]]


def transformed(batch: Batch, transform: Transform, seed: int, epoch: int) -> Batch:
    """Apply a transform with random numbers that follow from seed, epoch and patches alone.

    Raises:
        UsageError: The transform returned something else than a batch of the same patches.
    """
    rng = np.random.default_rng([seed, epoch, *batch.index.tolist()])
    result = transform(batch, rng)
    if not isinstance(result, Batch) or not torch.equal(result.index, batch.index):
        name = getattr(transform, "__name__", transform)
        raise UsageError(
            f"transform: {name} returned {type(result).__name__}, expected a Batch "
            "of the same patches in the same order. Return dataclasses.replace(batch, ...)."
        )
    return result


_state: dict[str, Any] = {}


def _start(make_reader: ReaderMaker, transform: Transform | None, seed: int) -> None:
    torch.set_num_threads(1)
    _state.update(transform=transform, seed=seed)
    try:
        _state.update(read=make_reader())
    except FlairhubError as error:
        # Raised here it would only be a process that died.
        _state.update(failure=error)


def _work(indices: NDArray[np.int64], epoch: int) -> Batch:
    if "failure" in _state:
        raise _state["failure"]
    batch = _state["read"](indices)
    if _state["transform"] is not None:
        batch = transformed(batch, _state["transform"], _state["seed"], epoch)
    return batch


class ReadingProcesses:
    """Processes that read batches, started by a clean server process and never forked from this one."""

    def __init__(self, n: int, make_reader: ReaderMaker, transform: Transform | None, seed: int, pin_memory: bool):
        """Start nothing yet.

        Args:
            n: Number of processes.
            make_reader: Picklable; called once in each process, returns what reads a batch.
            transform: Picklable, so defined in a module and not in a script's body or a notebook's cell.
            seed: Of the transform's random numbers.
            pin_memory: Copy finished batches to page-locked memory.
        """
        self._n, self._arguments, self._pin = n, (make_reader, transform, seed), pin_memory
        self._pool: ProcessPoolExecutor | None = None

    def batches(self, todo: Sequence[NDArray[np.int64]], epoch: int, ahead: int) -> Iterator[Batch]:
        """Yield the batches in the given order, `ahead` of them in the making.

        Raises:
            DataError: A process died.
        """
        rest = iter(todo)
        pending: deque[Future[Batch]] = deque()
        pool = self._started()
        try:
            for chosen in islice(rest, ahead):
                pending.append(pool.submit(_work, chosen, epoch))
            while pending:
                batch = pending.popleft().result()
                for chosen in islice(rest, 1):
                    pending.append(pool.submit(_work, chosen, epoch))
                yield _pinned(batch) if self._pin else batch
        except BrokenProcessPool as error:
            self.close()
            raise DataError(
                "a process that reads batches died; its last words are on standard error. A transform that is defined "
                "in a script must stand under `if __name__ == '__main__':` protection; too little memory is another "
                "frequent reason."
            ) from error
        finally:
            for future in pending:
                future.cancel()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = get_context("forkserver")
            self._pool = ProcessPoolExecutor(self._n, context, _start, self._arguments)
        return self._pool

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _pinned(batch: Batch) -> Batch:
    def pinned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: values.pin_memory() for name, values in tensors.items()}

    # What is large: a copy from other memory would have the host wait.
    return replace(batch, inputs=pinned(batch.inputs), targets=pinned(batch.targets), valid=pinned(batch.valid))
