"""Modality dropout: which samples keep which modality in a training step."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_kept(rates: Tensor, available: Tensor) -> Tensor:
    """Draw Bernoulli per sample and modality, then give samples without any modality one back.

    The one given back is drawn in proportion to its chance of being kept (evenly where all rates are 1).

    Args:
        rates: (modality,) probability of being dropped.
        available: (batch, modality) bool, what the samples have.

    Returns:
        (batch, modality) bool; at least one True per sample that has any modality.
    """
    kept = available & (torch.rand(available.shape, device=available.device) >= rates)
    chance = (1 - rates).clamp(min=1e-6) * available
    chance = torch.where(available.any(dim=1, keepdim=True), chance, torch.ones_like(chance))
    rescue = torch.multinomial(chance, 1)
    rescued = torch.zeros_like(kept).scatter(1, rescue, True) & available
    return torch.where(kept.any(dim=1, keepdim=True), kept, rescued)
