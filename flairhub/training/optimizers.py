"""The published optimizers, their learning rate as a function of the step, and the running mean of the weights.

No rate counts on its own: it follows from (step, plateau state), both are in every checkpoint, so a resumed run has the
rates of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim.swa_utils import get_ema_multi_avg_fn

from flairhub.config import OptimizerName, ScheduleName
from flairhub.errors import UsageError

DIV_FACTOR = 1000.0
FINAL_DIV_FACTOR = 1e4
PLATEAU_FACTOR = 0.5
PLATEAU_COOLDOWN = 4
PLATEAU_THRESHOLD = 1e-4
MIN_RATE = 1e-7


def build_optimizer(
    kind: OptimizerName,
    parameters: Iterable[Parameter],
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Return an optimizer.

    Args:
        kind: `adamw`, `adam` (both with `betas`) or `sgd` (without momentum).
        parameters: What it changes.
        learning_rate: Rate before the schedule.
        weight_decay: Of all three.
        betas: Of the Adam family.
        fused: One pass over all parameters of the Adam family instead of one operation after the other. On a GPU,
            torch's default is as fast, and can be combined with mixed precision and clipped gradients.

    Raises:
        UsageError: There is no such optimizer.
    """
    if kind not in get_args(OptimizerName):
        raise UsageError(f"optimizer: got {kind!r}, expected one of {get_args(OptimizerName)}.")
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate, weight_decay=weight_decay)
    family = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    return family(parameters, lr=learning_rate, weight_decay=weight_decay, betas=betas, fused=fused or None)


@torch.no_grad()
def update_mean(mean: nn.Module, network: nn.Module, decay: float, updates: int) -> None:
    """Take the weights of one more step into an exponential moving average, in place.

    The warm-up keeps min(decay, (1 + updates) / (10 + updates)) of the mean. Buffers, such as the statistics of batch
    normalisation, are taken over as they are. (`AveragedModel` of torch knows no warm-up, and reads its counter back
    from the device in every step, which would make the host wait.)

    Args:
        mean: The average so far; a copy of the network before the first step.
        network: The network after the step, on the same device.
        decay: Largest share of the mean that a step keeps.
        updates: Steps averaged before.
    """
    keep = min(decay, (1 + updates) / (10 + updates))
    get_ema_multi_avg_fn(keep)(list(mean.parameters()), list(network.parameters()), updates)
    for value, new in zip(mean.buffers(), network.buffers(), strict=True):
        value.copy_(new)


@dataclass(frozen=True)
class Plateau:
    """State of the plateau rule.

    Attributes:
        scale: Factor of the learning rate so far.
        best: Lowest validation loss so far.
        bad_epochs: Epochs in a row without a lower one.
        cooldown: Epochs during which bad ones do not count.
    """

    scale: float = 1.0
    best: float = math.inf
    bad_epochs: int = 0
    cooldown: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Schedule:
    """How the learning rate develops.

    `one_cycle_lr` rises from rate / 1000 to the rate over `warmup_fraction` of the steps and falls to almost zero,
    both along a cosine (Smith & Topin 2018, in the two-phase form of torch's OneCycleLR). `reduce_on_plateau` halves
    the rate when val_loss has not fallen for more than `plateau_patience` epochs, then waits 4 epochs, down to 1e-7.
    `cycle_then_plateau` rises like the first and then follows the second.

    Attributes:
        kind: Which of the three.
        learning_rate: The configured rate.
        total_steps: Optimizer steps of the whole run.
        warmup_fraction: Share of the steps that rise.
        plateau_patience: Bad epochs that are tolerated.
    """

    kind: ScheduleName
    learning_rate: float
    total_steps: int
    warmup_fraction: float = 0.2
    plateau_patience: int = 10

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScheduleName):
            raise UsageError(f"scheduler: got {self.kind!r}, expected one of {get_args(ScheduleName)}.")

    @property
    def warmup_steps(self) -> float:
        """Step at which the rate has risen to the top; may lie between two steps."""
        if self.kind == "reduce_on_plateau":
            return 0.0
        return max(self.warmup_fraction * self.total_steps - 1, 0.0)

    def rate(self, step: int, plateau: Plateau) -> float:
        """Return the learning rate of an optimizer step.

        Args:
            step: Steps done before.
            plateau: State at that time; ignored by `one_cycle_lr`.
        """
        peak, rise = self.learning_rate, self.warmup_steps
        if self.kind != "reduce_on_plateau" and step < rise:
            return _cosine(peak / DIV_FACTOR, peak, step / rise)
        if self.kind != "one_cycle_lr":
            return max(peak * plateau.scale, min(MIN_RATE, peak))
        fall = self.total_steps - 1 - rise
        share = (step - rise) / fall if fall > 0 else 0.0
        return _cosine(peak, peak / DIV_FACTOR / FINAL_DIV_FACTOR, min(share, 1.0))

    def after_validation(self, step: int, val_loss: float, plateau: Plateau) -> Plateau:
        """Return the state after a validation.

        Args:
            step: Optimizer steps done.
            val_loss: Validation loss.
            plateau: State before. Not changed.
        """
        if self.kind == "one_cycle_lr" or step < self.warmup_steps:
            return plateau
        if val_loss < plateau.best * (1 - PLATEAU_THRESHOLD):
            plateau = replace(plateau, best=val_loss, bad_epochs=0)
        else:
            plateau = replace(plateau, bad_epochs=plateau.bad_epochs + 1)
        if plateau.cooldown > 0:
            plateau = replace(plateau, cooldown=plateau.cooldown - 1, bad_epochs=0)
        if plateau.bad_epochs > self.plateau_patience:
            scale = max(plateau.scale * PLATEAU_FACTOR, min(MIN_RATE / self.learning_rate, 1.0))
            plateau = replace(plateau, scale=scale, cooldown=PLATEAU_COOLDOWN, bad_epochs=0)
        return plateau


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
