"""What Lightning runs: one training step, one validation step, and what is remembered between them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from flairhub.config import Hyperparams, PreProcessings, Saving
from flairhub.confusion import strict_scores
from flairhub.data import (
    Batch,
    BatchLoader,
    Preparation,
    PreparedBatch,
    prepare_for_training,
)
from flairhub.errors import TrainingError
from flairhub.models import Network
from flairhub.training.log_images import triptych
from flairhub.training.logits import batch_confusion, is_finite, network_output, patches_not_finite
from flairhub.training.losses import ClassLoss, Criterion, class_loss, present_target
from flairhub.training.optimizers import Plateau, Schedule, build_optimizer, update_mean

logger = logging.getLogger(__name__)

STATE_KEY = "flairhub"
"""Where a checkpoint keeps what is ours: network, plateau state, history, counters."""

_NAMED = 10


@dataclass(frozen=True)
class Step:
    """A prepared batch and what was learnt about it on the CPU.

    Attributes:
        batch: Network input and truth on the device.
        has_weight: Some pixel counts in the loss.
        waited_s: Seconds the loop waited for the loader.
    """

    batch: PreparedBatch
    has_weight: bool
    waited_s: float


class SegmentationModule(pl.LightningModule):
    """Trains and validates a network.

    Attributes:
        model: The network; its weights have the prefix `model.` in checkpoints, as in the published ones.
        history: One entry per finished epoch: step, losses, scores, learning rate.
        skipped_batches: Training batches without any pixel that counts.
        mean_updates: Steps in the running mean of the weights.
    """

    def __init__(
        self,
        network: Network,
        criterion: Criterion,
        preparations: Mapping[str, Preparation],
        steps: int,
        patch_ids: Sequence[str],
        hyperparams: Hyperparams,
        augmentation: PreProcessings,
        saving: Saving,
        config_sha256: str = "",
    ):
        """Wrap a network; nothing is computed.

        Args:
            network: The network.
            criterion: Its loss.
            preparations: By modality, the ones the loaders were made with.
            steps: Optimizer steps of the whole run, those before a resume included.
            patch_ids: Ids by cube position, for messages.
            hyperparams: Optimizer, schedule, seed, running mean.
            augmentation: Symmetries, brightness and contrast of training patches.
            saving: Steps between two entries in the log, validation patches drawn in it.
            config_sha256: What the checkpoints belong to.
        """
        super().__init__()
        self.model, self.criterion, self.preparations = network, criterion, preparations
        self.hyperparams, self.augmentation, self.saving = hyperparams, augmentation, saving
        self.patch_ids, self.config_sha256 = patch_ids, config_sha256
        self.schedule = Schedule(
            hyperparams.scheduler,
            hyperparams.learning_rate,
            steps,
            hyperparams.warmup_fraction,
            hyperparams.plateau_patience,
        )
        self.plateau = Plateau()
        self.history: list[dict[str, Any]] = []
        self.skipped_batches = self._left_out = 0
        # In a tuple, so that neither checkpoints nor DDP take the copy for a part of the module.
        self._mean = (deepcopy(network).eval().requires_grad_(False),) if hyperparams.ema else ()
        self.mean_updates = 0
        self._loss_sum, self._loss_count = 0.0, 0
        self._reduced = False
        self._unchecked: list[tuple[Tensor, Tensor, int]] = []
        self._not_finite: list[tuple[Tensor, Tensor]] = []
        self._confusion: dict[str, Tensor] = {}
        self._losses: dict[tuple[str, str], ClassLoss] = {}
        self._last_start = perf_counter()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer; its rate is set before every step."""
        fused = self.device.type == "cpu" and self.trainer.precision == "32-true"
        hyper, parameters = self.hyperparams, [p for p in self.model.parameters() if p.requires_grad]
        return build_optimizer(
            hyper.optimizer, parameters, hyper.learning_rate, hyper.optim_weight_decay, hyper.optim_betas, fused
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Step:
        """Look at the labels while they are on the CPU, then move, normalise and augment on the device."""
        augmentation = PreProcessings()
        if self.trainer.training:
            augmentation = self.augmentation
            self._left_out += batch.left_out
        has_weight = self.criterion.has_weight(batch.targets)
        seed, epoch = self.hyperparams.seed, self.current_epoch
        prepared = prepare_for_training(batch, self.preparations, device, augmentation, seed, epoch)
        return Step(prepared, has_weight, batch.waited_s)

    def on_fit_start(self) -> None:
        """Let processes share what their losses are divided by, and move the running mean to the device."""
        if self.trainer.world_size > 1:
            self.criterion.share = lambda value: self.trainer.strategy.reduce(value.detach(), reduce_op="mean")  # type: ignore[assignment,return-value]
        for mean in self._mean:
            mean.to(self.device)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and kept: the running mean where there is one."""
        return self._mean[0] if self._mean else self.model

    # --- training

    def on_train_epoch_start(self) -> None:
        """Start the sums of the epoch and choose its order; not called when an epoch is resumed in its middle."""
        self._loss_sum, self._loss_count, self._reduced, self._left_out = 0.0, 0, False, 0
        loader = self.trainer.train_dataloader
        if isinstance(loader, BatchLoader):
            loader.set_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Step, batch_idx: int) -> None:
        """Set learning rate and random state: both follow from step and batch, so resuming needs neither."""
        rate = self.schedule.rate(self.trainer.global_step, self.plateau)
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            group["lr"] = rate
        number = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        torch.manual_seed(step_seed(self.hyperparams.seed, number, self.global_rank))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then take the new weights into the running mean."""
        super().optimizer_step(*args, **kwargs)
        for mean in self._mean:
            update_mean(mean, self.model, self.hyperparams.ema, self.mean_updates)
            self.mean_updates += 1

    def training_step(self, batch: Step, batch_idx: int) -> Tensor | None:
        """Return the loss, or None for a batch in which no pixel counts."""
        if not batch.has_weight:
            self.skipped_batches += 1
            logger.info("skipped a batch without a labelled pixel of a class with weight")
            if self.trainer.world_size == 1:
                return None
        prepared = batch.batch
        logits, aux = network_output(self.model, prepared, aux=True)
        loss, parts = self.criterion(logits, aux, prepared.targets, prepared.present)
        self._unchecked.append((loss.detach(), prepared.index, self.trainer.global_step))
        if self.device.type == "cpu" or len(self._unchecked) >= self.saving.progress_rate:
            self._check_losses()
        self._log_step(batch, loss, parts)
        return loss

    def _check_losses(self) -> None:
        """Add up the losses since the last look; a look waits for the device.

        Raises:
            TrainingError: One is NaN or infinite; names the patches of its batch.
        """
        for loss, index, step in self._unchecked:
            value = float(loss)
            if not np.isfinite(value):
                ids = ", ".join(self.patch_ids[i] for i in index.tolist())
                raise TrainingError(
                    f"epoch {self.current_epoch}: the loss is {value} for the batch of patches {ids} (step {step}). "
                    "Checkpoints of earlier epochs are kept. Lower hyperparams.learning_rate or look at these patches."
                )
            self._loss_sum, self._loss_count = self._loss_sum + value, self._loss_count + 1
        self._unchecked.clear()

    def _log_step(self, batch: Step, loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        step, now = self.trainer.global_step, perf_counter()
        if step % self.saving.progress_rate == 0 and self.logger is not None:
            elapsed = max(now - self._last_start, 1e-9)
            values = {
                "train/loss_step": float(loss.detach()),
                "lr": self.schedule.rate(step, self.plateau),
                "loader_wait": batch.waited_s,
                "samples_per_s": len(batch.batch) * self.trainer.world_size / elapsed,
                **{f"train/{name}": float(value) for name, value in parts.items()},
            }
            self.logger.log_metrics(values, step=step)
        self._last_start = perf_counter()

    # --- validation: once per epoch, every patch once

    def on_validation_epoch_start(self) -> None:
        """Check the last training losses and empty the sums."""
        self._check_losses()
        if self._left_out:
            logger.info("left %d labelled pixels out of the losses: no input holds data there", self._left_out)
            self._left_out = 0
        self._confusion, self._losses, self._not_finite = {}, {}, []

    def validation_step(self, batch: Step, batch_idx: int) -> None:
        """Add the batch to confusion matrices and loss sums."""
        prepared = batch.batch
        logits, aux = network_output(self.evaluated, prepared, aux=True)
        self._not_finite.append((patches_not_finite([*logits.values(), *aux.values()]), prepared.index))
        if batch_idx == 0:
            self._draw(prepared, logits)
        for objective in self.criterion.objectives:
            name = objective.task.label
            target = prepared.targets[name]
            counts = batch_confusion(logits[name], target)
            self._confusion[name] = self._confusion[name] + counts if name in self._confusion else counts
            self._add_loss(name, "main", logits[name], target)
            for modality, task in aux:
                if task == name:
                    self._add_loss(
                        name, modality, aux[modality, task], present_target(target, prepared.present.get(modality))
                    )

    def _draw(self, batch: PreparedBatch, logits: Mapping[str, Tensor]) -> None:
        """Put input, truth and prediction of the first patches into the log."""
        if not self.saving.log_images or self.logger is None or self.global_rank:
            return
        for objective in self.criterion.objectives:
            name = objective.task.label
            for i in range(min(self.saving.log_images, len(batch))):
                picture = triptych(batch, i, logits[name][i].argmax(dim=0), objective.task)
                tag = f"val/{name}/{self.patch_ids[int(batch.index[i])]}"
                writer: Any = self.logger.experiment  # type: ignore[attr-defined]
                writer.add_image(tag, picture, self.trainer.global_step, dataformats="HWC")

    def _add_loss(self, task: str, head: str, logits: Tensor, target: Tensor) -> None:
        piece, key = class_loss(logits, target), (task, head)
        self._losses[key] = self._losses[key] + piece if key in self._losses else piece

    def on_validation_epoch_end(self) -> None:
        """Turn the sums of all batches and ranks into scores; update the plateau rule and the history."""
        self._check_logits()
        self._reduce_sums()
        entry: dict[str, Any] = {"epoch": self.current_epoch, "step": self.trainer.global_step}
        entry["lr"] = self.schedule.rate(max(self.trainer.global_step - 1, 0), self.plateau)
        entry["train_loss"] = self._loss_sum / self._loss_count if self._loss_count else float("nan")
        entry["val_loss"] = self._validation_loss()
        mious = []
        for objective in self.criterion.objectives:
            name = objective.task.label
            scores = strict_scores(self._confusion[name].cpu().numpy(), objective.ignored)
            mious.append(scores.mean("iou"))
            entry[f"val_miou/{name}"] = mious[-1]
            self._log_classes(objective.task.names, name, scores.classes, scores.iou)
        entry["val_miou"] = float(np.mean(mious))
        if np.isnan(entry["val_miou"]) or np.isnan(entry["val_loss"]):
            raise TrainingError(
                "validation: no pixel of the validation patches has a class with weight. Choose other patches in "
                "paths.val_csv or look at labels_configs.value_weights."
            )
        self.plateau = self.schedule.after_validation(self.trainer.global_step, entry["val_loss"], self.plateau)
        self.history = [*self.history, entry]
        names = ("train_loss", "val_loss", "val_miou", *(key for key in entry if key.startswith("val_miou/")))
        self.log_dict({name: entry[name] for name in names}, prog_bar=False, sync_dist=False)
        logger.info(
            "epoch %(epoch)d: train_loss %(train_loss).4f val_loss %(val_loss).4f val_miou %(val_miou).4f", entry
        )

    def _check_logits(self) -> None:
        """Raise where the network gave logits that are not finite: whoever takes their maximum gets class 0.

        Raises:
            TrainingError: Names epoch, step and patches.
        """
        bad = [index.cpu()[flags.cpu()] for flags, index in self._not_finite]
        positions = torch.cat(bad).tolist() if bad else []
        if positions:
            ids = ", ".join(self.patch_ids[i] for i in positions[:_NAMED])
            more = f" and {len(positions) - _NAMED} more" if len(positions) > _NAMED else ""
            reason = "" if is_finite(self.evaluated) else " Its weights are NaN or infinite: it has diverged."
            raise TrainingError(
                f"epoch {self.current_epoch}, step {self.trainer.global_step}: the network gives logits that are not "
                f"finite numbers for the validation patches {ids}{more}.{reason} Earlier checkpoints are kept. Lower "
                "hyperparams.learning_rate, set hyperparams.gradient_clip, or look at these patches."
            )

    def _reduce_sums(self) -> None:
        if self.trainer.world_size == 1:
            return

        def summed(values: Tensor) -> Tensor:
            return self.trainer.strategy.reduce(values, reduce_op="sum")  # type: ignore[return-value]

        self._confusion = {name: summed(counts) for name, counts in self._confusion.items()}
        self._losses = {key: ClassLoss(summed(loss.total), summed(loss.count)) for key, loss in self._losses.items()}
        sums = summed(torch.tensor([self._loss_sum, float(self._loss_count)], dtype=torch.float64, device=self.device))
        self._loss_sum, self._loss_count, self._reduced = float(sums[0]), int(sums[1]), True

    def _validation_loss(self) -> float:
        """The training objective over the whole validation set; parts without a weighted pixel are left out."""
        total = 0.0
        usable = False
        for objective in self.criterion.objectives:
            name = objective.task.label
            main = self._losses[name, "main"].mean(objective.class_weights)
            heads = [head for task, head in self._losses if task == name and head != "main"]
            aux = [self._losses[name, head].mean(objective.aux_class_weights[head]) for head in heads]
            if not np.isnan(main):
                usable = True
                total += objective.weight * main
            total += objective.weight * sum(
                self.criterion.aux_weight * value / len(aux) for value in aux if not np.isnan(value)
            )
        return total if usable else float("nan")

    def _log_classes(self, names: tuple[str, ...], task: str, classes: tuple[int, ...], iou: Any) -> None:
        if self.logger is None:
            return
        losses = self._losses[task, "main"].per_class()
        values = {f"val_iou/{task}/{names[c]}": float(iou[i]) for i, c in enumerate(classes)}
        values |= {f"val_loss/{task}/{names[c]}": float(losses[c]) for c in classes}
        finite = {name: value for name, value in values.items() if np.isfinite(value)}
        self.logger.log_metrics(finite, step=self.trainer.global_step)

    # --- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is ours, in plain types that a safe load accepts."""
        self._check_losses()
        if not (is_finite(self.model) and is_finite(self.evaluated)):
            raise TrainingError(
                f"epoch {self.current_epoch}: weights are not finite after step {self.trainer.global_step}. The "
                "checkpoints that are there are kept. Lower hyperparams.learning_rate or set hyperparams.gradient_clip."
            )
        sums = torch.tensor([self._loss_sum, float(self._loss_count)], dtype=torch.float64, device=self.device)
        if self.trainer.world_size > 1 and not self._reduced:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")  # type: ignore[assignment]
        checkpoint[STATE_KEY] = {
            "network": self.model.spec.to_json(),
            "config_sha256": self.config_sha256,
            "stopped": bool(self.trainer.should_stop),
            "plateau": self.plateau.to_json(),
            "history": self.history,
            "skipped_batches": self.skipped_batches,
            "loss_sum": float(sums[0]),
            "loss_count": int(sums[1]),
        }
        if self._mean:
            # `model.` holds what was validated, so that whoever loads the file gets the network that was scored.
            weights = checkpoint["state_dict"]
            learning = {name: value for name, value in weights.items() if name.startswith("model.")}
            weights |= {f"model.{name}": value for name, value in self.evaluated.state_dict().items()}
            checkpoint[STATE_KEY] |= {"learning_weights": learning, "ema_updates": self.mean_updates}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what `on_save_checkpoint` added."""
        state = checkpoint[STATE_KEY]
        self.plateau = Plateau(**state["plateau"])
        self.history = list(state["history"])
        self.skipped_batches = int(state["skipped_batches"])
        if self.global_rank == 0:
            self._loss_sum, self._loss_count = float(state["loss_sum"]), int(state["loss_count"])
        if self._mean and "learning_weights" in state:
            scored = {
                n.removeprefix("model."): v for n, v in checkpoint["state_dict"].items() if n.startswith("model.")
            }
            self.evaluated.load_state_dict(scored)
            self.mean_updates = int(state["ema_updates"])
        if "learning_weights" in state:
            checkpoint["state_dict"] |= state["learning_weights"]


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the random seed of one training step of one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
