"""Lightning's part: the trainer, its callbacks, checkpoints."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from flairhub.data import BatchLoader
from flairhub.errors import TrainingError
from flairhub.progress import Progress, silent
from flairhub.training.callbacks import Checkpoints, RunReporter, WholeFiles
from flairhub.training.checkpoints import strip_optimizer
from flairhub.training.folder import RunFolder
from flairhub.training.module import SegmentationModule

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitOptions:
    """How the trainer is set up.

    Attributes:
        epochs: Epochs of the whole run, those before a resume included.
        monitor: Logged value that decides which epoch is best.
        mode: `max` or `min`.
        patience: Epochs without improvement before stopping early.
        accelerator: `gpu`, `cpu` or `auto`.
        devices: Processes per node.
        nodes: Nodes.
        strategy: Of Lightning.
        precision: Of Lightning, or `auto`: bf16-mixed on GPUs that compute in it, else 32-true.
        weights_only: Checkpoints without optimizer state; they cannot be resumed.
        keep_last: Keep `last.ckpt` after a finished run.
        log_every: Steps between two entries in the log and refreshes of the progress bar.
        bar: Show Lightning's progress bar, on a terminal.
        accumulate: Batches per optimizer step.
        gradient_clip: Largest norm of the gradient; 0 = no limit.
        checkpoint_every: Optimizer steps between checkpoints inside an epoch; 0 = none.
        verbose_checkpoints: Report every checkpoint.
        compile: Compile the network.
        log_images: Validation patches drawn in the log.
    """

    epochs: int
    monitor: str = "val_miou"
    mode: str = "max"
    patience: int = 30
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    weights_only: bool = False
    keep_last: bool = True
    log_every: int = 10
    bar: bool = False
    accumulate: int = 1
    gradient_clip: float = 0.0
    checkpoint_every: int = 0
    verbose_checkpoints: bool = False
    compile: bool = False
    log_images: int = 0


def build_trainer(options: FitOptions, folder: RunFolder, progress: Progress = silent) -> pl.Trainer:
    """Return the trainer of a run.

    Raises:
        TrainingError: The machine lacks the accelerator, or Lightning refuses the settings.
    """
    if options.accelerator == "gpu" and not torch.cuda.is_available():
        raise TrainingError(
            "hardware.accelerator: got 'gpu', but this machine has no GPU that torch can use. "
            "Set hardware.accelerator: cpu (or auto)."
        )
    accelerator = options.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    distributed = options.strategy.startswith("ddp") or (accelerator == "gpu" and options.devices > 1)
    strategy = options.strategy
    if strategy in ("auto", "ddp") and (distributed or options.nodes > 1):
        # Modality dropout and heads that a batch does not reach leave parameters without gradient.
        strategy = "ddp_find_unused_parameters_true"
    try:
        return pl.Trainer(
            accelerator=accelerator,
            devices=options.devices if distributed or accelerator == "gpu" else 1,
            num_nodes=options.nodes,
            strategy=strategy,
            precision=resolve_precision(options.precision, accelerator),  # type: ignore[arg-type]
            max_epochs=options.epochs,
            logger=TensorBoardLogger(folder.logs, name="", version=""),
            callbacks=_callbacks(options, folder, progress),
            plugins=[WholeFiles()],
            enable_progress_bar=options.bar and sys.stderr.isatty(),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            accumulate_grad_batches=options.accumulate,
            gradient_clip_val=options.gradient_clip or None,
            log_every_n_steps=options.log_every,
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


def _callbacks(options: FitOptions, folder: RunFolder, progress: Progress) -> list[Callback]:
    callbacks: list[Callback] = [
        RunReporter(folder, progress, options.log_every),
        EarlyStopping(options.monitor, mode=options.mode, patience=options.patience, check_on_train_epoch_end=True),
        Checkpoints(
            folder,
            options.monitor,
            options.mode,
            options.weights_only,
            options.checkpoint_every,
            options.verbose_checkpoints,
        ),
    ]
    if options.bar and sys.stderr.isatty():
        from lightning.pytorch.callbacks import RichProgressBar

        callbacks.append(RichProgressBar(refresh_rate=options.log_every))
    return callbacks


def run_fit(
    trainer: pl.Trainer,
    module: SegmentationModule,
    loaders: tuple[BatchLoader, BatchLoader],
    folder: RunFolder,
    options: FitOptions,
    resume: Path | None = None,
) -> None:
    """Train until the last epoch or early stopping; leaves `best.ckpt`.

    Args:
        trainer: From `build_trainer`.
        module: Network, criterion and plan. Its weights change.
        loaders: Training and validation batches.
        folder: Where checkpoints go.
        options: The ones the trainer was built with.
        resume: Full checkpoint to continue from, checked with `check_resumable`.

    Raises:
        TrainingError: The loss is not finite, or Lightning refuses the settings.
        KeyboardInterrupt: Interrupted; the checkpoints of finished epochs are there.
    """
    if options.compile:
        # In place: names of tensors stay as they are.
        module.model.compile()
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, *loaders, ckpt_path=resume, weights_only=True)
    except SystemExit as stopped:
        # Lightning turns Ctrl-C into an exit of its own, and ignores any further one.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from stopped
    except MisconfigurationException as error:
        raise TrainingError(f"Lightning cannot train with these settings: {error}") from error
    if trainer.interrupted:
        raise KeyboardInterrupt
    if trainer.is_global_zero:
        _finish_checkpoints(folder, options)


def _finish_checkpoints(folder: RunFolder, options: FitOptions) -> None:
    last = folder.last_checkpoint
    if not last.exists():
        return
    if not options.keep_last:
        last.unlink()
    elif options.weights_only:
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
