"""A zone from what is at hand: xarray objects and files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import UsageError, ZoneError
from flairhub.modalities import INPUTS, MODALITIES, modality
from flairhub.timeseries import parse_date
from flairhub.zones.arrays import open_array
from flairhub.zones.dates import read_dates
from flairhub.zones.files import open_file
from flairhub.zones.raster import Raster
from flairhub.zones.zone import Zone, fit


def zone(
    sources: Mapping[str, Any] | None = None,
    /,
    *,
    quality: Mapping[str, Any] | None = None,
    dates: Mapping[str, Any] | None = None,
    align: Literal["strict", "resample"] = "strict",
    **named: Any,
) -> Zone:
    """Make a zone of xarray objects: metadata and coordinates are read, no pixel.

        zone = fh.zone(AERIAL_RGBI=ortho, SENTINEL2_TS=s2, quality={"SENTINEL2_TS": clouds})

    A source is a DataArray or a Dataset of (time,) band, y, x in any order (a Dataset may have a variable per band), or
    the path of a GeoTIFF or VRT mosaic. Bands go by name where there are names, published ones or STAC common names.

    Args:
        sources: By modality; for names that are no keywords (`SENTINEL1-ASC_TS`).
        quality: Snow and cloud probabilities by the series they belong to.
        dates: By series, the date of each image (dates, `YYYY-MM-DD`, `YYYYMMDD`, or a date file), instead of the time
            coordinate; needed for files.
        align: `resample` warps rasters of another CRS, extent or pixel onto the finest one's grid while they are read;
            otherwise they must fit.
        **named: Sources by modality.

    Returns:
        The same `Zone` as `open_zone` returns.

    Raises:
        UsageError: An unknown modality or keyword.
        ZoneError: What a source says about itself is missing or does not fit.
        DataError: A file without georeferencing, or a damaged date file.
    """
    given = {**(sources or {}), **named}
    _check_names(given, quality or {}, dates or {})
    if align not in ("strict", "resample"):
        raise UsageError(f"align: got {align!r}, expected strict or resample.")
    days = {name: _dates(value, f"dates[{name!r}]") for name, value in (dates or {}).items()}
    rasters = {name: _opened(given[name], name, name, days.get(name)) for name in sorted(given, key=INPUTS.index)}
    masks = {}
    for series, source in (quality or {}).items():
        mask_name = MODALITIES[series].quality_mask
        assert mask_name is not None, "checked"
        masks[series] = _mask(source, mask_name, series, rasters[series])
    return fit(rasters, masks, resample=align == "resample")


def _check_names(sources: Mapping[str, Any], quality: Mapping[str, Any], dates: Mapping[str, Any]) -> None:
    if not sources:
        raise UsageError(f"zone: got no source, expected at least one of {', '.join(INPUTS)}.")
    for name in sources:
        if not modality(name).is_input:
            raise UsageError(f"{name} is no input of a network. Expected some of {', '.join(INPUTS)}.")
    for key, names in (("quality", quality), ("dates", dates)):
        for name in names:
            if name not in sources or not MODALITIES[name].is_series:
                raise UsageError(f"{key}: {name} is no series among the sources ({', '.join(sources)}).")
    for name in quality:
        if MODALITIES[name].quality_mask is None:
            raise UsageError(f"quality: {name} has no quality mask.")


def _opened(source: Any, name: str, key: str, dates: NDArray[np.datetime64] | None) -> Raster:
    if not isinstance(source, str | Path):
        return open_array(source, name, key, dates)
    if MODALITIES[name].is_series and dates is None:
        raise ZoneError(f"{key}: {source} is a file: give the date of each image, dates={{...}}.")
    return open_file(Path(source), name, key, dates, Path("dates"))


def _mask(source: Any, name: str, series: str, raster: Raster) -> Raster:
    key = f"quality[{series!r}]"
    if isinstance(source, str | Path):
        return _opened(source, name, key, raster.dates)
    mask = open_array(source, name, key, _own_dates(source, raster))
    if mask.n_dates != raster.n_dates or not np.array_equal(mask.dates, raster.dates):  # type: ignore[arg-type]
        raise ZoneError(
            f"{key}: has {mask.n_dates} dates, and {series} {raster.n_dates}, or others. Every image needs its mask: "
            f"select the same dates of both."
        )
    return mask


def _own_dates(source: Any, raster: Raster) -> NDArray[np.datetime64] | None:
    """The dates of the series, for a mask without dates."""
    coords = getattr(source, "coords", {})
    return None if any(name in coords for name in ("time", "t", "Time", "T")) else raster.dates


def _dates(given: Any, key: str) -> NDArray[np.datetime64]:
    if isinstance(given, str | Path):
        return read_dates(Path(given), key)
    days = []
    for day in given:
        text = str(day)[:10].replace("-", "")
        days.append(parse_date(text, key))
    if not days:
        raise ZoneError(f"{key}: holds no date. Expected one per image.")
    return np.array(days, dtype="datetime64[D]")
