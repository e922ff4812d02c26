"""The public datasets: what a configuration trains on, for other loops than ours."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flairhub.config import PreProcessings, TrainConfig, load_train_config
from flairhub.cube import Cube, open_cube
from flairhub.data import Batch, BatchDataset, BatchLoader, PatchDataset, PreparedBatch, prepare_for_training
from flairhub.training.training_plan import TrainingPlan, training_plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flairhub.config import Paths


def loader(
    cube: Cube | str | Path,
    config: TrainConfig | Paths,
    split: str = "train",
    *,
    prepared: bool = True,
    augment: bool | None = None,
    shuffle: bool | None = None,
    device: str = "cpu",
    **options: Any,
) -> BatchDataset:
    """Return the batches of a split as a torch `IterableDataset`, as `flairhub train` sees them.

    Args:
        cube: An open cube, its path or URL.
        config: Training configuration, or its path or paths.
        split: `train`, `valid` or `test`.
        prepared: Normalised and on the device (`PreparedBatch`); False gives values as they are stored (`Batch`).
        augment: Apply the configuration's augmentation to prepared batches; None: for `train`.
        shuffle: New order in every epoch, the last incomplete batch left out; None: for `train`.
        device: Of prepared batches.
        options: Further ones of `flairhub.data.BatchLoader`: `batch_size`, `threads`, `prefetch`, `seed`, `missing`,
            `transform`, `pin_memory`, ...

    Raises:
        CubeError: The cube is missing or lacks a modality.
        DataError: Patches lack a modality.
        TrainingError: The split is empty.
    """
    plan, opened, indices = _plan(cube, config, split)
    training = split == "train"
    shuffles = training if shuffle is None else shuffle
    settings = {"shuffle": shuffles, "drop_last": shuffles, **options}
    prepare = None
    if prepared:
        prepare = partial(_prepare, plan, device, training if augment is None else augment)
    return BatchDataset(partial(_make, plan, opened, indices, settings), prepare)


def patches(
    cube: Cube | str | Path,
    config: TrainConfig | Paths,
    split: str = "train",
    *,
    prepared: bool = True,
    device: str = "cpu",
) -> PatchDataset:
    """Return the patches of a split as a map-style torch `Dataset`, in storage order and without augmentation.

    Args:
        cube: An open cube, its path or URL.
        config: Training configuration, or its path or paths.
        split: `train`, `valid` or `test`.
        prepared: Normalised and on the device; False gives values as they are stored.
        device: Of prepared patches.

    Raises:
        CubeError: The cube is missing or lacks a modality.
        DataError: Patches lack a modality.
        TrainingError: The split is empty.
    """
    plan, opened, indices = _plan(cube, config, split)
    prepare = partial(_prepare, plan, device, False) if prepared else None
    missing = plan.config.modalities.missing
    return PatchDataset(opened, indices, plan.preparations, plan.tasks, missing, prepare)


def _plan(
    cube: Cube | str | Path, config: TrainConfig | Paths, split: str
) -> tuple[TrainingPlan, Cube, NDArray[np.int64]]:
    plan, opened = training_plan(load_train_config(config)), open_cube(cube)
    return plan, opened, plan.split(opened, split)


def _make(
    plan: TrainingPlan, cube: Cube, indices: NDArray[np.int64], settings: dict[str, Any], rank: int, world_size: int
) -> BatchLoader:
    return plan.loader(cube, indices, **settings, rank=rank, world_size=world_size)


def _prepare(plan: TrainingPlan, device: str, augment: bool, batch: Batch, epoch: int) -> PreparedBatch:
    augmentation = plan.config.modalities.pre_processings if augment else PreProcessings()
    return prepare_for_training(batch, plan.preparations, device, augmentation, plan.config.hyperparams.seed, epoch)
