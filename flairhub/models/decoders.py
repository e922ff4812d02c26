"""Task heads of image networks: the architecture's decoder and its segmentation head."""

from __future__ import annotations

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from torch import Tensor, nn

from flairhub.models.arch import UPERNET, Arch, create
from flairhub.models.encoders import Features
from flairhub.models.upernet import UPerNetDecoder, upernet_head


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
    owners = [part for part in parts.modules() if _own_tensors(part)]
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


def _own_tensors(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
