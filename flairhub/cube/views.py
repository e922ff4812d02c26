"""Lazy views of an open cube: all patches of a modality as xarray."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.spec import VALID, fill_value
from flairhub.cube.table import OpenCube
from flairhub.modalities import modality

if TYPE_CHECKING:
    import xarray as xr

BLOCK_PATCHES = 16
"""Most patches per dask block."""

_COLUMNS = ("domain", "roi", "row", "col", "x_min", "y_max", "split")


def patches_dataset(cube: OpenCube, name: str) -> xr.Dataset:
    """Return all patches of a modality as a lazy dataset; see `Cube.to_xarray`."""
    import rioxarray  # noqa: F401  (registers .rio)
    import xarray as xr

    reader, table = cube.array(name), cube.patches
    coordinates: dict[str, Any] = {column: ("patch", getattr(table, column)) for column in _COLUMNS}
    coordinates["patch"] = table.patch_id
    coordinates[reader.dims[-3]] = list(modality(name).bands)
    data = _lazy(cube, name, _read_block, reader.shape[1:], reader.dtype)
    variables: dict[str, Any] = {"data": (reader.dims, data), "present": ("patch", cube.present(name))}
    if any(entry["invalid"] for entry in cube.info(name).get("statistics", [])):
        pixels = (*reader.shape[1:-3], *reader.shape[-2:])
        valid = _lazy(cube, name, _read_valid_block, pixels, np.dtype(bool))
        variables[VALID] = ((*reader.dims[:-3], *reader.dims[-2:]), valid)
    if modality(name).is_series:
        series = cube.series(name)
        variables["n_dates"] = ("patch", series.n_dates)
        variables["date"] = (("patch", "time"), series.dates.astype("datetime64[ns]"))
    dataset = xr.Dataset(variables, coordinates, attrs=dict(cube.info(name)))
    return dataset.rio.write_crs(table.crs_wkt) if table.crs_wkt else dataset


def _lazy(
    cube: OpenCube, name: str, read: Callable[..., NDArray[Any]], sample: tuple[int, ...], dtype: np.dtype[Any]
) -> Any:
    """Something of all patches of a modality, (patch, *sample), as a dask array in blocks of whole patches."""
    import dask.array as da

    n_patches = len(cube.patches)
    step = min(BLOCK_PATCHES, cube.array(name).shard_patches)
    sizes = tuple(min(step, n_patches - start) for start in range(0, n_patches, step))
    return da.map_blocks(
        read,
        da.arange(n_patches, chunks=(sizes,)),
        cube,
        name,
        dtype=dtype,
        chunks=(sizes, *((size,) for size in sample)),
        new_axis=list(range(1, len(sample) + 1)),
        meta=np.empty((0,) * (len(sample) + 1), dtype=dtype),
    )


def _read_block(positions: NDArray[np.int64], cube: OpenCube, name: str) -> NDArray[Any]:
    """Read patches; those recorded as missing hold the fill value."""
    reader = cube.array(name)
    out = np.full((len(positions), *reader.shape[1:]), fill_value(modality(name)), dtype=reader.dtype)
    present = cube.present(name)[positions]
    for row in np.flatnonzero(present):
        reader.read_into(positions[row : row + 1], out[row : row + 1])
    return out


def _read_valid_block(positions: NDArray[np.int64], cube: OpenCube, name: str) -> NDArray[np.bool_]:
    """Where patches hold data: nowhere in missing ones, nor beyond a patch's dates."""
    shape = cube.array(name).shape
    out = np.zeros((len(positions), *shape[1:-3], *shape[-2:]), dtype=bool)
    for row in np.flatnonzero(cube.present(name)[positions]):
        valid = cube.read_valid(name, positions[row : row + 1])
        length = cube.series(name).n_dates[positions[row]] if modality(name).is_series else None
        out[row, :length] = True if valid is None else valid[0, :length]
    return out
