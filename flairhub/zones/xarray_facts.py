"""What an xarray object says about itself: dimensions, bands, grid, CRS, dates, values without meaning.

Only metadata and coordinates are read, never a pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError

from flairhub.errors import ZoneError
from flairhub.geo import ALIGNMENT_TOLERANCE_PX, GeoBox, is_rotated
from flairhub.modalities import Modality

if TYPE_CHECKING:
    import xarray as xr

_NAMES = {
    "time": ("time", "t", "Time", "T"),
    "band": ("band", "bands", "Band", "Bands"),
    "y": ("y", "Y"),
    "x": ("x", "X"),
}
"""Dimensions by the names that are understood."""

_DEGREES = {"longitude", "latitude", "lon", "lat"}
_NODATA_KEYS = ("_FillValue", "missing_value", "fill_value", "nodata")
_PROJECT = (
    "A zone is measured in metres: reproject it first, e.g. `array.rio.reproject('EPSG:2154')` or odc-geo's "
    "`xr_reproject`."
)

Dims = Mapping[str, str]
"""Names of an array's dimensions by what they are: `time`, `band`, `y`, `x`; what it lacks is absent."""


@dataclass(frozen=True)
class Packing:
    """How the numbers of a band that was not decoded become values: number x scale + offset.

    Attributes:
        scale: Factor.
        offset: Summand.
        fill: Number that stands for no data, before scaling; None = none.
    """

    scale: float
    offset: float
    fill: float | None


@dataclass(frozen=True)
class Grid:
    """Where an array lies.

    Attributes:
        geobox: North-up.
        south_up: Its rows go from south to north.
        mirrored: Its columns go from east to west.
    """

    geobox: GeoBox
    south_up: bool
    mirrored: bool


def dims_of(array: xr.DataArray, row: Modality, where: str) -> Dims:
    """Return what each dimension of an array is.

    Args:
        array: (time,) band, y, x in any order.
        row: The modality that it holds.
        where: What names it in messages.

    Raises:
        ZoneError: Degrees, an unknown dimension, or one that is missing or does not belong to the modality.
    """
    names = [str(name) for name in array.dims]
    if {name.lower() for name in names} & _DEGREES:
        raise ZoneError(f"{where}: has dimensions {', '.join(names)}: a geographic CRS has no metres. {_PROJECT}")
    dims: dict[str, str] = {}
    for name in names:
        what = next((what for what, known in _NAMES.items() if name in known), None)
        if what is None or what in dims:
            raise ZoneError(
                f"{where}: has dimensions {', '.join(names)}, expected y and x, and band and time where there are "
                f"some. Rename or select {name!r}."
            )
        dims[what] = name
    missing = [what for what in ("y", "x") if what not in dims]
    if missing:
        raise ZoneError(f"{where}: has dimensions {', '.join(names)}, but no {' and no '.join(missing)}.")
    if "time" in dims and not row.is_series and array.sizes[dims["time"]] != 1:
        raise ZoneError(
            f"{where}: has {array.sizes[dims['time']]} dates, but {row.name} is an image. Select one, e.g. "
            f"`.isel({dims['time']}=0)`."
        )
    return dims


def bands_by_label(labels: Sequence[object], row: Modality, where: str) -> list[tuple[str, int]]:
    """Return the published bands among some labels, in published order, and where each one is.

    Args:
        labels: Of the bands, in their order.
        row: The modality that it holds.
        where: What names it in messages.

    Raises:
        ZoneError: None is known, or two mean the same.
    """
    positions: dict[str, int] = {}
    for position, label in enumerate(labels):
        band = row.published_band(label)
        if band is None:
            continue
        if band in positions:
            raise ZoneError(f"{where}: {labels[positions[band]]} and {label} both mean {band}. Keep one.")
        positions[band] = position
    if not positions:
        raise ZoneError(
            f"{where}: bands {', '.join(map(str, labels))}, expected some of {', '.join(row.bands)} by name, or the "
            f"numbers 1..{len(labels)}. Rename them."
        )
    return [(band, positions[band]) for band in row.bands if band in positions]


def bands_of(array: xr.DataArray, dims: Dims, row: Modality, where: str) -> list[tuple[str, int]]:
    """Return the names of an array's bands and their positions: by names, by the numbers 1..N, or by their count.

    Args:
        array: (time,) band, y, x in any order.
        dims: What its dimensions are, see `dims_of`.
        row: The modality that it holds.
        where: What names it in messages.

    Raises:
        ZoneError: Names or numbers that do not say which band is which, or as many bands as cannot be.
    """
    if "band" not in dims:
        label = _scalar_band(array)
        band = row.bands[0] if len(row.bands) == 1 else label and row.published_band(label)
        if band:
            return [(band, 0)]
        raise ZoneError(
            f"{where}: has no dimension band, but {row.name} has {len(row.bands)} bands ({', '.join(row.bands)}). "
            f"Give them, or say which one it is with a coordinate `band`."
        )
    n_bands = array.sizes[dims["band"]]
    if dims["band"] not in array.coords:
        if n_bands != len(row.bands):
            raise ZoneError(
                f"{where}: has {n_bands} bands without names, expected {len(row.bands)} ({', '.join(row.bands)}). Say "
                f"which they are: `.assign_coords({dims['band']}=[...])`."
            )
        return list(zip(row.bands, range(n_bands), strict=True))
    labels = array[dims["band"]].values.tolist()
    if all(isinstance(label, int | float) for label in labels):
        return _by_number(labels, row, where)
    return bands_by_label(labels, row, where)


def _scalar_band(array: xr.DataArray) -> str | None:
    for name in _NAMES["band"]:
        if name in array.coords and not array.coords[name].ndim:
            return str(array.coords[name].item())
    return None


def _by_number(labels: list[float], row: Modality, where: str) -> list[tuple[str, int]]:
    count = len(labels)
    if sorted(labels) != list(range(1, count + 1)):
        raise ZoneError(
            f"{where}: bands {labels}, expected the numbers 1..{count} or the names {', '.join(row.bands)}. "
            f"Say which they are by name."
        )
    names = row.bands if count == len(row.bands) else [str(number) for number in range(1, count + 1)]
    return [(name, labels.index(number)) for number, name in enumerate(names, start=1)]


def dates_of(array: xr.DataArray, dims: Dims, where: str) -> NDArray[np.datetime64] | None:
    """Return (time,) datetime64[D] of an array's time coordinate; None where it has none.

    Args:
        array: (time,) band, y, x in any order.
        dims: What its dimensions are, see `dims_of`.
        where: What names it in messages.

    Raises:
        ZoneError: The coordinate holds no dates.
    """
    name = dims.get("time") or next((name for name in _NAMES["time"] if name in array.coords), None)
    if name is None or name not in array.coords:
        return None
    values = np.atleast_1d(array[name].values)
    if values.dtype.kind != "M" or np.isnat(values).any():
        raise ZoneError(f"{where}: coordinate {name} is {values.dtype}, expected a datetime64 for every image.")
    days: NDArray[np.datetime64] = values.astype("datetime64[D]")
    return days


def grid_of(array: xr.DataArray, dims: Dims, crs_wkt: str, where: str) -> Grid:
    """Return the grid of an array from its coordinates, which are pixel centres.

    Args:
        array: (time,) band, y, x in any order.
        dims: What its dimensions are, see `dims_of`.
        crs_wkt: Its CRS.
        where: What names it in messages.

    Raises:
        ZoneError: No or irregular coordinates, or a rotated transform.
    """
    declared = _transform(array, (array.sizes[dims["y"]], array.sizes[dims["x"]]), where)
    axes = {}
    for axis in ("x", "y"):
        name, length = dims[axis], array.sizes[dims[axis]]
        if not length:
            raise ZoneError(f"{where}: has no pixel along {name}.")
        nominal = None if declared is None else declared[axis]
        axes[axis] = _axis(array[name].values if name in array.coords else None, length, nominal, f"{where}: {name}")
    for axis, other in (("x", "y"), ("y", "x")):
        first, step = axes[axis]
        if not step:
            # A single pixel is as wide as high.
            step = abs(axes[other][1]) * (1 if axis == "x" else -1)
            axes[axis] = first - step / 2, step
    (left, x_step), (top, y_step) = axes["x"], axes["y"]
    height, width = array.sizes[dims["y"]], array.sizes[dims["x"]]
    if not x_step or not y_step:
        raise ZoneError(f"{where}: a single pixel, of which nothing says the size. Write its transform.")
    x_min, y_max = min(left, left + width * x_step), max(top, top + height * y_step)
    return Grid(GeoBox(crs_wkt, x_min, y_max, abs(x_step), abs(y_step), height, width), y_step > 0, x_step < 0)


def _axis(
    centres: NDArray[Any] | None, length: int, declared: tuple[float, float] | None, where: str
) -> tuple[float, float]:
    """Edge of the first pixel and distance to the next, negative where they fall; for one pixel its centre and 0."""
    if centres is None:
        if declared is None:
            raise ZoneError(f"{where} has no coordinate, and nothing else says where the pixels are.")
        return declared
    if centres.dtype.kind not in "iuf" or not np.isfinite(centres).all():
        raise ZoneError(f"{where} is {centres.dtype}, expected finite numbers: centres of pixels in metres.")
    noise = float(np.spacing(np.abs(centres).max())) if centres.dtype.kind == "f" else 0.0
    values = centres.astype(np.float64)
    noise = 4 * max(noise, float(np.spacing(np.abs(values).max())))
    if length == 1:
        centre = float(values[0])
        agrees = declared is not None and abs(declared[0] + declared[1] / 2 - centre) <= noise + 1e-6 * abs(declared[1])
        return declared if declared is not None and agrees else (centre, 0.0)
    step = (values[-1] - values[0]) / (length - 1)
    ideal = values[0] + step * np.arange(length)
    worst = float(np.abs(values - ideal).max())
    if not step or worst > ALIGNMENT_TOLERANCE_PX * abs(step):
        share = worst / abs(step) if step else np.inf
        raise ZoneError(
            f"{where} is not evenly spaced: centres are up to {worst:g} ({share:.3g} px) off a step of {step:g}, "
            f"tolerance {ALIGNMENT_TOLERANCE_PX} px. Put it on a regular grid (float64 coordinates), or reproject it."
        )
    step = _roundest(float(step), noise / (length - 1))
    return _roundest(float(values[0]) - step / 2, noise), step


def _roundest(value: float, tolerance: float) -> float:
    """The number of fewest decimals within a tolerance: coordinates carry the rounding of large numbers."""
    for digits in range(13):
        if abs(round(value, digits) - value) <= tolerance:
            return round(value, digits)
    return value


def _transform(array: xr.DataArray, shape: tuple[int, int], where: str) -> dict[str, tuple[float, float]] | None:
    """Edge of the first pixel and step to the next along x and y, where an array declares them."""
    declared = array.attrs.get("spatial:transform")
    if declared is not None:
        a, b, c, d, e, f = (float(number) for number in list(declared)[:6])
    else:
        mapping = _grid_mapping(array)
        text = None if mapping is None else mapping.attrs.get("GeoTransform")
        if text is None:
            return None
        c, a, b, f, d, e = (float(number) for number in str(text).split())
    if is_rotated(a, b, d, e, *shape):
        raise ZoneError(f"{where}: its grid is rotated (transform {(a, b, c, d, e, f)}). Warp it to north-up first.")
    return {"x": (c, a), "y": (f, e)}


def _grid_mapping(array: xr.DataArray) -> xr.DataArray | None:
    name = array.encoding.get("grid_mapping", array.attrs.get("grid_mapping", "spatial_ref"))
    return array.coords.get(name)


def crs_of(array: xr.DataArray, others: Mapping[str, Any], where: str) -> str:
    """Return the CRS of an array as WKT: from rioxarray, odc-geo, the CF grid mapping, or `proj:` attributes.

    Args:
        array: The array.
        others: Attributes of the Dataset around it.
        where: For messages.

    Raises:
        ZoneError: There is none, or it has no metres.
    """
    crs = _rio_crs(array) or _declared_crs(array, others, where) or _odc_crs(array)
    if crs is None:
        raise ZoneError(f"{where}: has no CRS. Write it, e.g. `array.rio.write_crs('EPSG:2154')`.")
    if crs.is_geographic:
        raise ZoneError(f"{where}: is in {crs.to_string()[:40]}: a geographic CRS has no metres. {_PROJECT}")
    return str(crs.to_wkt())


def _rio_crs(array: xr.DataArray) -> CRS | None:
    import rioxarray  # noqa: F401  (adds `.rio`)
    from rioxarray.exceptions import RioXarrayError

    try:
        return array.rio.crs
    except (RioXarrayError, CRSError):
        return None


def _odc_crs(array: xr.DataArray) -> CRS | None:
    """What odc-geo knows, which adds `.odc` where it is loaded."""
    odc = getattr(array, "odc", None)
    return None if odc is None or odc.crs is None else CRS.from_user_input(odc.crs.to_wkt())


def _declared_crs(array: xr.DataArray, others: Mapping[str, Any], where: str) -> CRS | None:
    scalars = {str(name): coord.item() for name, coord in array.coords.items() if not coord.ndim and name != "time"}
    for facts in (array.attrs, others, scalars):
        for key in ("proj:code", "proj:wkt2", "proj:projjson", "proj:epsg", "epsg", "crs"):
            value = facts.get(key)
            if value is None:
                continue
            try:
                return CRS.from_user_input(int(value) if key.endswith("epsg") else value)
            except (CRSError, ValueError, TypeError) as error:
                raise ZoneError(f"{where}: {key} is no CRS ({error}).") from None
    return _coordinate_crs(array, where)


def _coordinate_crs(array: xr.DataArray, where: str) -> CRS | None:
    """A CRS that only the attributes of a coordinate name: one that no grid mapping points to, or `crs` of x and y."""
    named = {}
    for name, coord in array.coords.items():
        for key in ("spatial_ref", "crs_wkt", "crs"):
            if coord.attrs.get(key) is not None:
                try:
                    named[name] = CRS.from_user_input(coord.attrs[key])
                except (CRSError, ValueError, TypeError) as error:
                    raise ZoneError(f"{where}: {key} of the coordinate {name} is no CRS ({error}).") from None
                break
    crs = next(iter(named.values()), None)
    if any(other != crs for other in named.values()):
        raise ZoneError(
            f"{where}: its coordinates {', '.join(map(str, named))} name different CRS. Say which one holds with "
            f"`.rio.write_crs`."
        )
    return crs


def nodata_of_array(array: xr.DataArray) -> float | None:
    """Return the number without meaning of an array as it is now; NaN always is.

    xarray moves `_FillValue` to the encoding when it has put NaN in its place: then the number may be a value.
    """
    candidates = [array.attrs.get(key) for key in _NODATA_KEYS]
    if array.dtype.kind in "iu":
        candidates += [array.encoding.get(key) for key in _NODATA_KEYS]
    declared = [float(value) for value in candidates if value is not None]
    if not declared and not any(array.encoding.get(key) is not None for key in _NODATA_KEYS):
        # `rio.set_nodata` leaves no attribute.
        decoded = array.rio.nodata
        declared = [] if decoded is None else [float(decoded)]
    return next((value for value in declared if not np.isnan(value)), None)


def packing_of(array: xr.DataArray) -> Packing | None:
    """Return how the numbers become values; None where they are values already.

    Scale and offset among the attributes are still to be applied, those in the encoding have been.
    """
    scale, offset = float(array.attrs.get("scale_factor", 1.0)), float(array.attrs.get("add_offset", 0.0))
    return None if (scale, offset) == (1.0, 0.0) else Packing(scale, offset, nodata_of_array(array))
