"""Parameters of each part of a network, counted as the published size column counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from flairhub.baselines import BASELINES, RECIPE, Baseline
from flairhub.models.arch import Arch
from flairhub.models.encoders import ImageEncoder
from flairhub.models.network import Network
from flairhub.models.network_spec import NetworkSpec
from flairhub.models.published import read_weights
from flairhub.tasks import default_task


@dataclass(frozen=True)
class Part:
    """One part of a network.

    Attributes:
        role: `encoder`, `fusion`, `head` or `auxiliary head`.
        modality: Its input; empty for the fusion and the main heads.
        task: What it predicts; empty for encoders and the fusion.
        architecture: What it is.
        parameters: Number of trainable values.
    """

    role: str
    modality: str
    task: str
    architecture: str
    parameters: int


def network_parts(spec: NetworkSpec) -> list[Part]:
    """Count the parameters of every part, without allocating them where that is possible."""
    with torch.device("meta"):
        network = Network(spec, make_encoder=_bare_encoder)
    arch = network.arch
    encoder, decoder = (arch.encoder.removeprefix("tu-"), arch.decoder) if arch else ("", "")
    parts = []
    for name in spec.inputs:
        parts.append(
            Part("encoder", name, "", encoder if name in spec.images else "U-TAE", _count(network.encoders[name]))
        )
    if network.fusion_handler is not None:
        parts.append(Part("fusion", "", "", "1x1 convolution per level", _count(network.fusion_handler)))
    for task, head in network.main_decoders.items():
        parts.append(Part("head", "", task, decoder or "1x1 convolution", _count(head)))
    for name in spec.aux:
        text = decoder if name in spec.images else "1x1 convolution"
        for task in spec.tasks:
            parts.append(Part("auxiliary head", name, task, text, _count(network.aux_decoders[f"{name}__{task}"])))
    return parts


def published_total(parts: Sequence[Part]) -> int:
    """Parameters as the published size column counts them: all but the fusion."""
    return sum(part.parameters for part in parts if part.role != "fusion")


@lru_cache(maxsize=64)
def _bare_encoder(arch: Arch, channels: int, size: int) -> ImageEncoder:
    try:
        with torch.device("meta"):
            return ImageEncoder(arch, channels, size)
    except RuntimeError:  # encoders that read values while they are built
        with torch.device("cpu"):
            return ImageEncoder(arch, channels, size)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def published_spec(row: Baseline) -> NetworkSpec:
    """The network behind a published size: an auxiliary head for every input of a multi-modality model."""
    tasks = {row.label: default_task(row.label).n_classes}
    return NetworkSpec(row.channels, tasks, RECIPE.arch, aux=row.aux)


def matching_row(spec: NetworkSpec) -> Baseline | None:
    """The published row that a network reproduces in size, if any; channels and auxiliary heads are not compared."""
    for row in BASELINES:
        published = published_spec(row)
        same_arch = not spec.images or spec.arch == published.arch
        if tuple(spec.inputs) == row.inputs and dict(spec.tasks) == dict(published.tasks) and same_arch:
            return row
    return None


def weights_parts(path: Path) -> list[tuple[str, int, int]]:
    """Name, number of tensors and number of parameters of each part in a weights file (statistics not counted)."""
    parts: dict[str, tuple[int, int]] = {}
    for name, tensor in read_weights(path).items():
        part = ".".join(name.split(".")[:2]) if not name.startswith("fusion") else "fusion"
        statistics = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        tensors, parameters = parts.get(part, (0, 0))
        parts[part] = (tensors + 1, parameters + (0 if statistics else tensor.numel()))
    return [(part, *counts) for part, counts in parts.items() if not part.startswith("criterion")]
