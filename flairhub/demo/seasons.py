"""The year of a landscape as Sentinel-2 and Sentinel-1 see it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flairhub.demo.fields import Float, smooth_noise
from flairhub.demo.landscape import Landscape
from flairhub.demo.surfaces import SPECTRA, SURFACES, Surface

Dates = NDArray[np.datetime64]

_CLOUD = np.array((0.55, 0.54, 0.54, 0.55, 0.56, 0.57, 0.57, 0.57, 0.42, 0.34), np.float32)
_SNOW = np.array((0.80, 0.78, 0.76, 0.75, 0.74, 0.73, 0.72, 0.70, 0.12, 0.10), np.float32)
_EARLY_LATE_DAYS = (-7.0, 0.0, 7.0)  # fields of one crop differ in their calendar
_LOOKS = 9  # of a Sentinel-1 pixel: speckle is gamma distributed with this shape


@dataclass(frozen=True)
class Series:
    """Images of one area over a year.

    Attributes:
        dates: (time,) datetime64[D].
        values: (time, band, y, x); Sentinel-2 uint16 in 1/10000 of reflectance, Sentinel-1 float32 linear.
        mask: (time, 2, y, x) uint8, snow and cloud probability 0-100; None for radar.
    """

    dates: Dates
    values: NDArray
    mask: NDArray[np.uint8] | None = None


def day_of_year(dates: Dates) -> Float:
    """(time,) float32, 1 on 1 January."""
    return ((dates - dates.astype("datetime64[Y]").astype("datetime64[D]")).astype(int) + 1).astype(np.float32)


def cover_curve(surface: Surface, day: Float, shift_days: float = 0.0) -> Float:
    """Vegetation cover fraction over the year, 0-1.

    Args:
        surface: The kind of ground.
        day: (time,) day of year.
        shift_days: Delay of the whole calendar.
    """
    cover = np.full(day.shape, surface.cover, np.float32)
    for growth in surface.growth:
        rise = 1 / (1 + np.exp(-(day - growth.rise_day - shift_days) / growth.rise_days))
        fall = 1 / (1 + np.exp((day - growth.fall_day - shift_days) / growth.fall_days))
        cover = np.maximum(cover, growth.cover * rise * fall)
    return cover.astype(np.float32)


def surface_reflectance(surface: Surface, day: Float, shift_days: float = 0.0) -> Float:
    """(time, band) float32 reflectance of one kind of ground over the year."""
    cover = cover_curve(surface, day, shift_days)[:, None]
    ground = np.broadcast_to(np.array(SPECTRA[surface.ground], np.float32), (len(day), 10))
    if surface.residue:
        harvest = surface.growth[0].fall_day + shift_days + 8
        straw = np.exp(-(((day - harvest - 18) / 24) ** 2))[:, None].astype(np.float32)
        ground = ground * (1 - straw) + np.array(SPECTRA["straw"], np.float32) * straw
    values = ground * (1 - cover) + np.array(SPECTRA[surface.vegetation], np.float32) * cover
    if surface.flower:
        peak, duration, strength = surface.flower
        bloom = (strength * np.exp(-(((day - peak - shift_days) / duration) ** 2)))[:, None]
        values = values * (1 - bloom) + np.array(SPECTRA["yellow"], np.float32) * bloom
    return values.astype(np.float32)


def draw_dates(rng: np.random.Generator, year: int, per_month: tuple[int, int]) -> tuple[Dates, NDArray[np.bool_]]:
    """Acquisition dates of a year and which of them are surely clear (one per month).

    Args:
        rng: Source of the days.
        year: Calendar year.
        per_month: Least and greatest number of dates in a month.
    """
    dates: list[np.datetime64] = []
    clear: list[bool] = []
    for month in range(12):
        first = np.datetime64(f"{year}-{month + 1:02d}-01", "D")
        length = int((first.astype("datetime64[M]") + 1).astype("datetime64[D]").astype(int) - first.astype(int))
        count = int(rng.integers(per_month[0], per_month[1] + 1))
        days = np.sort(rng.choice(length, count, replace=False))
        dates.extend(first + days)
        chosen = int(rng.integers(count))
        clear.extend(i == chosen for i in range(count))
    return np.array(dates, "datetime64[D]"), np.array(clear)


def cover_fractions(rng: np.random.Generator, land: Landscape, factor: int) -> Float:
    """(kind * calendar, y, x) float32: share of each surface and calendar in each satellite pixel."""
    calendars = len(_EARLY_LATE_DAYS)
    calendar = rng.integers(calendars, size=land.n_parcels)[land.parcel]
    kind = land.surface.astype(np.int64) * calendars + calendar
    height, width = (size // factor for size in kind.shape)
    blocks = kind.reshape(height, factor, width, factor).transpose(0, 2, 1, 3).reshape(height * width, -1)
    n_kinds = len(SURFACES) * calendars
    flat = blocks + np.arange(height * width)[:, None] * n_kinds
    counts = np.bincount(flat.ravel(), minlength=height * width * n_kinds)
    fractions = counts.reshape(height, width, n_kinds).astype(np.float32) / np.float32(factor * factor)
    return fractions.transpose(2, 0, 1)


def _mix(fractions: Float, curves: Float) -> Float:
    """(time, band, y, x): mixture of (kind, time, band) curves, summed in a fixed order."""
    mixed = np.zeros((*curves.shape[1:], *fractions.shape[1:]), np.float32)
    for share, curve in zip(fractions, curves, strict=True):
        if share.any():
            mixed += curve[:, :, None, None] * share
    return mixed


def optical_series(rng: np.random.Generator, fractions: Float, year: int, shift_days: float) -> Series:
    """Sentinel-2 year with clouds and snow; the mask marks every corrupted pixel.

    Args:
        rng: Source of dates, weather and noise.
        fractions: What `cover_fractions` gave.
        year: Calendar year.
        shift_days: Delay of the region's calendar.
    """
    dates, clear = draw_dates(rng, year, (2, 3))
    day = day_of_year(dates)
    curves = [surface_reflectance(row, day, shift_days + offset) for row in SURFACES for offset in _EARLY_LATE_DAYS]
    values = _mix(fractions, np.stack(curves))
    fertility = 1 + 0.05 * smooth_noise(rng, values.shape[2:], 8)
    values *= fertility * rng.normal(1, 0.015, (len(dates), 1, 1, 1)).astype(np.float32)
    noise = rng.standard_normal(values.shape, np.float32)
    values += noise * (np.float32(0.002) + np.float32(0.015) * values)
    mask = np.zeros((len(dates), 2, *values.shape[2:]), np.uint8)
    for i in np.flatnonzero(~clear):
        winter = day[i] < 60 or day[i] > 345
        if winter and rng.random() < 0.4:
            _corrupt(rng, values[i], mask[i, 0], _SNOW, coverage=rng.uniform(0.4, 1.0))
        elif rng.random() < 0.6:
            _corrupt(rng, values[i], mask[i, 1], _CLOUD, coverage=rng.uniform(0.1, 1.0))
    stored = np.round(np.clip(values, 0.0001, 1.6) * 10000).astype(np.uint16)
    return Series(dates, stored, mask)


def _corrupt(
    rng: np.random.Generator, values: Float, probability: NDArray[np.uint8], spectrum: Float, coverage: float
) -> None:
    """Cover a part of one image, (band, y, x) in place, and say so in its (y, x) probability 0-100."""
    field = smooth_noise(rng, probability.shape, 9) * 0.5 + 0.5
    density = (
        np.clip((field - np.quantile(field, 1 - coverage)) * 6 + 0.35, 0, 1) if coverage < 1 else field * 0.5 + 0.5
    )
    density = np.where(density > 0.05, density, 0).astype(np.float32)
    bright = spectrum[:, None, None] * (1 + 0.15 * smooth_noise(rng, probability.shape, 4))
    values[...] = values * (1 - density) + bright * density
    probability[...] = np.where(density > 0, np.maximum(np.round(density * 100), 5), 0).astype(np.uint8)


def radar_series(rng: np.random.Generator, fractions: Float, year: int, shift_days: float, ascending: bool) -> Series:
    """Sentinel-1 year of one orbit direction: linear backscatter with speckle.

    Args:
        rng: Source of dates and speckle.
        fractions: What `cover_fractions` gave.
        year: Calendar year.
        shift_days: Delay of the region's calendar.
        ascending: Orbit direction; the two differ a little in brightness.
    """
    dates, _ = draw_dates(rng, year, (1, 3))
    day = day_of_year(dates)
    curves = []
    for row in SURFACES:
        for offset in _EARLY_LATE_DAYS:
            cover = cover_curve(row, day, shift_days + offset)[:, None]
            level_db = np.array(row.radar_db) + cover * np.array(row.radar_gain_db)
            curves.append(10 ** (level_db / 10))
    values = _mix(fractions, np.stack(curves).astype(np.float32)) * np.float32(1.06 if ascending else 0.96)
    speckle = rng.standard_gamma(_LOOKS, values.shape, dtype=np.float32) / np.float32(_LOOKS)
    return Series(dates, np.round(values * speckle, 5).astype(np.float32))
