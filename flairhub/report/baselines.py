"""Scores of the published baseline table, by label set and inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LAND_COVER, CROPS = "AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS"
_COLUMNS = {
    "aerial": ("AERIAL_RGBI",),
    "dem": ("DEM_ELEV",),
    "spot": ("SPOT_RGBI",),
    "s2": ("SENTINEL2_TS",),
    "s1": ("SENTINEL1-ASC_TS", "SENTINEL1-DESC_TS"),
    "old": ("AERIAL-RLT_PAN",),
}


@dataclass(frozen=True)
class Baseline:
    """A row of the published table; its models are swin_base_patch4_window12_384-upernet and U-TAE.

    Attributes:
        name: Such as `LC-D`.
        label: Label set.
        inputs: Modalities.
        accuracy: Overall accuracy, percent.
        miou: Mean IoU of the published protocol, percent.
    """

    name: str
    label: str
    inputs: frozenset[str]
    accuracy: float
    miou: float


def _row(name: str, columns: str, accuracy: float, miou: float) -> Baseline:
    inputs = frozenset(modality for column in columns.split() for modality in _COLUMNS[column])
    return Baseline(name, CROPS if name.startswith("LPIS") else LAND_COVER, inputs, accuracy, miou)


BASELINES = (
    _row("LC-A", "aerial", 77.5, 64.1),
    _row("LC-B", "aerial dem", 78.1, 65.1),
    _row("LC-C", "aerial dem spot", 78.2, 65.2),
    _row("LC-D", "aerial s2", 77.6, 64.7),
    _row("LC-E", "aerial s1", 77.7, 64.5),
    _row("LC-F", "aerial s2 s1", 77.7, 64.9),
    _row("LC-G", "s2", 57.8, 34.2),
    _row("LC-H", "s1", 54.5, 28.2),
    _row("LC-I", "spot", 64.1, 43.5),
    _row("LC-J", "dem", 67.4, 51.2),
    _row("LC-K", "aerial old", 77.6, 64.3),
    _row("LC-L", "aerial dem spot s2 s1", 78.2, 65.8),
    _row("LC-ALL", "aerial dem spot s2 s1 old", 78.2, 65.6),
    _row("LPIS-A", "aerial", 86.6, 24.4),
    _row("LPIS-B", "aerial spot", 87.1, 26.1),
    _row("LPIS-C", "aerial s2", 87.5, 29.8),
    _row("LPIS-D", "aerial s2 s1", 88.0, 36.1),
    _row("LPIS-E", "aerial spot s2", 87.6, 30.3),
    _row("LPIS-F", "s2", 85.3, 23.8),
    _row("LPIS-G", "s1", 84.5, 18.1),
    _row("LPIS-H", "s2 s1", 84.9, 23.8),
    _row("LPIS-I", "spot s2 s1", 87.2, 39.2),
    _row("LPIS-J", "aerial spot s2 s1", 88.0, 35.4),
    _row("LPIS-K", "spot", 84.5, 15.1),
)


def find_baseline(label: str, inputs: Iterable[str]) -> Baseline | None:
    """Return the row of a label set and a set of inputs."""
    wanted = frozenset(inputs)
    return next((row for row in BASELINES if row.label == label and row.inputs == wanted), None)
