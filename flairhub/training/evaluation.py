"""Scores of predictions that exist, wherever they lie."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from flairhub.config import Paths, TrainConfig, load_train_config, resolved_yaml
from flairhub.cube import Cube, open_cube
from flairhub.errors import OutputExistsError, UsageError
from flairhub.progress import Progress, silent
from flairhub.training.metrics import metrics_report, write_report
from flairhub.training.predict import count_rasters
from flairhub.training.run_folder import RunFolder, write_text, writing_inside
from flairhub.training.train_result import TrainResult
from flairhub.training.training_plan import TrainingPlan, training_plan
from flairhub.version import __version__


def evaluate(
    config: TrainConfig | Paths,
    predictions: str | Path,
    *,
    cube: str | Path | Cube | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    lock: bool = True,
    progress: Progress = silent,
) -> TrainResult:
    """Score prediction rasters against the labels of the test patches.

    Args:
        config: Training configuration, or its path or paths: says which labels, classes, weights and test patches;
            its `tasks` section has no influence.
        predictions: Folder of `PRED_<label file name>.tif`, or of one folder of them per label set.
        cube: Where the labels are; without it `paths.cube`.
        output: Folder of the scores; without it `scores` inside `predictions`.
        overwrite: Replace scores of an earlier call.
        lock: Use the locks of the file system; False only where it has none.
        progress: Called with the number of finished patches.

    Returns:
        Scores and paths.

    Raises:
        OutputExistsError: `output` holds scores and `overwrite` is False.
        LockError: Another process writes `output` or the run that it lies in, or the file system has no locks.
        DataError: Rasters are missing, unreadable or do not fit the labels; the message lists them all.
    """
    config = load_train_config(config)
    plan, source = training_plan(config), Path(predictions)
    folder = RunFolder(source / "scores" if output is None else Path(output))
    if not source.is_dir():
        raise UsageError(f"{source}: is no folder. Give the folder of the prediction rasters.")
    if folder.metrics.exists() and not overwrite:
        raise OutputExistsError(f"{folder.metrics}: exists already. Give another --output, or --overwrite.")
    place = cube if cube is not None else config.paths.cube
    if place is None:
        raise UsageError("no cube: give --cube or paths.cube, where the labels are.")
    folders = {task.label: source / task.label if (source / task.label).is_dir() else source for task in plan.tasks}
    with writing_inside(folder.root, lock), folder.writing(lock):
        return _score(plan, folder, place, folders, progress)


def _score(
    plan: TrainingPlan, folder: RunFolder, place: str | Path | Cube, folders: dict[str, Path], progress: Progress
) -> TrainResult:
    opened = place if isinstance(place, Cube) else open_cube(place)
    start = perf_counter()
    sums = count_rasters(plan, opened, folders, progress)
    identity = {"config_sha256": plan.config_hash, "flairhub_version": __version__}
    report = metrics_report(sums, plan.objectives, split="test", **identity)
    write_text(folder.config, resolved_yaml(plan.config))
    write_report(folder, report, sums, plan.objectives, opened.patch_ids)
    return TrainResult(
        folder.root,
        Path(str(opened.path)),
        metrics=report,
        metrics_path=folder.metrics,
        predictions=folders,
        seconds={"score": perf_counter() - start},
    )
