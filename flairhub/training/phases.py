"""One run: ingest when needed, train, predict, score, as the configuration's `tasks` say."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from flairhub.config import Paths, TrainConfig, load_train_config, resolved_yaml
from flairhub.confusion import ConfusionSums
from flairhub.cube import Cube, open_cube
from flairhub.data import Transform, check_values
from flairhub.errors import ConfigError, CubeError, FlairhubError, TrainingError, WeightsError
from flairhub.ingest import nodata_classes
from flairhub.jobs import reach, remove_leftovers, sweep
from flairhub.models import Network, build_network, load_into, save_bundle
from flairhub.progress import Progress, silent
from flairhub.training.checkpoints import check_resumable, finished_state, load_weights, read_checkpoint
from flairhub.training.losses import Criterion
from flairhub.training.metrics import metrics_report, write_report
from flairhub.training.module import SegmentationModule
from flairhub.training.predict import count_rasters, load_for_prediction, predict_split, processes
from flairhub.training.run_folder import RunFolder, null_for_undefined, write_text
from flairhub.training.run_state import (
    SCORES,
    TRAIN,
    RunState,
    Start,
    all_facts,
    configured_facts,
    phases_of,
    read_history,
    read_json,
    starting_point,
)
from flairhub.training.train_result import TrainResult
from flairhub.training.trainer import build_trainer, finish_checkpoints, fit, quiet_lightning
from flairhub.training.training_plan import TrainingPlan, training_plan, warn_of_overlap
from flairhub.version import __version__

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig | Paths,
    *,
    cube: str | Path | Cube | None = None,
    overwrite: bool = False,
    lock: bool = True,
    progress: Progress | None = None,
    transform: Transform | None = None,
) -> TrainResult:
    """Train, predict and score as the configuration's `tasks` say; a run that was stopped continues when called again.

    Args:
        config: Training configuration, or its path or paths.
        cube: Where the patches are. Without it `paths.cube`; what is not there yet is ingested first.
        overwrite: Replace the results of an earlier run in the same folder, and begin anew.
        lock: Use the locks of the file system; False only where it has none.
        transform: `transform(batch, rng)` changes every training batch as it is stored, see `BatchLoader`. It runs in
            `hardware.num_workers` processes when that is not 0, else in the reading threads.
        progress: Told about ingest, training steps and predicted patches. Without it and on a terminal,
            `saving.enable_progress_bar` shows Lightning's own bar.

    Returns:
        Scores and paths.

    Raises:
        OutputExistsError: The run's folder holds results of another run and `overwrite` is False.
        LockError: Another process writes the run's folder, or the file system has no locks.
        CubeError: The cube is missing, incomplete, or lacks what the configuration needs.
        DataError: Patches, labels or prediction rasters are not what they should be.
        WeightsError: A checkpoint or pretrained weights are missing or do not fit.
        TrainingError: Training or scoring cannot go on.
    """
    config = load_train_config(config)
    tasks = config.tasks
    if not (tasks.train or tasks.predict or tasks.metrics_only):
        raise ConfigError("configuration", ["tasks: train, predict and metrics_only are all false, nothing to do."])
    plan = training_plan(config)
    _check_weights(plan)
    bar = progress is None and config.saving.enable_progress_bar
    report = progress or silent
    if progress is not None and not config.saving.enable_progress_bar:
        report = _training_steps_hidden(progress)
    # The other processes of a distributed run work for the first one, which holds the lock.
    with plan.folder.writing(lock) if _is_main() else nullcontext():
        return _run(plan, cube, overwrite, report, bar, transform)


def _run(
    plan: TrainingPlan,
    cube: str | Path | Cube | None,
    overwrite: bool,
    report: Progress,
    bar: bool,
    transform: Transform | None,
) -> TrainResult:
    main, tasks = _is_main(), plan.config.tasks
    # Before a long ingest; and once more with the cube that it gives.
    starting_point(plan, configured_facts(plan), overwrite, checks=main)
    seconds: dict[str, float] = {}
    opened = _timed(seconds, "ingest", lambda: _open_or_ingest(plan, cube, report))
    plan = plan.for_cube(opened)
    facts = all_facts(plan, opened)
    start = starting_point(plan, facts, overwrite, opened, checks=main)
    rank = getattr(rank_zero_only, "rank", None) or 0
    result = TrainResult(plan.folder.root, Path(str(opened.path)), seconds=seconds, rank=rank)
    if start.complete:
        return _complete(plan, start, result)
    if tasks.trains and start.model is not None:
        network, result = start.model.network, _trained(plan, start, result)
        if main:
            finish_checkpoints(plan.folder, plan.config.saving)
    elif tasks.trains:
        network, result = _timed(
            seconds, "train", lambda: _train(plan, opened, facts, start, result, report, bar, transform)
        )
    elif tasks.predicts:
        network = load_for_prediction(plan)
        if main:
            RunState(plan.folder).begin(facts, [SCORES])
        _write_inputs(plan)
    if not main and processes()[1] == 1:
        # Started several times, but nothing joins the processes: the first one does it all.
        return result
    if tasks.predicts:
        sums = _timed(seconds, "predict", lambda: predict_split(plan, opened, network, report))
    elif tasks.metrics_only and main:
        folders = {task.label: plan.folder.predictions(task) for task in plan.tasks}
        sums = _timed(seconds, "score", lambda: count_rasters(plan, opened, folders, report))
    else:
        return result
    return _with_scores(plan, opened, result, sums) if main else result


def _trained(plan: TrainingPlan, start: Start, result: TrainResult) -> TrainResult:
    """Add what a finished training left."""
    history = read_history(plan.folder)
    return replace(result, bundle=plan.folder.bundle, history=history, skipped_batches=start.skipped_batches)


def _complete(plan: TrainingPlan, start: Start, result: TrainResult) -> TrainResult:
    """Return what an earlier call of the same configuration left."""
    if start.model is not None:
        if _is_main():
            finish_checkpoints(plan.folder, plan.config.saving)
        result = _trained(plan, start, result)
    if plan.config.tasks.predicts:
        metrics = read_json(plan.folder.metrics, {})
        result = replace(
            result, metrics=metrics, metrics_path=plan.folder.metrics, predictions=_prediction_folders(plan)
        )
    return replace(result, already_complete=True)


def _is_main() -> bool:
    """True in the process that writes files; Lightning starts the others with their rank in the environment."""
    return getattr(rank_zero_only, "rank", None) in (None, 0)


def _check_weights(plan: TrainingPlan) -> None:
    """Fail before long work when weights that will be needed are not there."""
    tasks, path = plan.config.tasks, plan.config.paths.ckpt_model_path
    key = "paths.ckpt_model_path"
    if tasks.trains and tasks.train_tasks.resume_training_from_ckpt:
        own = path is not None and path.resolve() == plan.folder.last_checkpoint.resolve()
        if own and RunState(plan.folder).record(TRAIN).get("done"):
            return  # a finished training need not keep it
        reason = "resume_training_from_ckpt is true"
    elif tasks.trains and tasks.train_tasks.init_weights_only_from_ckpt:
        reason = "init_weights_only_from_ckpt is true"
    elif tasks.predicts and not tasks.trains:
        reason = "tasks.predict is true without tasks.train"
    else:
        return
    if path is None:
        raise WeightsError(f"{key}: not given, but {reason}. Give a bundle or a checkpoint.")
    if not path.exists():
        raise WeightsError(f"{key}: {path} does not exist, but {reason}. Correct the path.")


def _open_or_ingest(plan: TrainingPlan, cube: str | Path | Cube | None, progress: Progress) -> Cube:
    if isinstance(cube, Cube):
        return cube
    if cube is not None:
        return open_cube(cube)
    place = plan.config.paths.cube or str(plan.folder.root.with_name(plan.folder.root.name + ".zarr"))
    try:
        return open_cube(place)
    except CubeError:
        if not _is_main() or "://" in place:
            raise
    from flairhub.ingest import ingest

    logger.warning("no finished cube at %s: ingesting first", place)
    ingest(plan.config, cube=place, progress=progress)
    return open_cube(place)


def _write_inputs(plan: TrainingPlan) -> None:
    if not _is_main():
        return
    sweep(plan.folder.root)
    remove_leftovers(plan.folder.bundle)
    write_text(plan.folder.config, resolved_yaml(plan.config))
    if plan.config.saving.cp_csv_and_conf_to_output:
        plan.folder.inputs.mkdir(parents=True, exist_ok=True)
        for split, csv in plan.config.paths.split_csvs.items():
            if csv is not None and csv.is_file():
                shutil.copyfile(csv, plan.folder.inputs / f"{split}.csv")


def _train(
    plan: TrainingPlan,
    cube: Cube,
    facts: Mapping[str, str],
    start: Start,
    result: TrainResult,
    progress: Progress,
    bar: bool,
    transform: Transform | None = None,
) -> tuple[Network, TrainResult]:
    config = plan.config
    hyperparams, modalities = config.hyperparams, config.modalities
    splits = {split: plan.split(cube, split) for split in ("train", "valid")}
    if config.tasks.predicts:
        splits["test"] = plan.split(cube, "test")
        plan.loader(cube, splits["test"])  # what is missing for the prediction shows before the training
    if _is_main():
        everything = np.unique(np.concatenate(list(splits.values())))
        check_values(cube, everything, plan.preparations, plan.tasks, config.modalities.missing)
        for task in plan.tasks:
            for text in nodata_classes(task.label, cube.info(task.label), task.names):
                logger.warning("%s", text)
    warn_of_overlap(cube, splits)
    torch.manual_seed(hyperparams.seed)
    network = _initial_network(plan)
    with quiet_lightning():
        trainer = build_trainer(plan, progress, bar)
        ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size}
        pin = trainer.strategy.root_device.type == "cuda"
        changes = {"transform": transform, "workers": config.hardware.num_workers} if transform is not None else {}
        training = plan.loader(cube, splits["train"], shuffle=True, drop_last=True, pin_memory=pin, **changes, **ranks)
        validation = plan.loader(cube, splits["valid"], pin_memory=pin, **ranks)
        if not len(training):
            raise TrainingError(f"{training.n_samples} training patches for {trainer.world_size} processes: too few.")
        module = SegmentationModule(
            network,
            Criterion(plan.objectives, modalities.aux_loss_weight, dict(hyperparams.losses)),
            plan.preparations,
            steps=-(-len(training) // hyperparams.accumulate) * hyperparams.num_epochs,
            patch_ids=cube.patch_ids,
            hyperparams=hyperparams,
            augmentation=modalities.pre_processings,
            saving=config.saving,
            config_sha256=plan.config_hash,
        )
        finished = _resumed_state(plan, start)
        if _is_main():
            if start.resume is None:
                # Everything has been checked: only now an earlier run makes room.
                plan.folder.clear()
            RunState(plan.folder).begin(facts, phases_of(plan))
        _write_inputs(plan)
        if finished is not None:
            module.history, module.skipped_batches = list(finished["history"]), int(finished["skipped_batches"])
            return network, _finish_training(plan, cube, True, module, result)
        try:
            fit(trainer, module, (training, validation), plan, start.resume)
        finally:
            training.close()
        trainer.strategy.barrier()
    return network, _finish_training(plan, cube, trainer.is_global_zero, module, result)


def _resumed_state(plan: TrainingPlan, start: Start) -> dict[str, Any] | None:
    """Check the checkpoint to go on from; return what it remembers when the training was over already."""
    network, epochs = plan.spec.to_json(), plan.config.hyperparams.num_epochs
    if start.resume is None:
        return None
    if not start.continues:
        check_resumable(start.resume, network, epochs)
        return None
    try:
        return finished_state(start.resume, network, epochs, plan.config_hash)
    except FlairhubError as error:
        raise type(error)(f"{error} Pass --overwrite to train anew.") from error


def _finish_training(
    plan: TrainingPlan, cube: Cube, main: bool, module: SegmentationModule, result: TrainResult
) -> TrainResult:
    """Turn the best checkpoint into a bundle; the network is left with the best weights."""
    network, folder = module.model, plan.folder
    load_weights(network, folder.best_checkpoint)
    if not main:
        return result
    epoch = read_checkpoint(folder.best_checkpoint)["epoch"]
    best = next(entry for entry in module.history if entry["epoch"] == epoch)
    save_bundle(
        folder.bundle,
        network,
        preparations=dict(plan.preparations),
        tasks=plan.tasks,
        ref_date=plan.config.models.multitemp_model.ref_date,
        bands={name: list(cube.info(name)["bands"]) for name in plan.preparations},
        training={
            "flairhub_version": __version__,
            "config_sha256": plan.config_hash,
            "epoch": best["epoch"],
            "step": best["step"],
            **{name: null_for_undefined(best[name]) for name in ("train_loss", "val_loss", "val_miou")},
        },
    )
    reach("trained")
    RunState(folder).finish(TRAIN, skipped_batches=module.skipped_batches)
    finish_checkpoints(folder, plan.config.saving)
    return replace(result, bundle=folder.bundle, history=module.history, skipped_batches=module.skipped_batches)


def _initial_network(plan: TrainingPlan) -> Network:
    start, weights = plan.config.tasks.train_tasks, plan.config.paths.ckpt_model_path
    fresh = not (start.resume_training_from_ckpt or start.init_weights_only_from_ckpt)
    network = build_network(plan.spec, pretrained=plan.config.models.monotemp_model.pretrained if fresh else False)
    if start.init_weights_only_from_ckpt:
        assert weights is not None
        load_into(network, weights)
    return network


def _with_scores(plan: TrainingPlan, cube: Cube, result: TrainResult, sums: ConfusionSums) -> TrainResult:
    folder: RunFolder = plan.folder
    model = {"config_sha256": plan.config_hash, "flairhub_version": __version__}
    report = metrics_report(sums, plan.objectives, split="test", **model)
    write_report(folder, report, sums, plan.objectives, cube.patch_ids)
    reach("scored")
    if plan.config.tasks.predicts:
        RunState(folder).finish(SCORES)
    return replace(result, metrics=report, metrics_path=folder.metrics, predictions=_prediction_folders(plan))


def _prediction_folders(plan: TrainingPlan) -> dict[str, Path]:
    folder = plan.folder
    return {task.label: folder.predictions(task) for task in plan.tasks if folder.predictions(task).is_dir()}


def _training_steps_hidden(progress: Progress) -> Progress:
    def report(stage: str, done: int, total: int) -> None:
        if not stage.startswith("train"):
            progress(stage, done, total)

    return report


def _timed(seconds: dict[str, float], phase: str, work: Any) -> Any:
    start = perf_counter()
    result = work()
    seconds[phase] = perf_counter() - start
    return result
