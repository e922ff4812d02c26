"""From a configuration to the objects of a run: read here once, so that the rest takes values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.config import TrainConfig, class_weights, config_hash, input_preparations, label_tasks
from flairhub.data import BatchLoader, Preparation
from flairhub.errors import ConfigError
from flairhub.models import NetworkSpec, network_spec
from flairhub.tasks import Task
from flairhub.training.fit import FitOptions
from flairhub.training.folder import RunFolder
from flairhub.training.losses import TaskObjective
from flairhub.training.optimizers import OptimizerChoice
from flairhub.training.schedules import Schedule

if TYPE_CHECKING:
    from flairhub.cube import Cube


DEFAULT_THREADS = 2
"""Reading threads where the configuration gives none."""


@dataclass(frozen=True)
class Phases:
    """What a run does.

    Attributes:
        train: Fit the network.
        predict: Run the test patches through it and score them.
        score_files: Score prediction rasters that exist.
        write_files: Keep predictions as rasters.
        georeference: With the label's grid.
        augment: Predict with the mean over the eight symmetries of the square.
        resume: Go on from the checkpoint.
        init_weights: Start from the checkpoint's weights.
    """

    train: bool
    predict: bool
    score_files: bool
    write_files: bool
    georeference: bool
    augment: bool
    resume: bool
    init_weights: bool


@dataclass(frozen=True)
class Setup:
    """A training configuration as values.

    Attributes:
        folder: Where results go.
        phases: What is done.
        preparations: By modality, network order.
        objectives: Tasks with weights.
        aux_weight: Factor of the auxiliary losses.
        spec: The network, with the cube's sizes once `for_cube` was called.
        pretrained: Where image encoders start: ImageNet (True), untrained (False), or a file.
        checkpoint: Weights to start from, resume from, or predict with.
        fit: Trainer settings.
        optimizer: Which optimizer.
        schedule: Schedule without its number of steps.
        batch_size: Patches per process and step.
        threads: Reading threads.
        augment: Symmetries of the square in training.
        photometric: Largest changes of brightness and contrast in training.
        ema: Decay of the running mean of the weights; 0 = off.
        losses: Weight of each loss.
        workers: Processes for a transform written in Python.
        seed: Of everything random.
        missing: Patches without an active modality: `error` or `drop`.
        ref_date: Reference day of the series, MM-DD.
        csvs: By split, CSV or None.
        config_hash: sha256 of what determines the results.
    """

    folder: RunFolder
    phases: Phases
    preparations: Mapping[str, Preparation]
    objectives: tuple[TaskObjective, ...]
    aux_weight: float
    spec: NetworkSpec
    pretrained: bool | Path
    checkpoint: Path | None
    fit: FitOptions
    optimizer: OptimizerChoice
    schedule: Schedule
    batch_size: int
    threads: int
    augment: bool
    photometric: tuple[float, float]
    ema: float
    losses: Mapping[str, float]
    workers: int
    seed: int
    missing: Any
    ref_date: str
    csvs: Mapping[str, Path | None]
    config_hash: str

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is predicted."""
        return tuple(objective.task for objective in self.objectives)

    def for_cube(self, cube: Cube) -> Setup:
        """Return the setup with the network's sizes taken from the cube."""
        held = [name for name in self.spec.inputs if name in cube.modalities]
        return replace(self, spec=replace(self.spec, sizes={name: cube.array(name).shape[-1] for name in held}))

    def loader(self, cube: Cube, indices: NDArray[np.int64], **options: Any) -> BatchLoader:
        """Return a loader of patches; see `BatchLoader` for the options."""
        settings = {"batch_size": self.batch_size, "threads": self.threads, "missing": self.missing, "seed": self.seed}
        return BatchLoader(cube, indices, self.preparations, self.tasks, **{**settings, **options})


def read_setup(config: TrainConfig) -> Setup:
    """Turn a configuration into values.

    Raises:
        ConfigError: The `tasks` section asks for nothing, or the monitor is no logged value.
    """
    _check_monitor(config)
    hyper, hardware, modalities = config.hyperparams, config.hardware, config.modalities
    spec = network_spec(config)
    # Results do not depend on it, so the published default of no workers need not mean waiting for the disk.
    threads = hardware.threads if hardware.threads is not None else hardware.num_workers or DEFAULT_THREADS
    return Setup(
        folder=RunFolder(Path(config.paths.out_folder) / config.paths.out_model_name),
        phases=_phases(config),
        preparations=input_preparations(config),
        objectives=_objectives(config, spec.aux),
        aux_weight=modalities.aux_loss_weight,
        spec=spec,
        pretrained=config.models.monotemp_model.pretrained,
        checkpoint=config.paths.ckpt_model_path,
        fit=_fit_options(config),
        optimizer=OptimizerChoice(hyper.optimizer, hyper.learning_rate, hyper.optim_weight_decay, hyper.optim_betas),
        schedule=Schedule(hyper.scheduler, hyper.learning_rate, 0, hyper.warmup_fraction, hyper.plateau_patience),
        batch_size=hyper.batch_size,
        threads=threads,
        augment=modalities.pre_processings.use_augmentation,
        photometric=(
            modalities.pre_processings.augmentation_brightness,
            modalities.pre_processings.augmentation_contrast,
        ),
        ema=hyper.ema,
        losses=dict(hyper.losses),
        workers=hardware.num_workers,
        seed=hyper.seed,
        missing=modalities.missing,
        ref_date=config.models.multitemp_model.ref_date,
        csvs={"train": config.paths.train_csv, "valid": config.paths.val_csv, "test": config.paths.test_csv},
        config_hash=config_hash(config),
    )


def _check_monitor(config: TrainConfig) -> None:
    known = ["val_miou", "val_loss", "train_loss", *(f"val_miou/{label}" for label in config.labels)]
    if config.saving.ckpt_monitor not in known:
        problem = f"saving.ckpt_monitor: got {config.saving.ckpt_monitor!r}, expected one of {', '.join(known)}."
        raise ConfigError("configuration", [problem])


def _phases(config: TrainConfig) -> Phases:
    tasks = config.tasks
    if not (tasks.train or tasks.predict or tasks.metrics_only):
        raise ConfigError("configuration", ["tasks: train, predict and metrics_only are all false, nothing to do."])
    return Phases(
        train=tasks.train and not tasks.metrics_only,
        predict=tasks.predict and not tasks.metrics_only,
        score_files=tasks.metrics_only,
        write_files=tasks.write_files,
        georeference=tasks.georeferencing_output,
        augment=tasks.test_time_augmentation,
        resume=tasks.train_tasks.resume_training_from_ckpt,
        init_weights=tasks.train_tasks.init_weights_only_from_ckpt,
    )


def _objectives(config: TrainConfig, heads: tuple[str, ...]) -> tuple[TaskObjective, ...]:
    return tuple(
        TaskObjective(
            task,
            config.labels_configs[task.label].task_weight,
            class_weights(config, task.label),
            {name: class_weights(config, task.label, name) for name in heads},
        )
        for task in label_tasks(config)
    )


def _fit_options(config: TrainConfig) -> FitOptions:
    hardware, saving = config.hardware, config.saving
    return FitOptions(
        epochs=config.hyperparams.num_epochs,
        monitor=saving.ckpt_monitor,
        mode=saving.ckpt_monitor_mode,
        patience=saving.ckpt_earlystopping_patience,
        accelerator=hardware.accelerator,
        devices=hardware.gpus_per_node,
        nodes=hardware.num_nodes,
        strategy=hardware.strategy,
        precision=hardware.precision,
        weights_only=saving.ckpt_weights_only,
        keep_last=saving.ckpt_save_also_last,
        log_every=saving.progress_rate,
        bar=saving.enable_progress_bar,
        accumulate=config.hyperparams.accumulate,
        gradient_clip=config.hyperparams.gradient_clip,
        checkpoint_every=saving.ckpt_every_n_steps,
        verbose_checkpoints=saving.ckpt_verbose,
        compile=hardware.compile,
        log_images=saving.log_images,
    )
