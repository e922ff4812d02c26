"""The whole chain on the made data set: ingest, train, predict, score, map, draw."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flairhub.confusion import confusion_matrix, strict_scores
from flairhub.demo.configs import IGNORED_COSIA
from flairhub.demo.dataset import DemoData, make_demo_data
from flairhub.demo.pictures import draw_pictures, read_raster
from flairhub.demo.plan import DemoPlan
from flairhub.jobs import folder_bytes
from flairhub.modalities import MODALITIES
from flairhub.progress import Progress, silent
from flairhub.tasks import default_task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flairhub.ingest import IngestReport
    from flairhub.training import TrainResult


@dataclass(frozen=True)
class TaskScore:
    """How well one task went, beside what guessing would give.

    Attributes:
        miou: Mean IoU over the classes present, fraction.
        accuracy: Overall accuracy, fraction.
        chance_miou: Mean IoU of guessing classes at their true shares.
        chance_accuracy: Accuracy of always naming the most frequent class.
        n_classes: Classes present.
    """

    miou: float
    accuracy: float
    chance_miou: float
    chance_accuracy: float
    n_classes: int


@dataclass(frozen=True)
class DemoResult:
    """What the demo left.

    Attributes:
        data: The made data set.
        cube: The Zarr cube.
        n_patches: Patches in it.
        bundle: The trained model.
        test: Score on the test patches by task.
        zone: Score of the zone's map by task.
        maps: Class map of the zone by task (COG).
        metrics: metrics.json of the test patches.
        pictures: PNG by name.
        seconds: Wall time by phase.
        sizes: Bytes on disk by what.
    """

    data: DemoData
    cube: Path
    n_patches: int
    bundle: Path
    test: Mapping[str, TaskScore]
    zone: Mapping[str, TaskScore]
    maps: Mapping[str, Path]
    metrics: Path
    pictures: Mapping[str, Path]
    seconds: Mapping[str, float]
    sizes: Mapping[str, int]


def run_demo(
    folder: str | Path,
    *,
    seed: int = 0,
    plan: DemoPlan = DemoPlan(),  # noqa: B008  (frozen)
    overwrite: bool = False,
    progress: Progress = silent,
) -> DemoResult:
    """Make the data set and take it through every step.

    Args:
        folder: Where everything goes.
        seed: Of the data and of the training.
        plan: Sizes, network, epochs.
        overwrite: Replace an earlier demo in `folder`.
        progress: Told about every phase.

    Raises:
        OutputExistsError: The folder holds something already.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "make data"):
        data = make_demo_data(folder, seed, plan=plan, overwrite=overwrite, progress=progress)
    with _timed(seconds, "ingest"):
        report = _ingest(data, progress)
    with _one_thread():
        with _timed(seconds, "train, predict, score"):
            trained = _train(data, report.cube, progress)
        with _timed(seconds, "map the zone"):
            maps = _map_zone(data, progress)
    matrices = {task: np.load(trained.folder / "confusion" / f"{task}.npy") for task in maps}
    with _timed(seconds, "pictures"):
        pictures = _draw(data, plan, trained, matrices, maps)
    assert trained.bundle is not None
    assert trained.metrics_path is not None
    return DemoResult(
        data=data,
        cube=report.cube,
        n_patches=report.n_patches,
        bundle=trained.bundle,
        test={task: score(matrix, _ignored(task)) for task, matrix in matrices.items()},
        zone={task: _zone_score(data, task, path) for task, path in maps.items()},
        maps=maps,
        metrics=trained.metrics_path,
        pictures=pictures,
        seconds=seconds,
        sizes={"files": folder_bytes(data.data), "cube": report.n_bytes, "all": folder_bytes(data.folder)},
    )


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = perf_counter()
    yield
    seconds[phase] = perf_counter() - start


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one torch thread: layers this small lose more to waiting for each other than threads bring."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ingest(data: DemoData, progress: Progress) -> IngestReport:
    from flairhub.config import load_train_config
    from flairhub.ingest import ingest

    config = load_train_config(data.configs)
    return ingest(config, cube=data.cube, modalities=list(MODALITIES), progress=progress)


def _train(data: DemoData, cube: Path, progress: Progress) -> TrainResult:
    from flairhub.config import load_train_config
    from flairhub.training import train

    return train(load_train_config(data.configs), cube=cube, progress=progress)


def _map_zone(data: DemoData, progress: Progress) -> dict[str, Path]:
    from flairhub.config import load_zonal_config
    from flairhub.inference import run_zonal

    result = run_zonal(load_zonal_config(data.zonal_config), progress=progress)
    return {file.task: file.path for file in result.maps}


def _draw(
    data: DemoData,
    plan: DemoPlan,
    trained: TrainResult,
    matrices: Mapping[str, NDArray[np.int64]],
    maps: Mapping[str, Path],
) -> dict[str, Path]:
    from flairhub.cube import open_cube

    cube = open_cube(trained.cube)
    test = np.flatnonzero(np.asarray(cube.patches.split) == "test")
    return draw_pictures(
        data.folder / "pictures",
        cube,
        test,
        trained.predictions,
        matrices,
        trained.history,
        maps,
        data.zone,
        plan.gsd_m,
    )


def _ignored(task: str) -> tuple[int, ...]:
    return tuple(IGNORED_COSIA) if task == "AERIAL_LABEL-COSIA" else ()


def _zone_score(data: DemoData, task: str, path: Path) -> TaskScore:
    truth, prediction = read_raster(data.zone_labels[task])[0], read_raster(path)[0]
    return score(confusion_matrix(truth, prediction, default_task(task).n_classes), _ignored(task))


def score(matrix: NDArray[np.int64], ignored: tuple[int, ...]) -> TaskScore:
    """Score a confusion matrix beside chance.

    Guessing class c at its share p hits p*p of all pixels, out of 2p - p*p that are c or guessed as c.

    Args:
        matrix: (class, class), rows = truth.
        ignored: Classes that are not evaluated.
    """
    scores = strict_scores(matrix, ignored)
    share = scores.support / scores.support.sum()
    present = share > 0
    return TaskScore(
        miou=scores.mean("iou"),
        accuracy=scores.overall_accuracy,
        chance_miou=float((share[present] / (2 - share[present])).mean()),
        chance_accuracy=float(share.max()),
        n_classes=int(present.sum()),
    )
