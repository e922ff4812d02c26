"""Scores of predictions: from sums to metrics.json, and from prediction rasters to sums."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.confusion import published_report, strict_report
from flairhub.errors import DataError
from flairhub.progress import Progress, silent
from flairhub.tasks import IGNORE_INDEX, Task
from flairhub.training.folder import RunFolder, write_atomically, write_text
from flairhub.training.intervals import intervals_report
from flairhub.training.losses import TaskObjective
from flairhub.training.raster import prediction_name, read_classes
from flairhub.training.sums import ConfusionSums

if TYPE_CHECKING:
    from flairhub.cube import Cube

FORMAT = 1
"""Version of metrics.json."""


def metrics_report(sums: ConfusionSums, objectives: Sequence[TaskObjective], **context: Any) -> dict[str, Any]:
    """Return the content of metrics.json.

    Args:
        sums: Confusion matrices of all patches.
        objectives: Tasks and class weights; weight 0 = not evaluated.
        context: Further entries (split, model, ...).
    """
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
    write_text(folder.metrics, json.dumps(_null_for_nan(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _patches_csv(sums: ConfusionSums, objective: TaskObjective, patch_ids: Sequence[str]) -> str:
    """One line per patch: pixels that count, share of right ones, mean IoU of the classes it has."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["patch_id", "domain", "pixels", "accuracy", "miou"])
    for index, patch in sums.patches(objective.task.label).items():
        hits, truth, predicted = patch.marginals(objective.ignored)
        kept = [c for c in range(patch.n_classes) if c not in objective.ignored and truth[c] + predicted[c]]
        pixels = int(truth.sum())
        accuracy = f"{hits.sum() / pixels:.6f}" if pixels else ""
        miou = f"{np.mean(hits[kept] / (truth + predicted - hits)[kept]):.6f}" if pixels else ""
        writer.writerow([patch_ids[index], patch.domain, pixels, accuracy, miou])
    return text.getvalue()


def _null_for_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _null_for_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_null_for_nan(entry) for entry in value]
    return None if isinstance(value, float) and np.isnan(value) else value


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


def score_files(
    cube: Cube,
    indices: NDArray[np.int64],
    tasks: Sequence[Task],
    folders: Mapping[str, Path],
    progress: Progress = silent,
) -> ConfusionSums:
    """Score prediction rasters that are already there.

    Args:
        cube: Holds the truth.
        indices: (patch,) cube positions to score.
        tasks: What was predicted.
        folders: By task, where its rasters are.
        progress: Told about finished patches.

    Raises:
        DataError: Rasters are missing, unreadable or do not fit the labels; the message lists them all.
    """
    sums, problems = ConfusionSums(tasks), []
    for done, index in enumerate(indices.tolist(), start=1):
        for task in tasks:
            path = folders[task.label] / prediction_name(cube, index, task.label)
            truth = cube.array(task.label).read([index], level=task.level)[0]
            try:
                classes = read_classes(path)
                _check_classes(path, classes, truth, task)
            except DataError as error:
                problems.append(str(error))
                continue
            sums.add(task.label, index, str(cube.patches.domain[index]), truth, classes)
        progress("score", done, len(indices))
    if problems:
        raise DataError(_listed(problems, len(indices) * len(tasks)))
    return sums


def _check_classes(path: Path, classes: NDArray[np.uint8], truth: NDArray[np.uint8], task: Task) -> None:
    if classes.shape != truth.shape:
        raise DataError(
            f"{path}: has {classes.shape[0]} x {classes.shape[1]} px, its label {truth.shape[0]} x {truth.shape[1]}."
        )
    wrong = np.unique(classes[(classes >= task.n_classes) & (truth != IGNORE_INDEX)])
    if len(wrong):
        raise DataError(f"{path}: holds class values {wrong[:10].tolist()}, expected 0..{task.n_classes - 1}.")


def _listed(problems: Iterable[str], total: int) -> str:
    lines = list(problems)
    shown = "\n".join(f"  - {line}" for line in lines)
    return (
        f"{len(lines)} of {total} prediction rasters cannot be scored, so no score is given:\n{shown}\n"
        "Predict again with tasks.predict: true."
    )
