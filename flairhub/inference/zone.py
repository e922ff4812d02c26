"""A zone: rasters of one area, checked from their headers before a pixel is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube import open_cube
from flairhub.cube.roi_zone import RoiZone, open_roi_zone
from flairhub.cube.zone import ZoneCube, open_zone_cube
from flairhub.cube.zone_spec import ZoneLayer, ZoneRaster
from flairhub.errors import ZoneError
from flairhub.geo import ALIGNMENT_TOLERANCE_PX, GeoBox, crs_name, same_crs
from flairhub.inference.align import warped_onto
from flairhub.inference.cubes import ROI_VIEW, ZONE_CUBE, cube_stamp, same_dates
from flairhub.inference.dates import read_dates
from flairhub.inference.rasters import RasterSource, describe_raster, read_region
from flairhub.inference.resample import output_length, output_ratio
from flairhub.inference.windows import AxisWindows, lattice_of, plan_axis
from flairhub.modalities import INPUTS, MODALITIES

if TYPE_CHECKING:
    import xarray as xr

MAX_RATIO_DENOMINATOR = 5
"""Grids fit when the ratio of their pixels is a multiple of 1/5 at most: the published 10.24 m over 0.2 m is 256/5."""


@dataclass(frozen=True)
class RasterRequest:
    """One modality of a zone, as a configuration names it.

    Attributes:
        name: Modality.
        path: GeoTIFF.
        dates_path: Date file of a series.
        quality_path: GeoTIFF of the series' quality mask; None = not needed.
        key: Configuration key of the modality, for messages.
    """

    name: str
    path: Path
    dates_path: Path | None = None
    quality_path: Path | None = None
    key: str = ""


@dataclass(frozen=True)
class Zone:
    """Rasters of one area on grids that fit each other.

    Attributes:
        geobox: Grid of the finest modality: the grid windows are laid on.
        sources: Raster of each modality, in network order.
        quality: Quality mask by the series it belongs to.
        dates: (time,) datetime64[D] by series.
        window_px: Window length in finest pixels, halo included.
        margin_px: Pixels cut off on each side of a window, at least.
        output_px_m: Pixel of the maps in metres; None = the finest grid.
        batch_size: Windows per call of the network.
    """

    geobox: GeoBox
    sources: Mapping[str, RasterSource]
    quality: Mapping[str, RasterSource]
    dates: Mapping[str, NDArray[np.datetime64]]
    window_px: int
    margin_px: int
    output_px_m: float | None = None
    batch_size: int = 1

    def rasters(self) -> list[ZoneRaster]:
        """Return the rasters and masks, ready to be ingested: `flairhub.ingest_zone(zone, cube=...)`.

        Raises:
            ZoneError: Patches of a region of interest differ in their dates, which one raster cannot.
        """
        found = {}
        for series, source in [*((None, one) for one in self.sources.values()), *self.quality.items()]:
            if source.driver == ROI_VIEW and not same_dates(source):
                raise ZoneError(
                    f"{source.path}: {source.name}: the patches of ROI {source.roi} differ in their dates, which one "
                    f"raster cannot. Map the region itself, with cube and roi."
                )
            found[source.name] = zone_raster(source, self.dates.get(series or source.name))
        return [found[name] for name in MODALITIES if name in found]

    @property
    def lattice_px(self) -> int:
        """Finest pixels in which every modality has whole pixels."""
        return lattice_of([source.ratio for source in self.sources.values()])

    @property
    def ratio(self) -> Fraction:
        """Finest pixels per output pixel."""
        return output_ratio(self.output_px_m, self.geobox.x_res)

    @property
    def output_geobox(self) -> GeoBox:
        """Grid of the maps; its last row and column may reach beyond the zone by part of a pixel."""
        box, ratio = self.geobox, self.ratio
        height, width = output_length(box.height, ratio), output_length(box.width, ratio)
        x_res, y_res = float(box.x_res * ratio), float(box.y_res * ratio)
        return GeoBox(box.crs_wkt, box.x_min, box.y_max, x_res, y_res, height, width)

    def axes(self) -> tuple[AxisWindows, AxisWindows]:
        """Windows along y and x.

        Raises:
            UsageError: Window and margin do not fit the modalities' pixels.
        """
        lattice = self.lattice_px
        rows = plan_axis(self.geobox.height, self.window_px, self.margin_px, lattice)
        return rows, plan_axis(self.geobox.width, self.window_px, self.margin_px, lattice)

    def to_xarray(self, chunk_px: int = 1024) -> xr.DataTree:
        """Return the rasters as lazy xarray: one node per modality and quality mask, each on its own grid.

        Args:
            chunk_px: Chunk length along y and x, in each modality's own pixels.

        Returns:
            DataTree of datasets with one variable `data`: (band, y, x) or (time, band, y, x), coordinates `band`,
            `x`, `y` (pixel centres), `time` and the CRS in `spatial_ref`.
        """
        from flairhub.inference.lazy import zone_tree

        return zone_tree(self, chunk_px)


def build_zone(
    requests: Sequence[RasterRequest],
    *,
    window_px: int,
    margin_px: int,
    output_px_m: float | None = None,
    batch_size: int = 1,
    resample: bool = False,
) -> Zone:
    """Check rasters from their headers and fit their grids.

    Args:
        requests: The modalities.
        window_px: Window length in finest pixels.
        margin_px: Margin in finest pixels.
        output_px_m: Pixel of the maps; None = the finest grid.
        batch_size: Windows per call of the network.
        resample: Warp rasters of another CRS, extent or pixel onto the finest raster's grid and extent.

    Raises:
        ZoneError: A raster is missing or no GeoTIFF, numbers of bands and dates do not fit, or grids do not.
        DataError: A raster without georeferencing, or a damaged date file.
        UsageError: Window, margin or output pixel do not fit the grids.
    """
    if not requests:
        raise ZoneError("no input is enabled. Enable at least one under modalities.inputs.")
    ordered = sorted(requests, key=lambda request: INPUTS.index(request.name))
    dates: dict[str, NDArray[np.datetime64]] = {}
    sources: dict[str, RasterSource] = {}
    quality: dict[str, RasterSource] = {}
    for request in ordered:
        source = describe_raster(request.path, request.name, f"{request.key}.input_img_path")
        if MODALITIES[request.name].is_series:
            dates[request.name] = _dates_of(request)
        sources[request.name] = _split_bands(source, request, len(dates.get(request.name, ())))
        mask_name = MODALITIES[request.name].quality_mask
        if request.quality_path is not None and mask_name is not None:
            mask = describe_raster(request.quality_path, mask_name, f"{request.key}.filter_clouds_img_path")
            quality[request.name] = _split_bands(mask, request, len(dates[request.name]))
    return _fit(sources, quality, dates, window_px, margin_px, output_px_m, batch_size, resample)


def zone_of_cube(
    path: Path,
    roi: str | None,
    names: Sequence[str],
    *,
    window_px: int,
    margin_px: int,
    output_px_m: float | None = None,
    batch_size: int = 1,
    without_mask: Sequence[str] = (),
) -> Zone:
    """Take the rasters of a zone from a zone cube, or from one region of interest of a patch cube.

    Args:
        path: The cube.
        roi: Region of interest of a patch cube; None for a zone cube.
        names: Inputs.
        window_px: Window length in finest pixels.
        margin_px: Margin in finest pixels.
        output_px_m: Pixel of the maps; None = the finest grid.
        batch_size: Windows per call of the network.
        without_mask: Series whose quality mask is not wanted.

    Raises:
        CubeError: No such cube or region, or a damaged one.
        ZoneError: It does not hold an input, or grids do not fit.
        UsageError: Window, margin or output pixel do not fit the grids.
    """
    ordered = sorted(names, key=INPUTS.index)
    masks = {name: MODALITIES[name].quality_mask for name in ordered if name not in without_mask}
    if roi is not None:
        cube = open_cube(path.absolute())
        _check_held(path, ordered, cube.modalities)
        wanted = [name for name in (*ordered, *masks.values()) if name in cube.modalities]
        area: RoiZone | ZoneCube = open_roi_zone(cube, roi, wanted)
    else:
        area = open_zone_cube(path)
        _check_held(path, ordered, area.layers)
    stamp = cube_stamp(area)
    found = {layer.name: _source_of_layer(layer, area.path, roi, stamp) for layer in area.layers.values()}
    quality = {series: found[mask] for series, mask in masks.items() if mask in found}
    dates = {name: area.layers[name].dates for name in ordered if area.layers[name].dates is not None}
    sources = {name: found[name] for name in ordered}
    for series, mask in quality.items():
        if mask.n_dates != sources[series].n_dates:
            raise ZoneError(
                f"{path}: {mask.name} has {mask.n_dates} dates, but {series} has {sources[series].n_dates}. "
                f"Every image needs its mask; ingest again, or set filter_clouds: false."
            )
    return _fit(sources, quality, dates, window_px, margin_px, output_px_m, batch_size, resample=False)


def _check_held(path: Path, names: Sequence[str], held: Collection[str]) -> None:
    for name in names:
        if name not in held:
            raise ZoneError(
                f"{path}: holds no {name}, only {', '.join(held)}. Set modalities.inputs.{name}: false, or ingest it."
            )


def _source_of_layer(layer: ZoneLayer, path: Path, roi: str | None, stamp: tuple[int, int]) -> RasterSource:
    return RasterSource(
        name=layer.name,
        path=str(path),
        geobox=layer.geobox,
        n_bands=len(layer.bands),
        n_dates=0 if layer.dates is None else len(layer.dates),
        dtype=layer.dtype,
        nodata=layer.nodata,
        has_mask=layer.has_mask,
        ratio=Fraction(1),
        stamp=stamp,
        driver=ZONE_CUBE if roi is None else ROI_VIEW,
        roi=roi or "",
    )


def _fit(
    sources: Mapping[str, RasterSource],
    quality: Mapping[str, RasterSource],
    dates: Mapping[str, Any],
    window_px: int,
    margin_px: int,
    output_px_m: float | None,
    batch_size: int,
    resample: bool,
) -> Zone:
    """Put rasters on one grid and check the windows on it."""
    # The finest pixel leads; of equally fine modalities the first in network order.
    finest = min(sources.values(), key=lambda source: source.geobox.x_res)
    if resample:
        sources, quality = warped_onto(finest, sources, quality)
        finest = sources[finest.name]
    sources = {name: _fitted(source, finest) for name, source in sources.items()}
    quality = {name: _same_grid(_fitted(mask, finest), sources[name]) for name, mask in quality.items()}
    zone = Zone(finest.geobox, sources, quality, dates, window_px, margin_px, output_px_m, batch_size)
    zone.axes()
    _ = zone.output_geobox
    return zone


def with_sizes(
    zone: Zone, window_px: int | None = None, margin_px: int | None = None, output_px_m: float | None = None
) -> Zone:
    """Return the zone with other window sizes or another output pixel; None keeps what it has."""
    return replace(
        zone,
        window_px=zone.window_px if window_px is None else window_px,
        margin_px=zone.margin_px if margin_px is None else margin_px,
        output_px_m=zone.output_px_m if output_px_m is None else output_px_m,
    )


def _dates_of(request: RasterRequest) -> NDArray[np.datetime64]:
    key = f"{request.key}.dates_txt"
    if request.dates_path is None:
        raise ZoneError(f"{key}: not given. {request.name} is a time series: its network needs the date of each image.")
    return read_dates(request.dates_path, key)


def _split_bands(source: RasterSource, request: RasterRequest, n_dates: int) -> RasterSource:
    expected = MODALITIES[source.name].bands
    if not MODALITIES[source.name].is_series:
        return source
    if source.n_bands != n_dates * len(expected):
        raise ZoneError(
            f"{source.path} has {source.n_bands} bands, but {request.dates_path} has {n_dates} dates x "
            f"{len(expected)} bands per date of {source.name} ({', '.join(expected)}) = {n_dates * len(expected)}. "
            f"Every image needs its date and all its bands, date by date."
        )
    return replace(source, n_bands=len(expected), n_dates=n_dates)


def _fitted(source: RasterSource, finest: RasterSource) -> RasterSource:
    """Return `source` with its ratio to the finest grid."""
    fine, coarse = finest.geobox, source.geobox
    if not same_crs(fine.crs_wkt, coarse.crs_wkt):
        raise ZoneError(
            f"{source.name}: {source.path} is in {crs_name(coarse.crs_wkt)}, but {finest.name} ({finest.path}) in "
            f"{crs_name(fine.crs_wkt)}. Warp one of them: a zone has one CRS."
        )
    tolerance_m = ALIGNMENT_TOLERANCE_PX * fine.x_res
    # The tolerance, however far the coordinates are from the origin in float64.
    tolerance_m += 4 * float(np.spacing(max(abs(bound) for bound in fine.bounds)))
    if any(abs(a - b) > tolerance_m for a, b in zip(fine.bounds, coarse.bounds, strict=True)):
        raise ZoneError(
            f"{source.name}: {source.path} covers {_bounds(coarse)}, but {finest.name} ({finest.path}) covers "
            f"{_bounds(fine)} (left, bottom, right, top; tolerance {ALIGNMENT_TOLERANCE_PX} px). "
            f"Crop them to one footprint, or set align: resample."
        )
    ratio = Fraction(fine.width, coarse.width)
    if ratio != Fraction(fine.height, coarse.height) or ratio.denominator > MAX_RATIO_DENOMINATOR or ratio < 1:
        raise ZoneError(
            f"{source.name}: {source.path} has pixels of {coarse.x_res:g} x {coarse.y_res:g} m, {finest.name} "
            f"({finest.path}) of {fine.x_res:g} x {fine.y_res:g} m: {coarse.x_res / fine.x_res:g} is no whole ratio. "
            f"Resample one of them."
        )
    return replace(source, ratio=ratio)


def _same_grid(mask: RasterSource, series: RasterSource) -> RasterSource:
    a, b = mask.geobox, series.geobox
    if (a.height, a.width) != (b.height, b.width):
        raise ZoneError(
            f"{mask.name}: {mask.path} has {a.height} x {a.width} px, but {series.name} ({series.path}) has "
            f"{b.height} x {b.width} px. The mask needs the grid of its series."
        )
    return mask


def _bounds(box: GeoBox) -> str:
    return "(" + ", ".join(f"{bound:.4f}".rstrip("0").rstrip(".") for bound in box.bounds) + ")"


def source_facts(source: RasterSource) -> dict[str, Any]:
    """What identifies a raster in keys and tags: JSON-ready."""
    facts = {"path": source.path, "size": source.stamp[0], "mtime_ns": source.stamp[1], "dtype": source.dtype}
    return {**facts, "roi": source.roi} if source.roi else facts


def zone_raster(source: RasterSource, dates: NDArray[np.datetime64] | None) -> ZoneRaster:
    """Return a raster as an ingest takes it."""
    nodata = source.nodata if source.nodata is not None and np.isfinite(source.nodata) else None
    layer = ZoneLayer(source.name, source.geobox, source.band_names, source.dtype, nodata, source.has_mask, dates)
    facts = {**source_facts(source), "driver": source.driver, "warped": source.warped}
    return ZoneRaster(layer, partial(read_region, source), facts)
