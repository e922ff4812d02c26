"""One forward pass from a prepared batch to logits on the label grids: for training, validation and prediction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from flairhub.data import N_SYMMETRIES, PreparedBatch, apply_dihedral, undo_dihedral
from flairhub.not_finite import finite_pixels
from flairhub.tasks import IGNORE_INDEX


def network_output(
    network: nn.Module, batch: PreparedBatch, aux: bool = False
) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    """Run the network.

    Args:
        network: See `flairhub.models.Network`.
        batch: On the network's device.
        aux: Also return the auxiliary heads' logits.

    Returns:
        Logits by task and by (modality, task), (patch, class, y, x) on the grid of the task's label where the batch
        has one.
    """
    sizes = {name: (target.shape[-2], target.shape[-1]) for name, target in batch.targets.items()}
    finest = max(sizes.values(), default=None)
    output = network(batch.inputs, batch.dates, batch.masks, size=finest, aux=aux, present=batch.present)
    logits = {task: _resized(values, sizes.get(task)) for task, values in output.logits.items()}
    heads = {key: _resized(values, sizes.get(key[1])) for key, values in output.aux.items()}
    return logits, heads


def mean_probabilities(network: nn.Module, batch: PreparedBatch) -> dict[str, Tensor]:
    """Average the class probabilities over the eight symmetries of the square (test-time augmentation).

    Args:
        network: In evaluation mode.
        batch: On the network's device, square patches.

    Returns:
        By task, (patch, class, y, x) float32, sums of one over classes; NaN where logits are not finite numbers.
    """
    totals: dict[str, Tensor] = {}
    for code in range(N_SYMMETRIES):
        codes = torch.full((len(batch),), code)
        turned = {name: apply_dihedral(values, codes) for name, values in batch.inputs.items()}
        logits, _ = network_output(network, replace(batch, inputs=turned))
        for task, values in logits.items():
            share = undo_dihedral(_probabilities(values), code) / N_SYMMETRIES
            totals[task] = totals[task] + share if task in totals else share
    return totals


def most_probable(scores: Tensor) -> Tensor:
    """Return the class of the highest logit or probability, 255 where one of them is not a finite number.

    Args:
        scores: (patch, class, y, x).

    Returns:
        (patch, y, x) uint8.
    """
    classes = scores.argmax(dim=1).to(torch.uint8)
    return classes.masked_fill_(~finite_pixels(scores.float(), 1), IGNORE_INDEX)


def patches_not_finite(outputs: Iterable[Tensor]) -> Tensor:
    """Return (patch,) bool, which patches have a logit that is not a finite number, without a look at the host.

    Args:
        outputs: Each (patch, class, y, x), of the same patches.
    """
    flags = [~finite_pixels(logits.float(), 1).flatten(1).all(dim=1) for logits in outputs]
    return torch.stack(flags).any(dim=0)


def is_finite(network: nn.Module) -> bool:
    """True when all weights and running statistics are finite numbers."""
    numbers = (value for value in network.state_dict().values() if value.is_floating_point())
    return all(bool(value.isfinite().all()) for value in numbers)


def _probabilities(logits: Tensor) -> Tensor:
    values = logits.float()
    # Minus infinity alone would give finite probabilities.
    return values.softmax(dim=1).masked_fill_(~finite_pixels(values, 1).unsqueeze(1), torch.nan)


def _resized(logits: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is None or tuple(logits.shape[-2:]) == size:
        return logits
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def batch_confusion(logits: Tensor, target: Tensor) -> Tensor:
    """Count pairs of truth and prediction on the device; `flairhub.confusion` gives the same for arrays.

    Pixels whose logits are not finite numbers are left out, as in `ConfusionSums`.

    Args:
        logits: (patch, class, y, x).
        target: (patch, y, x) class indices, 255 = ignore.

    Returns:
        (class, class) int64, rows = truth.
    """
    n_classes = logits.shape[1]
    truth = target.long()
    classes = most_probable(logits)
    counted = (truth != IGNORE_INDEX) & (classes != IGNORE_INDEX)
    pairs = truth[counted] * n_classes + classes[counted]
    return torch.bincount(pairs, minlength=n_classes * n_classes).reshape(n_classes, n_classes)
