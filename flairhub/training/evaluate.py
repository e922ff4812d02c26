"""Scores of predictions: confusion matrices per task and domain, and the files made of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.confusion import confusion_matrix, published_report, strict_report
from flairhub.errors import DataError
from flairhub.progress import Progress, silent
from flairhub.tasks import IGNORE_INDEX, Task
from flairhub.training.folder import RunFolder, write_atomically, write_text
from flairhub.training.losses import TaskObjective
from flairhub.training.raster import prediction_name, read_classes

if TYPE_CHECKING:
    from flairhub.cube import Cube

FORMAT = 1
"""Version of metrics.json."""


class ConfusionSums:
    """Confusion matrices by task and domain, added up patch by patch."""

    def __init__(self, tasks: Sequence[Task]):
        self._tasks = {task.label: task for task in tasks}
        self._sums: dict[str, dict[str, NDArray[np.int64]]] = {name: {} for name in self._tasks}
        self._patches: dict[str, dict[str, int]] = {name: {} for name in self._tasks}

    def add(self, task: str, domain: str, truth: NDArray[np.uint8], classes: NDArray[np.uint8]) -> None:
        """Count one patch.

        Args:
            task: Name of the task.
            domain: Domain of the patch.
            truth: (y, x), 255 = ignore.
            classes: (y, x) predicted classes.
        """
        counts = confusion_matrix(truth, classes, self._tasks[task].n_classes)
        sums, patches = self._sums[task], self._patches[task]
        sums[domain] = sums[domain] + counts if domain in sums else counts
        patches[domain] = patches.get(domain, 0) + 1

    def total(self, task: str) -> NDArray[np.int64]:
        """(class, class) of all domains."""
        size = self._tasks[task].n_classes
        return sum(self._sums[task].values(), np.zeros((size, size), dtype=np.int64))

    def domains(self, task: str) -> dict[str, NDArray[np.int64]]:
        """(class, class) by domain, in the order of their names."""
        return {domain: self._sums[task][domain] for domain in sorted(self._sums[task])}

    def n_patches(self, task: str, domain: str | None = None) -> int:
        """Patches counted, of one domain or all."""
        patches = self._patches[task]
        return sum(patches.values()) if domain is None else patches[domain]


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
            "domains": {
                domain: {
                    "n_patches": sums.n_patches(name, domain),
                    "published": published_report(counts, task.names, weights, modality_weights),
                    "strict": strict_report(counts, task.names, objective.ignored),
                }
                for domain, counts in sums.domains(name).items()
            },
            "confusion_matrix": f"confusion/{name}.csv",
        }
    return {"format": FORMAT, **context, "tasks": tasks}


def write_report(folder: RunFolder, report: Mapping[str, Any], sums: ConfusionSums, tasks: Sequence[Task]) -> None:
    """Write confusion matrices and, last, metrics.json."""
    for task in tasks:
        matrix = sums.total(task.label)
        write_atomically(folder.confusion / f"{task.label}.npy", _npy_writer(matrix))
        write_text(folder.confusion / f"{task.label}.csv", _matrix_csv(matrix, task.names))
    write_text(folder.metrics, json.dumps(_null_for_nan(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


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
    folder: RunFolder,
    progress: Progress = silent,
) -> ConfusionSums:
    """Score prediction rasters that are already there.

    Args:
        cube: Holds the truth.
        indices: (patch,) cube positions to score.
        tasks: What was predicted.
        folder: Where the rasters are.
        progress: Told about finished patches.

    Raises:
        DataError: Rasters are missing, unreadable or do not fit the labels; the message lists them all.
    """
    sums, problems = ConfusionSums(tasks), []
    for done, index in enumerate(indices, start=1):
        for task in tasks:
            path = folder.predictions(task) / prediction_name(cube, int(index), task.label)
            truth = cube.array(task.label).read([index], level=task.level)[0]
            try:
                classes = read_classes(path)
                _check_classes(path, classes, truth, task)
            except DataError as error:
                problems.append(str(error))
                continue
            sums.add(task.label, str(cube.patches.domain[index]), truth, classes)
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
