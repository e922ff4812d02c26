"""Breaking single files of a small data set, each in its own way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from tests.helpers.makers import PatchFiles, date_entry, write_dates, write_patch

NAMES = ("AERIAL_RGBI", "DEM_ELEV", "SENTINEL1-ASC_TS", "AERIAL_LABEL-COSIA")
SIZES = {"AERIAL_RGBI": 16, "DEM_ELEV": 16, "AERIAL_LABEL-COSIA": 16, "SENTINEL1-ASC_TS": 4}


def copy_files(files: PatchFiles, folder: Path) -> PatchFiles:
    """Copy a data set to a new folder, to be changed there; the arrays are shared."""
    shutil.copytree(files.folder, folder)

    def moved(path: Path) -> Path:
        return folder / path.relative_to(files.folder)

    return replace(
        files,
        folder=folder,
        mtd_folder=moved(files.mtd_folder),
        csvs={split: moved(path) for split, path in files.csvs.items()},
        files={name: {key: moved(path) for key, path in held.items()} for name, held in files.files.items()},
    )


def rewrite(files: PatchFiles, name: str, index: int = 2, values: np.ndarray | None = None, **profile: object) -> None:
    patch_id = files.patch_ids[index]
    stored = files.arrays[name][patch_id] if values is None else values
    write_patch(files.files[name][patch_id], stored, files.origins[patch_id], **profile)  # type: ignore[arg-type]


def truncate(files: PatchFiles) -> None:
    path = files.files["DEM_ELEV"][files.patch_ids[2]]
    path.write_bytes(path.read_bytes()[:-900])


def vrt(files: PatchFiles) -> None:
    source = files.files["DEM_ELEV"][files.patch_ids[1]]
    files.files["DEM_ELEV"][files.patch_ids[2]].write_text(
        f'<VRTDataset rasterXSize="16" rasterYSize="16"><VRTRasterBand dataType="Float32" band="1"><SimpleSource>'
        f"<SourceFilename>{source}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )


def sparse(files: PatchFiles) -> None:
    path = files.files["DEM_ELEV"][files.patch_ids[2]]
    transform = from_origin(*files.origins[files.patch_ids[2]], 6.4, 6.4)
    path.unlink()
    options = {"width": 16, "height": 16, "count": 2, "dtype": "float32", "crs": "EPSG:2154", "SPARSE_OK": True}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **options):
        pass


def bomb(files: PatchFiles, index: int = 2) -> None:
    path = files.files["DEM_ELEV"][files.patch_ids[index]]
    path.unlink()
    options = {"width": 300_000, "height": 300_000, "count": 2, "dtype": "float32", "crs": "EPSG:2154"}
    transform = from_origin(*files.origins[files.patch_ids[2]], 0.1, 0.1)
    blocks = {"SPARSE_OK": True, "BIGTIFF": "YES", "TILED": True, "BLOCKXSIZE": 65536, "BLOCKYSIZE": 65536}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **options, **blocks):
        pass


def moved(dx: float) -> Callable[[PatchFiles], None]:
    def change(files: PatchFiles) -> None:
        x, y = files.origins[files.patch_ids[2]]
        rewrite(files, "DEM_ELEV", transform=from_origin(x + dx, y, 6.4, 6.4))

    return change


def set_dates(entry: object) -> Callable[[PatchFiles], None]:
    def change(files: PatchFiles) -> None:
        entries = {patch_id: date_entry(days) for patch_id, days in files.dates["SENTINEL1-ASC_TS"].items()}
        if entry is None:
            del entries[files.patch_ids[2]]
        else:
            entries[files.patch_ids[2]] = entry  # type: ignore[assignment]
        write_dates(files.mtd_folder / "GLOBAL_SENTINEL1-ASC_MTD_DATES.gpkg", entries)

    return change


def label(value: int) -> Callable[[PatchFiles], None]:
    def change(files: PatchFiles) -> None:
        values = files.arrays["AERIAL_LABEL-COSIA"][files.patch_ids[2]].copy()
        values[0, 3, 3] = value
        rewrite(files, "AERIAL_LABEL-COSIA", values=values)

    return change


def south_up(files: PatchFiles) -> None:
    x, y = files.origins[files.patch_ids[2]]
    flipped = rasterio.Affine(6.4, 0, x, 0, 6.4, y - 102.4)
    rewrite(files, "DEM_ELEV", transform=flipped)


def dem(index: int, values: np.ndarray | None = None, **profile: object) -> Callable[[PatchFiles], None]:
    return lambda files: rewrite(files, "DEM_ELEV", index, values, **profile)
