"""Fusion: the maps of all modalities, level by level, brought back to the reference modality's channels.

Published as a 1x1 convolution over the concatenation of the resized maps. A 1x1 convolution and a bilinear resize
commute, so each modality is convolved at its own resolution where that is coarser, and the results are summed:
the same numbers without the large concatenation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class Fusion(nn.Module):
    """One 1x1 convolution per level.

    Args:
        reference: Channels of the reference modality's levels, finest first.
        modalities: Channels of each modality's levels, in network order (the reference included).
        skipped: Levels that the decoder does not read; they get no convolution.
    """

    def __init__(self, reference: Sequence[int], modalities: Mapping[str, Sequence[int]], skipped: Sequence[int]):
        super().__init__()
        self.channels = {name: tuple(widths) for name, widths in modalities.items()}
        self.conv_f = nn.ModuleDict()
        for level, width in enumerate(reference):
            if level not in skipped:
                total = sum(widths[level] for widths in self.channels.values())
                self.conv_f[str(level)] = nn.Conv2d(total, width, 1)

    def forward(self, level: int, maps: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Fuse one level.

        Args:
            level: Position among the reference's levels.
            maps: (batch, channel, y, x) of the modalities that are there (at least one); the others count as zeros.
            size: Height and width of the result.

        Returns:
            (batch, channel, y, x).
        """
        conv = self.conv_f[str(level)]
        assert isinstance(conv, nn.Conv2d)
        weights = conv.weight.split([widths[level] for widths in self.channels.values()], dim=1)
        bias: Tensor | None = conv.bias
        total: Tensor | None = None
        for name, weight in zip(self.channels, weights, strict=True):
            if name not in maps:
                continue
            term = _convolve(maps[name], weight, bias, size)
            total = term if total is None else total + term
            bias = None  # once
        assert total is not None
        return total


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[-2:]) == size:
        return F.conv2d(x, weight, bias)
    if x.shape[-2] * x.shape[-1] > size[0] * size[1]:
        return F.conv2d(F.interpolate(x, size=size, mode="bilinear", align_corners=False), weight, bias)
    return F.interpolate(F.conv2d(x, weight, bias), size=size, mode="bilinear", align_corners=False)
