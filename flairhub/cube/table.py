"""Tables of patches: which a cube holds, where they lie, to which split they belong, what tells their valid pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.reader import ArrayReader
from flairhub.shown import facts_html, listed
from flairhub.timeseries import CloudFilter
from flairhub.validity import valid_pixels

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        facts = self.facts()
        return f"<PatchTable {facts['patches']} patches ({facts['splits']}), ROIs: {facts['ROIs']}>"

    def _repr_html_(self) -> str:
        return facts_html("Patches", self.facts())

    def facts(self) -> dict[str, Any]:
        """What is worth showing of the table."""
        splits = {split: int((self.split == split).sum()) for split in SPLITS}
        return {
            "patches": len(self),
            "splits": ", ".join(f"{split} {count}" for split, count in splits.items() if count) or "none",
            "domains": listed(sorted(set(self.domain.tolist()))),
            "ROIs": listed(self.rois),
        }

    @property
    def rois(self) -> list[str]:
        """Names of the regions of interest that have a place, sorted; with their domain where a name is not unique."""
        placed = ~np.isnan(self.x_min)
        pairs = sorted(set(zip(self.domain[placed].tolist(), self.roi[placed].tolist(), strict=True)))
        names = [roi for _, roi in pairs]
        return sorted(roi if names.count(roi) == 1 else f"{domain}_{roi}" for domain, roi in pairs)

    def to_frame(self) -> GeoDataFrame:
        """Return the table with the footprints of the patches as a GeoDataFrame, by patch id.

        Returns:
            Columns domain, roi, row, col, split and geometry, in the CRS of the cube; a patch of which nothing is
            stored has no geometry.
        """
        import geopandas
        import shapely

        width, height = self.footprint_m
        boxes = shapely.box(self.x_min, self.y_max - height, self.x_min + width, self.y_max)
        boxes[np.isnan(self.x_min)] = None
        columns = {name: getattr(self, name) for name in ("domain", "roi", "row", "col", "split")}
        frame = geopandas.GeoDataFrame(columns, geometry=boxes, crs=self.crs_wkt or None)
        return frame.set_index(geopandas.pd.Index(self.patch_id, name="patch"))

    def in_split(self, split: str) -> NDArray[np.int64]:
        """Return the positions of a split's patches, in storage order."""
        return np.flatnonzero(self.split == split)


TEXT_COLUMNS = ("patch_id", "domain", "roi", "split")
NUMBER_COLUMNS = ("row", "col", "x_min", "y_max")


@dataclass(frozen=True)
class SeriesInfo:
    """Dates of a time series.

    Attributes:
        n_dates: (patch,) int32, images of each patch; 0 where the patch is missing.
        dates: (patch, time) datetime64[D] in image order, NaT beyond `n_dates`.
    """

    n_dates: NDArray[np.int32]
    dates: NDArray[np.datetime64]


@dataclass(frozen=True)
class AverageInfo:
    """Stored period means of a series.

    Attributes:
        average: `monthly` or `semi-monthly`.
        cloud_filter: Filter that chose the dates, None = all dates.
        n_observations: (patch, period) int32, dates averaged; 0 = empty period.
        dates: (patch, period) datetime64[D], mid-period days in the year of the patch's first kept date.
    """

    average: str
    cloud_filter: CloudFilter | None
    n_observations: NDArray[np.int32]
    dates: NDArray[np.datetime64]


@dataclass(frozen=True)
class Validity:
    """What says where the patches of a modality hold data, besides their numbers; None = nothing does.

    Attributes:
        nodata: (patch,) float64, the number that stands for no data, NaN = none.
        mask: Reader of `valid`, (patch, [time,] y, x) uint8, for the patches that have a mask.
        has_mask: (patch,) bool.
    """

    nodata: NDArray[np.float64] | None
    mask: ArrayReader | None
    has_mask: NDArray[np.bool_] | None

    def everywhere(self, dtype: np.dtype[Any]) -> bool:
        """True when no pixel of this dtype can lack data."""
        return dtype.kind != "f" and self.nodata is None and self.mask is None

    def of(
        self,
        values: NDArray[Any],
        indices: Sequence[int] | NDArray[Any],
        channels: Sequence[int] | None,
        every_band: bool,
    ) -> NDArray[np.bool_] | None:
        """Apply the rule to patches (n, [time,] band, y, x): (n, [time,] y, x) bool, None = everywhere."""
        result: NDArray[np.bool_] | None = None
        for row, index in enumerate(indices):
            nodata = None if self.nodata is None else float(self.nodata[index])
            mask = None
            if self.mask is not None and self.has_mask is not None and self.has_mask[index]:
                mask = self.mask.read([index])[0] > 0
            valid = valid_pixels(values[row], nodata, mask, channels, every_band)
            if valid is not None:
                if result is None:
                    result = np.ones((len(values), *valid.shape), dtype=bool)
                result[row] = valid
        return result


class OpenCube(Protocol):
    """What the views of a cube need of it; `flairhub.cube.Cube` is one."""

    @property
    def path(self) -> str | Path:
        """Where the store is."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of what it holds."""

    @property
    def patches(self) -> PatchTable:
        """The patch table."""

    def info(self, name: str) -> Mapping[str, Any]:
        """Attributes of a modality."""

    def present(self, name: str) -> NDArray[np.bool_]:
        """(patch,) which patches have a modality."""

    def array(self, name: str) -> ArrayReader:
        """Reader of a modality."""

    def read(self, name: str, indices: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        """Patches of a modality."""

    def validity(self, name: str) -> Validity:
        """What says where patches hold data."""

    def read_valid(self, name: str, indices: Sequence[int] | NDArray[Any]) -> NDArray[np.bool_] | None:
        """Where patches hold data; None = everywhere."""

    def series(self, name: str) -> SeriesInfo:
        """Dates of a series."""
