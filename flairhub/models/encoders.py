"""Encoders of images: one contract for every smp and timm encoder, and the levels that fusion pairs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from flairhub.models.arch import Arch, create_encoder


@dataclass(frozen=True)
class Features:
    """What an encoder gives a decoder.

    Attributes:
        maps: Feature maps (batch, channel, y, x), finest first, as many as smp's `out_channels`.
        tokens: Prefix tokens of each map, for transformers that have them (DPT only).
    """

    maps: list[Tensor]
    tokens: list[Tensor | None] | None = None


class ImageEncoder(nn.Module):
    """The encoder of smp's model of `arch` (so with that model's depth and output stride).

    Args:
        arch: Image architecture.
        channels: Input channels.
        size: Image height and width in pixels that position tables are made for.
    """

    def __init__(self, arch: Arch, channels: int, size: int):
        super().__init__()
        encoder = create_encoder(arch, channels=channels, size=size)
        self.seg_model = encoder
        self.out_channels: tuple[int, ...] = tuple(encoder.out_channels)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Features:
        """(batch, channel, y, x) -> feature maps."""
        result = self.seg_model(x)
        if isinstance(result, tuple):
            return Features(list(result[0]), list(result[1]))
        return Features(list(result))


def first_level(out_channels: tuple[int, ...]) -> int:
    """Position of the first level that counts: transformer encoders have no full and no half resolution."""
    return 2 if 0 in out_channels[:2] else 0


def level_channels(out_channels: tuple[int, ...]) -> tuple[int, ...]:
    """Channels of the levels that count, finest first."""
    return out_channels[first_level(out_channels) :]
