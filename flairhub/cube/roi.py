"""One region of interest of a cube as lazy mosaics on its patch lattice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.cube import Cube, open_cube
from flairhub.cube.spec import fill_value
from flairhub.errors import CubeError
from flairhub.geo import ALIGNMENT_TOLERANCE_PX
from flairhub.modalities import modality

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Lattice:
    """Cells of an ROI: `position[i, j]` is a patch's place in the cube, -1 where none exists; row 0 is the north."""

    position: NDArray[np.int64]
    x_min: float
    y_max: float
    footprint_m: tuple[float, float]


def open_roi(cube: Cube | str | Path, roi: str) -> xr.DataTree:
    """Return one ROI as lazy mosaics over the cube's chunks.

    Args:
        cube: An open cube or its path.
        roi: Name of the ROI, as `AF-S1-27`, or `D012-2019_AF-S1-27` when several domains have it.

    Returns:
        One node per modality with `data` (band, y, x), (level, y, x) or (time, band, y, x), coordinates `x`, `y` (pixel
        centres), `time`, `band` and `spatial_ref`. `present` (y, x), for series (time, y, x), is False where no patch
        exists, where it is recorded as missing, or where it has no image of that day: there `data` is NaN (floats),
        255 (labels) or 0 (integers; ask `present`, a real 0 has it True). `time` holds every day of any patch, a day
        twice where a patch has two images of it.

    Raises:
        CubeError: Unknown or ambiguous ROI, or patches that do not lie on one lattice.
    """
    import xarray as xr

    opened = cube if isinstance(cube, Cube) else open_cube(cube)
    positions = roi_positions(opened, roi)
    lattice = roi_lattice(opened, roi, positions)
    table = opened.patches
    nodes: dict[str, Any] = {name: _mosaic(opened, name, lattice) for name in opened.modalities}
    attributes = {"roi": str(table.roi[positions[0]]), "domain": str(table.domain[positions[0]])}
    nodes["/"] = xr.Dataset(attrs=attributes)
    return xr.DataTree.from_dict(nodes)


def roi_positions(cube: Cube, roi: str) -> NDArray[np.int64]:
    """Return the places in the cube of the patches of an ROI, named as for `open_roi`."""
    table = cube.patches
    full = np.char.add(np.char.add(table.domain, "_"), table.roi)
    # A patch of which no modality is held has no place.
    found = np.flatnonzero(((table.roi == roi) | (full == roi)) & ~np.isnan(table.x_min))
    names = sorted(set(full[found].tolist()))
    if not len(found):
        known = sorted(set(table.roi.tolist()))
        shown = ", ".join(known[:8]) + (f", ... ({len(known)} in all)" if len(known) > 8 else "")
        raise CubeError(f"{cube.path}: no ROI {roi!r}. The cube holds {shown}.")
    if len(names) > 1:
        raise CubeError(f"{cube.path}: ROI {roi!r} exists in several domains, pass one of {', '.join(names)}.")
    return found


def roi_lattice(cube: Cube, roi: str, positions: NDArray[np.int64]) -> Lattice:
    """Lay the patches of an ROI on their lattice."""
    table = cube.patches
    width, height = table.footprint_m
    x_min, y_max = float(table.x_min[positions].min()), float(table.y_max[positions].max())
    cols, rows = (table.x_min[positions] - x_min) / width, (y_max - table.y_max[positions]) / height
    finest = min(min(cube.info(name)["gsd_m"]) for name in cube.modalities)
    off = np.maximum(abs(cols - np.round(cols)) * width, abs(rows - np.round(rows)) * height)
    if off.max() > ALIGNMENT_TOLERANCE_PX * finest:
        worst = table.patch_id[positions[off.argmax()]]
        raise CubeError(
            f"{cube.path}: ROI {roi}: patch {worst} lies {off.max():.3f} m off the lattice of {width} x {height} m; "
            f"a mosaic needs all patches on it (tolerance {ALIGNMENT_TOLERANCE_PX * finest:g} m)."
        )
    row, col = np.round(rows).astype(int), np.round(cols).astype(int)
    cells = np.full((row.max() + 1, col.max() + 1), -1, dtype=np.int64)
    for i, j, position in zip(row, col, positions, strict=True):
        if cells[i, j] >= 0:
            pair = f"{table.patch_id[cells[i, j]]} and {table.patch_id[position]}"
            raise CubeError(f"{cube.path}: ROI {roi}: {pair} lie on the same lattice cell.")
        cells[i, j] = position
    return Lattice(cells, x_min, y_max, (width, height))


def _mosaic(cube: Cube, name: str, lattice: Lattice) -> xr.Dataset:
    import dask.array as da
    import xarray as xr

    reader, row = cube.array(name), modality(name)
    height, width = reader.shape[-2:]
    present = cube.present(name)
    cells = np.where((lattice.position >= 0) & present[lattice.position], lattice.position, -1)
    held = cells[cells >= 0]
    leading: tuple[int, ...] = reader.shape[1:-2]
    slots = times = None
    if row.is_series:
        slots, times = time_axis(cube, name, held)
        leading = (len(times), *leading[1:])
    grid = da.from_array(cells, chunks=1)
    index_chunks = (*((size,) for size in leading), (height,) * cells.shape[0], (width,) * cells.shape[1])
    data = da.map_blocks(
        _read_cell,
        grid,
        cube,
        name,
        slots,
        (*leading, height, width),
        dtype=reader.dtype,
        chunks=index_chunks,
        new_axis=list(range(len(leading))),
        meta=np.empty((0,) * (len(leading) + 2), dtype=reader.dtype),
    )
    gsd = (lattice.footprint_m[0] / width, lattice.footprint_m[1] / height)
    coordinates: dict[str, Any] = {
        "y": lattice.y_max - (np.arange(cells.shape[0] * height) + 0.5) * gsd[1],
        "x": lattice.x_min + (np.arange(cells.shape[1] * width) + 0.5) * gsd[0],
        reader.dims[-3]: list(row.bands),
    }
    if times is not None:
        coordinates["time"] = times.astype("datetime64[ns]")
    dims = reader.dims[1:]
    mask = _presence(cells, slots, 0 if times is None else len(times), (height, width))
    dataset = xr.Dataset(
        {"data": (dims, data), "present": (("time", "y", "x") if row.is_series else ("y", "x"), mask)},
        coordinates,
        attrs={"modality": name, "fill_value": fill_value(row)},
    )
    return _with_crs(dataset, cube.patches.crs_wkt, lattice, gsd)


def time_axis(cube: Cube, name: str, held: NDArray[np.int64]) -> tuple[dict[int, NDArray[np.int64]], NDArray[Any]]:
    """Return each patch's place of its images on the common time axis, and the axis (time,) datetime64[D]."""
    series = cube.series(name)
    keys: dict[int, list[tuple[Any, int]]] = {}
    for position in held.tolist():
        seen: dict[Any, int] = {}
        keys[position] = []
        for day in series.dates[position, : series.n_dates[position]]:
            seen[day] = seen.get(day, -1) + 1
            keys[position].append((day, seen[day]))
    axis = sorted({key for entry in keys.values() for key in entry})
    place = {key: i for i, key in enumerate(axis)}
    slots = {position: np.array([place[key] for key in entry], dtype=np.int64) for position, entry in keys.items()}
    return slots, np.array([day for day, _ in axis], dtype="datetime64[D]")


def _read_cell(
    cell: NDArray[np.int64], cube: Cube, name: str, slots: dict[int, NDArray[np.int64]] | None, shape: tuple[int, ...]
) -> NDArray[Any]:
    position = int(cell.reshape(-1)[0]) if cell.size else -1
    out = np.full(shape, fill_value(modality(name)), dtype=cube.array(name).dtype)
    if position < 0:
        return out
    values = cube.read(name, [position])[0]
    if slots is None:
        return values
    out[slots[position]] = values[: len(slots[position])]
    return out


def _presence(
    cells: NDArray[np.int64], slots: dict[int, NDArray[np.int64]] | None, n_times: int, size_px: tuple[int, int]
) -> Any:
    """Lazy bool mask, one block per cell."""
    import dask.array as da

    if slots is None:
        held: NDArray[np.bool_] = cells >= 0
    else:
        held = np.zeros((n_times, *cells.shape), dtype=bool)
        for i, j in np.argwhere(cells >= 0):
            held[slots[int(cells[i, j])], i, j] = True
    chunks = (*held.shape[:-2], 1, 1) if n_times else (1, 1)
    lazy = da.from_array(held, chunks=chunks)
    return da.repeat(da.repeat(lazy, size_px[0], axis=-2), size_px[1], axis=-1)


def _with_crs(dataset: xr.Dataset, wkt: str, lattice: Lattice, gsd: tuple[float, float]) -> xr.Dataset:
    import rioxarray  # noqa: F401  (registers .rio)
    from rasterio.transform import from_origin

    placed = dataset.rio.write_crs(wkt).rio.write_transform(from_origin(lattice.x_min, lattice.y_max, *gsd))
    for name in ("data", "present"):
        placed[name].encoding["grid_mapping"] = "spatial_ref"
    return placed
