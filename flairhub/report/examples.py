"""Pictures of single patches of a run: what went in, what is true, what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.class_raster import prediction_files, read_class_raster
from flairhub.errors import DataError
from flairhub.modalities import modality
from flairhub.report.panels import PanelRow
from flairhub.report.stretch import clearest_date
from flairhub.tasks import Task

if TYPE_CHECKING:
    from flairhub.cube import Cube

MOST_INPUTS = 3
_TRUE_COLOUR = ("B04", "B03", "B02")
_SHORT = {
    "AERIAL_RGBI": "aerial",
    "AERIAL-RLT_PAN": "historical",
    "DEM_ELEV": "height above ground",
    "SPOT_RGBI": "SPOT",
}


def example_rows(
    cube: Cube, patch_ids: Sequence[str], inputs: Sequence[str], task: Task, predictions: Path
) -> list[PanelRow]:
    """Return what `save_panels` draws.

    Args:
        cube: Holds inputs and labels.
        patch_ids: Patches to show.
        inputs: Modalities of the run; the first three are shown.
        task: What was predicted.
        predictions: Folder of the task's prediction rasters.

    Raises:
        DataError: A prediction raster is missing.
    """
    files = prediction_files(predictions)
    rows = []
    for patch_id in patch_ids:
        if patch_id not in files:
            raise DataError(f"{predictions}: holds no prediction of patch {patch_id}.")
        index = int(cube.indices([patch_id])[0])
        shown = {_title(name): view(cube, name, index) for name in inputs[:MOST_INPUTS]}
        truth = cube.read(task.label, [index])[0, task.level - 1]
        rows.append(PanelRow(patch_id, shown, truth, read_class_raster(files[patch_id])))
    return rows


def _title(name: str) -> str:
    return _SHORT.get(name, name.removesuffix("_TS").replace("SENTINEL", "Sentinel-").replace("_", " "))


def view(cube: Cube, name: str, index: int) -> NDArray[Any]:
    """(1 or 3, y, x) picture of a modality of one patch."""
    row = modality(name)
    values = cube.read(name, [index])[0]
    if row.is_elevation:
        return values[:1].astype(np.float32) - values[1:2]
    if not row.is_series:
        return values[:3] if len(values) >= 3 else values[:1]
    info = cube.series(name)
    count = int(info.n_dates[index])
    if count == 0:
        return np.zeros((1, *values.shape[-2:]), np.float32)
    if all(band in row.bands for band in _TRUE_COLOUR):
        mask = None
        if row.quality_mask in cube.modalities:
            mask = cube.read(row.quality_mask, [index])[0, :count]
        chosen = clearest_date(mask, info.dates[index, :count])
        return values[chosen, [row.bands.index(band) for band in _TRUE_COLOUR]]
    return values[:count, :1].astype(np.float32).mean(axis=0)
