"""The published baseline table: 24 networks with their inputs, sizes, scores and the recipe they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from flairhub.modalities import INPUTS


@dataclass(frozen=True)
class Baseline:
    """A row of the published table.

    Attributes:
        name: Model ID, such as `LC-D`.
        label: Label set that it predicts, at level 1.
        inputs: Modalities, in network order.
        millions: Published size (column PARA.), millions of parameters.
        accuracy: Overall accuracy on the test patches, percent.
        miou: Mean IoU of the published protocol on the test patches, percent.
    """

    name: str
    label: str
    inputs: tuple[str, ...]
    millions: float
    accuracy: float
    miou: float

    @property
    def aux(self) -> tuple[str, ...]:
        """Inputs with an auxiliary head: all of a network of several inputs."""
        return self.inputs if len(self.inputs) > 1 else ()

    @property
    def channels(self) -> dict[str, int]:
        """Channels that the network sees, by input."""
        return {name: CHANNELS[name] for name in self.inputs}


@dataclass(frozen=True)
class Recipe:
    """How every row was trained, as far as it is published.

    Attributes:
        arch: Encoder and decoder of the images; series go through U-TAE.
        batch_size: Patches per step.
        learning_rate: Of the first step.
        epochs: Passes over the training patches.
    """

    arch: str
    batch_size: int
    learning_rate: float
    epochs: int


RECIPE = Recipe("swin_base_patch4_window12_384-upernet", batch_size=5, learning_rate=5e-5, epochs=150)

CHANNELS: Mapping[str, int] = MappingProxyType(
    {
        "AERIAL_RGBI": 3,
        "AERIAL-RLT_PAN": 1,
        "DEM_ELEV": 2,
        "SPOT_RGBI": 3,
        "SENTINEL2_TS": 10,
        "SENTINEL1-ASC_TS": 2,
        "SENTINEL1-DESC_TS": 2,
    }
)
"""Channels of the published networks by modality: three of the four bands of aerial and SPOT images."""

_LABELS = {"LC": "AERIAL_LABEL-COSIA", "LPIS": "ALL_LABEL-LPIS"}
_COLUMNS = {
    "aerial": ("AERIAL_RGBI",),
    "historical": ("AERIAL-RLT_PAN",),
    "elevation": ("DEM_ELEV",),
    "spot": ("SPOT_RGBI",),
    "s2": ("SENTINEL2_TS",),
    "s1": ("SENTINEL1-ASC_TS", "SENTINEL1-DESC_TS"),
}


def _row(name: str, columns: str, millions: float, accuracy: float, miou: float) -> Baseline:
    inputs = {modality for column in columns.split() for modality in _COLUMNS[column]}
    ordered = tuple(modality for modality in INPUTS if modality in inputs)
    return Baseline(name, _LABELS[name.partition("-")[0]], ordered, millions, accuracy, miou)


BASELINES: tuple[Baseline, ...] = (
    _row("LC-A", "aerial", 89.4, 77.5, 64.1),
    _row("LC-B", "aerial elevation", 181.4, 78.1, 65.1),
    _row("LC-C", "aerial elevation spot", 270.6, 78.2, 65.2),
    _row("LC-D", "aerial s2", 93.9, 77.6, 64.7),
    _row("LC-E", "aerial s1", 95.8, 77.7, 64.5),
    _row("LC-F", "aerial s2 s1", 97.7, 77.7, 64.9),
    _row("LC-G", "s2", 0.9, 57.8, 34.2),
    _row("LC-H", "s1", 1.8, 54.5, 28.2),
    _row("LC-I", "spot", 89.2, 64.1, 43.5),
    _row("LC-J", "elevation", 89.4, 67.4, 51.2),
    _row("LC-K", "aerial historical", 181.4, 77.6, 64.3),
    _row("LC-L", "aerial elevation spot s2 s1", 276.4, 78.2, 65.8),
    _row("LC-ALL", "aerial historical elevation spot s2 s1", 365.8, 78.2, 65.6),
    _row("LPIS-A", "aerial", 89.4, 86.6, 24.4),
    _row("LPIS-B", "aerial spot", 181.2, 87.1, 26.1),
    _row("LPIS-C", "aerial s2", 93.9, 87.5, 29.8),
    _row("LPIS-D", "aerial s2 s1", 97.7, 88.0, 36.1),
    _row("LPIS-E", "aerial spot s2", 183.1, 87.6, 30.3),
    _row("LPIS-F", "s2", 0.9, 85.3, 23.8),
    _row("LPIS-G", "s1", 1.8, 84.5, 18.1),
    _row("LPIS-H", "s2 s1", 2.8, 84.9, 23.8),
    _row("LPIS-I", "spot s2 s1", 97.5, 87.2, 39.2),
    _row("LPIS-J", "aerial spot s2 s1", 186.9, 88.0, 35.4),
    _row("LPIS-K", "spot", 89.2, 84.5, 15.1),
)
"""The 24 rows, in the order of the table."""


def find_baseline(label: str, inputs: Iterable[str]) -> Baseline | None:
    """Return the row of a label set and a set of inputs, None where the table has none."""
    wanted = set(inputs)
    return next((row for row in BASELINES if row.label == label and set(row.inputs) == wanted), None)
