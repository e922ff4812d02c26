"""One run: ingest when needed, train, predict, score, as the configuration's `tasks` say."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from flairhub.config import TrainConfig, resolved_yaml
from flairhub.confusion import ConfusionSums
from flairhub.cube import Cube, open_cube
from flairhub.data import Transform
from flairhub.errors import CubeError, TrainingError, WeightsError
from flairhub.jobs import sweep
from flairhub.models import Network, build_network, load_into, save_bundle
from flairhub.progress import Progress, silent
from flairhub.training.checkpoints import check_resumable, load_weights, read_checkpoint
from flairhub.training.fit import build_trainer, quiet_lightning, run_fit
from flairhub.training.folder import RunFolder, write_text
from flairhub.training.losses import Criterion
from flairhub.training.metrics import metrics_report, write_report
from flairhub.training.module import LearningPlan, SegmentationModule
from flairhub.training.predict import count_rasters, load_for_prediction, predict_split, processes
from flairhub.training.setup import Setup, read_setup
from flairhub.training.splits import split_indices, warn_of_overlap
from flairhub.version import __version__

if TYPE_CHECKING:
    import lightning.pytorch as pl

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run left.

    Attributes:
        folder: The run's folder.
        cube: The cube that was used.
        bundle: Model of the best epoch; None when nothing was trained.
        history: One entry per epoch: losses, scores, learning rate.
        metrics: Content of metrics.json; empty without prediction or scoring.
        metrics_path: metrics.json, None without.
        predictions: By task, folder of the prediction rasters, where they were written.
        skipped_batches: Training batches without any pixel that counts.
        seconds: Wall time by phase: ingest, train, predict, score.
        rank: Process of a distributed run; only rank 0 has scores and files.
    """

    folder: Path
    cube: Path
    bundle: Path | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    metrics_path: Path | None = None
    predictions: Mapping[str, Path] = field(default_factory=dict)
    skipped_batches: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    rank: int = 0


def train(
    config: TrainConfig,
    *,
    cube: str | Path | Cube | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    transform: Transform | None = None,
) -> TrainResult:
    """Train, predict and score as the configuration's `tasks` say.

    Args:
        config: From `load_train_config`.
        cube: Where the patches are. Without it `paths.cube`; what is not there yet is ingested first.
        overwrite: Replace the results of an earlier run in the same folder.
        transform: `transform(batch, rng)` changes every training batch as it is stored, see `BatchLoader`. It runs in
            `hardware.num_workers` processes when that is not 0, else in the reading threads.
        progress: Told about ingest, training steps and predicted patches. Without it and on a terminal,
            `saving.enable_progress_bar` shows Lightning's own bar.

    Returns:
        Scores and paths.

    Raises:
        OutputExistsError: The run's folder holds results and `overwrite` is False.
        CubeError: The cube is missing, incomplete, or lacks what the configuration needs.
        DataError: Patches, labels or prediction rasters are not what they should be.
        WeightsError: A checkpoint or pretrained weights are missing or do not fit.
        TrainingError: Training or scoring cannot go on.
    """
    setup = read_setup(config)
    report = progress or silent
    if progress is not None:
        setup = replace(setup, fit=replace(setup.fit, bar=False))
        report = _training_steps_hidden(progress) if not config.saving.enable_progress_bar else progress
    main = _is_main()
    if main and not overwrite:
        _check_outputs(setup)
    _check_weights(setup)
    seconds: dict[str, float] = {}
    opened = _timed(seconds, "ingest", lambda: _open_or_ingest(config, setup, cube, report))
    setup = setup.for_cube(opened)
    rank = getattr(rank_zero_only, "rank", None) or 0
    result = TrainResult(setup.folder.root, Path(str(opened.path)), seconds=seconds, rank=rank)
    if setup.phases.train:
        network, result = _timed(seconds, "train", lambda: _train(config, setup, opened, result, report, transform))
    elif setup.phases.predict:
        network = load_for_prediction(setup)
        _write_inputs(config, setup)
    if not main and processes()[1] == 1:
        # Started several times, but nothing joins the processes: the first one does it all.
        return result
    if setup.phases.predict:
        sums = _timed(seconds, "predict", lambda: predict_split(setup, opened, network, report))
    elif setup.phases.score_files and main:
        folders = {task.label: setup.folder.predictions(task) for task in setup.tasks}
        sums = _timed(seconds, "score", lambda: count_rasters(setup, opened, folders, report))
    else:
        return result
    return _with_scores(setup, opened, result, sums) if main else result


def _is_main() -> bool:
    """True in the process that writes files; Lightning starts the others with their rank in the environment."""
    return getattr(rank_zero_only, "rank", None) in (None, 0)


def _check_outputs(setup: Setup) -> None:
    if setup.phases.train and not setup.phases.resume:
        setup.folder.check_training()
    elif setup.phases.predict and setup.phases.write_files and not setup.phases.train:
        setup.folder.check_prediction(setup.tasks)


def _check_weights(setup: Setup) -> None:
    """Fail before long work when weights that will be needed are not there."""
    phases, path = setup.phases, setup.checkpoint
    key = "paths.ckpt_model_path"
    if phases.train and phases.resume:
        reason = "resume_training_from_ckpt is true"
    elif phases.train and phases.init_weights:
        reason = "init_weights_only_from_ckpt is true"
    elif phases.predict and not phases.train:
        reason = "tasks.predict is true without tasks.train"
    else:
        return
    if path is None:
        raise WeightsError(f"{key}: not given, but {reason}. Give a bundle or a checkpoint.")
    if not path.exists():
        raise WeightsError(f"{key}: {path} does not exist, but {reason}. Correct the path.")


def _open_or_ingest(config: TrainConfig, setup: Setup, cube: str | Path | Cube | None, progress: Progress) -> Cube:
    if isinstance(cube, Cube):
        return cube
    if cube is not None:
        return open_cube(cube)
    place = config.paths.cube or str(setup.folder.root.with_name(setup.folder.root.name + ".zarr"))
    try:
        return open_cube(place)
    except CubeError:
        if not _is_main() or "://" in place:
            raise
    from flairhub.ingest import ingest

    logger.warning("no finished cube at %s: ingesting first", place)
    ingest(config, cube=place, progress=progress)
    return open_cube(place)


def _write_inputs(config: TrainConfig, setup: Setup) -> None:
    if not _is_main():
        return
    sweep(setup.folder.root)
    write_text(setup.folder.config, resolved_yaml(config))
    if config.saving.cp_csv_and_conf_to_output:
        setup.folder.inputs.mkdir(parents=True, exist_ok=True)
        for split, csv in setup.csvs.items():
            if csv is not None and csv.is_file():
                shutil.copyfile(csv, setup.folder.inputs / f"{split}.csv")


def _train(
    config: TrainConfig,
    setup: Setup,
    cube: Cube,
    result: TrainResult,
    progress: Progress,
    transform: Transform | None = None,
) -> tuple[Network, TrainResult]:
    splits = {split: split_indices(cube, split, setup.csvs[split]) for split in ("train", "valid")}
    if setup.phases.predict:
        splits["test"] = split_indices(cube, "test", setup.csvs["test"])
        setup.loader(cube, splits["test"])  # what is missing for the prediction is found before the training
    warn_of_overlap(cube, splits)
    torch.manual_seed(setup.seed)
    network = _initial_network(setup)
    with quiet_lightning():
        trainer = build_trainer(setup.fit, setup.folder, progress)
        ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size}
        pin = trainer.strategy.root_device.type == "cuda"
        own = {"transform": transform, "workers": setup.workers} if transform is not None else {}
        training = setup.loader(cube, splits["train"], shuffle=True, drop_last=True, pin_memory=pin, **own, **ranks)
        validation = setup.loader(cube, splits["valid"], pin_memory=pin, **ranks)
        if not len(training):
            raise TrainingError(f"{training.n_samples} training patches for {trainer.world_size} processes: too few.")
        steps = -(-len(training) // setup.fit.accumulate) * setup.fit.epochs
        schedule = replace(setup.schedule, total_steps=steps)
        plan = LearningPlan(
            preparations=setup.preparations,
            optimizer=setup.optimizer,
            schedule=schedule,
            patch_ids=cube.patch_ids,
            augment=setup.augment,
            brightness=setup.photometric[0],
            contrast=setup.photometric[1],
            seed=setup.seed,
            ema=setup.ema,
            log_images=setup.fit.log_images,
            log_every=setup.fit.log_every,
            network=json.loads(json.dumps(setup.spec.to_json())),
        )
        module = SegmentationModule(network, Criterion(setup.objectives, setup.aux_weight, setup.losses), plan)
        resume = setup.checkpoint if setup.phases.resume else None
        if resume is not None:
            check_resumable(resume, plan.network, setup.fit.epochs)
        elif _is_main():
            # Everything has been checked: only now an earlier run makes room.
            setup.folder.clear()
        _write_inputs(config, setup)
        try:
            run_fit(trainer, module, (training, validation), setup.folder, setup.fit, resume)
        finally:
            training.close()
    return network, _finish_training(setup, cube, trainer, module, result)


def _finish_training(
    setup: Setup, cube: Cube, trainer: pl.Trainer, module: SegmentationModule, result: TrainResult
) -> TrainResult:
    """Turn the best checkpoint into a bundle; the network is left with the best weights."""
    network, folder = cast(Network, module.model), setup.folder
    trainer.strategy.barrier()
    load_weights(network, folder.best_checkpoint)
    if not trainer.is_global_zero:
        return result
    epoch = read_checkpoint(folder.best_checkpoint)["epoch"]
    best = next(entry for entry in module.history if entry["epoch"] == epoch)
    save_bundle(
        folder.bundle,
        network,
        preparations=dict(setup.preparations),
        tasks=setup.tasks,
        ref_date=setup.ref_date,
        bands={name: list(cube.info(name)["bands"]) for name in setup.preparations},
        training={
            "flairhub_version": __version__,
            "config_sha256": setup.config_hash,
            "epoch": best["epoch"],
            "step": best["step"],
            **{name: best[name] for name in ("train_loss", "val_loss", "val_miou")},
        },
    )
    return replace(result, bundle=folder.bundle, history=module.history, skipped_batches=module.skipped_batches)


def _initial_network(setup: Setup) -> Network:
    phases = setup.phases
    fresh = not (phases.resume or phases.init_weights)
    network = build_network(setup.spec, pretrained=setup.pretrained if fresh else False)
    if phases.init_weights:
        assert setup.checkpoint is not None
        load_into(network, setup.checkpoint)
    return network


def _with_scores(setup: Setup, cube: Cube, result: TrainResult, sums: ConfusionSums) -> TrainResult:
    folder: RunFolder = setup.folder
    model = {"config_sha256": setup.config_hash, "flairhub_version": __version__}
    report = metrics_report(sums, setup.objectives, split="test", **model)
    write_report(folder, report, sums, setup.objectives, cube.patch_ids)
    written = {task.label: folder.predictions(task) for task in setup.tasks if folder.predictions(task).is_dir()}
    return replace(result, metrics=report, metrics_path=folder.metrics, predictions=written)


def _training_steps_hidden(progress: Progress) -> Progress:
    def report(stage: str, done: int, total: int) -> None:
        if not stage.startswith("train"):
            progress(stage, done, total)

    return report


def _timed(seconds: dict[str, float], phase: str, work: Any) -> Any:
    start = perf_counter()
    found = work()
    seconds[phase] = perf_counter() - start
    return found
