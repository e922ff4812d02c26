"""A running mean of the weights: what is validated and kept when `hyperparams.ema` is set."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a network's weights, with a warm-up of min(decay, (1 + n) / (10 + n)).

    Buffers, such as the statistics of batch normalisation, are taken over as they are.

    Attributes:
        network: Copy of the network that holds the averages; in evaluation mode, without gradients.
        decay: Share of the old average that each step keeps.
        updates: Steps averaged so far.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = deepcopy(network).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take the weights of one more step into the mean."""
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        own, new = self.network.state_dict(), network.state_dict()
        learnt = {name for name, _ in self.network.named_parameters()}
        for name, value in own.items():
            if name in learnt:
                value.lerp_(new[name].to(value.device), 1 - keep)
            else:
                value.copy_(new[name])
        self.updates += 1

    def state(self) -> dict[str, Tensor]:
        """Averaged tensors by name."""
        return self.network.state_dict()
