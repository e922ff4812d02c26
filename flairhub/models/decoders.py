"""Task heads of image networks: the architecture's decoder and its segmentation head.

UPerNet (Xiao et al., ECCV 2018) has the geometry of the published weights: pyramid pooling on the deepest map, a
top-down feature pyramid without convolutions on its levels, all levels concatenated at 1/4 of the full resolution.
The decoders of the other architectures are smp's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from torch import Tensor, nn
from torch.nn import functional as F

from flairhub.models.arch import UPERNET, Arch, create
from flairhub.models.encoders import Features

_POOL_SIZES = (1, 2, 3, 6)
PYRAMID_CHANNELS = 256
SEGMENTATION_CHANNELS = 64
STRIDE = 4
"""The decoder's map is this many times coarser than the full resolution."""


def _conv_norm_relu(channels: int, width: int, kernel: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=(size[0], size[1]), mode="bilinear", align_corners=False)


class _PyramidPooling(nn.Module):
    """Averages over 1, 2, 3 and 6 cells a side, concatenated with the map itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), _conv_norm_relu(channels, channels // len(_POOL_SIZES)))
            for size in _POOL_SIZES
        )
        self.out_conv = _conv_norm_relu(2 * channels, PYRAMID_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [_resize(block(x), x.shape[-2:]) for block in self.blocks]
        return self.out_conv(torch.cat([x, *pooled], dim=1))


class _PyramidStage(nn.Module):
    """One step to a finer level; a level without channels only resizes."""

    def __init__(self, channels: int):
        super().__init__()
        self.skip_conv = _conv_norm_relu(channels, PYRAMID_CHANNELS) if channels else None

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = _resize(x, skip.shape[-2:])
        return x if self.skip_conv is None else x + self.skip_conv(skip)


class UPerNetDecoder(nn.Module):
    """Decoder.

    Args:
        channels: Channels of the encoder's maps, full resolution first; its value there is not used.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        deepest, *finer = channels[:0:-1]
        self.psp = _PyramidPooling(deepest)
        self.fpn_stages = nn.ModuleList(_PyramidStage(width) for width in finer)
        self.fpn_bottleneck = _conv_norm_relu((len(channels) - 1) * PYRAMID_CHANNELS, SEGMENTATION_CHANNELS, kernel=3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode.

        Args:
            maps: (batch, channel, y, x) each, full resolution (only its size is used) to deepest.

        Returns:
            (batch, 64, y / 4, x / 4).
        """
        quarter = [size // STRIDE for size in maps[0].shape[-2:]]
        deepest, *finer = maps[:0:-1]
        pyramid = [self.psp(deepest)]
        for stage, skip in zip(self.fpn_stages, finer, strict=True):
            pyramid.append(stage(pyramid[-1], skip))
        return self.fpn_bottleneck(torch.cat([_resize(level, quarter) for level in pyramid], dim=1))


def upernet_head(classes: int) -> nn.Sequential:
    """Logits at full resolution: 1x1 convolution, then bilinear upsampling that aligns the corners."""
    return nn.Sequential(
        nn.Conv2d(SEGMENTATION_CHANNELS, classes, 1),
        nn.Upsample(scale_factor=STRIDE, mode="bilinear", align_corners=True),
    )


class _Parts(nn.Module):
    """Decoder and head under their published names."""

    def __init__(self, decoder: nn.Module, head: nn.Module):
        super().__init__()
        self.decoder = decoder
        self.segmentation_head = head


class ImageHead(nn.Module):
    """Feature maps to logits.

    Args:
        arch: Image architecture.
        out_channels: Channels of the encoder's maps (smp's `out_channels`).
        classes: Number of classes.
        size: Image size in pixels, for decoders that ask their encoder.
    """

    def __init__(self, arch: Arch, out_channels: tuple[int, ...], classes: int, size: int):
        super().__init__()
        if arch.decoder == UPERNET:
            decoder: nn.Module = UPerNetDecoder(out_channels)
            head: nn.Module = upernet_head(classes)
            initialize_decoder(decoder)
            initialize_head(head)
        else:
            decoder, head = _smp_parts(arch, classes, size)
        self.seg_model = _Parts(decoder, head)

    def forward(self, features: Features) -> Tensor:
        """Feature maps -> logits (batch, class, y, x) at about the resolution of the encoder's image."""
        decoder = self.seg_model.decoder
        maps = list(features.maps)
        decoded = decoder(maps) if features.tokens is None else decoder(maps, features.tokens)
        return self.seg_model.segmentation_head(decoded)


def _smp_parts(arch: Arch, classes: int, size: int) -> tuple[nn.Module, nn.Module]:
    """Decoder and head of smp's model, which is built for 1 channel like the published ones.

    The encoder that smp builds along is thrown away, so it is made without memory where that is possible.
    """
    target = torch.empty(0).device
    try:
        with torch.device("meta"):
            model = create(arch, channels=1, classes=classes, size=size)
    except RuntimeError:  # encoders that read values while they are built
        with torch.device("cpu" if target.type == "meta" else target):
            model = create(arch, channels=1, classes=classes, size=size)
        return model.decoder, model.segmentation_head  # type: ignore[return-value]
    parts = _Parts(model.decoder, model.segmentation_head)  # type: ignore[arg-type]
    owners = [part for part in parts.modules() if _direct_tensors(part)]
    if target.type == "meta":
        return parts.decoder, parts.segmentation_head
    if not all(hasattr(owner, "reset_parameters") for owner in owners):
        model = create(arch, channels=1, classes=classes, size=size)
        return model.decoder, model.segmentation_head  # type: ignore[return-value]
    parts.to_empty(device=target)
    for owner in owners:
        owner.reset_parameters()  # type: ignore[operator]
    initialize_decoder(parts.decoder)
    initialize_head(parts.segmentation_head)
    return parts.decoder, parts.segmentation_head


def _direct_tensors(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
