"""The Lightning trainer of a run: devices and precision, checkpoints, history, progress."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from flairhub.config import Saving
from flairhub.data import BatchLoader
from flairhub.errors import TrainingError
from flairhub.jobs import placed, refusals
from flairhub.progress import Progress, silent
from flairhub.training.checkpoints import read_checkpoint, strip_optimizer
from flairhub.training.module import SegmentationModule
from flairhub.training.run_folder import RunFolder, null_for_undefined, write_text
from flairhub.training.training_plan import TrainingPlan

logger = logging.getLogger(__name__)

GO_ON = "Run the same command again to continue."
"""What an interrupt says."""


def build_trainer(plan: TrainingPlan, progress: Progress = silent, bar: bool = False) -> pl.Trainer:
    """Return the trainer of a run.

    Args:
        plan: Hardware, number of epochs, what is saved where.
        progress: Told about steps.
        bar: Show Lightning's progress bar, on a terminal.

    Raises:
        TrainingError: The machine lacks the accelerator, or Lightning refuses the settings.
    """
    hardware, hyperparams, saving = plan.config.hardware, plan.config.hyperparams, plan.config.saving
    if hardware.accelerator == "gpu" and not torch.cuda.is_available():
        raise TrainingError(
            "hardware.accelerator: got 'gpu', but this machine has no GPU that torch can use. "
            "Set hardware.accelerator: cpu (or auto)."
        )
    accelerator: str = hardware.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    distributed = hardware.strategy.startswith("ddp") or (accelerator == "gpu" and hardware.gpus_per_node > 1)
    strategy: str = hardware.strategy
    if strategy in ("auto", "ddp") and (distributed or hardware.num_nodes > 1):
        # Modality dropout and heads that a batch does not reach leave parameters without gradient.
        strategy = "ddp_find_unused_parameters_true"
    try:
        return pl.Trainer(
            accelerator=accelerator,
            devices=hardware.gpus_per_node if distributed or accelerator == "gpu" else 1,
            num_nodes=hardware.num_nodes,
            strategy=strategy,
            precision=resolve_precision(hardware.precision, accelerator),  # type: ignore[arg-type]
            max_epochs=hyperparams.num_epochs,
            logger=TensorBoardLogger(plan.folder.logs, name="", version=""),
            callbacks=_callbacks(saving, plan.folder, progress, bar),
            plugins=[WholeFiles()],
            enable_progress_bar=bar and sys.stderr.isatty(),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            accumulate_grad_batches=hyperparams.accumulate,
            gradient_clip_val=hyperparams.gradient_clip or None,
            log_every_n_steps=saving.progress_rate,
            use_distributed_sampler=False,
        )
    except MisconfigurationException as error:
        raise TrainingError(f"hardware: Lightning refuses these settings: {error}") from error


def resolve_precision(precision: str, accelerator: str) -> str:
    """Return Lightning's precision for `auto`: bf16-mixed on GPUs with native bfloat16, else 32-true."""
    if precision != "auto":
        return precision
    native = accelerator != "cpu" and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    return "bf16-mixed" if native else "32-true"


def _callbacks(saving: Saving, folder: RunFolder, progress: Progress, bar: bool) -> list[Callback]:
    monitor, mode, patience = saving.ckpt_monitor, saving.ckpt_monitor_mode, saving.ckpt_earlystopping_patience
    callbacks: list[Callback] = [
        RunReporter(folder, progress, saving.progress_rate),
        EarlyStopping(monitor, mode=mode, patience=patience, check_on_train_epoch_end=True),
        Checkpoints(folder, saving),
    ]
    if bar and sys.stderr.isatty():
        from lightning.pytorch.callbacks import RichProgressBar

        callbacks.append(RichProgressBar(refresh_rate=saving.progress_rate))
    return callbacks


def fit(
    trainer: pl.Trainer,
    module: SegmentationModule,
    loaders: tuple[BatchLoader, BatchLoader],
    plan: TrainingPlan,
    resume: Path | None = None,
) -> None:
    """Train until the last epoch or early stopping; leaves `best.ckpt`.

    Args:
        trainer: From `build_trainer`.
        module: Network and criterion. Its weights change.
        loaders: Training and validation batches.
        plan: The one the trainer was built with.
        resume: Full checkpoint to continue from, checked with `check_resumable`.

    Raises:
        DataError: The disk is full.
        TrainingError: The loss is not finite, or Lightning refuses the settings.
        KeyboardInterrupt: Interrupted; the checkpoints of finished epochs are there.
    """
    if plan.config.hardware.compile:
        # In place: names of tensors stay as they are.
        module.model.compile()
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, *loaders, ckpt_path=resume, weights_only=True)
    except SystemExit as stopped:
        # Lightning turns Ctrl-C into an exit of its own, and ignores any further one.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt(GO_ON) from stopped
    except MisconfigurationException as error:
        raise TrainingError(f"Lightning cannot train with these settings: {error}") from error
    if trainer.interrupted:
        raise KeyboardInterrupt(GO_ON)


def finish_checkpoints(folder: RunFolder, saving: Saving) -> None:
    """Leave of the last checkpoint what the configuration asks for; before, it is needed to go on. Safe to repeat."""
    last = folder.last_checkpoint
    if not last.exists():
        return
    if not saving.ckpt_save_also_last:
        last.unlink()
    elif saving.ckpt_weights_only:
        strip_optimizer(last)


@contextmanager
def quiet_lightning(verbose: bool = False) -> Iterator[None]:
    """Silence Lightning's banners and its advice about dataloaders while the block runs."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [entry.level for entry in loggers]
    with warnings.catch_warnings():
        if not verbose:
            for entry in loggers:
                entry.setLevel(logging.ERROR)
            for module in (r"lightning\..*", r"torch\.utils\.tensorboard.*", r"tensorboard\..*"):
                warnings.filterwarnings("ignore", module=module)
            warnings.filterwarnings("ignore", message=r".*training_step.*returned.*None.*")
        try:
            yield
        finally:
            for entry, level in zip(loggers, levels, strict=True):
                entry.setLevel(level)


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint straight to disk, under a temporary name until it is complete and synced.

    Reads it only when its checksums fit.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; see Lightning's `CheckpointIO`."""

        with refusals(Path(path)), placed(Path(path), durable=True) as partial, partial.open("wb") as stream:
            torch.save(checkpoint, stream)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint on the CPU; what was checked is what is loaded."""
        return read_checkpoint(Path(path))


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt` after every epoch and `best.ckpt` after the best one.

    `last.ckpt` always holds the optimizer, so that a killed run can go on; `best.ckpt` is the same file when it may.
    A kill between the two leaves an older `last.ckpt`, from which the best epoch comes out again.
    """

    def __init__(self, folder: RunFolder, saving: Saving):
        """Choose what is best and what is kept.

        Args:
            folder: Where the checkpoints go.
            saving: Which logged value decides, whether `best.ckpt` goes without the optimizer's state, how often
                `last.ckpt` is also written inside an epoch, and whether checkpoints are reported as warnings, which
                are always shown.
        """
        self._folder, self._saving = folder, saving
        self._monitor, self._sign = saving.ckpt_monitor, 1.0 if saving.ckpt_monitor_mode == "max" else -1.0
        self._saved_step = -1
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back the best value."""
        self.best = state_dict["best"]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Write `last.ckpt` inside an epoch; its last step is left to the end of the epoch."""
        step, every = trainer.global_step, self._saving.ckpt_every_n_steps
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if not every or step % every or step == self._saved_step or ready >= trainer.num_training_batches:
            return
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        self._saved_step = step
        new = self._folder.last_checkpoint.with_name("new.ckpt")
        trainer.save_checkpoint(new)
        if trainer.is_global_zero:
            os.replace(new, self._folder.last_checkpoint)
            self._report(f"{self._folder.last_checkpoint}: step {step}")
        trainer.strategy.barrier()

    def _report(self, message: str) -> None:
        logger.log(logging.WARNING if self._saving.ckpt_verbose else logging.INFO, "saved %s", message)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoints of a finished epoch."""
        value = float(trainer.callback_metrics[self._monitor])
        best, last = self._folder.best_checkpoint, self._folder.last_checkpoint
        # A run resumed in another folder starts without the best checkpoint of the first one.
        better = self.best is None or self._sign * value > self._sign * self.best or not best.exists()
        self.best = value if better else self.best
        new = last.with_name("new.ckpt")
        trainer.save_checkpoint(new)
        if better and self._saving.ckpt_weights_only:
            trainer.save_checkpoint(best, weights_only=True)
        if trainer.is_global_zero:
            if better and not self._saving.ckpt_weights_only:
                _same_file(new, best)
            os.replace(new, last)
            self._report(f"{last}: epoch {trainer.current_epoch}, {self._monitor} {value:.4f}")
            if better:
                self._report(f"{best}: epoch {trainer.current_epoch} is the best so far")
        trainer.strategy.barrier()


def _same_file(source: Path, target: Path) -> None:
    """Give a finished file a second name, replacing what has it."""
    with placed(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            # No hard links on this file system.
            shutil.copyfile(source, partial)


class RunReporter(Callback):
    """Writes `history.json` after every epoch and reports progress."""

    def __init__(self, folder: RunFolder, progress: Progress, every: int):
        """Choose where to report.

        Args:
            folder: Of the run.
            progress: Told about steps.
            every: Steps between two reports.
        """
        self._folder, self._progress, self._every = folder, progress, every

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Report the steps done of all epochs."""
        steps, epochs = int(trainer.num_training_batches), trainer.max_epochs or 0
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if done % self._every == 0 or done == steps:
            self._progress("train", trainer.current_epoch * steps + done, epochs * steps)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the history so far."""
        if trainer.is_global_zero:
            history = null_for_undefined(pl_module.history)
            write_text(self._folder.history, json.dumps(history, indent=1, allow_nan=False) + "\n")
