"""Sums of prediction against truth: by task and domain for the scores, by patch for their uncertainty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flairhub.confusion import confusion_matrix
from flairhub.errors import DataError
from flairhub.tasks import Task


class ConfusionSums:
    """Confusion matrices by task and domain, added up patch by patch; remembers each patch in a sparse form."""

    def __init__(self, tasks: Sequence[Task]):
        self._tasks = {task.label: task for task in tasks}
        self._sums: dict[str, dict[str, NDArray[np.int64]]] = {name: {} for name in self._tasks}
        self._patches: dict[str, dict[int, SparseCounts]] = {name: {} for name in self._tasks}

    def add(self, task: str, index: int, domain: str, truth: NDArray[np.uint8], classes: NDArray[np.uint8]) -> None:
        """Count one patch.

        Args:
            task: Name of the task.
            index: Position in the cube; each once.
            domain: Domain of the patch.
            truth: (y, x), 255 = ignore.
            classes: (y, x) predicted classes.

        Raises:
            DataError: The patch was counted before.
        """
        counts = confusion_matrix(truth, classes, self._tasks[task].n_classes)
        self._put(task, index, SparseCounts.of(domain, counts))

    def _put(self, task: str, index: int, patch: SparseCounts) -> None:
        if index in self._patches[task]:
            raise DataError(f"{task}: the patch at position {index} of the cube is counted twice.")
        self._patches[task][index] = patch
        sums, domain = self._sums[task], patch.domain
        if domain not in sums:
            sums[domain] = np.zeros((self._tasks[task].n_classes,) * 2, dtype=np.int64)
        sums[domain].reshape(-1)[patch.cells] += patch.counts

    def join(self, others: Iterable[ConfusionSums]) -> ConfusionSums:
        """Return the sums of several processes together, which counted different patches."""
        joined = ConfusionSums(tuple(self._tasks.values()))
        for part in (self, *others):
            for task, patches in part._patches.items():
                for index, patch in patches.items():
                    joined._put(task, index, patch)
        return joined

    def total(self, task: str) -> NDArray[np.int64]:
        """(class, class) of all domains."""
        size = self._tasks[task].n_classes
        return sum(self._sums[task].values(), np.zeros((size, size), dtype=np.int64))

    def domains(self, task: str) -> dict[str, NDArray[np.int64]]:
        """(class, class) by domain, in the order of their names."""
        return {domain: self._sums[task][domain] for domain in sorted(self._sums[task])}

    def n_patches(self, task: str, domain: str | None = None) -> int:
        """Patches counted, of one domain or all."""
        return sum(domain in (None, patch.domain) for patch in self._patches[task].values())

    def patches(self, task: str) -> dict[int, SparseCounts]:
        """Counts of each patch by cube position, in storage order."""
        return dict(sorted(self._patches[task].items()))


@dataclass(frozen=True)
class SparseCounts:
    """Confusion matrix of one patch, without its many zeros.

    Attributes:
        domain: Domain of the patch.
        cells: (cell,) int32, truth * n_classes + prediction.
        counts: (cell,) int32, pixels.
        n_classes: Number of classes.
    """

    domain: str
    cells: NDArray[np.int32]
    counts: NDArray[np.int32]
    n_classes: int

    @classmethod
    def of(cls, domain: str, matrix: NDArray[np.int64]) -> SparseCounts:
        """Keep what is not zero of a (class, class) matrix."""
        cells = np.flatnonzero(matrix)
        return cls(domain, cells.astype(np.int32), matrix.reshape(-1)[cells].astype(np.int32), len(matrix))

    def marginals(self, ignored: Sequence[int] = ()) -> NDArray[np.int64]:
        """(3, class) int64: pixels that are right, true, predicted; pixels whose truth is ignored do not count."""
        rows, columns = np.divmod(self.cells, self.n_classes)
        kept = ~np.isin(rows, list(ignored))
        rows, columns, counts = rows[kept], columns[kept], self.counts[kept]
        pairs = ((rows[rows == columns], counts[rows == columns]), (rows, counts), (columns, counts))
        found = [np.bincount(classes, weights=n, minlength=self.n_classes) for classes, n in pairs]
        return np.stack(found).astype(np.int64)
