"""A procedural countryside: what lies where, on the finest pixel grid of one area."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flairhub.demo.fields import Cells, Float, deal, irregular_cells, smooth_noise
from flairhub.demo.surfaces import (
    BACKGROUND,
    CROPS,
    INDEX,
    LPIS_LEVEL_2,
    LPIS_LEVEL_3,
    PLOWED,
    SURFACES,
)

FARM, VILLAGE, FOREST = 0, 1, 2
_REGION_SHARES = {FARM: 4, VILLAGE: 1, FOREST: 1}
_FARM_SHARES = {INDEX[crop]: 0.13 for crop in CROPS} | {
    INDEX["vineyard"]: 0.1,
    INDEX["bare soil"]: 0.06,
    INDEX["greenhouse"]: 0.07,
    INDEX["lawn"]: 0.05,
}
_FOREST_SHARES = {INDEX["deciduous"]: 0.4, INDEX["coniferous"]: 0.35, INDEX["brushwood"]: 0.25}
_LAWN = INDEX["lawn"]


@dataclass(frozen=True)
class Landscape:
    """What lies where in one area.

    Attributes:
        gsd_m: Pixel size in metres.
        surface: (y, x) uint8, row of `surfaces.SURFACES`.
        plowed: (y, x) bool, crop parcel without cover on the day of the aerial image.
        parcel: (y, x) int32, number of the parcel (fields, forest stands and plots alike).
        n_parcels: Parcel numbers are below it.
        recent: (y, x) bool, built since the historical images.
        row_m: (y, x) float32, offset across the parcel's cultivation rows in metres.
        height_m: (y, x) float32, object height above the terrain.
        terrain_m: (y, x) float32, terrain height.
    """

    gsd_m: float
    surface: NDArray[np.uint8]
    plowed: NDArray[np.bool_]
    parcel: NDArray[np.int32]
    n_parcels: int
    recent: NDArray[np.bool_]
    row_m: Float
    height_m: Float
    terrain_m: Float

    @property
    def cosia(self) -> NDArray[np.uint8]:
        """(y, x) uint8, land-cover class."""
        classes = np.array([surface.cosia for surface in SURFACES], np.uint8)
        return np.where(self.plowed, np.uint8(PLOWED), classes[self.surface])

    @property
    def lpis(self) -> NDArray[np.uint8]:
        """(level, y, x) uint8, crop class at the three nomenclature levels."""
        level_1 = np.array([surface.lpis for surface in SURFACES], np.uint8)[self.surface]
        lookup = np.zeros((2, BACKGROUND + 1), np.uint8)
        for row, table in enumerate((LPIS_LEVEL_2, LPIS_LEVEL_3)):
            lookup[row, list(table)] = list(table.values())
        variety = ((self.parcel % 2 == 1) & (level_1 != BACKGROUND)).astype(np.uint8)
        return np.stack([level_1, lookup[0][level_1], lookup[1][level_1] + variety])


def make_landscape(rng: np.random.Generator, shape: tuple[int, int], gsd_m: float, base_m: float = 120.0) -> Landscape:
    """Draw the countryside of one area.

    Args:
        rng: Source of everything random.
        shape: (y, x) of the area in pixels.
        gsd_m: Pixel size in metres.
        base_m: Mean terrain height in metres.
    """
    regions = irregular_cells(rng, shape, gsd_m, (165, 135), warp_m=7)
    region = deal(rng, regions.count, _REGION_SHARES, deck_size=6)[regions.index]
    fields = irregular_cells(rng, shape, gsd_m, (92, 58), jitter=0.3)
    surface = deal(rng, fields.count, _FARM_SHARES)[fields.index]
    plowed_field = rng.random(fields.count) < 0.3
    surface = _greenhouses(surface, fields)
    surface = _field_borders(surface, fields)
    surface = _forest(rng, surface, region, fields, shape, gsd_m)
    surface, plots, recent = _village(rng, surface, region, shape, gsd_m)
    surface = _lone_trees(rng, surface, shape, gsd_m)
    surface = _roads(surface, regions)
    surface = _water(rng, surface, shape, gsd_m)
    surface = _without_slivers(surface, fields, gsd_m)
    crop = np.array([row.is_crop for row in SURFACES])[surface]
    in_plot = region == VILLAGE
    parcel = np.where(in_plot, plots.index + fields.count, fields.index)
    kinds = surface.astype(np.uint8)
    relief = smooth_noise(rng, shape, 320 / gsd_m) * 18 + smooth_noise(rng, shape, 60 / gsd_m) * 1.5
    return Landscape(
        gsd_m=gsd_m,
        surface=kinds,
        plowed=crop & plowed_field[fields.index],
        parcel=parcel.astype(np.int32),
        n_parcels=fields.count + plots.count,
        recent=recent & in_plot,
        row_m=fields.across,
        height_m=_heights(rng, kinds, parcel, fields.count + plots.count, gsd_m),
        terrain_m=(base_m + relief).astype(np.float32),
    )


def _greenhouses(surface: NDArray[np.int32], fields: Cells) -> NDArray[np.int32]:
    """Greenhouse parcels hold rows of houses on gravel."""
    chosen = surface == INDEX["greenhouse"]
    gap = (np.mod(fields.across, 17) > 11.5) | (fields.edge < 6) | (np.abs(fields.along) > 34)
    return np.where(chosen & gap, INDEX["gravel"], surface)


def _field_borders(surface: NDArray[np.int32], fields: Cells) -> NDArray[np.int32]:
    """Grass strips, some hedges and some farm tracks between parcels."""
    border = fields.border_hash()
    surface = np.where(fields.edge < 1.6, _LAWN, surface)
    surface = np.where((fields.edge < 3.6) & (border < 22), INDEX["deciduous"], surface)
    return np.where((fields.edge < 2.4) & (border >= 78), INDEX["gravel"], surface)


def _forest(
    rng: np.random.Generator,
    surface: NDArray[np.int32],
    region: NDArray[np.int32],
    fields: Cells,
    shape: tuple[int, int],
    gsd_m: float,
) -> NDArray[np.int32]:
    stands = irregular_cells(rng, shape, gsd_m, (70, 55), warp_m=6)
    stand = deal(rng, stands.count, _FOREST_SHARES)[stands.index]
    return np.where(region == FOREST, stand, surface)


def _village(
    rng: np.random.Generator,
    surface: NDArray[np.int32],
    region: NDArray[np.int32],
    shape: tuple[int, int],
    gsd_m: float,
) -> tuple[NDArray[np.int32], Cells, NDArray[np.bool_]]:
    """Plots with a house, a garden, sometimes a pool or a yard; streets between blocks of plots."""
    angle = rng.uniform(0, np.pi)
    plots = irregular_cells(rng, shape, gsd_m, (31, 25), jitter=0.16, angle=angle)
    draw = rng.random((plots.count, 6)).astype(np.float32)[plots.index]
    along, across = plots.along, plots.across
    village = np.full(shape, _LAWN, np.int32)
    yard = (draw[..., 0] > 0.55) & (across < -2)
    village = np.where(yard, np.where(draw[..., 1] > 0.5, INDEX["road"], INDEX["gravel"]), village)
    tree = np.hypot(along + 9, across - 7) < 2.2 + 1.6 * draw[..., 2]
    village = np.where(tree, np.where(draw[..., 3] > 0.7, INDEX["coniferous"], INDEX["deciduous"]), village)
    pool = (draw[..., 4] > 0.35) & (np.abs(along - 8.5) < 2.4 + draw[..., 5]) & (np.abs(across - 6.5) < 4.0)
    village = np.where(pool, INDEX["pool"], village)
    house = (np.abs(along) < 5 + 2.5 * draw[..., 5]) & (np.abs(across + 2) < 4 + 1.5 * draw[..., 2])
    roof = np.where(draw[..., 1] > 0.4, INDEX["tiled roof"], INDEX["slate roof"])
    village = np.where(house & (draw[..., 0] > 0.08), roof, village)
    street = (plots.edge < 3.0) & (plots.border_hash() < 45)
    village = np.where(street, INDEX["road"], village)
    return np.where(region == VILLAGE, village, surface), plots, draw[..., 3] > 0.35


def _lone_trees(
    rng: np.random.Generator, surface: NDArray[np.int32], shape: tuple[int, int], gsd_m: float
) -> NDArray[np.int32]:
    spots = irregular_cells(rng, shape, gsd_m, (34, 34))
    radius = (rng.random(spots.count) * 11 - 6).astype(np.float32)[spots.index]
    tree = (np.hypot(spots.along, spots.across) < radius) & (surface == _LAWN)
    return np.where(tree, INDEX["deciduous"], surface)


def _roads(surface: NDArray[np.int32], regions: Cells) -> NDArray[np.int32]:
    """Roads (and some tracks) with verges along the borders of regions."""
    paved = regions.border_hash() < 72
    surface = np.where(regions.edge < np.where(paved, 6.5, 4.0), _LAWN, surface)
    surface = np.where((regions.edge < 2.4) & ~paved, INDEX["gravel"], surface)
    return np.where((regions.edge < 3.8) & paved, INDEX["road"], surface)


def _water(
    rng: np.random.Generator, surface: NDArray[np.int32], shape: tuple[int, int], gsd_m: float
) -> NDArray[np.int32]:
    """A river crosses the area; some ponds."""
    y = np.arange(shape[0], dtype=np.float32)[:, None] * np.float32(gsd_m)
    x = np.arange(shape[1], dtype=np.float32)[None, :] * np.float32(gsd_m)
    if rng.random() < 0.5:
        x, y = y, x
    middle = rng.uniform(0.25, 0.75) * float(y.max())
    wave, phase = rng.uniform(120, 220), rng.uniform(0, 2 * np.pi)
    meander = smooth_noise(rng, shape, 90 / gsd_m) * 14 + 22 * np.sin(x * (2 * np.pi / wave) + phase)
    distance = np.abs(y - middle - meander)
    width = 7 + 3 * smooth_noise(rng, shape, 60 / gsd_m)
    over_road = surface == INDEX["road"]
    surface = np.where((distance < width + 4) & ~over_road, INDEX["deciduous"], surface)
    surface = np.where((distance < width + 1.5) & ~over_road, _LAWN, surface)
    surface = np.where((distance < width) & ~over_road, INDEX["water"], surface)
    ponds = irregular_cells(rng, shape, gsd_m, (230, 230), jitter=0.3, warp_m=6)
    radius = rng.uniform(6, 24, ponds.count).astype(np.float32)[ponds.index]
    reach = np.hypot(ponds.along, ponds.across)
    surface = np.where((reach < radius + 3) & (surface != INDEX["road"]), _LAWN, surface)
    return np.where((reach < radius) & (surface != INDEX["road"]), INDEX["water"], surface)


def _without_slivers(surface: NDArray[np.int32], fields: Cells, gsd_m: float) -> NDArray[np.int32]:
    """What other things leave of a parcel is a parcel only when it is large enough to be worked."""
    declared = np.array([row.lpis != BACKGROUND for row in SURFACES])[surface]
    area_m2 = np.bincount(fields.index[declared], minlength=fields.count) * gsd_m**2
    return np.where(declared & (area_m2 < 500)[fields.index], _LAWN, surface)


def _heights(
    rng: np.random.Generator,
    surface: NDArray[np.uint8],
    parcel: NDArray[np.intp],
    n_parcels: int,
    gsd_m: float,
) -> Float:
    """Object heights: roofs are level per plot, trees have crowns."""
    mean = np.array([row.height_m for row in SURFACES], np.float32)[surface]
    storey = rng.uniform(0.8, 1.25, n_parcels).astype(np.float32)[parcel]
    crowns = irregular_cells(rng, surface.shape, gsd_m, (7, 7))
    tall = rng.uniform(0.75, 1.2, crowns.count).astype(np.float32)[crowns.index]
    dome = 1 - np.minimum(np.hypot(crowns.along, crowns.across) / 5, 1) ** 2 * np.float32(0.55)
    wooded = np.isin(surface, (INDEX["deciduous"], INDEX["coniferous"], INDEX["brushwood"]))
    return mean * np.where(wooded, tall * dome, storey)
