"""The test patches of a run: through the network, or from rasters that exist, to sums."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import distributed

from flairhub.data import BatchLoader
from flairhub.errors import WeightsError
from flairhub.models import Network, load_model, load_published
from flairhub.progress import Progress, silent
from flairhub.training.evaluate import score_files
from flairhub.training.fit import resolve_precision
from flairhub.training.predict import predict_patches
from flairhub.training.raster import label_grid, prediction_name, write_prediction
from flairhub.training.setup import Setup
from flairhub.training.splits import split_indices
from flairhub.training.sums import ConfusionSums

if TYPE_CHECKING:
    from flairhub.cube import Cube


def load_for_prediction(setup: Setup) -> Network:
    """Return the network of the bundle, or the configured one with the weights of a file."""
    assert setup.checkpoint is not None
    path = setup.checkpoint
    if not path.is_dir():
        return load_published(path, setup.spec)
    model = load_model(path)
    for what, there, here in (
        ("inputs", dict(model.spec.inputs), dict(setup.spec.inputs)),
        ("tasks", dict(model.spec.tasks), dict(setup.spec.tasks)),
        ("preparation", model.preparations, dict(setup.preparations)),
    ):
        if there != here:
            differing = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
            raise WeightsError(
                f"{path}: was trained with another {what} than the configured one: "
                + "; ".join(f"{name}: {there.get(name)} there, {here.get(name)} here" for name in differing)
                + ". Predict with the configuration it was trained with."
            )
    return model.network


def processes() -> tuple[int, int]:
    """Rank of this process and number of processes that work together after a distributed training."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def predict_split(setup: Setup, cube: Cube, network: Network, progress: Progress) -> ConfusionSums:
    """Predict the test patches, write and count them; processes share the patches.

    Returns:
        Sums of all patches in the first process, of its own patches in the others.
    """
    rank, world_size = processes()
    indices = split_indices(cube, "test", setup.csvs["test"])
    device = "cuda" if setup.fit.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    precision = resolve_precision(setup.fit.precision, "gpu" if device == "cuda" else "cpu")
    loader: BatchLoader = setup.loader(cube, indices, pin_memory=device == "cuda", rank=rank, world_size=world_size)
    if rank == 0:
        setup.folder.clear_predictions(setup.tasks)
    if world_size > 1:
        distributed.barrier()
    sums = ConfusionSums(setup.tasks)
    for prediction in predict_patches(
        network,
        loader,
        setup.preparations,
        device=device,
        precision=precision,
        augment=setup.phases.augment,
        progress=progress if rank == 0 else silent,
    ):
        domain = str(cube.patches.domain[prediction.index])
        for task in setup.tasks:
            name, classes = task.label, prediction.classes[task.label]
            sums.add(name, prediction.index, domain, prediction.truth[name], classes)
            if setup.phases.write_files:
                grid = label_grid(cube, prediction.index, name) if setup.phases.georeference else None
                path = setup.folder.predictions(task) / prediction_name(cube, prediction.index, name)
                write_prediction(path, classes, task, grid)
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


def score_rasters(setup: Setup, cube: Cube, folders: dict[str, Path], progress: Progress) -> ConfusionSums:
    """Count the rasters of the test patches in the given folders, by task."""
    indices = split_indices(cube, "test", setup.csvs["test"])
    return score_files(cube, indices, setup.tasks, folders, progress)
