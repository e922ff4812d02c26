"""Patch files with pixels that hold no data, for every reason that a file can give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp

from tests.helpers.makers import PatchFiles, make_patch_files, write_patch

LABEL = "AERIAL_LABEL-COSIA"


@dataclass(frozen=True)
class Source:
    """How the pixels of patch 0 at `lacking` come to hold no data.

    Attributes:
        name: Modality.
        dtype: Of the file; None = the modality's.
        number: Written at these pixels, in all bands; None = they keep a harmless number.
        nodata: Declared.
        mask: With an internal mask.
        alpha: With a band more, which is alpha.
        everywhere: All pixels (of a series: of all dates).
        arrays: What the cube holds to tell it.
    """

    name: str
    dtype: str | None = None
    number: float | None = None
    nodata: float | None = None
    mask: bool = False
    alpha: bool = False
    everywhere: bool = False
    arrays: tuple[str, ...] = ()


def rewrite(files: PatchFiles, source: Source, valid: np.ndarray) -> np.ndarray:
    """Write the file of the first patch again; return its values with 0 where they mean nothing."""
    patch = files.patch_ids[0]
    values = np.where(np.isin(files.arrays[source.name][patch], (0, 255, 65535)), 7, files.arrays[source.name][patch])
    values = values.astype(source.dtype or files.arrays[source.name][patch].dtype)
    lacking = np.broadcast_to(~valid[..., None, :, :], values.shape)
    if source.number is not None:
        values[lacking] = source.number
    written = values.reshape(-1, *values.shape[-2:])
    flat = valid if valid.ndim == 2 else valid[0]
    if source.alpha:
        written = np.concatenate([written, np.where(flat, 200, 0)[None].astype(written.dtype)])
    path = files.files[source.name][patch]
    path.unlink()
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        extra = {"nodata": source.nodata} if source.nodata is not None else {}
        write_patch(path, written, files.origins[patch], files.footprint_m, **extra)
        if source.mask or source.alpha:
            with rasterio.open(path, "r+") as target:
                if source.alpha:
                    target.colorinterp = [*target.colorinterp[:-1], ColorInterp.alpha]
                if source.mask:
                    target.write_mask(np.where(flat, 255, 0).astype(np.uint8))
    return np.where(lacking, 0, values).astype(files.arrays[source.name][patch].dtype)


def image_files(folder: Path) -> PatchFiles:
    names = ("AERIAL_RGBI", "AERIAL-RLT_PAN", "SPOT_RGBI", "DEM_ELEV", LABEL)
    return make_patch_files(folder, n_rois=1, rows=1, cols=2, modalities=names, sizes_px=dict.fromkeys(names, 32))
