"""Rasters of other grids, resampled while reading: `align: resample`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from rasterio.crs import CRS
from rasterio.warp import calculate_default_transform

from flairhub.geo import GeoBox
from flairhub.inference.rasters import RasterSource
from flairhub.inference.windows import lattice_of
from flairhub.modalities import MODALITIES

_NEAR = 0.05
"""A ratio this close to the published one becomes the published one."""


def warped_onto(
    finest: RasterSource, sources: Mapping[str, RasterSource], quality: Mapping[str, RasterSource]
) -> tuple[dict[str, RasterSource], dict[str, RasterSource]]:
    """Put all rasters on grids that fit the finest one.

    The zone is the finest raster's extent, continued to the right and below to whole pixels of every input; where a
    raster does not reach, it has no data. Pixel ratios become the published ones where close, else whole numbers.

    Returns:
        Sources and quality masks on their new grids.
    """
    ratios = {name: _ratio(source, finest) for name, source in sources.items()}
    lattice = lattice_of(list(ratios.values()))
    box = finest.geobox
    height, width = (-(-length // lattice) * lattice for length in (box.height, box.width))
    whole = box.crop(0, 0, height, width)

    def moved(source: RasterSource, ratio: Fraction) -> RasterSource:
        grid = whole.resized(int(height / ratio), int(width / ratio))
        if _same(source.geobox, grid):
            return source
        # The mask of the resampling says where the file ends.
        return replace(source, geobox=grid, ratio=ratio, warped=True, has_mask=True)

    placed = {name: moved(source, ratios[name]) for name, source in sources.items()}
    return placed, {name: moved(mask, ratios[name]) for name, mask in quality.items()}


def _ratio(source: RasterSource, finest: RasterSource) -> Fraction:
    own, fine = source.geobox, finest.geobox
    size, *_ = calculate_default_transform(
        CRS.from_wkt(own.crs_wkt), CRS.from_wkt(fine.crs_wkt), own.width, own.height, *own.bounds
    )
    found = (own.x_res if own.crs_wkt == fine.crs_wkt else size.a) / fine.x_res
    published = MODALITIES[source.name].gsd_m / MODALITIES[finest.name].gsd_m
    if source.name == finest.name:
        return Fraction(1)
    if abs(found / published - 1) < _NEAR and published >= 1:
        return Fraction(published).limit_denominator(5)
    return Fraction(max(1, round(found)))


def _same(a: GeoBox, b: GeoBox) -> bool:
    near = all(abs(x - y) < 1e-6 * b.x_res for x, y in zip(a.bounds, b.bounds, strict=True))
    return near and (a.height, a.width, a.crs_wkt) == (b.height, b.width, b.crs_wkt)
