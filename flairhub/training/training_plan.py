"""The plan of a run: a configuration with what is computed from it once, and the patches of a cube that it is about."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.config import TrainConfig, class_weights, config_hash, input_preparations, label_tasks
from flairhub.data import BatchLoader, Preparation
from flairhub.errors import DataError, TrainingError
from flairhub.ingest import read_csv
from flairhub.models import NetworkSpec, network_spec
from flairhub.tasks import Task
from flairhub.training.losses import TaskObjective
from flairhub.training.run_folder import RunFolder

if TYPE_CHECKING:
    from flairhub.cube import Cube

logger = logging.getLogger(__name__)

DEFAULT_THREADS = 2
"""Reading threads where the configuration gives none."""


@dataclass(frozen=True)
class TrainingPlan:
    """A training configuration and what is computed from it; values that it gives as they are stay in its sections.

    Attributes:
        config: The configuration.
        folder: Where results go.
        preparations: By modality, network order.
        objectives: Tasks with weights.
        spec: The network, with the cube's sizes once `for_cube` was called.
        config_hash: sha256 of what determines the results.
    """

    config: TrainConfig
    folder: RunFolder
    preparations: Mapping[str, Preparation]
    objectives: tuple[TaskObjective, ...]
    spec: NetworkSpec
    config_hash: str

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is predicted."""
        return tuple(objective.task for objective in self.objectives)

    def for_cube(self, cube: Cube) -> TrainingPlan:
        """Return the plan with the network's sizes taken from the cube."""
        sizes = {name: cube.array(name).shape[-1] for name in self.spec.inputs if name in cube.modalities}
        return replace(self, spec=replace(self.spec, sizes=sizes))

    def split(self, cube: Cube, split: str) -> NDArray[np.int64]:
        """Return the cube positions of `train`, `valid` or `test`; see `split_indices`."""
        return split_indices(cube, split, self.config.paths.split_csvs[split])

    def loader(self, cube: Cube, indices: NDArray[np.int64], **options: Any) -> BatchLoader:
        """Return a loader of patches; see `BatchLoader` for the options."""
        hardware, hyperparams = self.config.hardware, self.config.hyperparams
        # Results do not depend on it, so the published default of no workers need not mean waiting for the disk.
        threads = hardware.threads if hardware.threads is not None else hardware.num_workers or DEFAULT_THREADS
        settings = {
            "batch_size": hyperparams.batch_size,
            "threads": threads,
            "missing": self.config.modalities.missing,
            "seed": hyperparams.seed,
        }
        return BatchLoader(cube, indices, self.preparations, self.tasks, **{**settings, **options})


def training_plan(config: TrainConfig) -> TrainingPlan:
    """Compute what follows from a configuration."""
    spec = network_spec(config)
    folder = RunFolder(Path(config.paths.out_folder) / config.paths.out_model_name)
    return TrainingPlan(
        config=config,
        folder=folder,
        preparations=input_preparations(config),
        objectives=tuple(
            TaskObjective(
                task,
                config.labels_configs[task.label].task_weight,
                class_weights(config, task.label),
                {name: class_weights(config, task.label, name) for name in spec.aux},
            )
            for task in label_tasks(config)
        ),
        spec=spec,
        config_hash=config_hash(_uninterrupted(config, folder)),
    )


def _uninterrupted(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """Return the configuration of the run that is gone on with: what follows is the same, and so is its hash."""
    start, path = config.tasks.train_tasks, config.paths.ckpt_model_path
    own = path is not None and path.resolve() == folder.last_checkpoint.resolve()
    if not (config.tasks.trains and start.resume_training_from_ckpt and own):
        return config
    tasks = config.tasks.model_copy(
        update={"train_tasks": start.model_copy(update={"resume_training_from_ckpt": False})}
    )
    paths = config.paths.model_copy(update={"ckpt_model_path": None})
    return config.model_copy(update={"tasks": tasks, "paths": paths})


def split_indices(cube: Cube, split: str, csv: Path | None) -> NDArray[np.int64]:
    """Return the cube positions of a split, in storage order.

    Args:
        cube: The cube.
        split: `train`, `valid` or `test`.
        csv: The configuration's CSV; None takes the split recorded in the cube.

    Raises:
        DataError: The CSV cannot be read or lists a patch twice.
        CubeError: The CSV lists patches that are not in the cube.
        TrainingError: The split is empty.
    """
    if csv is None:
        indices = cube.patches.in_split(split)
        source = f"{cube.path} (splits recorded at ingest)"
    else:
        ids = [row["patch_id"] for _, row in read_csv(csv, ["patch_id"]).rows]
        doubled = sorted({patch_id for patch_id in ids if ids.count(patch_id) > 1}) if len(set(ids)) < len(ids) else []
        if doubled:
            raise DataError(f"{csv}: lists patches more than once: {', '.join(doubled[:10])}. Keep one line of each.")
        indices, source = np.sort(cube.indices(ids)), str(csv)
    if not len(indices):
        raise TrainingError(f"{source}: no patch in split {split!r}, at least one is needed.")
    return indices


def warn_of_overlap(cube: Cube, splits: Mapping[str, NDArray[np.int64]]) -> None:
    """Log a warning where two splits share patches: scores would be too good."""
    names = list(splits)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = np.intersect1d(splits[first], splits[second])
            if len(shared):
                ids = ", ".join(cube.patch_ids[index] for index in shared[:3])
                logger.warning("splits %s and %s share %d patches: %s", first, second, len(shared), ids)
