"""From test patches to counts: through a network, or from prediction rasters that exist."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from flairhub.class_raster import prediction_name, read_class_raster, write_class_raster
from flairhub.confusion import ConfusionSums
from flairhub.data import BatchLoader, Preparation, prepare_batch
from flairhub.errors import DataError, WeightsError
from flairhub.geo import GeoBox
from flairhub.models import Network, load_model, load_published
from flairhub.progress import Progress, silent
from flairhub.tasks import IGNORE_INDEX, Task
from flairhub.training.logits import mean_probabilities, most_probable, network_output
from flairhub.training.trainer import resolve_precision
from flairhub.training.training_plan import TrainingPlan

if TYPE_CHECKING:
    from flairhub.cube import Cube


@dataclass(frozen=True)
class Prediction:
    """Classes of one patch.

    Attributes:
        index: Position in the cube.
        classes: By task, (y, x) uint8, the most probable class; 255 where the logits are not finite numbers.
        truth: By task, (y, x) uint8, 255 = ignore.
    """

    index: int
    classes: Mapping[str, NDArray[np.uint8]]
    truth: Mapping[str, NDArray[np.uint8]]


def predict_patches(
    network: nn.Module,
    loader: BatchLoader,
    preparations: Mapping[str, Preparation],
    *,
    device: torch.device | str = "cpu",
    precision: str = "32-true",
    augment: bool = False,
    progress: Progress = silent,
) -> Iterator[Prediction]:
    """Yield the prediction of every patch of the loader, in its order.

    Args:
        network: Put into evaluation mode and moved to the device.
        loader: In storage order, nothing dropped.
        preparations: By modality, the ones the loader was made with.
        device: Where to compute.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        augment: Average the probabilities over the eight symmetries of the square.
        progress: Called with the number of finished patches.
    """
    network = network.to(device).eval()
    done = 0
    progress("predict", 0, loader.n_samples)
    for batch in loader:
        # Entered per batch: a generator must not leave its caller in inference mode.
        with torch.inference_mode(), _autocast(device, precision):
            prepared = prepare_batch(batch, preparations, device)
            scores = mean_probabilities(network, prepared) if augment else network_output(network, prepared)[0]
            classes = {task: most_probable(values).cpu().numpy() for task, values in scores.items()}
        truth = {task: values.numpy() for task, values in batch.targets.items()}
        for i, index in enumerate(batch.index.tolist()):
            yield Prediction(
                index,
                {task: values[i] for task, values in classes.items()},
                {task: values[i] for task, values in truth.items()},
            )
        done += len(batch)
        progress("predict", done, loader.n_samples)


def _autocast(device: torch.device | str, precision: str) -> Any:
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    if precision not in kinds:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=kinds[precision])


def load_for_prediction(plan: TrainingPlan) -> Network:
    """Return the network of the bundle, or the configured one with the weights of a file."""
    path = plan.config.paths.ckpt_model_path
    assert path is not None
    if not path.is_dir():
        return load_published(path, plan.spec)
    model = load_model(path)
    for what, trained, configured in (
        ("inputs", dict(model.spec.inputs), dict(plan.spec.inputs)),
        ("tasks", dict(model.spec.tasks), dict(plan.spec.tasks)),
        ("preparation", model.preparations, dict(plan.preparations)),
    ):
        if trained != configured:
            differing = sorted(name for name in {*trained, *configured} if trained.get(name) != configured.get(name))
            raise WeightsError(
                f"{path}: was trained with another {what} than the configured one: "
                + "; ".join(f"{name}: {trained.get(name)} there, {configured.get(name)} here" for name in differing)
                + ". Predict with the configuration it was trained with."
            )
    return model.network


def processes() -> tuple[int, int]:
    """Rank of this process and number of processes that work together after a distributed training."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def predict_split(plan: TrainingPlan, cube: Cube, network: Network, progress: Progress) -> ConfusionSums:
    """Predict the test patches, write and count them; processes share the patches.

    Returns:
        Sums of all patches in the first process, of its share of the patches in the others.
    """
    rank, world_size = processes()
    indices = plan.split(cube, "test")
    hardware = plan.config.hardware
    device = "cuda" if hardware.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    precision = resolve_precision(hardware.precision, "gpu" if device == "cuda" else "cpu")
    loader: BatchLoader = plan.loader(cube, indices, pin_memory=device == "cuda", rank=rank, world_size=world_size)
    if rank == 0:
        plan.folder.clear_predictions(plan.tasks)
    if world_size > 1:
        distributed.barrier()
    sums = ConfusionSums(plan.tasks)
    for prediction in predict_patches(
        network,
        loader,
        plan.preparations,
        device=device,
        precision=precision,
        augment=plan.config.tasks.test_time_augmentation,
        progress=progress if rank == 0 else silent,
    ):
        domain = str(cube.patches.domain[prediction.index])
        for task in plan.tasks:
            name, classes = task.label, prediction.classes[task.label]
            sums.add(name, prediction.index, domain, prediction.truth[name], classes)
            if plan.config.tasks.write_files:
                path = plan.folder.predictions(task) / patch_file(cube, prediction.index, name)
                grid = label_grid(cube, prediction.index, name) if plan.config.tasks.georeferencing_output else None
                write_class_raster(path, classes, task, grid)
    return _gathered(sums, rank, world_size)


def _gathered(sums: ConfusionSums, rank: int, world_size: int) -> ConfusionSums:
    if world_size == 1:
        return sums
    parts: list[ConfusionSums | None] | None = [None] * world_size if rank == 0 else None
    distributed.gather_object(sums, parts)
    if parts is None:
        return sums
    first, *others = [part for part in parts if part is not None]
    return first.join(others)


def patch_file(cube: Cube, index: int, label: str) -> str:
    """Return the name of the prediction raster of the patch at a cube position."""
    table = cube.patches
    return prediction_name(table.domain[index], label, table.roi[index], (table.row[index], table.col[index]))


def label_grid(cube: Cube, index: int, label: str) -> GeoBox:
    """Return the grid of a patch's label."""
    table = cube.patches
    height, width = cube.array(label).shape[-2:]
    x_res, y_res = table.footprint_m[0] / width, table.footprint_m[1] / height
    return GeoBox(table.crs_wkt, float(table.x_min[index]), float(table.y_max[index]), x_res, y_res, height, width)


def count_rasters(
    plan: TrainingPlan, cube: Cube, folders: Mapping[str, Path], progress: Progress = silent
) -> ConfusionSums:
    """Count prediction rasters of the test patches that exist already.

    Args:
        plan: Says which patches and tasks.
        cube: Holds the truth.
        folders: By task, where its rasters are.
        progress: Called with the number of finished patches.

    Raises:
        DataError: Rasters are missing, unreadable or do not fit the labels; the message lists them all.
    """
    indices, tasks = plan.split(cube, "test"), plan.tasks
    sums, problems = ConfusionSums(tasks), []
    for done, index in enumerate(indices.tolist(), start=1):
        for task in tasks:
            path = folders[task.label] / patch_file(cube, index, task.label)
            truth = cube.array(task.label).read([index], level=task.level)[0]
            try:
                classes = read_class_raster(path)
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
    wrong = np.unique(classes[(classes >= task.n_classes) & (classes != IGNORE_INDEX) & (truth != IGNORE_INDEX)])
    if len(wrong):
        raise DataError(f"{path}: holds class values {wrong[:10].tolist()}, expected 0..{task.n_classes - 1}.")


def _listed(problems: Iterable[str], total: int) -> str:
    lines = list(problems)
    shown = "\n".join(f"  - {line}" for line in lines)
    return (
        f"{len(lines)} of {total} prediction rasters cannot be scored, so no score is given:\n{shown}\n"
        "Predict again with tasks.predict: true."
    )
