"""What the made landscape consists of: one row per surface.

A surface fixes its class, its look in an aerial image (one summer day) and its year as the satellites see it.
All crops share one aerial look, so that only the season tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKGROUND = 22
"""LPIS class (level 1) of everything that is no declared parcel."""

PLOWED = 10
"""COSIA class of crop parcels without cover on the aerial image's day."""

# Reflectance of pure covers in the Sentinel-2 bands B02 B03 B04 B05 B06 B07 B08 B8A B11 B12.
SPECTRA: dict[str, tuple[float, ...]] = {
    "soil": (0.080, 0.110, 0.140, 0.170, 0.190, 0.205, 0.220, 0.240, 0.310, 0.270),
    "leaf": (0.030, 0.065, 0.035, 0.095, 0.290, 0.370, 0.400, 0.420, 0.200, 0.100),
    "tree": (0.022, 0.045, 0.028, 0.075, 0.230, 0.300, 0.330, 0.345, 0.150, 0.065),
    "twigs": (0.050, 0.060, 0.070, 0.095, 0.120, 0.130, 0.150, 0.165, 0.190, 0.140),
    "needles": (0.018, 0.034, 0.024, 0.048, 0.130, 0.160, 0.175, 0.185, 0.085, 0.040),
    "scrub": (0.040, 0.065, 0.060, 0.105, 0.190, 0.225, 0.245, 0.260, 0.210, 0.130),
    "straw": (0.090, 0.130, 0.170, 0.200, 0.225, 0.245, 0.265, 0.285, 0.370, 0.290),
    "yellow": (0.060, 0.170, 0.150, 0.200, 0.310, 0.360, 0.400, 0.410, 0.250, 0.150),
    "gravel": (0.150, 0.185, 0.215, 0.235, 0.250, 0.260, 0.270, 0.280, 0.330, 0.300),
    "asphalt": (0.105, 0.118, 0.128, 0.138, 0.148, 0.154, 0.160, 0.168, 0.200, 0.190),
    "tile": (0.075, 0.100, 0.160, 0.185, 0.200, 0.210, 0.220, 0.230, 0.270, 0.240),
    "slate": (0.090, 0.100, 0.105, 0.112, 0.118, 0.122, 0.126, 0.130, 0.150, 0.140),
    "glass": (0.210, 0.225, 0.225, 0.235, 0.260, 0.270, 0.280, 0.285, 0.240, 0.190),
    "pool": (0.170, 0.170, 0.080, 0.055, 0.042, 0.040, 0.038, 0.036, 0.020, 0.015),
    "water": (0.050, 0.048, 0.032, 0.027, 0.022, 0.020, 0.018, 0.017, 0.010, 0.008),
}


@dataclass(frozen=True)
class Growth:
    """One growing period: vegetation cover rises to `cover` and falls again.

    Attributes:
        cover: Cover fraction it reaches.
        rise_day, fall_day: Day of year at half height, up and down.
        rise_days, fall_days: Time constant of the two flanks in days.
    """

    cover: float
    rise_day: float
    rise_days: float
    fall_day: float
    fall_days: float


@dataclass(frozen=True)
class Surface:
    """One kind of ground.

    Attributes:
        name: Our name.
        cosia: Land-cover class.
        aerial: Mean (R, G, B, NIR) of the aerial image, 0-255.
        lpis: Crop class at level 1; `BACKGROUND` when no declared parcel.
        ground, vegetation: Spectra (names in `SPECTRA`) without and with full vegetation cover.
        cover: Vegetation cover outside the growing periods.
        growth: Growing periods of the year.
        flower: (day of year, duration in days, strength) of a yellow bloom.
        residue: Straw covers the ground for some weeks after the first growing period.
        radar_db: (VV, VH) backscatter without vegetation in dB.
        radar_gain_db: What full vegetation cover adds to (VV, VH) in dB.
        height_m: Mean height above the ground.
        grain, patches: Aerial texture: standard deviation per pixel, amplitude at some metres.
    """

    name: str
    cosia: int
    aerial: tuple[int, int, int, int]
    lpis: int = BACKGROUND
    ground: str = "soil"
    vegetation: str = "leaf"
    cover: float = 0.0
    growth: tuple[Growth, ...] = ()
    flower: tuple[float, float, float] | None = None
    residue: bool = False
    radar_db: tuple[float, float] = (-11.0, -19.0)
    radar_gain_db: tuple[float, float] = (0.0, 0.0)
    height_m: float = 0.0
    grain: float = 4.0
    patches: float = 4.0

    @property
    def is_crop(self) -> bool:
        """Declared arable parcel, with the common crop look in the aerial image."""
        return self.lpis != BACKGROUND and self.cosia == CROP_COSIA


CROP_COSIA = 9
_CROP_COLOUR = (138, 148, 92, 150)


def _crop(name: str, lpis: int, cover: float, *growth: Growth, **details) -> Surface:
    details = {"residue": True, "radar_gain_db": (1.5, 5.0), "height_m": 0.4, **details}
    return Surface(name, CROP_COSIA, _CROP_COLOUR, lpis=lpis, cover=cover, growth=growth, **details)


SURFACES: tuple[Surface, ...] = (
    Surface("tiled roof", 0, (176, 104, 82, 112), ground="tile", radar_db=(-4, -12), height_m=6, grain=5),
    Surface("slate roof", 0, (98, 100, 118, 92), ground="slate", radar_db=(-4, -12), height_m=7, grain=4),
    Surface("greenhouse", 1, (206, 216, 226, 188), ground="glass", radar_db=(-6, -13), height_m=4, grain=4),
    Surface("pool", 2, (84, 190, 206, 52), ground="pool", radar_db=(-13, -21), grain=3, patches=2),
    Surface("road", 3, (146, 144, 146, 118), ground="asphalt", radar_db=(-12, -21), grain=4, patches=3),
    Surface("gravel", 4, (204, 190, 160, 172), ground="gravel", radar_db=(-12, -20), grain=8, patches=8),
    Surface("bare soil", 5, (186, 144, 100, 160), radar_db=(-11, -19), grain=6, patches=12),
    Surface("water", 6, (44, 66, 74, 20), ground="water", radar_db=(-20, -27), grain=2, patches=4),
    Surface(
        "lawn",
        8,
        (92, 136, 74, 186),
        cover=0.5,
        growth=(Growth(0.85, 75, 15, 320, 20),),
        radar_db=(-12, -19),
        radar_gain_db=(1, 2.5),
        height_m=0.1,
        grain=5,
        patches=10,
    ),
    _crop("meadow", 0, 0.55, Growth(0.9, 70, 14, 165, 10), Growth(0.8, 205, 14, 330, 20), residue=False),
    _crop("wheat", 1, 0.12, Growth(0.95, 62, 13, 178, 7), radar_gain_db=(-3.5, 1.5)),
    _crop("maize", 3, 0.04, Growth(0.95, 168, 9, 268, 8), radar_gain_db=(2.5, 7.0), height_m=1.2),
    _crop("sunflower", 7, 0.04, Growth(0.85, 146, 9, 218, 9), flower=(192, 12, 0.6), radar_gain_db=(2.5, 5)),
    _crop(
        "rapeseed",
        8,
        0.1,
        Growth(0.8, -60, 12, 178, 6),
        Growth(0.6, 262, 10, 500, 12),
        flower=(112, 13, 0.8),
        radar_gain_db=(1.0, 5.5),
    ),
    _crop("lucerne", 12, 0.35, *(Growth(0.9, day, 8, day + 42, 4) for day in (82, 142, 202, 262))),
    Surface(
        "vineyard",
        11,
        (150, 132, 104, 140),
        lpis=16,
        cover=0.1,
        growth=(Growth(0.5, 142, 13, 300, 12),),
        radar_db=(-9, -16),
        radar_gain_db=(0.5, 2),
        height_m=0.8,
        grain=6,
        patches=3,
    ),
    Surface(
        "deciduous",
        12,
        (66, 104, 56, 174),
        ground="twigs",
        vegetation="tree",
        growth=(Growth(1.0, 102, 9, 302, 12),),
        radar_db=(-8.5, -14.5),
        radar_gain_db=(-0.8, -0.5),
        height_m=12,
        grain=8,
        patches=12,
    ),
    Surface("coniferous", 13, (34, 62, 46, 104), ground="needles", radar_db=(-9, -15), height_m=16, grain=8, patches=6),
    Surface(
        "brushwood",
        14,
        (112, 112, 68, 132),
        ground="scrub",
        vegetation="tree",
        growth=(Growth(0.4, 105, 14, 295, 16),),
        radar_db=(-9.5, -16),
        height_m=1.8,
        grain=14,
        patches=26,
    ),
)
"""Every kind of ground; the row number is the surface index of a landscape."""

INDEX: dict[str, int] = {surface.name: i for i, surface in enumerate(SURFACES)}
"""Surface index by name."""

CROPS: tuple[str, ...] = tuple(surface.name for surface in SURFACES if surface.is_crop)
"""Names of the arable crops, which share one aerial look."""

LPIS_LEVEL_2: dict[int, int] = {0: 0, 1: 2, 3: 5, 7: 10, 8: 11, 12: 17, 16: 22, BACKGROUND: 30}
"""Level-2 class of each level-1 class in use."""

LPIS_LEVEL_3: dict[int, int] = {0: 0, 1: 3, 3: 8, 7: 14, 8: 16, 12: 25, 16: 33, BACKGROUND: 45}
"""First level-3 class of each level-1 class in use; a crop's second variety is the next index."""
