"""Networks with random weights, or with image encoders from ImageNet (through smp or timm) or from a local file.

The only place of the project that may ask the network for weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flairhub.errors import WeightsError
from flairhub.models.arch import Arch, create_encoder
from flairhub.models.network import Network
from flairhub.models.network_spec import NetworkSpec
from flairhub.models.published import resize_table
from flairhub.models.weights_files import read_tensors

logger = logging.getLogger(__name__)

_SOURCE_CHANNEL = {"copy_first": 0, "copy_second": 1, "copy_third": 2}
_RGB = 3


def build_network(spec: NetworkSpec, pretrained: bool | str | Path = False) -> Network:
    """Build a network with random weights, or with pretrained image encoders.

    Args:
        spec: What to build.
        pretrained: False: random weights, never any access to the network. True: ImageNet weights of the image
            encoders through smp or timm, from the hub or its cache. A path: a local file of encoder weights.

    Raises:
        UsageError: The architecture does not exist.
        WeightsError: Pretrained weights cannot be had.
    """
    network = Network(spec)
    if pretrained and spec.images:
        load_pretrained(network, None if pretrained is True else Path(pretrained))
    return network


def load_pretrained(network: Network, file: Path | None) -> None:
    """Load pretrained weights into the image encoders of a network, in place.

    Args:
        network: The network.
        file: Local file of encoder weights in smp's or timm's names; None asks the hub or its cache.

    Raises:
        WeightsError: There are no such weights, they cannot be fetched, or they do not fit.
    """
    arch = network.arch
    assert arch is not None
    size = max(network.spec.sizes[name] for name in network.spec.images)
    weights = _from_hub(arch, size) if file is None else _from_file(file)
    for name in network.spec.images:
        encoder = network.encoders[name].seg_model
        assert isinstance(encoder, nn.Module)
        adapted = adapt(weights, encoder.state_dict(), network.spec.new_channels_init_mode)
        encoder.load_state_dict(adapted)


def adapt(weights: Mapping[str, Tensor], target: Mapping[str, Tensor], mode: str) -> dict[str, Tensor]:
    """Fit RGB encoder weights to an encoder of another number of channels and another image size.

    First convolutions of one channel sum the RGB filters and of two take the first two, scaled to keep the range of
    activations (smp's and timm's rule); of more than three they keep the RGB filters, and the further channels are
    copies of the first, second or third filter or random, as `mode` says.

    Args:
        weights: Tensors of the RGB encoder.
        target: Tensors of the encoder to fill.
        mode: `copy_first`, `copy_second`, `copy_third` or `random`.

    Returns:
        A complete state dict.

    Raises:
        WeightsError: A tensor is missing or cannot be fitted.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in target.items():
        if name not in weights:
            if name.endswith("num_batches_tracked"):
                result[name] = tensor
                continue
            raise WeightsError(f"pretrained encoder: tensor {name!r} is missing. Are the weights of this encoder?")
        value = weights[name]
        if value.shape == tensor.shape:
            result[name] = value
        elif name.endswith("relative_position_bias_table") and value.shape[1:] == tensor.shape[1:]:
            result[name] = resize_table(value, tensor.shape[0])
        elif value.ndim == 4 and value.shape[1] == _RGB and value.shape[0] == tensor.shape[0]:
            result[name] = _fit_channels(value, tensor, mode)
        else:
            raise WeightsError(
                f"pretrained encoder: {name}: got {list(value.shape)}, expected {list(tensor.shape)}. "
                "Are the weights of this encoder?"
            )
    return result


def _fit_channels(rgb: Tensor, target: Tensor, mode: str) -> Tensor:
    channels = target.shape[1]
    if channels == 1:
        return rgb.sum(dim=1, keepdim=True)
    if channels < _RGB:
        return rgb[:, :channels] * (_RGB / channels)
    extra = channels - _RGB
    if mode == "random":
        further = target[:, _RGB:].clone()
    else:
        source = _SOURCE_CHANNEL[mode]
        further = rgb[:, source : source + 1].repeat(1, extra, 1, 1)
    return torch.cat([rgb, further.to(rgb.dtype)], dim=1)


def _from_hub(arch: Arch, size: int) -> dict[str, Tensor]:
    try:
        encoder = create_pretrained(arch, size)
    except Exception as error:  # whatever the hub's client raises: offline, timeout, no such weights
        raise WeightsError(
            f"the ImageNet weights of encoder {arch.encoder!r} cannot be fetched "
            f"({type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}). Without a network, either set "
            "`models.monotemp_model.pretrained: false` to start from random weights, or give a local file of the "
            "encoder's weights, `models.monotemp_model.pretrained: path/to/file.safetensors`."
        ) from error
    return encoder.state_dict()


def create_pretrained(arch: Arch, size: int) -> nn.Module:
    """Build the RGB encoder with ImageNet weights, fetched from the hub or its cache."""
    weights: Any = True if arch.encoder.startswith("tu-") else "imagenet"
    return create_encoder(arch, channels=_RGB, size=size, weights=weights)


def _from_file(file: Path) -> dict[str, Tensor]:
    """Names in the file may be smp's, with or without `encoder.`, or timm's own."""
    tensors = read_tensors(file)
    if any(name.startswith("encoder.") for name in tensors):
        tensors = {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")}
    spelled: dict[str, Tensor] = {}
    for name, value in tensors.items():
        spelled |= dict.fromkeys((name, f"model.{name}", f"model.{_flat_name(name)}"), value)
    return spelled


def _flat_name(name: str) -> str:
    """timm's feature extractors join the index of a stage to its name: `layers.0.x` becomes `layers_0.x`."""
    head, _, rest = name.partition(".")
    index, _, tail = rest.partition(".")
    return f"{head}_{index}.{tail}" if index.isdigit() else name
