"""The training objective: weighted cross entropy and other losses over tasks and auxiliary heads.

Losses come in pieces: sums and weights per class. The training loss of a batch divides them at once; the validation
loss adds the pieces of all batches first, so it does not depend on how patches were batched.

Losses that look at whole regions or hard pixels (dice, Lovasz, focal) come from segmentation-models-pytorch. They count
over the patches of one process and batch; pixels without a label or of a class of weight 0 count in none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flairhub.tasks import IGNORE_INDEX, Task

Share = Callable[[Tensor], Tensor]
"""Mean over processes of a scalar without gradient."""


def alone(value: Tensor) -> Tensor:
    """Mean over the only process."""
    return value


@dataclass(frozen=True)
class TaskObjective:
    """What one task adds to the loss.

    Attributes:
        task: The task.
        weight: Factor of its loss.
        class_weights: (class,) float32; 0 = ignored class.
        aux_class_weights: By modality with an auxiliary head, (class,) float32.
    """

    task: Task
    weight: float
    class_weights: NDArray[np.float32] = field(repr=False)
    aux_class_weights: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @property
    def ignored(self) -> tuple[int, ...]:
        """Classes of weight 0: neither trained on nor scored."""
        return tuple(np.flatnonzero(self.class_weights == 0).tolist())


def weighted_cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor, share: Share = alone) -> Tensor:
    """Mean of the pixels' cross entropy, weighted by their class.

    Args:
        logits: (patch, class, y, x).
        target: (patch, y, x) class indices, 255 = ignore.
        class_weights: (class,) float32.
        share: Mean over processes, applied to the sum of weights: then the mean of their losses (and gradients) is
            the loss of all their patches together, however the weights are spread.

    Returns:
        Scalar; 0 with zero gradient when no pixel has weight.
    """
    truth = target.long()
    total = functional.cross_entropy(logits.float(), truth, class_weights, ignore_index=IGNORE_INDEX, reduction="sum")
    weight = share(_padded(class_weights)[truth].sum())
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))


def _padded(class_weights: Tensor) -> Tensor:
    """(256,) weights by label value; 0 where there is no class."""
    return functional.pad(class_weights, (0, IGNORE_INDEX + 1 - len(class_weights)))


@dataclass(frozen=True)
class ClassLoss:
    """Additive pieces of a task's cross entropy.

    Attributes:
        total: (class,) float64, sum of the cross entropy of the pixels of each true class.
        count: (class,) int64, pixels.
    """

    total: Tensor
    count: Tensor

    def __add__(self, other: ClassLoss) -> ClassLoss:
        return ClassLoss(self.total + other.total, self.count + other.count)

    def mean(self, class_weights: NDArray[np.float32]) -> float:
        """Weighted mean over all pixels; NaN when no pixel has weight."""
        weights = np.asarray(class_weights, dtype=np.float64)
        count = self.count.cpu().numpy()
        weight = float((weights * count).sum())
        return float((weights * self.total.cpu().numpy()).sum()) / weight if weight else float("nan")

    def per_class(self) -> NDArray[np.float64]:
        """(class,) mean cross entropy of each class; NaN where it has no pixel."""
        count = self.count.cpu().numpy()
        return np.divide(self.total.cpu().numpy(), count, out=np.full(len(count), np.nan), where=count > 0)


def present_target(target: Tensor, present: Tensor | None) -> Tensor:
    """Truth for the heads of one modality: 255 in patches that lack it.

    Args:
        target: (patch, y, x) class indices, 255 = ignore.
        present: (patch,) bool; None = every patch has it.
    """
    return target if present is None else target.masked_fill(~present.view(-1, 1, 1), IGNORE_INDEX)


def class_loss(logits: Tensor, target: Tensor) -> ClassLoss:
    """Sum the cross entropy of every class.

    Args:
        logits: (patch, class, y, x).
        target: (patch, y, x) class indices, 255 = ignore.
    """
    n_classes = logits.shape[1]
    truth = target.long()
    losses = functional.cross_entropy(logits.float(), truth, ignore_index=IGNORE_INDEX, reduction="none")
    counted = truth != IGNORE_INDEX
    truth, losses = truth[counted], losses[counted].double()
    return ClassLoss(
        torch.bincount(truth, weights=losses, minlength=n_classes), torch.bincount(truth, minlength=n_classes)
    )


RegionLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _counted(target: Tensor, class_weights: Tensor) -> Tensor:
    """(patch, y, x) int64 truth, 255 where the class has no weight."""
    table = torch.full((IGNORE_INDEX + 1,), IGNORE_INDEX, dtype=torch.int64, device=target.device)
    kept = torch.nonzero(class_weights > 0).flatten()
    table[kept] = kept
    return table[target.long()]


def _guarded(loss: Callable[[Tensor, Tensor, list[int]], Tensor]) -> RegionLoss:
    """Apply a loss where some pixel counts; 0 with zero gradient elsewhere."""

    def guarded(logits: Tensor, target: Tensor, class_weights: Tensor) -> Tensor:
        truth = _counted(target, class_weights)
        if not bool((truth != IGNORE_INDEX).any()):
            return logits.float().sum() * 0.0
        return loss(logits.float(), truth, torch.nonzero(class_weights > 0).flatten().tolist())

    return guarded


def _dice(logits: Tensor, truth: Tensor, classes: list[int]) -> Tensor:
    from segmentation_models_pytorch.losses import DiceLoss

    return DiceLoss("multiclass", classes=classes, ignore_index=IGNORE_INDEX)(logits, truth)


def _lovasz(logits: Tensor, truth: Tensor, classes: list[int]) -> Tensor:
    from segmentation_models_pytorch.losses import LovaszLoss

    return LovaszLoss("multiclass", ignore_index=IGNORE_INDEX)(logits, truth)


def _focal(logits: Tensor, truth: Tensor, classes: list[int]) -> Tensor:
    from segmentation_models_pytorch.losses import FocalLoss

    return FocalLoss("multiclass", ignore_index=IGNORE_INDEX)(logits, truth)


REGION_LOSSES: Mapping[str, RegionLoss] = {
    "dice": _guarded(_dice),
    "lovasz": _guarded(_lovasz),
    "focal": _guarded(_focal),
}
"""By name: (patch, class, y, x) logits, (patch, y, x) truth and (class,) weights to a scalar."""


class Criterion(nn.Module):
    """Sum over tasks of weight * (loss + mean over auxiliary heads of aux_weight * loss).

    A loss is the weighted cross entropy, or a weighted sum of it and of the region losses.

    Attributes:
        share: Mean over processes of a scalar; set by a distributed training.
    """

    def __init__(
        self,
        objectives: tuple[TaskObjective, ...],
        aux_weight: float = 1.0,
        losses: Mapping[str, float] | None = None,
    ):
        """Keep the class weights as buffers that follow the module's device.

        Args:
            objectives: One per task.
            aux_weight: Factor of the auxiliary part.
            losses: Weight by name: `cross_entropy`, `dice`, `lovasz`, `focal`. None = cross entropy alone.
        """
        super().__init__()
        self.objectives, self.aux_weight = objectives, aux_weight
        self.losses = {name: weight for name, weight in (losses or {"cross_entropy": 1.0}).items() if weight}
        self.share: Share = alone
        for i, objective in enumerate(objectives):
            weights = {"main": objective.class_weights, **objective.aux_class_weights}
            for name, values in weights.items():
                # Modality names hold no dots, so they may name buffers.
                self.register_buffer(f"w{i}:{name}", torch.from_numpy(np.array(values)), persistent=False)

    def forward(
        self,
        logits: Mapping[str, Tensor],
        aux: Mapping[tuple[str, str], Tensor],
        targets: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts.

        Args:
            logits: By task, (patch, class, y, x) on the task's label grid.
            aux: By (modality, task), likewise.
            targets: By task, (patch, y, x) uint8, 255 = ignore.
            present: By modality that some patch lacks, (patch,) bool: its auxiliary heads learn from the others.

        Returns:
            Scalar with gradient; detached scalars by `<task>` and `<task>/aux_<modality>`.
        """
        loss: Tensor | float = 0.0
        parts: dict[str, Tensor] = {}
        for i, objective in enumerate(self.objectives):
            name = objective.task.label
            part = self._loss(logits[name], targets[name], self.get_buffer(f"w{i}:main"))
            parts[name] = part.detach()
            heads = [modality for modality, task in aux if task == name]
            for modality in heads:
                weights = self.get_buffer(f"w{i}:{modality}")
                truth = present_target(targets[name], (present or {}).get(modality))
                aux_part = self._loss(aux[modality, name], truth, weights)
                parts[f"{name}/aux_{modality}"] = aux_part.detach()
                part = part + self.aux_weight * aux_part / len(heads)
            loss = loss + objective.weight * part
        assert isinstance(loss, Tensor)
        return loss, parts

    def _loss(self, logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for name, factor in self.losses.items():
            if name == "cross_entropy":
                part = weighted_cross_entropy(logits, target, weights, self.share)
            else:
                part = REGION_LOSSES[name](logits, target, weights)
            total = total + factor * part
        assert isinstance(total, Tensor)
        return total

    def has_weight(self, targets: Mapping[str, Tensor]) -> bool:
        """True when some pixel counts: tells batches to train on from batches to skip.

        Args:
            targets: By task, (patch, y, x) uint8 on the CPU.
        """
        for objective in self.objectives:
            counts = np.zeros(IGNORE_INDEX + 1, dtype=bool)
            counts[: len(objective.class_weights)] = objective.class_weights > 0
            values = targets[objective.task.label].numpy().reshape(-1)
            # Almost every batch is settled by a sparse look.
            if objective.weight > 0 and (counts[values[::101]].any() or counts[values].any()):
                return True
        return False
