"""One confusion matrix gives every score.

Matrices are int64 and additive: over batches, ranks, workers, patches. Rows are truth, columns prediction. Whoever
counts (numpy here, the device in validation) ends in these scores; what scores are made of are the marginals of a
matrix, which are additive, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import DataError
from flairhub.tasks import IGNORE_INDEX, Task


def confusion_matrix(
    truth: NDArray[Any], prediction: NDArray[Any], n_classes: int, ignore_index: int = IGNORE_INDEX
) -> NDArray[np.int64]:
    """Count pairs of truth and prediction.

    Args:
        truth: Class indices, any shape; `ignore_index` pixels are left out.
        prediction: Class indices, same shape.
        n_classes: Number of classes.
        ignore_index: Truth value that is never counted.

    Returns:
        (n_classes, n_classes) int64.

    Raises:
        DataError: Shapes differ or a counted value is outside 0..n_classes-1.
    """
    if truth.shape != prediction.shape:
        raise DataError(f"truth has shape {truth.shape}, prediction {prediction.shape}: they must be equal.")
    counted = truth != ignore_index
    rows, columns = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    for what, values in (("truth", rows), ("prediction", columns)):
        if values.size and (values.min() < 0 or values.max() >= n_classes):
            wrong = np.unique(values[(values < 0) | (values >= n_classes)])[:10].tolist()
            raise DataError(f"{what} holds class values {wrong}, expected 0..{n_classes - 1}.")
    counts = np.bincount(rows * n_classes + columns, minlength=n_classes * n_classes)
    return counts.reshape(n_classes, n_classes).astype(np.int64)


@dataclass(frozen=True)
class Scores:
    """Scores of one task, as fractions; NaN where undefined.

    Attributes:
        iou: (class,) intersection over union.
        f_score: (class,) harmonic mean of precision and recall.
        precision: (class,) share of predicted pixels that are right.
        recall: (class,) share of true pixels that are predicted as such.
        support: (class,) int64, true pixels.
        overall_accuracy: Share of right pixels.
        classes: (class,) indices the rows belong to.
        absent: Classes scored by nothing: neither true nor predicted.
    """

    iou: NDArray[np.float64]
    f_score: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    support: NDArray[np.int64]
    overall_accuracy: float
    classes: tuple[int, ...]

    @property
    def absent(self) -> tuple[int, ...]:
        """Indices of classes with undefined IoU."""
        return tuple(c for c, value in zip(self.classes, self.iou, strict=True) if np.isnan(value))

    def mean(self, name: str) -> float:
        """Macro mean of a per-class score over the classes where it is defined; NaN when there is none."""
        return float(macro_mean(getattr(self, name)))


def marginals(matrix: NDArray[np.int64], ignored: Sequence[int] = ()) -> NDArray[np.int64]:
    """What scores are made of: (3, class) int64 pixels that are right, true, predicted.

    Args:
        matrix: (class, class), rows = truth.
        ignored: Classes that are not evaluated: pixels whose truth is one of them do not count.
    """
    counted = np.array(matrix, dtype=np.int64)
    counted[list(ignored)] = 0
    return np.stack([np.diag(counted), counted.sum(axis=1), counted.sum(axis=0)])


def class_iou(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union.

    Args:
        counts: (..., 3, class) right, true and predicted pixels.

    Returns:
        (..., class); NaN where a class is neither true nor predicted.
    """
    hits, truth, predicted = _rows(counts)
    return _ratio(hits, truth + predicted - hits)


def accuracy(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Share of right pixels, (...,) of (..., 3, class) right, true and predicted pixels; NaN without a pixel."""
    hits, truth, _ = _rows(counts)
    return _ratio(hits.sum(axis=-1), truth.sum(axis=-1))


def macro_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes where a score is defined, (...,) of (..., class); NaN where it is for none."""
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1))


def _rows(counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return counts[..., 0, :], counts[..., 1, :], counts[..., 2, :]


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    result = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=result, where=np.asarray(denominator) > 0)


def _scores(counts: NDArray[np.int64], classes: tuple[int, ...]) -> Scores:
    """Scores of (3, class) pixels of the classes that are evaluated."""
    hits, truth, predicted = counts
    return Scores(
        iou=class_iou(counts),
        f_score=_ratio(2 * hits, truth + predicted),
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, truth),
        support=truth,
        overall_accuracy=float(accuracy(counts)),
        classes=classes,
    )


def evaluated_classes(n_classes: int, ignored: Sequence[int] = ()) -> tuple[int, ...]:
    """Indices of the classes that are not ignored."""
    return tuple(c for c in range(n_classes) if c not in set(ignored))


def strict_scores(matrix: NDArray[np.int64], ignored: Sequence[int] = ()) -> Scores:
    """Scores where only truth is ignored.

    Pixels whose truth is an ignored class do not count; predicting an ignored class elsewhere is a mistake.
    Classes that are neither true nor predicted have undefined scores and do not enter means.

    Args:
        matrix: (class, class), rows = truth.
        ignored: Class indices that are not evaluated.
    """
    kept = evaluated_classes(len(matrix), ignored)
    return _scores(marginals(matrix, ignored)[:, list(kept)], kept)


def published_scores(matrix: NDArray[np.int64], ignored: Sequence[int] = ()) -> Scores:
    """Scores of the published protocol: ignored classes leave rows and columns, undefined scores count as 0."""
    kept = evaluated_classes(len(matrix), ignored)
    scores = _scores(marginals(np.asarray(matrix)[np.ix_(kept, kept)]), kept)
    per_class = {name: np.nan_to_num(getattr(scores, name)) for name in ("iou", "f_score", "precision", "recall")}
    return replace(scores, **per_class)


def published_report(
    matrix: NDArray[np.int64],
    names: Sequence[str],
    weights: Sequence[float],
    modality_weights: dict[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Return the published metrics dictionary, in percent.

    Args:
        matrix: (class, class), rows = truth.
        names: Class names in index order.
        weights: Class weights; weight 0 means not evaluated.
        modality_weights: Class weights of each modality, listed alongside.
    """
    ignored = [index for index, weight in enumerate(weights) if weight == 0]
    scores = published_scores(matrix, ignored)
    kept = list(scores.classes)
    return {
        "Avg_metrics_name": ["mIoU", "Overall Accuracy", "F-score", "Precision", "Recall"],
        "Avg_metrics": [
            100 * scores.mean("iou"),
            100 * scores.overall_accuracy,
            100 * scores.mean("f_score"),
            100 * scores.mean("precision"),
            100 * scores.mean("recall"),
        ],
        "classes": [names[c] for c in kept],
        "per_class_iou": (100 * scores.iou).tolist(),
        "per_class_fscore": (100 * scores.f_score).tolist(),
        "per_class_precision": (100 * scores.precision).tolist(),
        "per_class_recall": (100 * scores.recall).tolist(),
        "per_class_default_weight": [weights[c] for c in kept],
        "per_class_modality_weights": {
            name: [values[c] for c in kept] for name, values in (modality_weights or {}).items()
        },
    }


def strict_report(matrix: NDArray[np.int64], names: Sequence[str], ignored: Sequence[int] = ()) -> dict[str, Any]:
    """Return the strict scores as a JSON-ready dictionary: fractions, null where undefined."""
    scores = strict_scores(matrix, ignored)

    def number(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    return {
        "miou": number(scores.mean("iou")),
        "overall_accuracy": number(scores.overall_accuracy),
        "f_score": number(scores.mean("f_score")),
        "precision": number(scores.mean("precision")),
        "recall": number(scores.mean("recall")),
        "absent_classes": [names[c] for c in scores.absent],
        "ignored_classes": [names[c] for c in ignored],
        "per_class": {
            names[c]: {
                "iou": number(scores.iou[i]),
                "f_score": number(scores.f_score[i]),
                "precision": number(scores.precision[i]),
                "recall": number(scores.recall[i]),
                "support_px": int(scores.support[i]),
            }
            for i, c in enumerate(scores.classes)
        },
    }


# --- many patches


class ConfusionSums:
    """Confusion matrices by task and domain, added up patch by patch; remembers each patch in a sparse form."""

    def __init__(self, tasks: Sequence[Task]):
        self._tasks = {task.label: task for task in tasks}
        self._sums: dict[str, dict[str, NDArray[np.int64]]] = {name: {} for name in self._tasks}
        self._patches: dict[str, dict[int, SparseCounts]] = {name: {} for name in self._tasks}
        self._undefined = dict.fromkeys(self._tasks, 0)

    def add(self, task: str, index: int, domain: str, truth: NDArray[np.uint8], classes: NDArray[np.uint8]) -> None:
        """Count one patch; pixels that the prediction leaves undefined go to `undefined` instead.

        Args:
            task: Name of the task.
            index: Position in the cube; each once.
            domain: Domain of the patch.
            truth: (y, x), 255 = ignore.
            classes: (y, x) predicted classes, 255 = undefined.

        Raises:
            DataError: The patch was counted before.
        """
        undefined = (classes == IGNORE_INDEX) & (truth != IGNORE_INDEX)
        self._undefined[task] += int(undefined.sum())
        counts = confusion_matrix(
            np.where(undefined, np.uint8(IGNORE_INDEX), truth), classes, self._tasks[task].n_classes
        )
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
                joined._undefined[task] += part._undefined[task]
                for index, patch in patches.items():
                    joined._put(task, index, patch)
        return joined

    def undefined(self, task: str) -> int:
        """Pixels with a label that the prediction leaves undefined: they are in no matrix."""
        return self._undefined[task]

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
        """The same as `marginals` of the full matrix, (3, class) int64: pixels that are right, true, predicted."""
        rows, columns = np.divmod(self.cells, self.n_classes)
        kept = ~np.isin(rows, list(ignored))
        rows, columns, counts = rows[kept], columns[kept], self.counts[kept]
        right = rows == columns
        pairs = ((rows[right], counts[right]), (rows, counts), (columns, counts))
        # Weights make bincount count in float64, which is exact up to 2**53 pixels.
        sums = [np.bincount(classes, weights=n, minlength=self.n_classes) for classes, n in pairs]
        return np.stack(sums).astype(np.int64)
