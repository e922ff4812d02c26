"""How far scores would move with other patches: bootstrap intervals (Efron 1979, percentile method)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.training.sums import SparseCounts

LEVEL = 0.95
RESAMPLES = 1000
SEED = 0
_CHUNK = 50


@dataclass(frozen=True)
class Intervals:
    """Lower and upper ends of the scores of one task, as fractions; NaN where undefined.

    Attributes:
        miou: (2,) of the mean over classes that a resample has.
        overall_accuracy: (2,).
        iou: (class, 2).
    """

    miou: NDArray[np.float64]
    overall_accuracy: NDArray[np.float64]
    iou: NDArray[np.float64]


def bootstrap(
    patches: Sequence[SparseCounts], n_classes: int, ignored: Sequence[int] = (), resamples: int = RESAMPLES
) -> Intervals:
    """Resample whole patches with replacement and take percentiles of the strict scores.

    Pixels of one patch are alike, so pixels cannot be resampled; patches of one area are alike too, so the intervals
    say how scores vary with the choice of patches, not of areas.

    Args:
        patches: Counts of each patch, in a fixed order: the random numbers are seeded.
        n_classes: Number of classes.
        ignored: Classes that are not evaluated.
        resamples: How many.
    """
    counted = np.stack([patch.marginals(ignored).reshape(-1) for patch in patches]).astype(np.float64)
    kept = [c for c in range(n_classes) if c not in set(ignored)]
    rng, n = np.random.default_rng(SEED), len(patches)
    ious, accuracies = [], []
    for start in range(0, resamples, _CHUNK):
        draws = rng.multinomial(n, np.full(n, 1 / n), size=min(_CHUNK, resamples - start))
        hits, truth, predicted = (draws @ counted).reshape(len(draws), 3, n_classes).transpose(1, 0, 2)
        union = (truth + predicted - hits)[:, kept]
        ious.append(np.divide(hits[:, kept], union, out=np.full(union.shape, np.nan), where=union > 0))
        pixels = truth.sum(axis=1)
        accuracies.append(np.divide(hits.sum(axis=1), pixels, out=np.full(len(pixels), np.nan), where=pixels > 0))
    iou = np.full((resamples, n_classes), np.nan)
    iou[:, kept] = np.concatenate(ious)
    defined = np.isfinite(iou)
    means = np.divide(
        np.where(defined, iou, 0).sum(axis=1),
        defined.sum(axis=1),
        out=np.full(resamples, np.nan),
        where=defined.any(axis=1),
    )
    per_class = np.stack([_ends(iou[:, c]) for c in range(n_classes)])
    return Intervals(_ends(means), _ends(np.concatenate(accuracies)), per_class)


def _ends(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values = values[np.isfinite(values)]
    share = (1 - LEVEL) / 2
    return np.quantile(values, (share, 1 - share)) if len(values) else np.full(2, np.nan)


def intervals_report(
    patches: Sequence[SparseCounts], names: Sequence[str], ignored: Sequence[int] = ()
) -> dict[str, Any]:
    """Return the intervals as a JSON-ready dictionary; null ends with fewer than two patches."""
    head: dict[str, Any] = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "unit": "patch"}
    kept = [c for c in range(len(names)) if c not in set(ignored)]
    if len(patches) < 2:
        return {**head, "miou": None, "overall_accuracy": None, "per_class_iou": {names[c]: None for c in kept}}
    found = bootstrap(patches, len(names), ignored)
    return {
        **head,
        "miou": _pair(found.miou),
        "overall_accuracy": _pair(found.overall_accuracy),
        "per_class_iou": {names[c]: _pair(found.iou[c]) for c in kept},
    }


def _pair(ends: NDArray[np.float64]) -> list[float] | None:
    return None if np.isnan(ends).any() else [float(end) for end in ends]
