"""What happens at the end of every epoch: checkpoints, history, progress."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint

from flairhub.jobs import placed
from flairhub.progress import Progress
from flairhub.training.folder import RunFolder, write_text

logger = logging.getLogger(__name__)


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint straight to disk, under a temporary name until it is complete and synced."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; see Lightning's `CheckpointIO`."""

        with placed(Path(path), durable=True) as partial, partial.open("wb") as stream:
            torch.save(checkpoint, stream)


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt` after every epoch and `best.ckpt` after the best one.

    `last.ckpt` always holds the optimizer, so that a killed run can go on; `best.ckpt` is the same file when it may.
    A kill between the two leaves an older `last.ckpt`, from which the best epoch comes out again.
    """

    def __init__(
        self,
        folder: RunFolder,
        monitor: str,
        mode: str,
        weights_only: bool,
        every_n_steps: int = 0,
        verbose: bool = False,
    ):
        """Choose what is best.

        Args:
            folder: Where the checkpoints go.
            monitor: Logged value.
            mode: `max` or `min`.
            weights_only: `best.ckpt` without optimizer state.
            every_n_steps: Also write `last.ckpt` every so many optimizer steps inside an epoch; 0 = never.
            verbose: Report every checkpoint as a warning-level message, which is always shown.
        """
        self._folder, self._monitor, self._sign = folder, monitor, 1.0 if mode == "max" else -1.0
        self._weights_only, self._every, self._verbose = weights_only, every_n_steps, verbose
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
        step = trainer.global_step
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if not self._every or step % self._every or step == self._saved_step or ready >= trainer.num_training_batches:
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
        logger.log(logging.WARNING if self._verbose else logging.INFO, "saved %s", message)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoints of a finished epoch."""
        value = float(trainer.callback_metrics[self._monitor])
        best, last = self._folder.best_checkpoint, self._folder.last_checkpoint
        # A run resumed in another folder starts without the best checkpoint of the first one.
        better = self.best is None or self._sign * value > self._sign * self.best or not best.exists()
        self.best = value if better else self.best
        new = last.with_name("new.ckpt")
        trainer.save_checkpoint(new)
        if better and self._weights_only:
            trainer.save_checkpoint(best, weights_only=True)
        if trainer.is_global_zero:
            if better and not self._weights_only:
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
            write_text(self._folder.history, json.dumps(pl_module.history, indent=1) + "\n")
