"""Means and standard deviations: from what the configuration gives to one number per network channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flairhub.errors import UsageError
from flairhub.modalities import Modality
from flairhub.prepare import Elevation, channel_statistics


def elevation_mode(calc_elevation: bool, stack_dsm: bool) -> Elevation:
    """Return what the published pair of options means."""
    if not calc_elevation:
        return "dsm_dtm"
    return "dsm_ndsm" if stack_dsm else "ndsm"


def resolve_statistics(
    values: Any, row: Modality, channels: tuple[int, ...] | None, elevation: Elevation | None
) -> tuple[float, ...]:
    """Return one statistic per network channel.

    A list belongs to the selected channels when it is as long as the selection, to the bands of the file when it is
    as long as those. A mapping belongs to the bands it names. Heights take theirs by position; a single height above
    ground takes the first of two.

    Args:
        values: Tuple, or mapping of band name to number.
        row: The modality.
        channels: Selected 1-based bands; None = all.
        elevation: Heights derived for elevation modalities.

    Raises:
        UsageError: They do not fit.
    """
    if elevation is not None:
        return _by_position(values, 1 if elevation == "ndsm" else 2)
    if isinstance(values, Mapping):
        return _by_band(values, row, channels)
    return channel_statistics(tuple(values), channels, len(row.bands), "statistics")


def _by_position(values: Any, count: int) -> tuple[float, ...]:
    if isinstance(values, Mapping):
        raise UsageError("got a mapping, expected a list: heights take their statistics by position.")
    if len(values) not in {count, 2}:
        raise UsageError(f"got {len(values)} values, expected {count} (one per derived channel).")
    return tuple(values[:count])


def _by_band(values: Mapping[str, float], row: Modality, channels: tuple[int, ...] | None) -> tuple[float, ...]:
    unknown = [name for name in values if name not in row.bands]
    if unknown:
        raise UsageError(f"unknown bands {', '.join(unknown)}, expected names among {', '.join(row.bands)}.")
    selected = [row.bands[i - 1] for i in channels or range(1, len(row.bands) + 1) if i <= len(row.bands)]
    missing = [name for name in selected if name not in values]
    if missing:
        raise UsageError(f"no value for the selected bands {', '.join(missing)}.")
    return tuple(values[name] for name in selected)
