"""Losses that look at whole regions or hard pixels: dice, Lovasz, focal, from segmentation-models-pytorch.

They count over the patches of one process and batch. Pixels without a label or of a class of weight 0 count in none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flairhub.tasks import IGNORE_INDEX

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
