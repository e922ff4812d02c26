"""A raster on another grid: resampled while reading (`align: resample`), whatever it is made of.

The grid is cut into fixed tiles and every tile is warped whole, from the source pixels it needs: the same bits for a
pixel, however an area is cut into blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import calculate_default_transform, reproject, transform_bounds

from flairhub.cube import ChunkCache
from flairhub.geo import MAX_RATIO_DENOMINATOR, GeoBox, lattice_of, same_crs
from flairhub.modalities import MODALITIES
from flairhub.validity import Nodata, nodata_of, stored_nodata, valid_pixels
from flairhub.zones.raster import Raster, Span, identity

_TILE_BYTES = 4_000_000
_TILE_PX = 16, 512
_CACHE = ChunkCache(128 * 2**20)
"""Warped tiles, so that one on the border of two blocks is warped once."""

_EDGE_POINTS = 21
"""Points per side of a tile by which its place in the source is found."""

_NEAR = 0.05
"""A ratio this close to the published one becomes the published one."""


@dataclass(frozen=True, eq=False)
class WarpedRaster(Raster):
    """A raster resampled onto `geobox`: bilinear, or nearest where values must not be mixed.

    Attributes:
        source: The raster on its own grid.
        smooth: Bilinear.
    """

    source: Raster | None = None
    smooth: bool = True

    @classmethod
    def onto(cls, source: Raster, geobox: GeoBox, smooth: bool) -> WarpedRaster:
        """Put a raster on another grid; outside of its extent it has no data.

        Args:
            source: The raster.
            geobox: The grid, in any CRS.
            smooth: Interpolate between pixels; otherwise every pixel is that of the nearest one.
        """
        return cls(
            source.name, geobox, source.bands, source.dates, source.dtype, source.nodata, source.alpha, source, smooth
        )

    @property
    def where(self) -> str:
        assert self.source is not None
        return self.source.where

    @property
    def origin(self) -> Raster:
        assert self.source is not None
        return self.source.origin

    def with_origin(self, origin: Raster) -> WarpedRaster:
        assert self.source is not None
        return replace(self, source=self.source.with_origin(origin))

    def is_changed(self) -> bool:
        assert self.source is not None
        return self.source.is_changed()

    def reach(self, rows: Span, cols: Span) -> tuple[Span, Span] | None:
        assert self.source is not None
        size, grid = self._tile_px, self.source.geobox
        tiles = product(range(rows[0] // size, -(-rows[1] // size)), range(cols[0] // size, -(-cols[1] // size)))
        needed = [region for tile in tiles if (region := _needed(grid, self._tile_box(*tile))) is not None]
        if not needed:
            return None
        tops, lefts = zip(*needed, strict=True)
        around = [(min(first for first, _ in spans), max(last for _, last in spans)) for spans in (tops, lefts)]
        return self.source.reach(around[0], around[1])

    def facts(self) -> dict[str, Any]:
        assert self.source is not None
        box = self.source.geobox
        grid = [box.crs_wkt, *box.transform, box.height, box.width]
        return {**self.source.facts(), "warped": "bilinear" if self.smooth else "nearest", "grid": grid}

    def load(self, rows: Span, cols: Span) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        size = self._tile_px
        shape = rows[1] - rows[0], cols[1] - cols[0]
        values = np.empty((*self.leading, *shape), dtype=self.dtype)
        valid = np.empty((*self.leading[:-1], *shape), dtype=bool)
        for row in range(rows[0] // size, -(-rows[1] // size)):
            for col in range(cols[0] // size, -(-cols[1] // size)):
                top, bottom = max(rows[0], row * size), min(rows[1], (row + 1) * size)
                left, right = max(cols[0], col * size), min(cols[1], (col + 1) * size)
                inside = slice(top - row * size, bottom - row * size), slice(left - col * size, right - col * size)
                target = slice(top - rows[0], bottom - rows[0]), slice(left - cols[0], right - cols[0])
                tile_values, tile_valid = self._tile(row, col)
                values[..., target[0], target[1]] = tile_values[..., inside[0], inside[1]]
                valid[..., target[0], target[1]] = tile_valid[..., inside[0], inside[1]]
        return values, valid

    @property
    def _tile_px(self) -> int:
        size = _TILE_PX[1]
        # Two numbers of 8 bytes per pixel while it is warped.
        while size > _TILE_PX[0] and size * size * int(np.prod(self.leading)) * 8 > _TILE_BYTES:
            size //= 2
        return size

    @cached_property
    def _key(self) -> str:
        return json.dumps(identity(self), sort_keys=True)

    def _tile(self, row: int, col: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        key = (self._key, row, col)
        values, valid = _CACHE.get((*key, "values")), _CACHE.get((*key, "valid"))
        if values is None or valid is None:
            values, valid = self._warped(self._tile_box(row, col))
            _CACHE.put((*key, "values"), values)
            _CACHE.put((*key, "valid"), valid)
        return values, valid

    def _tile_box(self, row: int, col: int) -> GeoBox:
        size, box = self._tile_px, self.geobox
        height, width = min(size, box.height - row * size), min(size, box.width - col * size)
        return box.crop(row * size, col * size, height, width)

    def _warped(self, tile: GeoBox) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values of a tile (..., band, y, x), with nodata in them; and where the source is known, (..., y, x)."""
        assert self.source is not None
        shape = tile.height, tile.width
        region = _needed(self.source.geobox, tile)
        if region is None:
            return np.zeros((*self.leading, *shape), self.dtype), np.zeros((*self.leading[:-1], *shape), bool)
        values, mask = self.source.load(*region)
        (top, bottom), (left, right) = region
        grid = self.source.geobox.crop(top, left, bottom - top, right - left)
        usable = _usable(values, self.source.nodata, mask)
        known = np.ones(values.shape[:-3] + values.shape[-2:], dtype=bool) if mask is None else mask
        known = np.broadcast_to(known, values.shape[:-3] + values.shape[-2:])
        warped_known = _reproject(known.astype(np.uint8), grid, tile, Resampling.nearest, 0) > 0
        # Numbers of up to 16 bits are whole in float32.
        exact = np.float32 if np.dtype(self.dtype).itemsize <= 2 or self.dtype == "float32" else np.float64
        numbers = np.where(usable, values, np.nan).astype(exact, copy=False)
        method = Resampling.bilinear if self.smooth else Resampling.nearest
        result = _reproject(numbers, grid, tile, method, np.nan)
        if not usable.all():
            # A pixel counts where its centre lies on one that does; its value is the mean of what counts around it.
            result[_reproject(usable.astype(np.uint8), grid, tile, Resampling.nearest, 0) == 0] = np.nan
        return self._stored(result), warped_known

    def _stored(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Warped numbers in the raster's dtype; where there is none they are nodata, elsewhere they never are."""
        if np.dtype(self.dtype).kind == "f":
            return numbers.astype(self.dtype)
        empty = np.isnan(numbers)
        values = np.rint(np.where(empty, 0, numbers)).astype(self.dtype)
        for band in range(values.shape[-3]):
            nodata = stored_nodata(nodata_of(self.nodata, band), np.dtype(self.dtype))
            if nodata is not None:
                plane, gaps = values[..., band, :, :], empty[..., band, :, :]
                # As GDAL does: a mean that is the nodata number by chance moves by one.
                plane[plane == nodata] = nodata + 1 if nodata < np.iinfo(self.dtype).max else nodata - 1
                plane[gaps] = nodata
        return values


def _usable(values: NDArray[Any], nodata: Nodata, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Where each band holds a number that may be mixed with its neighbours, (..., band, y, x)."""
    usable = np.ones(values.shape, dtype=bool)
    for band in range(values.shape[-3]):
        valid = valid_pixels(values[..., band : band + 1, :, :], nodata_of(nodata, band))
        if valid is not None:
            usable[..., band, :, :] = valid
    if mask is not None:
        usable &= mask[..., None, :, :]
    return usable


@lru_cache(maxsize=65536)
def _needed(source: GeoBox, tile: GeoBox) -> tuple[Span, Span] | None:
    """Rows and columns of the source that a tile is made of, its filter's reach included; None = none."""
    bounds = tile.bounds
    if not same_crs(source.crs_wkt, tile.crs_wkt):
        bounds = transform_bounds(tile.crs_wkt, source.crs_wkt, *bounds, densify_pts=_EDGE_POINTS)
    rows = (source.y_max - bounds[3]) / source.y_res, (source.y_max - bounds[1]) / source.y_res
    cols = (bounds[0] - source.x_min) / source.x_res, (bounds[2] - source.x_min) / source.x_res

    def span(low: float, high: float, n_tile: int, limit: int) -> Span:
        # A filter that makes an image smaller reaches as many pixels farther.
        reach = 2 + 2 * max(1, int(np.ceil((high - low) / n_tile)))
        return max(int(np.floor(low)) - reach, 0), min(int(np.ceil(high)) + reach, limit)

    y, x = span(*rows, tile.height, source.height), span(*cols, tile.width, source.width)
    return (y, x) if y[0] < y[1] and x[0] < x[1] else None


def _reproject(values: NDArray[Any], grid: GeoBox, tile: GeoBox, method: Resampling, empty: float) -> NDArray[Any]:
    planes = np.ascontiguousarray(values.reshape(-1, *values.shape[-2:]))
    result = np.full((len(planes), tile.height, tile.width), empty, dtype=values.dtype)
    nodata = {"src_nodata": empty, "dst_nodata": empty} if np.isnan(empty) else {}
    reproject(
        planes,
        result,
        src_transform=Affine(*grid.transform),
        # Of one plane, however written: what differs is a height, which GDAL would need to know to transform.
        src_crs=tile.crs_wkt if same_crs(grid.crs_wkt, tile.crs_wkt) else grid.crs_wkt,
        dst_transform=Affine(*tile.transform),
        dst_crs=tile.crs_wkt,
        resampling=method,
        # Exact coordinates: approximated ones would depend on the tile.
        tolerance=0,
        # Every band for itself: a date without data must not take others with it.
        UNIFIED_SRC_NODATA="NO",
        **nodata,
    )
    return result.reshape(*values.shape[:-2], tile.height, tile.width)


def warped_onto(
    finest: Raster, rasters: Mapping[str, Raster], quality: Mapping[str, Raster]
) -> tuple[dict[str, Raster], dict[str, Raster]]:
    """Put all rasters on grids that fit the finest one.

    The zone is the finest raster's extent, continued to the right and below to whole pixels of every input; where a
    raster does not reach, it has no data. Pixel ratios become the published ones where close, else whole numbers.

    Returns:
        Rasters and quality masks on their new grids.
    """
    ratios = {name: _ratio(raster, finest) for name, raster in rasters.items()}
    lattice = lattice_of(list(ratios.values()))
    box = finest.geobox
    height, width = (-(-length // lattice) * lattice for length in (box.height, box.width))
    whole = box.crop(0, 0, height, width)

    def moved(raster: Raster, ratio: Fraction) -> Raster:
        grid = whole.resized(int(height / ratio), int(width / ratio))
        if _same(raster.geobox, grid):
            return raster
        # Masks must not be mixed, and the finest raster is only continued.
        smooth = MODALITIES[raster.name].is_input and ratio != 1
        return WarpedRaster.onto(raster, grid, smooth)

    placed = {name: moved(raster, ratios[name]) for name, raster in rasters.items()}
    return placed, {name: moved(mask, ratios[name]) for name, mask in quality.items()}


def _ratio(raster: Raster, finest: Raster) -> Fraction:
    coarse, fine = raster.geobox, finest.geobox
    size, *_ = calculate_default_transform(
        CRS.from_wkt(coarse.crs_wkt), CRS.from_wkt(fine.crs_wkt), coarse.width, coarse.height, *coarse.bounds
    )
    measured = (coarse.x_res if same_crs(coarse.crs_wkt, fine.crs_wkt) else size.a) / fine.x_res
    published = MODALITIES[raster.name].gsd_m / MODALITIES[finest.name].gsd_m
    if raster.name == finest.name:
        return Fraction(1)
    if abs(measured / published - 1) < _NEAR and published >= 1:
        return Fraction(published).limit_denominator(MAX_RATIO_DENOMINATOR)
    return Fraction(max(1, round(measured)))


def _same(a: GeoBox, b: GeoBox) -> bool:
    near = all(abs(x - y) < 1e-6 * b.x_res for x, y in zip(a.bounds, b.bounds, strict=True))
    return near and (a.height, a.width) == (b.height, b.width) and same_crs(a.crs_wkt, b.crs_wkt)
