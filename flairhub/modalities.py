"""The sensors of the published data set, one row each.

Sizes, ground sampling distances and dtypes are the published ones and serve as defaults and for messages;
what a cube holds is read from the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from types import MappingProxyType

from flairhub.errors import UsageError


class Kind(StrEnum):
    """What the files of a modality hold."""

    IMAGE = "image"
    SERIES = "series"
    MASK_SERIES = "mask_series"
    LABEL = "label"


@dataclass(frozen=True)
class Modality:
    """One data group of the published layout.

    Attributes:
        name: Published name, used in files, cube groups and configuration keys.
        kind: Image, time series, quality-mask series or label.
        bands: Band names in file order; for series the bands of one date; for labels the nomenclature levels.
        dtype: Published dtype.
        size_px: Published patch width and height in pixels.
        gsd_m: Published ground sampling distance in metres.
        dates_file: GeoPackage with the acquisition dates of a series, inside the metadata folder.
        quality_mask: Name of the mask series that belongs to a series.
        dates_of: For a mask series, the series whose dates it shares.
        family: Stem of the series options in the configuration (`filter_<family>`, `temporal_average_<family>`).
        undated_domain: The domain's year is written `195X` in the file names.
        is_elevation: Bands are surface and terrain heights, from which heights above ground can be derived.
        title: What figures call it.
        true_colour: Bands of a series to show as red, green and blue.
        aliases: What others call each band (STAC common names among them), in lower case, in the order of `bands`.
    """

    name: str
    kind: Kind
    bands: tuple[str, ...]
    dtype: str
    size_px: int
    gsd_m: float
    dates_file: str | None = None
    quality_mask: str | None = None
    dates_of: str | None = None
    family: str | None = None
    undated_domain: bool = False
    is_elevation: bool = False
    title: str = ""
    true_colour: tuple[str, ...] = ()
    aliases: tuple[tuple[str, ...], ...] = ()

    @property
    def is_series(self) -> bool:
        """True when files hold several dates (series and mask series)."""
        return self.kind in (Kind.SERIES, Kind.MASK_SERIES)

    @property
    def is_input(self) -> bool:
        """True when a network can take it as input."""
        return self.kind in (Kind.IMAGE, Kind.SERIES)

    def published_band(self, label: object) -> str | None:
        """Return the band that a label means, whatever its case; None = none of this modality's.

        A resolution at its end does not count: `B02_10m` is `B02`.
        """
        word = _RESOLUTION.sub("", str(label).strip().lower())
        for position, band in enumerate(self.bands):
            if word == band.lower() or (self.aliases and word in self.aliases[position]):
                return band
        return None


_RESOLUTION = re.compile(r"_\d+m$")
_S2_BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
_S2_ALIASES = (
    ("b2", "blue"),
    ("b3", "green"),
    ("b4", "red"),
    ("b5", "rededge1", "rededge071"),
    ("b6", "rededge2", "rededge075"),
    ("b7", "rededge3", "rededge078"),
    ("b8", "nir"),
    ("nir08",),
    ("swir16",),
    ("swir22",),
)
_RGBI = ("R", "G", "B", "NIR")
_RGBI_ALIASES = (("red",), ("green",), ("blue",), ("ir", "infrared", "nir08"))

_ROWS = (
    Modality("AERIAL_RGBI", Kind.IMAGE, _RGBI, "uint8", 512, 0.2, title="aerial", aliases=_RGBI_ALIASES),
    Modality(
        "AERIAL-RLT_PAN",
        Kind.IMAGE,
        ("PAN",),
        "uint8",
        256,
        0.4,
        undated_domain=True,
        title="historical",
        aliases=(("panchromatic",),),
    ),
    Modality(
        "DEM_ELEV", Kind.IMAGE, ("DSM", "DTM"), "float32", 512, 0.2, is_elevation=True, title="height above ground"
    ),
    Modality("SPOT_RGBI", Kind.IMAGE, _RGBI, "uint16", 64, 1.6, title="SPOT", aliases=_RGBI_ALIASES),
    Modality(
        "SENTINEL2_TS",
        Kind.SERIES,
        _S2_BANDS,
        "uint16",
        10,
        10.24,
        dates_file="GLOBAL_SENTINEL2_MTD_DATES.gpkg",
        quality_mask="SENTINEL2_MSK-SC",
        family="sentinel2",
        title="Sentinel-2",
        true_colour=("B04", "B03", "B02"),
        aliases=_S2_ALIASES,
    ),
    Modality(
        "SENTINEL1-ASC_TS",
        Kind.SERIES,
        ("VV", "VH"),
        "float32",
        10,
        10.24,
        dates_file="GLOBAL_SENTINEL1-ASC_MTD_DATES.gpkg",
        family="sentinel1",
        title="Sentinel-1-ASC",
    ),
    Modality(
        "SENTINEL1-DESC_TS",
        Kind.SERIES,
        ("VV", "VH"),
        "float32",
        10,
        10.24,
        dates_file="GLOBAL_SENTINEL1-DESC_MTD_DATES.gpkg",
        family="sentinel1",
        title="Sentinel-1-DESC",
    ),
    Modality(
        "SENTINEL2_MSK-SC",
        Kind.MASK_SERIES,
        ("SNOW", "CLOUD"),
        "uint8",
        10,
        10.24,
        dates_file="GLOBAL_SENTINEL2_MTD_DATES.gpkg",
        dates_of="SENTINEL2_TS",
        family="sentinel2",
    ),
    Modality("AERIAL_LABEL-COSIA", Kind.LABEL, ("COSIA",), "uint8", 512, 0.2),
    Modality("ALL_LABEL-LPIS", Kind.LABEL, ("LPIS-23", "LPIS-31", "LPIS-46"), "uint8", 512, 0.2),
)

MODALITIES: Mapping[str, Modality] = MappingProxyType({row.name: row for row in _ROWS})
"""Every data group by name."""

INPUTS: tuple[str, ...] = tuple(row.name for row in _ROWS if row.is_input)
"""Names of the network inputs, in the order used everywhere (encoders, fusion, channels)."""

LABELS: tuple[str, ...] = tuple(row.name for row in _ROWS if row.kind is Kind.LABEL)
"""Names of the label sets."""

PATCH_SIZE_M = 102.4
"""Width and height of a published patch in metres."""


def modality(name: str) -> Modality:
    """Return the row of `name`.

    Raises:
        UsageError: The name is unknown; the message suggests the closest one.
    """
    try:
        return MODALITIES[name]
    except KeyError:
        close = get_close_matches(name, MODALITIES, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"unknown modality {name!r}.{hint} Known: {', '.join(MODALITIES)}.") from None
