"""Parameters of each part of a network, and the published size column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from flairhub.models.arch import Arch
from flairhub.models.encoders import ImageEncoder
from flairhub.models.from_config import PUBLISHED_ARCH
from flairhub.models.network import Network
from flairhub.models.published import read_weights
from flairhub.models.spec import NetworkSpec


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


@dataclass(frozen=True)
class PublishedRow:
    """One row of the published baseline table.

    Attributes:
        name: Model ID.
        inputs: Modalities, in network order.
        label: Label set that it predicts.
        millions: Published size, millions of parameters.
    """

    name: str
    inputs: tuple[str, ...]
    label: str
    millions: float

    def spec(self) -> NetworkSpec:
        """The network behind the size: an auxiliary head for every input of a multi-modality model."""
        inputs = {name: _CHANNELS[name] for name in self.inputs}
        classes = {"AERIAL_LABEL-COSIA": 19, "ALL_LABEL-LPIS": 23}[self.label]
        aux = self.inputs if len(inputs) > 1 else ()
        return NetworkSpec(inputs, {self.label: classes}, PUBLISHED_ARCH, aux=aux)


_CHANNELS = {
    "AERIAL_RGBI": 3,
    "AERIAL-RLT_PAN": 1,
    "DEM_ELEV": 2,
    "SPOT_RGBI": 3,
    "SENTINEL2_TS": 10,
    "SENTINEL1-ASC_TS": 2,
    "SENTINEL1-DESC_TS": 2,
}
_COLUMNS = {
    "aerial": ("AERIAL_RGBI",),
    "historical": ("AERIAL-RLT_PAN",),
    "elevation": ("DEM_ELEV",),
    "spot": ("SPOT_RGBI",),
    "s2": ("SENTINEL2_TS",),
    "s1": ("SENTINEL1-ASC_TS", "SENTINEL1-DESC_TS"),
}


def _row(name: str, columns: str, millions: float) -> PublishedRow:
    inputs = tuple(modality for column in columns.split() for modality in _COLUMNS[column])
    label = "ALL_LABEL-LPIS" if name.startswith("LPIS") else "AERIAL_LABEL-COSIA"
    return PublishedRow(name, tuple(sorted(inputs, key=list(_CHANNELS).index)), label, millions)


PUBLISHED: tuple[PublishedRow, ...] = (
    _row("LC-A", "aerial", 89.4),
    _row("LC-B", "aerial elevation", 181.4),
    _row("LC-C", "aerial elevation spot", 270.6),
    _row("LC-D", "aerial s2", 93.9),
    _row("LC-E", "aerial s1", 95.8),
    _row("LC-F", "aerial s2 s1", 97.7),
    _row("LC-G", "s2", 0.9),
    _row("LC-H", "s1", 1.8),
    _row("LC-I", "spot", 89.2),
    _row("LC-J", "elevation", 89.4),
    _row("LC-K", "aerial historical", 181.4),
    _row("LC-L", "aerial elevation spot s2 s1", 276.4),
    _row("LC-ALL", "aerial elevation spot s2 s1 historical", 365.8),
    _row("LPIS-A", "aerial", 89.4),
    _row("LPIS-B", "aerial spot", 181.2),
    _row("LPIS-C", "aerial s2", 93.9),
    _row("LPIS-D", "aerial s2 s1", 97.7),
    _row("LPIS-E", "aerial spot s2", 183.1),
    _row("LPIS-F", "s2", 0.9),
    _row("LPIS-G", "s1", 1.8),
    _row("LPIS-H", "s2 s1", 2.8),
    _row("LPIS-I", "spot s2 s1", 97.5),
    _row("LPIS-J", "aerial spot s2 s1", 186.9),
    _row("LPIS-K", "spot", 89.2),
)
"""The 24 rows of the published baseline table."""


def matching_row(spec: NetworkSpec) -> PublishedRow | None:
    """The published row that a network reproduces in size, if any; channels and auxiliary heads are not compared."""
    for row in PUBLISHED:
        published = row.spec()
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
