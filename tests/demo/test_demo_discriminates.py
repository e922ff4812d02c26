"""What the data set is for: land cover shows in aerial detail, crops only in the season.

The judge is as simple as can be: nearest class mean per pixel, learnt on one ROI set, judged on other ROIs.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flairhub.demo.area import REGIONS, Area, render_area
from flairhub.demo.surfaces import BACKGROUND
from flairhub.timeseries import CloudFilter, SeriesPreparation, prepare_series

GSD_M = 1.28
FACTOR = 8  # aerial pixels per Sentinel-2 pixel


@pytest.fixture(scope="module")
def areas() -> list[Area]:
    """Six areas: four to learn from, two to judge."""
    seeds = np.random.SeedSequence(11).spawn(6)
    return [render_area(seed, REGIONS[i % 3], (320, 320), GSD_M) for i, seed in enumerate(seeds)]


def monthly(area: Area) -> NDArray[np.float64]:
    """(feature, y, x): Sentinel-2 monthly means without covered dates; empty months take the one before."""
    preparation = SeriesPreparation(cloud_filter=CloudFilter(max_frac=0.0), average="monthly", fill="published")
    series = prepare_series(
        area.values["SENTINEL2_TS"], area.dates["SENTINEL2_TS"], area.values["SENTINEL2_MSK-SC"], preparation
    )
    return series.values.reshape(-1, *series.values.shape[2:]).astype(float)


def aerial(area: Area) -> NDArray[np.float64]:
    """(feature, y, x): the four bands."""
    return area.values["AERIAL_RGBI"].astype(float)


def upsampled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.repeat(FACTOR, axis=1).repeat(FACTOR, axis=2)


def balanced_accuracy(
    learn: list[tuple[NDArray, NDArray]], judge: list[tuple[NDArray, NDArray]], classes: list[int]
) -> float:
    """Mean recall of the nearest-mean rule over classes; pairs of (feature, pixel) and (pixel,) class."""
    features, truth = (np.concatenate(parts, axis=-1) for parts in zip(*learn, strict=True))
    scale = features.std(axis=1, keepdims=True) + 1e-9
    means = np.stack([features[:, truth == c].mean(axis=1) for c in classes]) / scale[:, 0]
    features, truth = (np.concatenate(parts, axis=-1) for parts in zip(*judge, strict=True))
    distance = np.stack([((features / scale - mean[:, None]) ** 2).sum(axis=0) for mean in means])
    nearest = np.array(classes)[distance.argmin(axis=0)]
    return float(np.mean([(nearest[truth == c] == c).mean() for c in classes if (truth == c).any()]))


def crop_pixels(area: Area, values: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Pixels of arable parcels with standing crop (land-cover class 9): (feature, pixel), (pixel,) crop."""
    crop, cover = area.values["ALL_LABEL-LPIS"][0], area.values["AERIAL_LABEL-COSIA"][0]
    chosen = (crop != BACKGROUND) & (cover == 9)
    return values[:, chosen], crop[chosen]


def cover_pixels(area: Area, values: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    cover = area.values["AERIAL_LABEL-COSIA"][0]
    return values.reshape(len(values), -1)[:, ::7], cover.ravel()[::7]


def test_crops_show_in_the_season_and_not_in_one_aerial_image(areas: list[Area]) -> None:
    crops = [0, 1, 3, 7, 8, 12]
    from_air = [crop_pixels(area, aerial(area)) for area in areas]
    from_season = [crop_pixels(area, upsampled(monthly(area))) for area in areas]
    air = balanced_accuracy(from_air[:4], from_air[4:], crops)
    season = balanced_accuracy(from_season[:4], from_season[4:], crops)
    assert air < 0.35, "chance is 0.17"
    assert season > 0.8


def test_land_cover_shows_in_aerial_detail_and_less_at_ten_metres(areas: list[Area]) -> None:
    covers = [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14]
    from_air = [cover_pixels(area, aerial(area)) for area in areas]
    from_season = [cover_pixels(area, upsampled(monthly(area))) for area in areas]
    air = balanced_accuracy(from_air[:4], from_air[4:], covers)
    season = balanced_accuracy(from_season[:4], from_season[4:], covers)
    assert air > 0.55
    assert air > season + 0.15


def test_crop_colours_are_drawn_independently_of_the_crop(areas: list[Area]) -> None:
    """Between crops, mean aerial colours differ by less than parcels of one crop do among themselves."""
    means, spread = [], []
    pixels = [crop_pixels(area, aerial(area)) for area in areas]
    values, crop = (np.concatenate(parts, axis=-1) for parts in zip(*pixels, strict=True))
    for c in np.unique(crop):
        means.append(values[:, crop == c].mean(axis=1))
        spread.append(values[:, crop == c].std(axis=1))
    assert (np.std(means, axis=0) < 0.6 * np.mean(spread, axis=0)).all()
