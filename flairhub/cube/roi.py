"""One region of interest of a cube as whole rasters on its patch lattice: read by region, or lazily as xarray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.spec import fill_value
from flairhub.cube.table import OpenCube, Validity
from flairhub.errors import CubeError
from flairhub.geo import ALIGNMENT_TOLERANCE_PX, GeoBox
from flairhub.modalities import modality

if TYPE_CHECKING:
    import xarray as xr

Span = tuple[int, int]


@dataclass(frozen=True)
class Lattice:
    """Cells of an ROI: `position[i, j]` is a patch's place in the cube, -1 where none exists; row 0 is the north."""

    position: NDArray[np.int64]
    x_min: float
    y_max: float
    footprint_m: tuple[float, float]


@dataclass(frozen=True, eq=False)
class RoiLayer:
    """The patches of one modality of an ROI, laid side by side.

    Attributes:
        cube: The cube.
        name: Modality.
        roi: As it was asked for.
        geobox: Grid of the whole ROI.
        cells: (cell row, cell column) place of the patch in the cube, -1 where none has the modality.
        dates: (time,) datetime64[D], every day that any patch has an image of, a day twice where a patch has two; None
            for images and labels.
        slots: Places on that axis of the images of each patch.
    """

    cube: OpenCube
    name: str
    roi: str
    geobox: GeoBox
    cells: NDArray[np.int64]
    dates: NDArray[np.datetime64] | None
    slots: dict[int, NDArray[np.int64]]

    @property
    def patch_px(self) -> tuple[int, int]:
        """Rows and columns of a patch."""
        return self.geobox.height // self.cells.shape[0], self.geobox.width // self.cells.shape[1]

    @property
    def leading(self) -> tuple[int, ...]:
        """Lengths of the axes before y and x."""
        shape = self.cube.array(self.name).shape[1:-2]
        return shape if self.dates is None else (len(self.dates), *shape[1:])

    @property
    def is_whole(self) -> bool:
        """Every cell has a patch, of a series of every day, and nothing but its numbers says where they hold data."""
        n_dates = 0 if self.dates is None else len(self.dates)
        complete = not (self.cells < 0).any() and all(len(slots) == n_dates for slots in self.slots.values())
        return complete and self._stored.mask is None and (self._stored.nodata is None or self.nodata is not None)

    @property
    def _stored(self) -> Validity:
        return self.cube.validity(self.name)

    @property
    def nodata(self) -> float | None:
        """The number that stands for no data in all patches; None where there is none, or patches differ."""
        if self._stored.nodata is None:
            return None
        numbers = np.unique(self._stored.nodata[self.cells[self.cells >= 0]])
        return float(numbers[0]) if len(numbers) == 1 and not np.isnan(numbers[0]) else None

    def read(self, rows: Span, cols: Span) -> NDArray[Any]:
        """Return a region (..., y, x) in native dtype; the fill value where nothing is.

        Raises:
            CubeError: A chunk is absent or damaged; names store, array, chunk and patch.
        """
        shape = rows[1] - rows[0], cols[1] - cols[0]
        out = np.full((*self.leading, *shape), fill_value(modality(self.name)), self.cube.array(self.name).dtype)
        for position, source, target in self._parts(rows, cols):
            patch = self.cube.read(self.name, [position])[0][..., source[0], source[1]]
            if self.dates is None:
                out[..., target[0], target[1]] = patch
            else:
                slots = self.slots[position]
                out[slots, :, target[0], target[1]] = patch[: len(slots)]
        return out

    def present(self, rows: Span, cols: Span) -> NDArray[np.bool_]:
        """Return where the ROI has an image of a patch: (y, x), of a series (time, y, x)."""
        return self._spread(rows, cols, lambda position, source: True)

    def known(self, rows: Span, cols: Span) -> NDArray[np.bool_]:
        """Return where there is a patch that no mask, and no nodata of its own, hides: as `present`."""
        stored, row = self._stored, modality(self.name)
        nodata = stored.nodata if self.nodata is None else None
        if stored.mask is None and nodata is None:
            return self.present(rows, cols)
        judged = Validity(nodata, stored.mask, stored.has_mask)

        def valid(position: int, source: tuple[slice, slice]) -> NDArray[np.bool_] | bool:
            patch = self.cube.read(self.name, [position])
            result = judged.of(patch, [position], None, row.is_elevation)
            if result is None:
                return True
            part = result[0][..., source[0], source[1]]
            return part if self.dates is None else part[: len(self.slots[position])]

        return self._spread(rows, cols, valid)

    def _spread(self, rows: Span, cols: Span, of_patch: Callable[..., NDArray[np.bool_] | bool]) -> NDArray[np.bool_]:
        times = () if self.dates is None else (len(self.dates),)
        out = np.zeros((*times, rows[1] - rows[0], cols[1] - cols[0]), dtype=bool)
        for position, source, target in self._parts(rows, cols):
            if self.dates is None:
                out[target] = of_patch(position, source)
            else:
                out[self.slots[position], target[0], target[1]] = of_patch(position, source)
        return out

    def _parts(self, rows: Span, cols: Span) -> list[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
        """Patches that a region touches: position, what of the patch, and where it goes."""
        height, width = self.patch_px
        parts = []
        for i in range(rows[0] // height, -(-rows[1] // height)):
            for j in range(cols[0] // width, -(-cols[1] // width)):
                if self.cells[i, j] < 0:
                    continue
                y, x = _shared(i * height, height, rows), _shared(j * width, width, cols)
                parts.append((int(self.cells[i, j]), (y[0], x[0]), (y[1], x[1])))
        return parts


def open_roi(cube: OpenCube, roi: str) -> xr.DataTree:
    """Return one ROI as lazy mosaics over the cube's chunks.

    Args:
        cube: An open cube.
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

    layers = roi_layers(cube, roi)
    table = cube.patches
    first = roi_positions(cube, roi)[0]
    nodes: dict[str, Any] = {name: _mosaic(layer) for name, layer in layers.items()}
    nodes["/"] = xr.Dataset(attrs={"roi": str(table.roi[first]), "domain": str(table.domain[first])})
    return xr.DataTree.from_dict(nodes)


def roi_layers(cube: OpenCube, roi: str, names: Sequence[str] | None = None) -> dict[str, RoiLayer]:
    """Lay the patches of an ROI side by side, modality by modality.

    Args:
        cube: The cube.
        roi: As for `open_roi`.
        names: Modalities; None = all.

    Raises:
        CubeError: Unknown or ambiguous ROI, or patches that do not lie on one lattice.
    """
    lattice = _lattice(cube, roi, roi_positions(cube, roi))
    return {name: _layer(cube, roi, name, lattice) for name in names or cube.modalities}


def roi_positions(cube: OpenCube, roi: str) -> NDArray[np.int64]:
    """Return the places in the cube of the patches of an ROI, named as for `open_roi`."""
    table = cube.patches
    full = np.char.add(np.char.add(table.domain, "_"), table.roi)
    # A patch of which no modality is stored has no place.
    positions = np.flatnonzero(((table.roi == roi) | (full == roi)) & ~np.isnan(table.x_min))
    names = sorted(set(full[positions].tolist()))
    if not len(positions):
        known = sorted(set(table.roi.tolist()))
        shown = ", ".join(known[:8]) + (f", ... ({len(known)} in all)" if len(known) > 8 else "")
        raise CubeError(f"{cube.path}: no ROI {roi!r}. The cube holds {shown}.")
    if len(names) > 1:
        raise CubeError(f"{cube.path}: ROI {roi!r} exists in several domains, pass one of {', '.join(names)}.")
    return positions


def _lattice(cube: OpenCube, roi: str, positions: NDArray[np.int64]) -> Lattice:
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


def _layer(cube: OpenCube, roi: str, name: str, lattice: Lattice) -> RoiLayer:
    stored = cube.present(name)
    cells = np.where((lattice.position >= 0) & stored[lattice.position], lattice.position, -1)
    height, width = cube.array(name).shape[-2:]
    res = lattice.footprint_m[0] / width, lattice.footprint_m[1] / height
    shape = cells.shape[0] * height, cells.shape[1] * width
    box = GeoBox(cube.patches.crs_wkt, lattice.x_min, lattice.y_max, *res, *shape)
    slots, dates = _time_axis(cube, name, cells[cells >= 0]) if modality(name).is_series else ({}, None)
    return RoiLayer(cube, name, roi, box, cells, dates, slots)


def _time_axis(
    cube: OpenCube, name: str, positions: NDArray[np.int64]
) -> tuple[dict[int, NDArray[np.int64]], NDArray[np.datetime64]]:
    """Return each patch's place of its images on the common time axis, and the axis (time,) datetime64[D]."""
    series = cube.series(name)
    keys: dict[int, list[tuple[Any, int]]] = {}
    for position in positions.tolist():
        seen: dict[Any, int] = {}
        keys[position] = []
        for day in series.dates[position, : series.n_dates[position]]:
            seen[day] = seen.get(day, -1) + 1
            keys[position].append((day, seen[day]))
    axis = sorted({key for entry in keys.values() for key in entry})
    place = {key: i for i, key in enumerate(axis)}
    slots = {position: np.array([place[key] for key in entry], dtype=np.int64) for position, entry in keys.items()}
    return slots, np.array([day for day, _ in axis], dtype="datetime64[D]")


def _mosaic(layer: RoiLayer) -> xr.Dataset:
    """One dask block per patch."""
    import dask.array as da
    import rioxarray  # noqa: F401  (registers .rio)
    import xarray as xr

    reader, (height, width), box = layer.cube.array(layer.name), layer.patch_px, layer.geobox
    rows, cols = (height,) * layer.cells.shape[0], (width,) * layer.cells.shape[1]
    times = () if layer.dates is None else (len(layer.dates),)

    def lazy(read: str, leading: tuple[int, ...], dtype: Any) -> da.Array:
        return da.map_blocks(
            partial(_read_block, layer, read),
            chunks=(*((size,) for size in leading), rows, cols),
            dtype=dtype,
            meta=np.empty((0,) * (len(leading) + 2), dtype=dtype),
        )

    dims = reader.dims[1:]
    coordinates: dict[str, Any] = {**box.coords(), reader.dims[-3]: list(modality(layer.name).bands)}
    if layer.dates is not None:
        coordinates["time"] = layer.dates.astype("datetime64[ns]")
    variables = {
        "data": (dims, lazy("read", layer.leading, reader.dtype)),
        "present": (("time", "y", "x") if times else ("y", "x"), lazy("present", times, np.dtype(bool))),
    }
    attributes = {"modality": layer.name, "fill_value": fill_value(modality(layer.name))}
    dataset = xr.Dataset(variables, coordinates, attrs=attributes)
    placed = dataset.rio.write_crs(box.crs_wkt).rio.write_transform(box.affine())
    for name in ("data", "present"):
        placed[name].encoding["grid_mapping"] = "spatial_ref"
    return placed


def _read_block(layer: RoiLayer, read: str, block_id: tuple[int, ...] = ()) -> NDArray[Any]:
    (row, col), (height, width) = block_id[-2:], layer.patch_px
    region = (row * height, (row + 1) * height), (col * width, (col + 1) * width)
    return np.asarray(getattr(layer, read)(*region))


def _shared(first: int, length: int, span: Span) -> tuple[slice, slice]:
    low, high = max(first, span[0]), min(first + length, span[1])
    return slice(low - first, high - first), slice(low - span[0], high - span[0])
