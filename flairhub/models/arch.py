"""Names of image networks: `<encoder>-<decoder>` in terms of segmentation-models-pytorch (smp) and timm."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch import nn

from flairhub.errors import UsageError

UPERNET = "upernet"
"""UPerNet with the geometry of smp 0.4.0, which the published weights have (`flairhub.models.decoders`)."""

DECODERS = (*(name for name in smp.MODEL_ARCHITECTURES_MAPPING), "upernet-smp")
"""Decoder names; `upernet-smp` is the UPerNet of the installed smp."""

_UPERNET_DEPTH = 5
_SIZE_OPTIONS: tuple[tuple[str, ...], ...] = (
    ("img_size", "strict_img_size"),
    ("img_size", "dynamic_img_size"),
    ("img_size",),
    (),
)


@dataclass(frozen=True)
class Arch:
    """A parsed architecture name.

    Attributes:
        encoder: Encoder name as smp takes it (`tu-` prefix for timm's).
        decoder: One of `DECODERS`.
    """

    encoder: str
    decoder: str

    @property
    def smp_decoder(self) -> str:
        """The architecture that smp builds; our UPerNet takes its encoder from smp's."""
        return UPERNET if self.decoder == "upernet-smp" else self.decoder


def parse_arch(arch: str) -> Arch:
    """Split `<encoder>-<decoder>`; encoder names may contain hyphens.

    Raises:
        UsageError: No known decoder at the end, or nothing before it.
    """
    for decoder in sorted(DECODERS, key=len, reverse=True):
        encoder = arch.removesuffix(f"-{decoder}")
        if encoder and encoder != arch:
            known = encoder in smp_encoders or encoder.startswith(("tu-", "timm-"))
            return Arch(encoder if known else f"tu-{encoder}", decoder)
    raise UsageError(f"arch: got {arch!r}, expected <encoder>-<decoder> with a decoder of: {', '.join(DECODERS)}.")


def create(arch: Arch, *, channels: int, classes: int, size: int, weights: Any = None) -> nn.Module:
    """Build smp's whole model.

    Args:
        arch: What to build.
        channels: Input channels.
        classes: Output classes.
        size: Image height and width in pixels, for encoders that take it.
        weights: smp's `encoder_weights`; None never asks the network for anything.

    Raises:
        UsageError: The encoder does not exist or does not work with the decoder.
    """
    values = _size_values(size)
    return _create(
        arch,
        encoder_weights=weights,
        in_channels=channels,
        classes=classes,
        **{name: values[name] for name in _accepted(arch, size)},
    )


def create_encoder(arch: Arch, *, channels: int, size: int, weights: Any = None) -> nn.Module:
    """Build the encoder of smp's model, with that model's depth and output stride; arguments as for `create`."""
    if arch.smp_decoder != UPERNET:
        encoder = create(arch, channels=channels, classes=1, size=size, weights=weights).encoder
        assert isinstance(encoder, nn.Module)
        return encoder
    # The published decoder: smp's own would be made for nothing.
    values = _size_values(size)
    return _upernet_encoder(
        arch, weights=weights, in_channels=channels, **{name: values[name] for name in _accepted(arch, size)}
    )


def _create(arch: Arch, **options: Any) -> nn.Module:
    return smp.create_model(arch.smp_decoder, encoder_name=arch.encoder, **options)


def _upernet_encoder(arch: Arch, **options: Any) -> nn.Module:
    return smp.encoders.get_encoder(arch.encoder, depth=_UPERNET_DEPTH, **options)


def _size_values(size: int) -> dict[str, Any]:
    return {"img_size": size, "strict_img_size": False, "dynamic_img_size": True}


@lru_cache(maxsize=256)
def _accepted(arch: Arch, size: int) -> tuple[str, ...]:
    """Which size options the encoder takes, found out without allocating its weights where that is possible."""
    timm_encoder = arch.encoder.startswith("tu-")
    values = _size_values(size)
    error: Exception | None = None
    for device in ("meta", "cpu"):
        for names in _SIZE_OPTIONS if timm_encoder else ((),):
            try:
                options = {name: values[name] for name in names}
                with torch.device(device):
                    if arch.smp_decoder == UPERNET:
                        _upernet_encoder(arch, weights=None, **options)
                    else:
                        _create(arch, encoder_weights=None, **options)
            except Exception as refused:
                error = refused
            else:
                return names
    raise _unusable(arch, error) from error


def _unusable(arch: Arch, error: Exception | None) -> UsageError:
    name = arch.encoder.removeprefix("tu-")
    known = timm.is_model(name.split(".")[0]) if arch.encoder.startswith("tu-") else arch.encoder in smp_encoders
    if not known:
        close = get_close_matches(name, [*smp_encoders, *timm.list_models()], n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        return UsageError(f"arch: unknown encoder {name!r}: neither smp nor timm has it.{hint}")
    return UsageError(f"arch: encoder {name!r} does not work with decoder {arch.decoder!r}: {error}")
