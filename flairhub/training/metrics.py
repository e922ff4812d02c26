"""From counts to scores: metrics.json, matrices and scores by patch, bootstrap intervals."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.confusion import (
    ConfusionSums,
    SparseCounts,
    accuracy,
    class_iou,
    evaluated_classes,
    macro_mean,
    published_report,
    strict_report,
)
from flairhub.errors import TrainingError
from flairhub.not_finite import too_many_not_finite
from flairhub.training.losses import TaskObjective
from flairhub.training.run_folder import RunFolder, null_for_undefined, write_atomically, write_text

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of metrics.json."""

LEVEL = 0.95
RESAMPLES = 1000
SEED = 0
_CHUNK = 50


def metrics_report(sums: ConfusionSums, objectives: Sequence[TaskObjective], **context: Any) -> dict[str, Any]:
    """Return the content of metrics.json.

    Args:
        sums: Confusion matrices of all patches.
        objectives: Tasks and class weights; weight 0 = not evaluated.
        context: Further entries (split, model, ...).

    Raises:
        TrainingError: Too many pixels are undefined, so that scores of the others would say nothing.
    """
    _check_defined(sums, objectives)
    tasks = {}
    for objective in objectives:
        task, name = objective.task, objective.task.label
        weights = objective.class_weights.tolist()
        modality_weights: dict[str, Sequence[float]] = {
            key: values.tolist() for key, values in objective.aux_class_weights.items()
        }
        matrix = sums.total(name)
        tasks[name] = {
            "level": task.level,
            "n_patches": sums.n_patches(name),
            "undefined_px": sums.undefined(name),
            "published": published_report(matrix, task.names, weights, modality_weights),
            "strict": strict_report(matrix, task.names, objective.ignored),
            "intervals": intervals_report(list(sums.patches(name).values()), task.names, objective.ignored),
            "domains": {
                domain: {
                    "n_patches": sums.n_patches(name, domain),
                    "published": published_report(counts, task.names, weights, modality_weights),
                    "strict": strict_report(counts, task.names, objective.ignored),
                }
                for domain, counts in sums.domains(name).items()
            },
            "confusion_matrix": f"confusion/{name}.csv",
            "patches": f"patches/{name}.csv",
        }
    return {"format": FORMAT, **context, "tasks": tasks}


def _check_defined(sums: ConfusionSums, objectives: Sequence[TaskObjective]) -> None:
    problems = []
    for name in (objective.task.label for objective in objectives):
        undefined = sums.undefined(name)
        problems.append(too_many_not_finite(undefined, undefined + int(sums.total(name).sum()), name))
        if undefined and not problems[-1]:
            logger.warning("%s: %d pixels have no prediction (255), no score counts them", name, undefined)
    if any(problems):
        raise TrainingError("\n".join(filter(None, problems)) + " No score is given.")


def write_report(
    folder: RunFolder,
    report: Mapping[str, Any],
    sums: ConfusionSums,
    objectives: Sequence[TaskObjective],
    patch_ids: Sequence[str],
) -> None:
    """Write confusion matrices, scores by patch and, last, metrics.json.

    Args:
        folder: Where to.
        report: From `metrics_report`.
        sums: What it was made of.
        objectives: Tasks and class weights.
        patch_ids: Ids by cube position.
    """
    for objective in objectives:
        task = objective.task
        matrix = sums.total(task.label)
        write_atomically(folder.confusion / f"{task.label}.npy", _npy_writer(matrix))
        write_text(folder.confusion / f"{task.label}.csv", _matrix_csv(matrix, task.names))
        write_text(folder.patch_scores / f"{task.label}.csv", _patches_csv(sums, objective, patch_ids))
    write_text(
        folder.metrics, json.dumps(null_for_undefined(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )


def _patches_csv(sums: ConfusionSums, objective: TaskObjective, patch_ids: Sequence[str]) -> str:
    """One line per patch: pixels that count, share of right ones, mean IoU of the classes it has."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["patch_id", "domain", "pixels", "accuracy", "miou"])
    kept = list(evaluated_classes(objective.task.n_classes, objective.ignored))
    for index, patch in sums.patches(objective.task.label).items():
        counts = patch.marginals(objective.ignored)[:, kept]
        pixels = int(counts[1].sum())
        scores = [f"{value:.6f}" for value in (accuracy(counts), macro_mean(class_iou(counts)))] if pixels else ["", ""]
        writer.writerow([patch_ids[index], patch.domain, pixels, *scores])
    return text.getvalue()


def _npy_writer(matrix: NDArray[np.int64]) -> Any:
    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.save(stream, matrix, allow_pickle=False)

    return write


def _matrix_csv(matrix: NDArray[np.int64], names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["truth \\ prediction", *names])
    writer.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    return text.getvalue()


# --- how far scores would move with other patches


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
    """Resample whole patches with replacement and take percentiles of the strict scores (Efron 1979).

    Pixels of one patch are alike, so pixels cannot be resampled; patches of one area are alike too, so the intervals
    say how scores vary with the choice of patches, not of areas.

    Args:
        patches: Counts of each patch, in a fixed order: the random numbers are seeded.
        n_classes: Number of classes.
        ignored: Classes that are not evaluated.
        resamples: How many.
    """
    kept = list(evaluated_classes(n_classes, ignored))
    marginals = np.stack([patch.marginals(ignored).reshape(-1) for patch in patches]).astype(np.float64)
    rng, n = np.random.default_rng(SEED), len(patches)
    ious, accuracies = [], []
    for start in range(0, resamples, _CHUNK):
        # Scores are made of sums over patches: a resample is a weight per patch, many of them one matrix product.
        draws = rng.multinomial(n, np.full(n, 1 / n), size=min(_CHUNK, resamples - start))
        counts = (draws @ marginals).reshape(len(draws), 3, n_classes)
        ious.append(class_iou(counts)[:, kept])
        accuracies.append(accuracy(counts))
    iou = np.full((resamples, n_classes), np.nan)
    iou[:, kept] = np.concatenate(ious)
    per_class = np.stack([_ends(iou[:, c]) for c in range(n_classes)])
    return Intervals(_ends(macro_mean(iou)), _ends(np.concatenate(accuracies)), per_class)


def _ends(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values = values[np.isfinite(values)]
    share = (1 - LEVEL) / 2
    return np.quantile(values, (share, 1 - share)) if len(values) else np.full(2, np.nan)


def intervals_report(
    patches: Sequence[SparseCounts], names: Sequence[str], ignored: Sequence[int] = ()
) -> dict[str, Any]:
    """Return the intervals as a JSON-ready dictionary; null ends with fewer than two patches."""
    head: dict[str, Any] = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "unit": "patch"}
    kept = evaluated_classes(len(names), ignored)
    if len(patches) < 2:
        return {**head, "miou": None, "overall_accuracy": None, "per_class_iou": {names[c]: None for c in kept}}
    ends = bootstrap(patches, len(names), ignored)
    return {
        **head,
        "miou": _pair(ends.miou),
        "overall_accuracy": _pair(ends.overall_accuracy),
        "per_class_iou": {names[c]: _pair(ends.iou[c]) for c in kept},
    }


def _pair(ends: NDArray[np.float64]) -> list[float] | None:
    return None if np.isnan(ends).any() else [float(end) for end in ends]
