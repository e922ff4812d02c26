"""Learning rates as a function of the step, and the plateau rule as a small state.

Nothing counts on its own: the rate follows from (step, plateau state), both are in every checkpoint, so a resumed run
has the rates of an uninterrupted one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from flairhub.errors import UsageError

Kind = Literal["one_cycle_lr", "reduce_on_plateau", "cycle_then_plateau"]

DIV_FACTOR = 1000.0
FINAL_DIV_FACTOR = 1e4
PLATEAU_FACTOR = 0.5
PLATEAU_COOLDOWN = 4
PLATEAU_THRESHOLD = 1e-4
MIN_RATE = 1e-7


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

    kind: Kind
    learning_rate: float
    total_steps: int
    warmup_fraction: float = 0.2
    plateau_patience: int = 10

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"scheduler: got {self.kind!r}, expected one of {get_args(Kind)}.")

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
