"""The demo's pictures: patches side by side, confusion matrices, the map of the zone, the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.modalities import MODALITIES
from flairhub.report import PanelRow, clearest_date, save_confusion, save_curves, save_panels, save_quicklook
from flairhub.tasks import Task, default_task

if TYPE_CHECKING:
    from flairhub.cube import Cube

TITLES: Mapping[str, str] = {"AERIAL_LABEL-COSIA": "Land cover", "ALL_LABEL-LPIS": "Crops"}
"""What the demo calls its tasks."""

SHORT: Mapping[str, str] = {"AERIAL_LABEL-COSIA": "land_cover", "ALL_LABEL-LPIS": "crops"}
"""How the demo's files call them."""

_SERIES = "SENTINEL2_TS"
_TRUE_COLOUR = ("B04", "B03", "B02")


def read_raster(path: str | Path) -> NDArray[Any]:
    """(band, y, x) values of a raster."""
    import rasterio

    with rasterio.open(path, driver="GTiff") as source:
        return source.read()


def telling_patches(cube: Cube, label: str, indices: NDArray[np.int64], count: int) -> list[int]:
    """Patches to show: of each domain in turn, those with the most evenly spread classes.

    Args:
        cube: Holds the truth.
        label: Label set to look at.
        indices: Cube positions to choose from.
        count: How many.
    """
    ranked: dict[str, list[tuple[float, int]]] = {}
    for index in indices.tolist():
        shares = np.bincount(cube.read(label, [index])[0, 0].ravel(), minlength=256) / 1.0
        shares = shares[shares > 0] / shares.sum()
        spread = float(-(shares * np.log(shares)).sum())
        ranked.setdefault(str(cube.patches.domain[index]), []).append((-spread, index))
    queues = [sorted(ranked[domain]) for domain in sorted(ranked)]
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return [index for _, index in turns[:count]]


def summer_image(cube: Cube, index: int, month: int = 7) -> tuple[str, NDArray[Any]]:
    """Date and (3, y, x) true-colour image of one patch, cloud-free and near to a month."""
    mask_name = MODALITIES[_SERIES].quality_mask
    series = cube.series(_SERIES)
    n_dates = int(series.n_dates[index])
    dates = series.dates[index, :n_dates]
    assert mask_name is not None
    chosen = clearest_date(cube.read(mask_name, [index])[0, :n_dates], dates, month)
    bands = [MODALITIES[_SERIES].bands.index(band) for band in _TRUE_COLOUR]
    return str(dates[chosen]), cube.read(_SERIES, [index])[0, chosen, bands]


def patch_panels(cube: Cube, indices: Sequence[int], task: Task, predictions: Path, path: Path, title: str) -> Path:
    """Draw inputs, truth and prediction of some patches."""
    files = {_patch_key(file): file for file in predictions.glob("*.tif")}
    rows = []
    for index in indices:
        patch_id = cube.patch_ids[index]
        inputs = {
            "aerial image": cube.read("AERIAL_RGBI", [index])[0, :3],
            "Sentinel-2, spring": summer_image(cube, index, 4)[1],
            "Sentinel-2, summer": summer_image(cube, index, 7)[1],
        }
        truth = cube.read(task.label, [index])[0, task.level - 1]
        rows.append(PanelRow(patch_id, inputs, truth, read_raster(files[patch_id])[0]))
    return save_panels(path, rows, task, title)


def _patch_key(file: Path) -> str:
    """Patch id of a prediction file, `PRED_<DOMAIN>_<LABEL>_<ROI>_<row>-<col>.tif`."""
    domain, *_, roi, cell = file.stem.removeprefix("PRED_").split("_")
    return f"{domain}_{roi}_{cell}"


def draw_pictures(
    folder: Path,
    cube: Cube,
    test: NDArray[np.int64],
    predictions: Mapping[str, Path],
    matrices: Mapping[str, NDArray[np.int64]],
    history: Sequence[Mapping[str, Any]],
    maps: Mapping[str, Path],
    zone: Path,
    gsd_m: float,
) -> dict[str, Path]:
    """Draw everything a newcomer wants to see.

    Args:
        folder: Where the PNG files go.
        cube: The demo's cube.
        test: Cube positions of the test patches.
        predictions: Folder of prediction rasters, by task.
        matrices: (class, class) counts of the test patches, by task.
        history: One entry per epoch.
        maps: Class map of the zone, by task.
        zone: Folder of the zone's rasters.
        gsd_m: Pixel size of the maps.

    Returns:
        Path by name.
    """
    pictures = {}
    aerial = read_raster(zone / "AERIAL_RGBI.tif")[:3]
    for name, title in TITLES.items():
        task, short = default_task(name), SHORT[name]
        chosen = telling_patches(cube, name, test, 4)
        path = folder / f"patches_{short}.png"
        pictures[f"{title}: test patches"] = patch_panels(cube, chosen, task, predictions[name], path, title)
        path = folder / f"confusion_{short}.png"
        pictures[f"{title}: confusion matrix"] = save_confusion(
            path, matrices[name], task.names, f"{title}, test patches"
        )
        path = folder / f"map_{short}.png"
        class_map = read_raster(maps[name])[0]
        pictures[f"{title}: map of the zone"] = save_quicklook(
            path, class_map, task, gsd_m=gsd_m, title=f"{title} of the zone", image=aerial
        )
    curves = {key: [float(entry[key]) for entry in history] for key in ("train_loss", "val_loss", "val_miou")}
    pictures["Training"] = save_curves(folder / "training.png", curves, "Training")
    return pictures
