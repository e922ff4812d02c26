"""Time series: dates, cloud and snow filter, period averages, day offsets.

The one path for ingest, training and zonal inference: arrays in, arrays out. Every function is pure and works
pixel by pixel in date order, so results do not depend on how an area is cut into windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import DataError, UsageError
from flairhub.validity import resized

Average = Literal["monthly", "semi-monthly"]
Fill = Literal["masked", "published"]

SNOW_BAND, CLOUD_BAND = 0, 1
"""Positions in a date of the Sentinel-2 quality mask."""

NO_DATE = np.datetime64("NaT", "D")


@dataclass(frozen=True)
class CloudFilter:
    """When an image of a series counts as usable.

    Attributes:
        max_cloud: Highest cloud probability of a clear pixel, percent.
        max_snow: Highest snow probability of a clear pixel, percent.
        max_frac: Highest share of pixels that may be covered, 0-1.
    """

    max_cloud: float = 1.0
    max_snow: float = 1.0
    max_frac: float = 0.05


@dataclass(frozen=True)
class SeriesPreparation:
    """How a raw time series becomes network input.

    Attributes:
        channels: 1-based bands of one date, in network order; None keeps all.
        cloud_filter: Drops covered dates first; None keeps all dates.
        average: Averages the kept dates per period; None keeps single dates.
        fill: What an empty period becomes: `masked` (masked out, true offset) or `published` (see `fill_published`).
        ref_date: Day that offsets count from, `MM-DD`.
    """

    channels: tuple[int, ...] | None = None
    cloud_filter: CloudFilter | None = None
    average: Average | None = None
    fill: Fill = "masked"
    ref_date: str = "05-15"

    def __post_init__(self) -> None:
        if self.average is not None and self.average not in get_args(Average):
            raise UsageError(f"average: got {self.average!r}, expected one of {get_args(Average)} or None.")
        if self.fill not in get_args(Fill):
            raise UsageError(f"fill: got {self.fill!r}, expected one of {get_args(Fill)}.")
        parse_ref_date(self.ref_date)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, the inverse of `from_json`."""
        return asdict(self) | {"channels": None if self.channels is None else list(self.channels)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> SeriesPreparation:
        """Build from the dictionary of `to_json`."""
        rule, channels = fields.get("cloud_filter"), fields.get("channels")
        return cls(
            **{
                **fields,
                "channels": None if channels is None else tuple(channels),
                "cloud_filter": None if rule is None else CloudFilter(**rule),
            }
        )

    def n_channels(self, n_bands: int) -> int:
        """Number of channels the network sees for files of `n_bands` bands per date."""
        return n_bands if self.channels is None else len(self.channels)


@dataclass(frozen=True)
class Series:
    """A prepared series.

    Attributes:
        values: (time, channel, y, x); native dtype, or float32 when averaged; 0 where a pixel holds no data.
        offsets: (time,) int32, days to the reference date.
        valid: (time,) bool, False = no observation (masked out by the network).
        observed: (y, x) bool, where some date holds data; None = everywhere.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int32]
    valid: NDArray[np.bool_]
    observed: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Averages:
    """Period means of a series.

    Attributes:
        values: (period, band, y, x) float32; 0 in empty periods and where a pixel has no observation.
        offsets: (period,) int32, days from the reference date of the first date's year to mid-period.
        count: (period,) int32, number of dates averaged; 0 = empty.
        observed: (period, y, x) bool, where a pixel has an observation; None = in all periods that are not empty.
    """

    values: NDArray[np.float32]
    offsets: NDArray[np.int32]
    count: NDArray[np.int32]
    observed: NDArray[np.bool_] | None = None


def parse_ref_date(ref_date: str) -> tuple[int, int]:
    """Return (month, day) of `MM-DD`.

    Raises:
        UsageError: Not a day of every year.
    """
    try:
        # A year without 29 February: the reference day must exist in every year.
        day = datetime.strptime(f"2001-{ref_date}", "%Y-%m-%d")
    except (TypeError, ValueError):
        raise UsageError(f"ref_date: got {ref_date!r}, expected MM-DD such as 05-15.") from None
    return day.month, day.day


def day_offsets(dates: NDArray[np.datetime64], ref_date: str) -> NDArray[np.int32]:
    """Days from the reference date of each date's own year.

    Args:
        dates: (...) datetime64[D]; NaT gives 0.
        ref_date: `MM-DD`.
    """
    month, day = parse_ref_date(ref_date)
    years = dates.astype("datetime64[Y]")
    reference = (years.astype("datetime64[M]") + np.timedelta64(month - 1, "M")).astype("datetime64[D]")
    offsets = (dates - (reference + np.timedelta64(day - 1, "D"))).astype("timedelta64[D]")
    return np.where(np.isnat(dates), 0, offsets.astype(np.int64)).astype(np.int32)


def keep_dates(
    quality: NDArray[Any],
    rule: CloudFilter,
    valid: NDArray[np.bool_] | None = None,
    quality_valid: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Decide which dates of one patch or window are clear enough.

    A date is kept when at least (1 - max_frac) of its valid pixels are clear of cloud and snow. When that keeps no
    date, snow alone decides. A date without a valid pixel is not kept.

    Args:
        quality: (time, 2, y, x) snow and cloud probability, percent.
        rule: Thresholds.
        valid: (time, y, x) where the series holds data, on its own grid; None = everywhere.
        quality_valid: (time, y, x) where `quality` does; None = everywhere. Elsewhere a pixel is not clear.

    Returns:
        (time,) bool. All False when even snow alone leaves no date.
    """
    no_snow = quality[:, SNOW_BAND] <= rule.max_snow
    clear = no_snow & (quality[:, CLOUD_BAND] <= rule.max_cloud)
    needed = (1 - rule.max_frac) * clear[0].size if len(clear) else 0
    judged: Any = True
    known = quality_valid
    if valid is not None:
        counted = resized(valid, clear.shape[-2:])
        known = counted if known is None else known & counted
        sizes = counted.sum(axis=(1, 2))
        # A date whose few valid pixels fall between those of a coarser quality mask cannot be judged.
        needed, judged = (1 - rule.max_frac) * sizes, sizes > 0
    if known is not None:
        no_snow, clear = no_snow & known, clear & known
    keep = (clear.sum(axis=(1, 2)) >= needed) & judged
    return keep if keep.any() else (no_snow.sum(axis=(1, 2)) >= needed) & judged


def period_count(average: Average) -> int:
    """Number of periods of a year: 12 or 24."""
    return 12 if average == "monthly" else 24


def period_offsets(average: Average, ref_date: str, year: int) -> NDArray[np.int32]:
    """Day offset of every mid-period of `year`: the 15th, or the 8th and 23rd, of each month."""
    days = (15,) if average == "monthly" else (8, 23)
    reference = date(year, *parse_ref_date(ref_date))
    mid = [(date(year, month, day) - reference).days for month in range(1, 13) for day in days]
    return np.array(mid, dtype=np.int32)


def _period_of(dates: NDArray[np.datetime64], average: Average) -> NDArray[np.int64]:
    months = dates.astype("datetime64[M]")
    month = months.astype(np.int64) % 12
    if average == "monthly":
        return month
    day = (dates - months.astype("datetime64[D]")).astype(np.int64) + 1
    return 2 * month + (day > 15)


def average_series(
    values: NDArray[Any],
    dates: NDArray[np.datetime64],
    average: Average,
    ref_date: str,
    valid: NDArray[np.bool_] | None = None,
) -> Averages:
    """Mean of the valid observations of each calendar period, whatever their year, pixel by pixel.

    Args:
        values: (time, band, y, x), any numeric dtype.
        dates: (time,) datetime64[D], any order.
        average: `monthly` (12 periods) or `semi-monthly` (24: days 1-15, 16-end).
        ref_date: `MM-DD`; offsets count from it in the year of the first date that has a valid pixel.
        valid: (time, y, x) bool, where the dates hold data; None = everywhere.
    """
    if len(values) != len(dates):
        raise DataError(f"{len(values)} images but {len(dates)} dates: every image needs its date.")
    if valid is not None:
        values, dates, valid = _used(valid, values, dates, valid)
    periods = period_count(average)
    sums = np.zeros((periods, *values.shape[1:]), dtype=np.float64)
    count = np.zeros(periods, dtype=np.int32)
    per_pixel = None if valid is None else np.zeros((periods, *valid.shape[1:]), dtype=np.int32)
    # One addition per date in a fixed order: the same bits for a patch, a window, or a whole area.
    for position, period in enumerate(_period_of(dates, average)):
        count[period] += 1
        if valid is None or per_pixel is None:
            sums[period] += values[position]
        else:
            np.add(sums[period], values[position], out=sums[period], where=valid[position])
            per_pixel[period] += valid[position]
    if per_pixel is None:
        sums /= np.maximum(count, 1).reshape(-1, *([1] * (values.ndim - 1)))
    else:
        sums /= np.maximum(per_pixel, 1)[:, None]
    year = int(str(dates[0])[:4]) if len(dates) else 2001
    observed = None if per_pixel is None else per_pixel > 0
    return Averages(sums.astype(np.float32), period_offsets(average, ref_date, year), count, observed)


def _used(valid: NDArray[np.bool_], *arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Leave out the dates without a valid pixel, which are no observations."""
    used = valid.any(axis=(1, 2))
    return arrays if used.all() else tuple(array[used] for array in arrays)


def fill_published(averages: Averages) -> Averages:
    """Fill empty periods as the published code does, for parity with it.

    An empty period repeats the last filled one and its offset; before the first filled one values and offset are 0.
    """
    filled = np.flatnonzero(averages.count)
    source = np.searchsorted(filled, np.arange(len(averages.count)), side="right") - 1
    values, offsets = np.zeros_like(averages.values), np.zeros_like(averages.offsets)
    has_source = source >= 0
    values[has_source] = averages.values[filled[source[has_source]]]
    offsets[has_source] = averages.offsets[filled[source[has_source]]]
    return Averages(values, offsets, averages.count, averages.observed)


def series_of_averages(averages: Averages, preparation: SeriesPreparation) -> Series:
    """Turn period means (just computed, or stored in a cube) into a prepared series."""
    observed = _somewhere(averages.observed)
    if preparation.fill == "published":
        filled = fill_published(averages)
        valid = np.full(len(filled.count), bool(filled.count.any()))
        return Series(select_channels(filled.values, preparation.channels), filled.offsets, valid, observed)
    values = select_channels(averages.values, preparation.channels)
    return Series(values, averages.offsets, averages.count > 0, observed)


def _somewhere(valid: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Where one of several dates or periods, (time, y, x), holds data: (y, x), None = everywhere."""
    if valid is None:
        return None
    observed = np.asarray(valid.any(axis=0))
    return None if observed.all() else observed


def select_channels(values: NDArray[Any], channels: Sequence[int] | None) -> NDArray[Any]:
    """Select and order 1-based bands on axis -3; None keeps all.

    Raises:
        UsageError: A channel number outside the bands.
    """
    n_bands = values.shape[-3]
    if channels is None or tuple(channels) == tuple(range(1, n_bands + 1)):
        return values
    check_channels(channels, n_bands)
    return values[..., [channel - 1 for channel in channels], :, :]


def check_channels(channels: Sequence[int], n_bands: int) -> None:
    """Raise UsageError when a 1-based channel number is not among `n_bands` bands."""
    wrong = [channel for channel in channels if not 1 <= channel <= n_bands]
    if wrong:
        raise UsageError(f"channels {wrong} do not exist: the data has bands 1..{n_bands}.")


def prepare_series(
    values: NDArray[Any],
    dates: NDArray[np.datetime64],
    quality: NDArray[Any] | None,
    preparation: SeriesPreparation,
    valid: NDArray[np.bool_] | None = None,
    quality_valid: NDArray[np.bool_] | None = None,
) -> Series:
    """Filter, average and select: one raw series to network input.

    Args:
        values: (time, band, y, x) native dtype, unpadded.
        dates: (time,) datetime64[D].
        quality: (time, 2, y, x) snow and cloud probability; needed when the preparation filters.
        preparation: What to do.
        valid: (time, y, x) bool, where the dates hold data, judged on all bands; None = everywhere. A date without a
            valid pixel is left out.
        quality_valid: (time, y, x) bool, likewise for `quality`.

    Returns:
        The prepared series; without any usable date its `valid` holds no True.

    Raises:
        DataError: Numbers of images, dates and quality images differ, or quality is missing.
    """
    if len(values) != len(dates):
        raise DataError(f"{len(values)} images but {len(dates)} dates: every image needs its date.")
    keep = np.ones(len(dates), dtype=bool) if valid is None else valid.any(axis=(1, 2))
    if preparation.cloud_filter is not None:
        if quality is None or len(quality) != len(values):
            result = "none" if quality is None else len(quality)
            raise DataError(f"the cloud filter needs {len(values)} quality images, found {result}.")
        keep &= keep_dates(quality, preparation.cloud_filter, valid, quality_valid)
    if not keep.all():
        values, dates, valid = values[keep], dates[keep], None if valid is None else valid[keep]
    if preparation.average is not None:
        averages = average_series(values, dates, preparation.average, preparation.ref_date, valid)
        return series_of_averages(averages, preparation)
    values = select_channels(values, preparation.channels)
    if valid is not None and not valid.all():
        values = np.where(valid[:, None], values, values.dtype.type(0))
    offsets = day_offsets(dates, preparation.ref_date)
    return Series(values, offsets, np.ones(len(dates), dtype=bool), _somewhere(valid))
