"""Grids: CRS, transform and shape, and how grids of different resolution fit each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import DataError
from flairhub.tiff import Read, has_no_place, read_with

if TYPE_CHECKING:
    from rasterio.transform import Affine

ALIGNMENT_TOLERANCE_PX = 0.01
"""How far grids may be off before they count as different, in pixels of the finer grid."""

_AREA_TOLERANCE = 0.01

MAX_RATIO_DENOMINATOR = 5
"""Grids fit when the ratio of their pixels is a multiple of 1/5 at most: the published 10.24 m over 0.2 m is 256/5."""


@dataclass(frozen=True)
class GeoBox:
    """A north-up pixel grid.

    Attributes:
        crs_wkt: Coordinate reference system as WKT; empty = none.
        x_min: Left edge of the left column, CRS units.
        y_max: Upper edge of the upper row.
        x_res: Pixel width, above 0.
        y_res: Pixel height, above 0.
        height: Rows.
        width: Columns.
    """

    crs_wkt: str
    x_min: float
    y_max: float
    x_res: float
    y_res: float
    height: int
    width: int

    @property
    def metres(self) -> float:
        """Length of the unit of its CRS in metres; 1 where it is unknown, or no length."""
        return metres_per_unit(self.crs_wkt) or 1.0

    @property
    def x_res_m(self) -> float:
        """Pixel width in metres."""
        return self.x_res * self.metres

    @property
    def pixel_m2(self) -> float:
        """Area of a pixel in square metres of its CRS's plane; see `area_note`."""
        return self.x_res * self.y_res * self.metres**2

    @property
    def x_max(self) -> float:
        """Right edge of the right column."""
        return self.x_min + self.width * self.x_res

    @property
    def y_min(self) -> float:
        """Lower edge of the lower row."""
        return self.y_max - self.height * self.y_res

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top)."""
        return self.x_min, self.y_min, self.x_max, self.y_max

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """Affine coefficients (a, b, c, d, e, f) in rasterio's order."""
        return self.x_res, 0.0, self.x_min, 0.0, -self.y_res, self.y_max

    def affine(self) -> Affine:
        """The same coefficients as rasterio's Affine: (column, row) to (x, y), whole numbers at pixel corners."""
        from rasterio.transform import Affine

        return Affine(*self.transform)

    def coords(self) -> dict[str, NDArray[np.float64]]:
        """Centres of the pixels in CRS units: `y` (y,), falling, and `x` (x,), rising.

        Computed as rasterio and rioxarray do, from the pixel's number: adding up steps would add up their rounding.
        """
        rows = np.arange(self.height, dtype=np.float64)
        columns = np.arange(self.width, dtype=np.float64)
        return {"y": self.y_max - (rows + 0.5) * self.y_res, "x": self.x_min + (columns + 0.5) * self.x_res}

    def crop(self, row: int, col: int, height: int, width: int) -> GeoBox:
        """Return the grid of a window, in pixels; it may reach outside."""
        return GeoBox(
            self.crs_wkt,
            self.x_min + col * self.x_res,
            self.y_max - row * self.y_res,
            self.x_res,
            self.y_res,
            height,
            width,
        )

    def resized(self, height: int, width: int) -> GeoBox:
        """Return the grid of the same bounds with another number of pixels."""
        return GeoBox(
            self.crs_wkt,
            self.x_min,
            self.y_max,
            self.width * self.x_res / width,
            self.height * self.y_res / height,
            height,
            width,
        )


def geobox_of(dataset: Any, where: str, read: Read | None = None) -> GeoBox:
    """Return the grid of an open rasterio dataset.

    Terms of rotation that move no pixel of the raster by more than the alignment tolerance are rounding.

    Args:
        dataset: Open `rasterio.DatasetReader`.
        where: File name for messages.
        read: Gives bytes of the file where it has no name in the file system.

    Raises:
        DataError: The raster has no georeferencing, is rotated, or is not north-up.
    """
    a, b, c, d, e, f = tuple(dataset.transform)[:6]
    if (a, b, c, d, e, f) == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0):
        raise DataError(f"{where}: no georeferencing found. {_without_transform(dataset)}")
    if (
        (c, f) == (0.0, 0.0)
        and dataset.driver == "GTiff"
        and (read_with(dataset.name, has_no_place) if read is None else has_no_place(read))
    ):
        raise DataError(
            f"{where}: has a pixel size, but no tie point that says where its pixels lie. Give its corners, e.g. "
            f"gdal_edit.py -a_ullr LEFT TOP RIGHT BOTTOM FILE."
        )
    if is_rotated(a, b, d, e, dataset.height, dataset.width):
        raise DataError(f"{where}: the raster is rotated (transform {(a, b, c, d, e, f)}). Expected north-up.")
    if a <= 0 or e >= 0:
        raise DataError(
            f"{where}: pixel size ({a}, {e}) is not north-up. Expected positive x and negative y; warp the file first."
        )
    wkt = dataset.crs.to_wkt() if dataset.crs else ""
    return GeoBox(wkt, c, f, a, -e, dataset.height, dataset.width)


GEOGRAPHIC = "a geographic CRS has no metres. Warp it to a projected one first, e.g. gdalwarp -t_srs EPSG:2154 IN OUT."
"""What to say about a grid in degrees."""


def is_geographic(wkt: str) -> bool:
    """True for a CRS whose coordinates are angles."""
    from rasterio.crs import CRS

    return bool(wkt) and bool(CRS.from_wkt(wkt).is_geographic)


def area_note(box: GeoBox) -> str:
    """Say how areas counted in pixels differ from those on the ground, where that is more than a hundredth.

    The scale of areas is that of the map projection at the middle of the grid.
    """
    import pyproj

    if not box.crs_wkt or metres_per_unit(box.crs_wkt) is None:
        return ""
    crs = pyproj.CRS.from_wkt(horizontal_wkt(box.crs_wkt))
    if crs.geodetic_crs is None:
        return ""
    middle = (box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2
    place = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(*middle)
    scale = pyproj.Proj(crs).get_factors(*place).areal_scale
    if not abs(scale - 1) > _AREA_TOLERANCE:
        return ""
    return (
        f"Areas are counted in the plane of {crs_name(box.crs_wkt)}, which at the middle of the map shows them "
        f"{scale:.3f} times as large as they are. Reproject to an equal-area CRS (EPSG:3035 in Europe) to measure."
    )


def is_rotated(a: float, b: float, d: float, e: float, height: int, width: int) -> bool:
    """True when the terms of rotation move a corner of the raster by more than the alignment tolerance.

    Args:
        a: x per column.
        b: x per row.
        d: y per column.
        e: y per row.
        height: Rows.
        width: Columns.
    """
    drift = max(abs(b) * height, abs(d) * width)
    return not drift <= ALIGNMENT_TOLERANCE_PX * min(abs(a), abs(e))


def _without_transform(dataset: Any) -> str:
    points, _ = dataset.gcps
    if points:
        return (
            f"It has {len(points)} ground control points instead of a transform: warp it to a grid first, e.g. "
            f"gdalwarp -t_srs EPSG:2154 IN OUT."
        )
    return "Expected a transform and a CRS in the file."


def same_crs(first_wkt: str, second_wkt: str) -> bool:
    """True when the horizontal parts of two CRS mean the same, however they are written."""
    if first_wkt == second_wkt:
        return True
    if not first_wkt or not second_wkt:
        return False
    from rasterio.crs import CRS

    first, second = CRS.from_wkt(first_wkt), CRS.from_wkt(second_wkt)
    if first == second:
        return True
    codes = first.to_epsg(confidence_threshold=70), second.to_epsg(confidence_threshold=70)
    if codes[0] is not None and codes[0] == codes[1]:
        return True
    flat = horizontal_wkt(first_wkt), horizontal_wkt(second_wkt)
    return flat != (first_wkt, second_wkt) and same_crs(*flat)


def alignment_tolerance(box: GeoBox) -> float:
    """How far bounds may be off those of a grid, in its units: however far from the origin in float64."""
    return ALIGNMENT_TOLERANCE_PX * box.x_res + 4 * float(np.spacing(max(abs(bound) for bound in box.bounds)))


def same_grid(one: GeoBox, other: GeoBox) -> bool:
    """True when two grids have as many pixels, at the same places up to the tolerance."""
    if (one.height, one.width) != (other.height, other.width) or not same_crs(one.crs_wkt, other.crs_wkt):
        return False
    tolerance = alignment_tolerance(other)
    return all(abs(a - b) <= tolerance for a, b in zip(one.bounds, other.bounds, strict=True))


@lru_cache(maxsize=256)
def horizontal_wkt(wkt: str) -> str:
    """Return the CRS without a vertical part: of a compound CRS its first, of a three-dimensional one its plane."""
    import pyproj

    crs = pyproj.CRS.from_wkt(wkt)
    flat = crs.sub_crs_list[0] if crs.is_compound else crs
    flat = flat.to_2d() if len(flat.axis_info) > 2 else flat
    return wkt if flat is crs else str(flat.to_wkt())


@lru_cache(maxsize=256)
def metres_per_unit(wkt: str) -> float | None:
    """Return the length of a CRS's unit; None for degrees, and where the unit is unknown."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        crs = CRS.from_wkt(wkt)
        if not crs.is_projected and crs.is_geographic:
            return None
        factor = float(crs.linear_units_factor[1])
    except CRSError:
        return None
    return None if crs.is_geographic or not factor > 0 else factor


def crs_name(wkt: str) -> str:
    """Short name of a CRS for messages: `EPSG:2154`, its own name, or `none`."""
    if not wkt:
        return "none"
    from rasterio.crs import CRS

    crs = CRS.from_wkt(wkt)
    epsg = crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else str(wkt.split('"')[1] if '"' in wkt else wkt[:40])


def integer_ratio(coarse_res: float, fine_res: float, length_px: int) -> int | None:
    """Return how many fine pixels one coarse pixel covers, or None when that is no whole number.

    Args:
        coarse_res: Larger pixel size.
        fine_res: Smaller pixel size.
        length_px: Coarse pixels over which the rounding may add up to at most the alignment tolerance.
    """
    ratio = round(coarse_res / fine_res)
    drift = abs(coarse_res - ratio * fine_res) * length_px
    return ratio if ratio >= 1 and drift <= ALIGNMENT_TOLERANCE_PX * fine_res else None


@contextmanager
def geopackage_time(day: str = "2000-01-01") -> Iterator[None]:
    """Give GeoPackages written inside a `with` statement a fixed time of change.

    They carry the time of writing, which GDAL lets the caller set: the same features give the same bytes.

    Args:
        day: `YYYY-MM-DD`; the time is midnight, UTC.
    """
    import pyogrio

    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": f"{day}T00:00:00.000Z"})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def lattice_of(ratios: Sequence[Fraction]) -> int:
    """Return the smallest number of finest pixels that is a whole number of pixels of every grid.

    Args:
        ratios: Finest pixels per pixel of each grid, all at least 1.
    """
    return lcm(*(ratio.numerator for ratio in ratios)) if ratios else 1
