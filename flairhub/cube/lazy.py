"""Lazy views of a cube's patches: xarray datasets backed by dask, read through the same reader as training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.spec import fill_value
from flairhub.modalities import modality

if TYPE_CHECKING:
    import xarray as xr

    from flairhub.cube.cube import Cube

BLOCK_PATCHES = 16
"""Most patches per dask block."""


def patch_dataset(cube: Cube, name: str) -> xr.Dataset:
    """Return all patches of a modality as a lazy dataset.

    Args:
        cube: An open cube.
        name: Modality.

    Returns:
        `data` with the stored dimensions and dtype, in blocks of whole patches; `present` (patch), which is False
        where `data` holds the fill value because the patch is recorded as missing; for series `n_dates` (patch) and
        `date` (patch, time). Coordinates on `patch`: patch_id, domain, roi, row, col, x_min, y_max, split.
    """
    import dask.array as da
    import xarray as xr

    reader = cube.array(name)
    row = modality(name)
    step = min(BLOCK_PATCHES, reader.shard_patches)
    starts = range(0, cube.n_patches, step)
    sizes = tuple(min(step, cube.n_patches - start) for start in starts)
    chunks = (sizes, *((size,) for size in reader.shape[1:]))
    data = da.map_blocks(
        _read_block,
        da.arange(cube.n_patches, chunks=(sizes,)),
        cube,
        name,
        dtype=reader.dtype,
        chunks=chunks,
        new_axis=list(range(1, len(reader.shape))),
        meta=np.empty((0,) * len(reader.shape), dtype=reader.dtype),
    )
    table = cube.patches
    columns = ("patch_id", "domain", "roi", "row", "col", "x_min", "y_max", "split")
    coordinates: dict[str, Any] = {column: ("patch", getattr(table, column)) for column in columns}
    coordinates[reader.dims[-3]] = list(row.bands)
    variables: dict[str, Any] = {"data": (reader.dims, data), "present": ("patch", cube.present(name))}
    if row.is_series:
        series = cube.series(name)
        variables["n_dates"] = ("patch", series.n_dates)
        variables["date"] = (("patch", "time"), series.dates.astype("datetime64[ns]"))
    return xr.Dataset(variables, coordinates, attrs=dict(cube.info(name)))


def _read_block(positions: NDArray[np.int64], cube: Cube, name: str) -> NDArray[Any]:
    """Read patches; those recorded as missing hold the fill value."""
    reader = cube.array(name)
    out = np.full((len(positions), *reader.shape[1:]), fill_value(modality(name)), dtype=reader.dtype)
    present = cube.present(name)[positions]
    for row in np.flatnonzero(present):
        reader.read_into(positions[row : row + 1], out[row : row + 1])
    return out
