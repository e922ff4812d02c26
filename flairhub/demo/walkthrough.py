"""The whole chain on the made data set: ingest, train, predict, score, map, draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.class_raster import prediction_files, read_class_raster
from flairhub.confusion import confusion_matrix, strict_scores
from flairhub.demo.area import DemoPlan
from flairhub.demo.configs import IGNORED_COSIA
from flairhub.demo.dataset import THREADS, DemoData, make_in_folder
from flairhub.demo.writing import writing_demo
from flairhub.jobs import folder_bytes
from flairhub.modalities import MODALITIES
from flairhub.progress import Progress, silent
from flairhub.report import PanelRow, save_confusion, save_curves, save_panels, save_quicklook, view
from flairhub.tasks import Task, default_task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flairhub.cube import Cube
    from flairhub.ingest import IngestReport
    from flairhub.training import TrainResult

TITLES: Mapping[str, str] = {"AERIAL_LABEL-COSIA": "Land cover", "ALL_LABEL-LPIS": "Crops"}
"""What the demo calls its tasks."""

SHORT: Mapping[str, str] = {"AERIAL_LABEL-COSIA": "land_cover", "ALL_LABEL-LPIS": "crops"}
"""How the demo's files call them."""


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

    What an equal call has finished is kept, what it has begun goes on.

    Args:
        folder: Where everything goes.
        seed: Of the data and of the training.
        plan: Sizes, network, epochs.
        overwrite: Replace an earlier demo in `folder`.
        progress: Called with the steps of every phase.

    Raises:
        OutputExistsError: The folder holds another demo, or something else.
        LockError: Another process makes a demo there.
        DataError: The system refuses to write: full disk, no permission, ...
    """
    with writing_demo(folder):
        return _run(folder, seed, plan, overwrite, progress)


def _run(folder: str | Path, seed: int, plan: DemoPlan, overwrite: bool, progress: Progress) -> DemoResult:
    seconds: dict[str, float] = {}
    with _timed(seconds, "make data"):
        data = make_in_folder(folder, seed, plan, overwrite, THREADS, progress)
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
    truth, prediction = _read_bands(data.zone_labels[task])[0], read_class_raster(path)
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


# --- pictures


def varied_patches(cube: Cube, label: str, indices: NDArray[np.int64], count: int) -> list[int]:
    """Patches to show: of each domain in turn, those with the most evenly spread classes.

    Args:
        cube: Holds the truth.
        label: Label set to look at.
        indices: Cube positions to choose from.
        count: How many.
    """
    ranked: dict[str, list[tuple[float, int]]] = {}
    for index in indices.tolist():
        shares = np.bincount(cube.read(label, [index])[0, 0].ravel(), minlength=256) / 1.0
        shares = shares[shares > 0] / shares.sum()
        spread = float(-(shares * np.log(shares)).sum())
        ranked.setdefault(str(cube.patches.domain[index]), []).append((-spread, index))
    queues = [sorted(ranked[domain]) for domain in sorted(ranked)]
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return [index for _, index in turns[:count]]


def patch_panels(cube: Cube, indices: Sequence[int], task: Task, predictions: Path, path: Path, title: str) -> Path:
    """Draw inputs, truth and prediction of some patches."""
    files = prediction_files(predictions)
    rows = []
    for index in indices:
        patch_id = cube.patch_ids[index]
        inputs = {
            "aerial image": view(cube, "AERIAL_RGBI", index),
            "Sentinel-2, spring": view(cube, "SENTINEL2_TS", index, month=4),
            "Sentinel-2, summer": view(cube, "SENTINEL2_TS", index, month=7),
        }
        truth = cube.read(task.label, [index])[0, task.level - 1]
        rows.append(PanelRow(patch_id, inputs, truth, read_class_raster(files[patch_id])))
    return save_panels(path, rows, task, title)


def draw_pictures(
    folder: Path,
    cube: Cube,
    test: NDArray[np.int64],
    predictions: Mapping[str, Path],
    matrices: Mapping[str, NDArray[np.int64]],
    history: Sequence[Mapping[str, Any]],
    maps: Mapping[str, Path],
    zone: Path,
    gsd_m: float,
) -> dict[str, Path]:
    """Draw everything a newcomer wants to see.

    Args:
        folder: Where the PNG files go.
        cube: The demo's cube.
        test: Cube positions of the test patches.
        predictions: Folder of prediction rasters, by task.
        matrices: (class, class) counts of the test patches, by task.
        history: One entry per epoch.
        maps: Class map of the zone, by task.
        zone: Folder of the zone's rasters.
        gsd_m: Pixel size of the maps.

    Returns:
        Path by name.
    """
    pictures = {}
    aerial = _read_bands(zone / "AERIAL_RGBI.tif")[:3]
    for name, title in TITLES.items():
        task, short = default_task(name), SHORT[name]
        chosen = varied_patches(cube, name, test, 4)
        path = folder / f"patches_{short}.png"
        pictures[f"{title}: test patches"] = patch_panels(cube, chosen, task, predictions[name], path, title)
        path = folder / f"confusion_{short}.png"
        pictures[f"{title}: confusion matrix"] = save_confusion(
            path, matrices[name], task.names, f"{title}, test patches"
        )
        path = folder / f"map_{short}.png"
        class_map = read_class_raster(maps[name])
        pictures[f"{title}: map of the zone"] = save_quicklook(
            path, class_map, task, gsd_m=gsd_m, title=f"{title} of the zone", image=aerial
        )
    curves = {key: [float(entry[key]) for entry in history] for key in ("train_loss", "val_loss", "val_miou")}
    pictures["Training"] = save_curves(folder / "training.png", curves, "Training")
    return pictures


def _read_bands(path: str | Path) -> NDArray[Any]:
    """(band, y, x) values of a raster."""
    import rasterio

    with rasterio.open(path, driver="GTiff") as source:
        return source.read()
