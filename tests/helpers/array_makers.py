"""xarray objects with the values of made zones; dask arrays that count how often their chunks are computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

import flairhub as fh
from flairhub.modalities import MODALITIES
from flairhub.zones import Zone
from tests.helpers.zone_makers import X_MIN, Y_MAX, MadeZone

RATIOS = {"AERIAL_RGBI": 1, "SPOT_RGBI": 8, "SENTINEL2_TS": 8}


def as_array(
    values: NDArray[Any], name: str, res_m: float, dates: Any = None, origin: tuple[float, float] = (X_MIN, Y_MAX)
) -> xr.DataArray:
    """A DataArray of (band, y, x) values as files hold them."""
    bands, (height, width) = MODALITIES[name].bands, values.shape[-2:]
    coords: dict[str, Any] = {
        "y": origin[1] - (np.arange(height) + 0.5) * res_m,
        "x": origin[0] + (np.arange(width) + 0.5) * res_m,
        "band": list(bands),
    }
    dims: tuple[str, ...] = ("band", "y", "x")
    if MODALITIES[name].is_series:
        values = values.reshape(-1, len(bands), height, width)
        dims = ("time", *dims)
        if dates is not None:
            coords["time"] = dates.astype("datetime64[ns]")
    return xr.DataArray(values, dims=dims, coords=coords).rio.write_crs("EPSG:2154")


def arrays_of(made: MadeZone, ratios: Mapping[str, int] = RATIOS) -> dict[str, xr.DataArray]:
    """The rasters of a made zone and its masks, in memory."""
    result = {name: as_array(made.arrays[name], name, 0.2 * ratios[name], made.dates.get(name)) for name in ratios}
    mask = "SENTINEL2_MSK-SC"
    if mask in made.arrays:
        result[mask] = as_array(made.arrays[mask], mask, 0.2 * ratios["SENTINEL2_TS"], made.dates["SENTINEL2_TS"])
    return result


def zone_of(arrays: Mapping[str, Any], **options: Any) -> Zone:
    sources = dict(arrays)
    mask = sources.pop("SENTINEL2_MSK-SC", None)
    return fh.zone(sources, quality=None if mask is None else {"SENTINEL2_TS": mask}, **options)


class Counting:
    """Chunks that count how often each is computed, in whatever process."""

    def __init__(self, values: NDArray[Any], chunk: int, folder: Path):
        self.values, self.chunk, self.folder = values, chunk, folder
        folder.mkdir(parents=True)

    @property
    def counts(self) -> Counter[tuple[int, int]]:
        return Counter({tuple(map(int, path.name.split("-"))): path.stat().st_size for path in self.folder.iterdir()})

    @property
    def all_once(self) -> dict[tuple[int, int], int]:
        n_rows, n_cols = (-(-length // self.chunk) for length in self.values.shape[-2:])
        return {(row, col): 1 for row in range(n_rows) for col in range(n_cols)}

    def read(self, block_id: tuple[int, ...] = ()) -> NDArray[Any]:
        row, col = block_id[-2:]
        with open(self.folder / f"{row}-{col}", "ab") as file:
            file.write(b"x")
        rows, cols = (slice(number * self.chunk, (number + 1) * self.chunk) for number in (row, col))
        return self.values[..., rows, cols]

    def array(self) -> da.Array:
        lengths = [
            tuple(min(self.chunk, length - first) for first in range(0, length, self.chunk))
            for length in self.values.shape[-2:]
        ]
        chunks = (*((length,) for length in self.values.shape[:-2]), *lengths)
        meta = np.empty((0,) * len(chunks), self.values.dtype)
        return da.map_blocks(self.read, chunks=chunks, dtype=self.values.dtype, meta=meta)


def counted(
    made: MadeZone, folder: Path, in_memory: tuple[str, ...] = (), **options: Any
) -> tuple[Zone, dict[str, Counting]]:
    """A zone of dask arrays that count."""
    arrays, sources = arrays_of(made), {}
    for name in arrays.keys() - in_memory:
        array = arrays[name]
        sources[name] = Counting(array.values, 16 if name == "AERIAL_RGBI" else 5, folder / name)
        arrays[name] = array.copy(data=sources[name].array())
    return zone_of(arrays, **options), sources
