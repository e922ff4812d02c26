"""One confusion matrix gives every score.

Matrices are int64 and additive: over batches, ranks, workers, patches. Rows are truth, columns prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import DataError
from flairhub.tasks import IGNORE_INDEX


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
        recall: (class,) share of true pixels that are found.
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
        values = getattr(self, name)
        return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    result = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=result, where=np.asarray(denominator) > 0)


def _scores(hits: Any, truth: Any, predicted: Any, right: int, total: int, classes: tuple[int, ...]) -> Scores:
    return Scores(
        iou=_ratio(hits, truth + predicted - hits),
        f_score=_ratio(2 * hits, truth + predicted),
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, truth),
        support=np.asarray(truth, dtype=np.int64),
        overall_accuracy=right / total if total else float("nan"),
        classes=classes,
    )


def strict_scores(matrix: NDArray[np.int64], ignored: Sequence[int] = ()) -> Scores:
    """Scores where only truth is ignored.

    Pixels whose truth is an ignored class do not count; predicting an ignored class elsewhere is a mistake.
    Classes that are neither true nor predicted have undefined scores and do not enter means.

    Args:
        matrix: (class, class), rows = truth.
        ignored: Class indices that are not evaluated.
    """
    counted = np.array(matrix, dtype=np.int64)
    counted[list(ignored)] = 0
    kept = tuple(c for c in range(len(counted)) if c not in set(ignored))
    index = list(kept)
    hits, truth = np.diag(counted)[index], counted.sum(axis=1)[index]
    return _scores(hits, truth, counted.sum(axis=0)[index], int(hits.sum()), int(counted.sum()), kept)


def published_scores(matrix: NDArray[np.int64], ignored: Sequence[int] = ()) -> Scores:
    """Scores of the published protocol: ignored classes leave rows and columns, undefined scores count as 0."""
    kept = tuple(c for c in range(len(matrix)) if c not in set(ignored))
    block = np.asarray(matrix, dtype=np.int64)[np.ix_(kept, kept)]
    hits, truth = np.diag(block), block.sum(axis=1)
    scores = _scores(hits, truth, block.sum(axis=0), int(hits.sum()), int(block.sum()), kept)
    return Scores(
        iou=np.nan_to_num(scores.iou),
        f_score=np.nan_to_num(scores.f_score),
        precision=np.nan_to_num(scores.precision),
        recall=np.nan_to_num(scores.recall),
        support=scores.support,
        overall_accuracy=scores.overall_accuracy,
        classes=kept,
    )


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
