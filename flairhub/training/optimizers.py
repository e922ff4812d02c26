"""The published optimizers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import Parameter

from flairhub.errors import UsageError

Kind = Literal["adamw", "adam", "sgd"]


@dataclass(frozen=True)
class OptimizerChoice:
    """Which optimizer.

    Attributes:
        kind: `adamw`, `adam` (both with `betas`) or `sgd` (without momentum).
        learning_rate: Rate before the schedule.
        weight_decay: Of all three.
        betas: Of the Adam family.
    """

    kind: Kind
    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"optimizer: got {self.kind!r}, expected one of {get_args(Kind)}.")

    def build(self, parameters: Iterable[Parameter], fused: bool = False) -> torch.optim.Optimizer:
        """Return the optimizer of `parameters`.

        Args:
            parameters: What it changes.
            fused: One pass over all parameters of the Adam family instead of one operation after the other. On a
                GPU, torch's default is as fast, and can be combined with mixed precision and clipped gradients.
        """
        if self.kind == "sgd":
            return torch.optim.SGD(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        family = torch.optim.AdamW if self.kind == "adamw" else torch.optim.Adam
        return family(
            parameters, lr=self.learning_rate, weight_decay=self.weight_decay, betas=self.betas, fused=fused or None
        )
