"""Patches and regions of a cube as Cloud Optimized GeoTIFFs, which every GDAL opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.cube import Cube
from flairhub.cube.roi import open_roi
from flairhub.errors import CubeError, FlairhubError, OutputExistsError, UsageError
from flairhub.jobs import placed
from flairhub.modalities import Kind, modality
from flairhub.tasks import IGNORE_INDEX


def export_patch(cube: Cube, name: str, patch_id: str, target: Path, overwrite: bool = False) -> None:
    """Write one patch with the bands of its source file: (band), (level), or date after date (time * band).

    Pixels without data are NaN (floats), or 0 in a mask band (integers; of a series, those without data on any date).

    Args:
        cube: An open cube.
        name: Modality.
        patch_id: Patch.
        target: GeoTIFF to write.
        overwrite: Replace an existing file.

    Raises:
        CubeError: The patch is missing or damaged.
        OutputExistsError: The file exists.
    """
    _check_target(target, name, overwrite)
    position = int(cube.indices([patch_id])[0])
    values, mask = cube.read(name, [position]), None
    valid = cube.read_valid(name, [position], values=values)
    values, valid = values[0], None if valid is None else valid[0]
    labels: list[str] = list(modality(name).bands)
    if modality(name).is_series:
        series = cube.series(name)
        days = series.dates[position, : series.n_dates[position]]
        values, valid = values[: len(days)], None if valid is None else valid[: len(days)]
        labels = [f"{band} {day}" for day in days for band in labels]
    if valid is not None and values.dtype.kind == "f":
        values = np.where(valid[..., None, :, :], values, values.dtype.type(np.nan))
    elif valid is not None:
        mask = np.logical_or.reduce(valid, axis=0) if valid.ndim == 3 else valid
    table = cube.patches
    origin = float(table.x_min[position]), float(table.y_max[position])
    _write(target, values.reshape(-1, *values.shape[-2:]), labels, origin, cube, name, mask)


def export_roi(cube: Cube, name: str, roi: str, target: Path, overwrite: bool = False) -> None:
    """Write the mosaic of one ROI; the whole mosaic passes through memory.

    Where no patch is, the file has nodata: NaN (floats), 255 (labels), or a mask band (integers). Bands as in
    `export_patch`, for series over all days of the ROI.

    Args:
        cube: An open cube.
        name: Modality.
        roi: ROI, as `AF-S1-27` or `D012-2019_AF-S1-27`.
        target: GeoTIFF to write.
        overwrite: Replace an existing file.

    Raises:
        CubeError: Unknown ROI or modality, damaged chunks.
        OutputExistsError: The file exists.
    """
    _check_target(target, name, overwrite)
    tree = open_roi(cube, roi)
    if name not in tree.children:
        raise CubeError(f"{cube.path}: {name} is not in the cube, it holds {', '.join(cube.modalities)}.")
    mosaic = tree[name].to_dataset()
    values, present = mosaic["data"].values, mosaic["present"].values
    labels: list[str] = list(modality(name).bands)
    if modality(name).is_series:
        days = mosaic["time"].values.astype("datetime64[D]")
        labels = [f"{band} {day}" for day in days for band in labels]
        present = np.logical_or.reduce(present, axis=0)
    transform = mosaic.rio.transform()
    flat = values.reshape(-1, *values.shape[-2:])
    _write(target, flat, labels, (transform.c, transform.f), cube, name, present)


def _check_target(target: Path, name: str, overwrite: bool) -> None:
    modality(name)
    if target.suffix.lower() not in (".tif", ".tiff") or target.is_dir():
        raise UsageError(f"{target}: a GeoTIFF is written. Name a file that ends with .tif.")
    if target.exists() and not overwrite:
        raise OutputExistsError(f"{target} exists. Pass --overwrite to replace it.")


def _write(
    target: Path,
    values: NDArray[Any],
    labels: list[str],
    origin: tuple[float, float],
    cube: Cube,
    name: str,
    present: NDArray[np.bool_] | None,
) -> None:
    """Write (band, y, x), read it back, then give it its name."""
    import rasterio
    from rasterio.transform import from_origin

    gsd = cube.info(name)["gsd_m"]
    floats = values.dtype.kind == "f"
    profile = {
        "driver": "COG",
        "count": len(values),
        "height": values.shape[-2],
        "width": values.shape[-1],
        "dtype": values.dtype.name,
        "crs": cube.patches.crs_wkt,
        "transform": from_origin(*origin, *gsd),
        "nodata": float("nan") if floats else IGNORE_INDEX if modality(name).kind is Kind.LABEL else None,
        "compress": "deflate",
        "predictor": "yes",
        "overviews": "none",
    }
    try:
        with placed(target) as temporary:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                with rasterio.open(temporary, "w", **profile) as written:
                    written.write(values)
                    for band, label in enumerate(labels, start=1):
                        written.set_band_description(band, label)
                    written.update_tags(modality=name)
                    if present is not None and profile["nodata"] is None:
                        written.write_mask(present)
                with rasterio.open(temporary) as read:
                    same = np.array_equal(read.read(), values, equal_nan=floats)
            if not same:
                raise CubeError(f"{target}: what was written reads back differently; nothing was kept.")
    except FlairhubError:
        raise
    except Exception as error:  # of the system, or any of GDAL's, which have no type in common
        raise CubeError(f"{target}: cannot be written: {error}. Nothing was kept.") from error
