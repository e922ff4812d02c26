"""The areas of the made data set: where they lie, how large they are, and what every sensor sees of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flairhub.demo.imagery import Light, aerial_image, elevation, historical_image, spot_image
from flairhub.demo.landscape import make_landscape
from flairhub.demo.seasons import Dates, cover_fractions, optical_series, radar_series
from flairhub.errors import UsageError
from flairhub.modalities import MODALITIES

_SATELLITE_M = {
    "SPOT_RGBI": 2.56,
    "SENTINEL2_TS": 10.24,
    "SENTINEL2_MSK-SC": 10.24,
    "SENTINEL1-ASC_TS": 10.24,
    "SENTINEL1-DESC_TS": 10.24,
}
_HISTORICAL_FACTOR = 2


def pixel_factors(gsd_m: float) -> dict[str, int]:
    """Pixel size of every modality, in pixels of the aerial image.

    Args:
        gsd_m: Pixel size of the aerial image in metres; the satellites' pixels must be multiples of it.
    """
    factors = dict.fromkeys(MODALITIES, 1) | {"AERIAL-RLT_PAN": _HISTORICAL_FACTOR}
    for name, pixel_m in _SATELLITE_M.items():
        factors[name] = round(pixel_m / gsd_m)
        if abs(factors[name] * gsd_m - pixel_m) > 1e-9:
            raise UsageError(f"gsd_m must divide {pixel_m} m ({name}), got {gsd_m}.")
    return factors


@dataclass(frozen=True)
class Region:
    """What is common to all areas of one domain.

    Attributes:
        name: Domain name, département and year, such as `D012-2019`.
        left_m, top_m: Upper left corner of the domain in EPSG:2154.
        terrain_m: Mean terrain height.
        light: How the aerial campaign renders the ground.
        shift_days: How much later than elsewhere the season is.
    """

    name: str
    left_m: float
    top_m: float
    terrain_m: float
    light: Light
    shift_days: float

    @property
    def year(self) -> int:
        """Year of the images."""
        return int(self.name.rpartition("-")[2])


REGIONS: tuple[Region, ...] = (
    Region("D012-2019", 655_000.0, 6_360_000.0, 560.0, Light((1.0, 1.0, 1.0, 1.0), 0.0), 4.0),
    Region("D033-2020", 405_000.0, 6_420_000.0, 45.0, Light((1.04, 1.0, 0.95, 1.03), 3.0), -3.0),
    Region("D068-2021", 1_010_000.0, 6_770_000.0, 230.0, Light((0.96, 0.98, 1.03, 0.97), -2.0), 1.0),
)
"""The domains of the made data set, in three different years."""

ZONE_REGION = Region("D045-2020", 620_000.0, 6_770_000.0, 110.0, Light((1.02, 1.0, 0.98, 1.0), 1.0), 0.0)
"""Where the zone lies: a domain of its own, seen by no training."""

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class DemoPlan:
    """Sizes of the made data set.

    Attributes:
        gsd_m: Pixel size of the aerial image in metres.
        patch_px: Aerial pixels along a patch; a multiple of the coarsest modality's factor.
        roi_splits: Split of each ROI of a domain, one tuple per domain.
        roi_grid: (rows, columns) of patches in an ROI; one cell of each ROI is left out.
        zone_grid: (rows, columns) of patches the zone measures.
        arch: `models.monotemp_model.arch` of the configuration.
        epochs, batch_size: Hyperparameters of the configuration.
    """

    gsd_m: float = 1.28
    patch_px: int = 64
    roi_splits: tuple[tuple[str, ...], ...] = (
        ("train", "train", "train", "test"),
        ("train", "train", "train", "test"),
        ("train", "train", "valid", "test"),
    )
    roi_grid: tuple[int, int] = (5, 6)
    zone_grid: tuple[int, int] = (6, 8)
    arch: str = "test_resnet-segformer"
    epochs: int = 8
    batch_size: int = 8

    def __post_init__(self) -> None:
        coarsest = max(self.factors.values())
        if self.patch_px % coarsest:
            raise UsageError(f"patch_px must be a multiple of {coarsest}, got {self.patch_px}.")
        if len(self.roi_splits) > len(REGIONS):
            raise UsageError(f"at most {len(REGIONS)} domains, got {len(self.roi_splits)} in roi_splits.")
        unknown = {split for rois in self.roi_splits for split in rois} - set(SPLITS)
        if unknown:
            raise UsageError(f"unknown splits {sorted(unknown)} in roi_splits; known: {', '.join(SPLITS)}.")

    @property
    def factors(self) -> dict[str, int]:
        """Pixel size of every modality, in aerial pixels."""
        return pixel_factors(self.gsd_m)

    @property
    def patch_m(self) -> float:
        """Width and height of a patch in metres."""
        return round(self.gsd_m * self.patch_px, 6)


@dataclass(frozen=True)
class Area:
    """All modalities of one area.

    Attributes:
        values: By modality: images and labels (band, y, x), series (time, band, y, x), as stored in files.
        dates: By series modality (the mask included): (time,) datetime64[D].
    """

    values: dict[str, NDArray]
    dates: dict[str, Dates]


def render_area(seed: np.random.SeedSequence, region: Region, shape: tuple[int, int], gsd_m: float) -> Area:
    """Draw a landscape and everything the sensors see of it.

    Args:
        seed: Fixes every value.
        region: Year, light, calendar.
        shape: (y, x) in aerial pixels; multiples of the greatest of `pixel_factors`.
        gsd_m: Aerial pixel size in metres.
    """
    rng = np.random.default_rng(seed)
    land = make_landscape(rng, shape, gsd_m, region.terrain_m)
    aerial = aerial_image(rng, land, region.light)
    factors = pixel_factors(gsd_m)
    fractions = cover_fractions(rng, land, factors["SENTINEL2_TS"])
    optical = optical_series(rng, fractions, region.year, region.shift_days)
    assert optical.mask is not None
    values: dict[str, NDArray] = {
        "AERIAL_RGBI": aerial,
        "AERIAL-RLT_PAN": historical_image(rng, land, aerial, factors["AERIAL-RLT_PAN"]),
        "DEM_ELEV": elevation(rng, land),
        "SPOT_RGBI": spot_image(rng, aerial, factors["SPOT_RGBI"]),
        "SENTINEL2_TS": optical.values,
        "SENTINEL2_MSK-SC": optical.mask,
        "AERIAL_LABEL-COSIA": land.cosia[None],
        "ALL_LABEL-LPIS": land.lpis,
    }
    dates = {"SENTINEL2_TS": optical.dates, "SENTINEL2_MSK-SC": optical.dates}
    for name, ascending in (("SENTINEL1-ASC_TS", True), ("SENTINEL1-DESC_TS", False)):
        radar = radar_series(rng, fractions, region.year, region.shift_days, ascending)
        values[name], dates[name] = radar.values, radar.dates
    return Area({name: _store(name, values[name]) for name in MODALITIES}, dates)


def _store(name: str, values: NDArray) -> NDArray:
    dtype = np.dtype(MODALITIES[name].dtype)
    if values.dtype != dtype and dtype.kind == "u":
        values = np.round(values)
    return values.astype(dtype)
