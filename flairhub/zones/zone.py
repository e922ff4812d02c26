"""A zone: rasters of one area on grids that fit each other, checked from their headers before a pixel is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import UsageError, ZoneError
from flairhub.geo import (
    ALIGNMENT_TOLERANCE_PX,
    GEOGRAPHIC,
    MAX_RATIO_DENOMINATOR,
    GeoBox,
    alignment_tolerance,
    crs_name,
    is_geographic,
    lattice_of,
    same_crs,
)
from flairhub.modalities import INPUTS, MODALITIES
from flairhub.shown import facts_html
from flairhub.zones.area import Area
from flairhub.zones.arrays import edge_array, is_edge
from flairhub.zones.cubes import region_rasters, zone_cube_rasters
from flairhub.zones.dates import read_dates
from flairhub.zones.files import open_file
from flairhub.zones.raster import Raster, identity
from flairhub.zones.warped import warped_onto

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class RasterRequest:
    """One modality of a zone, as a configuration names it.

    Attributes:
        name: Modality.
        path: GeoTIFF or VRT mosaic.
        dates_path: Date file of a series.
        quality_path: GeoTIFF of the series' quality mask; None = not needed.
        key: Configuration key of the modality, for messages.
        bands: Names of the file's bands; None = the published ones.
    """

    name: str
    path: Path
    dates_path: Path | None = None
    quality_path: Path | None = None
    key: str = ""
    bands: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Zone:
    """Rasters of one area on grids that fit each other. Small, and can be pickled: pixels stay where they are.

    Attributes:
        geobox: Grid of the finest modality.
        rasters: Raster of each modality, in network order.
        quality: Quality mask by the series it belongs to.
        suggested: What the configuration that opened it says about windows (`window_px`, `margin_px`, `output_px_m`,
            `batch_size`): nothing here uses it; it stands in where a map is asked for without sizes.
        aoi: Only this area is mapped; None = all of it. The rasters stay whole.
    """

    geobox: GeoBox
    rasters: Mapping[str, Raster]
    quality: Mapping[str, Raster]
    suggested: Mapping[str, Any] = field(default_factory=dict)
    aoi: Area | None = None
    _make_template: ClassVar[Callable[..., xr.Dataset] | None] = None

    def __repr__(self) -> str:
        box = self.geobox
        names = ", ".join([*self.rasters, *(mask.name for mask in self.quality.values())])
        where = f"{box.height} x {box.width} px of {box.x_res:g}, {crs_name(box.crs_wkt)}"
        return f"<Zone {where}: {names}{'' if self.aoi is None else f'; {self.aoi.name}'}>"

    def _repr_html_(self) -> str:
        box = self.geobox
        facts: dict[str, Any] = {
            "grid": f"{box.height} x {box.width} px of {box.x_res:g}",
            "CRS": crs_name(box.crs_wkt),
            "area of interest": "all" if self.aoi is None else self.aoi.name,
        }
        for raster in self.everything:
            grid, dates = raster.geobox, f"{raster.n_dates} dates x " if raster.n_dates else ""
            size = f"{grid.height} x {grid.width} px of {grid.x_res:g}"
            facts[raster.name] = f"{dates}{len(raster.bands)} bands {raster.dtype}, {size}"
        return facts_html("Zone", facts)

    def __dask_tokenize__(self) -> Any:
        return [identity(raster) for raster in self.everything]

    @property
    def dates(self) -> dict[str, NDArray[np.datetime64]]:
        """(time,) datetime64[D] by series."""
        return {name: raster.dates for name, raster in self.rasters.items() if raster.dates is not None}

    @property
    def everything(self) -> list[Raster]:
        """Rasters and quality masks in the registry's order."""
        by_name = {raster.name: raster for raster in (*self.rasters.values(), *self.quality.values())}
        return [by_name[name] for name in MODALITIES if name in by_name]

    def raster(self, name: str) -> Raster:
        """Return the raster of a modality, or a quality mask by its own name."""
        if name in self.rasters:
            return self.rasters[name]
        return next(mask for mask in self.quality.values() if mask.name == name)

    @property
    def lattice_px(self) -> int:
        """Finest pixels in which every modality has whole pixels."""
        return lattice_of([self.ratio(name) for name in self.rasters])

    def ratio(self, name: str) -> Fraction:
        """Finest pixels of the zone per pixel of a modality."""
        return Fraction(self.geobox.width, self.rasters[name].geobox.width)

    @classmethod
    def register_template(cls, make: Callable[..., xr.Dataset]) -> None:
        """Say what makes `template`: the room that runs models, which this one does not know."""
        cls._make_template = make

    def template(self, model: Any, **options: Any) -> xr.Dataset:
        """Return what the maps of a model over this zone will look like, for `xr.map_blocks`.

        Args:
            model: Path of a bundle, or a loaded model.
            options: `outputs`, `tasks`, `block_px`, `window_px`, `margin_px`, ...: see `flairhub.inference.template`.

        Raises:
            UsageError: Nobody has imported `flairhub.inference`, which `flairhub.open_zone` does.
        """
        if Zone._make_template is None:
            raise UsageError("zone.template: needs flairhub.inference. Import it first.")
        return Zone._make_template(self, model, **options)

    def to_xarray(self, chunk_px: int = 1024) -> xr.DataTree:
        """Return the rasters as lazy xarray: one node per modality and quality mask, each on its own grid.

        Args:
            chunk_px: Chunk length along y and x, in each modality's own pixels.

        Returns:
            DataTree of datasets with one variable `data`: (band, y, x) or (time, band, y, x), coordinates `band`,
            `x`, `y` (pixel centres), `time` and the CRS in `spatial_ref`.
        """
        import xarray as xr

        return xr.DataTree.from_dict({raster.name: _dataset(raster, chunk_px) for raster in self.everything})


def build_zone(
    requests: Sequence[RasterRequest], *, resample: bool = False, suggested: Mapping[str, Any] | None = None
) -> Zone:
    """Check rasters from their headers and fit their grids.

    Args:
        requests: The modalities.
        resample: Warp rasters of another CRS, extent or pixel onto the finest raster's grid and extent.
        suggested: See `Zone`.

    Raises:
        ZoneError: A raster is missing or no GeoTIFF, numbers of bands and dates do not fit, or grids do not.
        DataError: A raster without georeferencing, or a damaged date file.
    """
    if not requests:
        raise ZoneError("no input is enabled. Enable at least one under modalities.inputs.")
    rasters: dict[str, Raster] = {}
    quality: dict[str, Raster] = {}
    for request in sorted(requests, key=lambda request: INPUTS.index(request.name)):
        key, dates = request.key, None
        if MODALITIES[request.name].is_series:
            dates = _dates_of(request)
        source = dates, request.dates_path
        rasters[request.name] = open_file(
            request.path, request.name, f"{key}.input_img_path", *source, bands=request.bands
        )
        mask_name = MODALITIES[request.name].quality_mask
        if request.quality_path is not None and mask_name is not None:
            mask = open_file(request.quality_path, mask_name, f"{key}.filter_clouds_img_path", *source)
            quality[request.name] = mask
    return fit(rasters, quality, resample=resample, suggested=suggested)


def zone_of_cube(
    path: Path,
    roi: str | None,
    names: Sequence[str],
    *,
    without_mask: Sequence[str] = (),
    suggested: Mapping[str, Any] | None = None,
) -> Zone:
    """Take the rasters of a zone from a zone cube, or from one region of interest of a patch cube.

    Args:
        path: The cube.
        roi: Region of interest of a patch cube; None for a zone cube.
        names: Inputs.
        without_mask: Series whose quality mask is not wanted.
        suggested: See `Zone`.

    Raises:
        CubeError: No such cube or region, or a damaged one.
        ZoneError: It does not hold an input, or grids do not fit.
    """
    if roi is None:
        stored = zone_cube_rasters(path, names, without_mask)
    else:
        stored = region_rasters(path, roi, names, without_mask)
    rasters = {name: stored[name] for name in sorted(names, key=INPUTS.index)}
    masks = {name: MODALITIES[name].quality_mask for name in rasters}
    quality = {series: stored[mask] for series, mask in masks.items() if mask is not None and mask in stored}
    for series, mask in quality.items():
        if mask.n_dates != rasters[series].n_dates:
            raise ZoneError(
                f"{path}: {mask.name} has {mask.n_dates} dates, but {series} has {rasters[series].n_dates}. "
                f"Every image needs its mask; ingest again, or set filter_clouds: false."
            )
    return fit(rasters, quality, resample=False, suggested=suggested)


def fit(
    rasters: Mapping[str, Raster],
    quality: Mapping[str, Raster],
    *,
    resample: bool,
    suggested: Mapping[str, Any] | None = None,
) -> Zone:
    """Put rasters on one grid.

    Args:
        rasters: By modality, in network order.
        quality: Quality mask by series.
        resample: Warp what does not fit; otherwise it is an error.
        suggested: See `Zone`.

    Raises:
        ZoneError: Grids do not fit.
    """
    # The finest pixel leads; of equally fine modalities the first in network order.
    finest = min(rasters.values(), key=lambda raster: _pixel_m(raster.geobox))
    for raster in [finest] if resample else [*rasters.values(), *quality.values()]:
        if is_geographic(raster.geobox.crs_wkt):
            raise ZoneError(
                f"{raster.name}: {raster.where} is in {crs_name(raster.geobox.crs_wkt)}, whose unit is the degree: "
                f"{GEOGRAPHIC}"
            )
    if resample:
        rasters, quality = warped_onto(finest, rasters, quality)
        finest = rasters[finest.name]
    for raster in (*rasters.values(), *quality.values()):
        _check_fits(raster, finest)
    for series, mask in quality.items():
        _check_same_grid(mask, rasters[series])
    return Zone(finest.geobox, rasters, quality, suggested or {})


def _dates_of(request: RasterRequest) -> NDArray[np.datetime64]:
    key = f"{request.key}.dates_txt"
    if request.dates_path is None:
        raise ZoneError(f"{key}: not given. {request.name} is a time series: its network needs the date of each image.")
    return read_dates(request.dates_path, key)


_DEGREE_M = 111_320.0


def _pixel_m(box: GeoBox) -> float:
    return box.x_res * _DEGREE_M if is_geographic(box.crs_wkt) else box.x_res_m


def _check_fits(raster: Raster, finest: Raster) -> None:
    fine, coarse = finest.geobox, raster.geobox
    if not same_crs(fine.crs_wkt, coarse.crs_wkt):
        raise ZoneError(
            f"{raster.name}: {raster.where} is in {crs_name(coarse.crs_wkt)}, but {finest.name} ({finest.where}) in "
            f"{crs_name(fine.crs_wkt)}. Warp one of them: a zone has one CRS."
        )
    tolerance = alignment_tolerance(fine)
    if any(abs(a - b) > tolerance for a, b in zip(fine.bounds, coarse.bounds, strict=True)):
        raise ZoneError(
            f"{raster.name}: {raster.where} covers {_bounds(coarse)}, but {finest.name} ({finest.where}) covers "
            f"{_bounds(fine)} (left, bottom, right, top; tolerance {ALIGNMENT_TOLERANCE_PX} px). "
            f"Crop them to one footprint, or set align: resample."
        )
    ratio = Fraction(fine.width, coarse.width)
    if ratio != Fraction(fine.height, coarse.height) or ratio.denominator > MAX_RATIO_DENOMINATOR or ratio < 1:
        raise ZoneError(
            f"{raster.name}: {raster.where} has pixels of {coarse.x_res:g} x {coarse.y_res:g} m, {finest.name} "
            f"({finest.where}) of {fine.x_res:g} x {fine.y_res:g} m: {coarse.x_res / fine.x_res:g} is no whole ratio. "
            f"Resample one of them."
        )


def _check_same_grid(mask: Raster, series: Raster) -> None:
    a, b = mask.geobox, series.geobox
    if (a.height, a.width) != (b.height, b.width):
        raise ZoneError(
            f"{mask.name}: {mask.where} has {a.height} x {a.width} px, but {series.name} ({series.where}) has "
            f"{b.height} x {b.width} px. The mask needs the grid of its series."
        )


def _bounds(box: GeoBox) -> str:
    return "(" + ", ".join(f"{bound:.4f}".rstrip("0").rstrip(".") for bound in box.bounds) + ")"


def _dataset(raster: Raster, chunk_px: int) -> xr.Dataset:
    import dask.array as da
    import rioxarray  # noqa: F401  (adds `.rio`)
    import xarray as xr

    box = raster.geobox
    edges = [np.append(np.arange(0, length, chunk_px), length) for length in (box.height, box.width)]
    chunks = (*((length,) for length in raster.leading), *(tuple(np.diff(edge).tolist()) for edge in edges))
    if is_edge(raster):
        array = edge_array(raster, chunks)
    else:
        array = da.map_blocks(
            partial(_read_chunk, raster, chunk_px),
            chunks=chunks,
            dtype=raster.dtype,
            meta=np.empty((0,) * len(chunks), dtype=raster.dtype),
        )
    coords: dict[str, Any] = {"band": list(raster.bands), **box.coords()}
    dims: tuple[str, ...] = ("band", "y", "x")
    if raster.dates is not None:
        dims = ("time", *dims)
        coords["time"] = raster.dates.astype("datetime64[ns]")
    attributes = {"_FillValue": raster.nodata} if isinstance(raster.nodata, int | float) else {}
    dataset = xr.Dataset({"data": xr.Variable(dims, array, attributes)}, coords=coords)
    return dataset.rio.write_crs(box.crs_wkt).rio.write_transform(box.affine())


def _read_chunk(raster: Raster, chunk_px: int, block_id: tuple[int, ...] = ()) -> NDArray[Any]:
    row, col = block_id[-2] * chunk_px, block_id[-1] * chunk_px
    rows = (row, min(row + chunk_px, raster.geobox.height))
    values = raster.load(rows, (col, min(col + chunk_px, raster.geobox.width)))[0]
    raster.check_unchanged()
    return values
