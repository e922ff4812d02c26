"""One-day images of a landscape: aerial, historical aerial, SPOT, elevation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flairhub.demo.fields import Float, smooth_noise
from flairhub.demo.landscape import Landscape
from flairhub.demo.surfaces import INDEX, SURFACES

_CROP = np.array([row.is_crop for row in SURFACES])
_BUILT = tuple(INDEX[name] for name in ("tiled roof", "slate roof", "greenhouse", "pool", "road", "gravel"))
_PLOWED_COLOUR = np.array((122, 98, 78, 108), np.float32)
_RIPE_COLOUR = np.array((178, 164, 104, 162), np.float32)
_GREEN_COLOUR = np.array((104, 140, 80, 176), np.float32)
_SOIL_COLOUR = np.array((180, 150, 116, 156), np.float32)
_VINE_COLOUR = np.array((88, 118, 62, 172), np.float32)
_ROW_M = 4.5  # distance of cultivation rows
_SUN = (0.64, -0.77)  # shadows fall up and to the left: unit step (x, y), image axes
_SUN_SLOPE = 1.1  # tangent of the sun's elevation


@dataclass(frozen=True)
class Light:
    """How a campaign renders the ground.

    Attributes:
        gain: Factor on (R, G, B, NIR).
        haze: Added to every band.
    """

    gain: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    haze: float = 0.0


def block_mean(values: NDArray, factor: int) -> Float:
    """(..., y, x) float32 averaged over `factor` x `factor` pixels."""
    if factor == 1:
        return values.astype(np.float32)
    *lead, height, width = values.shape
    blocks = values.reshape(*lead, height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(-3, -1), dtype=np.float32)


def aerial_image(rng: np.random.Generator, land: Landscape, light: Light) -> Float:
    """(band, y, x) float32, 0-255: R G B NIR of the landscape on a summer day."""
    image = _ground_colour(rng, land)
    image += _texture(rng, land)
    image *= np.where(_shadow(land), np.float32(0.62), np.float32(1))
    image = image * np.array(light.gain, np.float32)[:, None, None] + np.float32(light.haze)
    return np.clip(image, 0, 255)


def _ground_colour(rng: np.random.Generator, land: Landscape) -> Float:
    """Mean colour per surface; crop parcels get a ripeness of their own, whatever the crop."""
    colours = np.array([row.aerial for row in SURFACES], np.float32)
    image = colours[land.surface].transpose(2, 0, 1)
    ripeness = rng.random(land.n_parcels).astype(np.float32)[land.parcel][None]
    crop_colour = _GREEN_COLOUR[:, None, None] * (1 - ripeness) + _RIPE_COLOUR[:, None, None] * ripeness
    crop = _CROP[land.surface]
    image = np.where(crop, crop_colour, image)
    image = np.where(land.plowed, _PLOWED_COLOUR[:, None, None], image)
    vine = (0.5 + 0.5 * np.sin(land.row_m * np.float32(2 * np.pi / _ROW_M)))[None].astype(np.float32)
    vine_colour = _SOIL_COLOUR[:, None, None] * (1 - vine) + _VINE_COLOUR[:, None, None] * vine
    image = np.where(land.surface == INDEX["vineyard"], vine_colour, image)
    shade = rng.normal(1, 0.06, land.n_parcels).astype(np.float32)[land.parcel]
    return image * shade


def _texture(rng: np.random.Generator, land: Landscape) -> Float:
    """Grain, patches, cultivation rows and the light and dark side of tree crowns."""
    grain = np.array([row.grain for row in SURFACES], np.float32)[land.surface]
    patches = np.array([row.patches for row in SURFACES], np.float32)[land.surface]
    shape = land.surface.shape
    texture = patches * smooth_noise(rng, shape, 9 / land.gsd_m, octaves=3)
    rows = np.sin(land.row_m * np.float32(2 * np.pi / _ROW_M))
    amplitude = np.where(_CROP[land.surface], 4, 0) + np.where(land.plowed, 9, 0)
    texture = texture + amplitude.astype(np.float32) * rows
    slope = np.clip(np.diff(land.height_m, axis=1, append=land.height_m[:, -1:]), -2, 2)
    texture = texture + np.float32(7) * slope
    noise = rng.standard_normal((4, *shape), np.float32) * grain * np.float32(0.8)
    return texture[None] + noise


def _shadow(land: Landscape) -> NDArray[np.bool_]:
    """Cast shadow: some object along the way to the sun is higher than the ray."""
    height = land.height_m
    shadow = np.zeros(height.shape, bool)
    reach_px = int(18 / _SUN_SLOPE / land.gsd_m)
    for step in range(1, reach_px + 1, max(1, reach_px // 14)):
        dx, dy = round(_SUN[0] * step), round(_SUN[1] * step)
        ray = height + np.float32(step * land.gsd_m * _SUN_SLOPE)
        shadow[: dy or None, : -dx or None] |= height[-dy:, dx:] > ray[: dy or None, : -dx or None]
    return shadow


def historical_image(rng: np.random.Generator, land: Landscape, aerial: Float, factor: int) -> Float:
    """(1, y, x) float32, 0-255: a grainy panchromatic image from before the recent buildings."""
    grey = aerial[:3].mean(axis=0)
    modern = (land.recent & np.isin(land.surface, _BUILT)) | (land.surface == INDEX["pool"])
    grey = np.where(modern, np.float32(105), grey)
    grey = block_mean(grey, factor)
    grain = rng.standard_normal(grey.shape, np.float32) * 7
    fading = smooth_noise(rng, grey.shape, 120 / (land.gsd_m * factor)) * 12
    return np.clip((grey - 110) * 0.85 + 118 + grain + fading, 0, 255)[None]


def spot_image(rng: np.random.Generator, aerial: Float, factor: int) -> Float:
    """(band, y, x) float32: the same ground at a coarser pixel size, in 1/10000 of reflectance."""
    coarse = block_mean(aerial, factor)
    scale = np.array((9.0, 8.0, 7.0, 17.0), np.float32)[:, None, None]
    noise = rng.standard_normal(coarse.shape, np.float32) * 20
    return np.clip(coarse * scale + 120 + noise, 1, 65535)


def elevation(rng: np.random.Generator, land: Landscape) -> Float:
    """(2, y, x) float32, metres rounded to centimetres: surface (DSM) and terrain (DTM)."""
    roughness = np.abs(rng.standard_normal(land.height_m.shape, np.float32)) * np.float32(0.05)
    surface = land.terrain_m + land.height_m + roughness
    return np.round(np.stack([surface, land.terrain_m]), 2).astype(np.float32)
