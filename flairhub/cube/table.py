"""The patch table: which patches a cube holds, where they lie, and to which split they belong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class PatchTable:
    """One entry per patch, in storage order (domain, ROI, row, column).

    Attributes:
        patch_id: (patch,) str, `<DOMAIN>_<ROI>_<row>-<col>`.
        domain: (patch,) str.
        roi: (patch,) str.
        row: (patch,) int32, lattice row in the id.
        col: (patch,) int32, lattice column in the id.
        x_min: (patch,) float64, left edge in CRS units (metres).
        y_max: (patch,) float64, upper edge.
        split: (patch,) str: `train`, `valid`, `test`, or empty.
        crs_wkt: CRS of all patches.
        footprint_m: (width, height) of a patch in CRS units.
    """

    patch_id: NDArray[np.str_]
    domain: NDArray[np.str_]
    roi: NDArray[np.str_]
    row: NDArray[np.int32]
    col: NDArray[np.int32]
    x_min: NDArray[np.float64]
    y_max: NDArray[np.float64]
    split: NDArray[np.str_]
    crs_wkt: str
    footprint_m: tuple[float, float]

    def __len__(self) -> int:
        return len(self.patch_id)

    def in_split(self, split: str) -> NDArray[np.int64]:
        """Return the positions of a split's patches, in storage order."""
        return np.flatnonzero(self.split == split)


TEXT_COLUMNS = ("patch_id", "domain", "roi", "split")
NUMBER_COLUMNS = ("row", "col", "x_min", "y_max")
