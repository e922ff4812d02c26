"""One region of interest of a patch cube as the rasters of a zone: read by region, missing patches without data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.cube import Cube, open_cube
from flairhub.cube.roi import roi_lattice, roi_positions, time_axis
from flairhub.cube.spec import fill_value
from flairhub.cube.zone_spec import Span, ZoneLayer
from flairhub.errors import CubeError
from flairhub.geo import GeoBox
from flairhub.modalities import Kind, modality


class RoiZone:
    """The patches of an ROI as whole rasters. Make one with `open_roi_zone`; threads may share it.

    A series has every day that any of its patches has; which patch has which of them is told by `read_dated`.

    Attributes:
        path: The cube.
        roi: As it was asked for.
        attributes: Of the cube.
        layers: What the ROI holds, by modality; only those that were asked for.
    """

    def __init__(self, cube: Cube, roi: str, names: Sequence[str] | None):
        """Lay out the patches; use `open_roi_zone`."""
        self.path, self.roi, self.attributes = Path(str(cube.path)), roi, cube.attributes
        self._cube = cube
        lattice = roi_lattice(cube, roi, roi_positions(cube, roi))
        self.layers: dict[str, ZoneLayer] = {}
        self._cells: dict[str, NDArray[np.int64]] = {}
        self._slots: dict[str, dict[int, NDArray[np.int64]]] = {}
        for name in cube.modalities if names is None else names:
            row, reader = modality(name), cube.array(name)
            if row.kind is Kind.LABEL:
                continue
            present = cube.present(name)
            if row.dates_of in cube.modalities:
                # A mask without its series says nothing.
                present = present & cube.present(str(row.dates_of))
            cells = np.where((lattice.position >= 0) & present[lattice.position], lattice.position, -1)
            held = cells[cells >= 0]
            if not len(held):
                raise CubeError(f"{cube.path}: ROI {roi} has no {name}: all its patches are recorded as missing.")
            height, width = reader.shape[-2:]
            dates = None
            if row.is_series:
                if row.dates_of is not None:
                    self._check_mask(name, row.dates_of, lattice.position)
                self._slots[name], dates = time_axis(cube, name, held)
            gsd = lattice.footprint_m[0] / width, lattice.footprint_m[1] / height
            shape = cells.shape[0] * height, cells.shape[1] * width
            box = GeoBox(cube.patches.crs_wkt, lattice.x_min, lattice.y_max, *gsd, *shape)
            self._cells[name] = cells
            self.layers[name] = ZoneLayer(name, box, row.bands, str(reader.dtype), None, bool((cells < 0).any()), dates)

    def _check_mask(self, name: str, series: str, lattice: NDArray[np.int64]) -> None:
        """Raise CubeError where the series has an image and its quality mask does not."""
        if series not in self._cube.modalities:
            return
        cells = lattice[lattice >= 0]
        wanted, given = self._cube.series(series), self._cube.series(name)
        for position in cells[self._cube.present(series)[cells]]:
            n_dates = int(wanted.n_dates[position])
            same = n_dates == given.n_dates[position] and np.array_equal(
                wanted.dates[position, :n_dates], given.dates[position, :n_dates]
            )
            if not same:
                raise CubeError(
                    f"{self.path}: patch {self._cube.patch_ids[position]} has {n_dates} images of {series}, but "
                    f"{given.n_dates[position]} of {name}, or of other dates. Set filter_clouds: false for this ROI."
                )

    def read(self, name: str, rows: Span, cols: Span) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Return a region of a modality: values (..., y, x), fill values where nothing is; validity (y, x) or None.

        Raises:
            CubeError: A chunk is absent or damaged; names store, array, chunk and patch.
        """
        layer, cells = self.layers[name], self._cells[name]
        shape = rows[1] - rows[0], cols[1] - cols[0]
        out = np.full((*layer.leading, *shape), fill_value(modality(name)), dtype=layer.dtype)
        valid = np.zeros(shape, dtype=bool)
        for position, source, target in self._parts(name, rows, cols):
            patch = self._cube.read(name, [position])[0][..., source[0], source[1]]
            if name in self._slots:
                slots = self._slots[name][position]
                out[slots, :, target[0], target[1]] = patch[: len(slots)]
            else:
                out[..., target[0], target[1]] = patch
            valid[target] = True
        return out, valid if (cells < 0).any() else None

    def same_dates(self, name: str) -> bool:
        """True when every patch that has the modality has it of every day; images have no days."""
        n_times = self.layers[name].shape[0]
        return all(len(slots) == n_times for slots in self._slots.get(name, {}).values())

    def read_dated(self, name: str, rows: Span, cols: Span) -> NDArray[np.bool_] | None:
        """Return (time, y, x) where a series has an image of that day; None when every patch has every day."""
        if self.same_dates(name):
            return None
        n_times = self.layers[name].shape[0]
        out = np.zeros((n_times, rows[1] - rows[0], cols[1] - cols[0]), dtype=bool)
        for position, _, target in self._parts(name, rows, cols):
            out[self._slots[name][position], target[0], target[1]] = True
        return out

    def _parts(self, name: str, rows: Span, cols: Span) -> list[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
        """Patches that a region touches: position, what of the patch, and where it goes."""
        cells, box = self._cells[name], self.layers[name].geobox
        height, width = box.height // cells.shape[0], box.width // cells.shape[1]
        parts = []
        for i in range(rows[0] // height, -(-rows[1] // height)):
            for j in range(cols[0] // width, -(-cols[1] // width)):
                if cells[i, j] < 0:
                    continue
                y, x = _shared(i * height, height, rows), _shared(j * width, width, cols)
                parts.append((int(cells[i, j]), (y[0], x[0]), (y[1], x[1])))
        return parts


def open_roi_zone(cube: Cube | str | Path, roi: str, names: Sequence[str] | None = None) -> RoiZone:
    """Open one ROI of a patch cube as the rasters of a zone.

    Args:
        cube: An open cube or its path.
        roi: As `AF-S1-27`, or `D012-2019_AF-S1-27` when several domains have it.
        names: Modalities that are needed; None = all but labels.

    Raises:
        CubeError: Unknown or ambiguous ROI, a modality that is not there, patches that do not lie on one lattice.
    """
    return RoiZone(cube if isinstance(cube, Cube) else open_cube(cube), roi, names)


def _shared(first: int, length: int, span: Span) -> tuple[slice, slice]:
    low, high = max(first, span[0]), min(first + length, span[1])
    return slice(low - first, high - first), slice(low - span[0], high - span[0])
