"""From measured values to something to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def percentile_limits(images: Sequence[NDArray[Any]], low: float = 1.0, high: float = 99.0) -> tuple[float, float]:
    """Display range common to several images and all their bands, so that hues stay as they are.

    Args:
        images: (band, y, x) each; NaN and infinity are left out.
        low, high: Percentiles that become black and white.
    """
    values = np.concatenate([np.asarray(image, np.float64).ravel() for image in images])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    lower, upper = np.percentile(values, (low, high))
    return float(lower), float(upper)


def stretch(image: NDArray[Any], limits: tuple[float, float]) -> NDArray[np.float32]:
    """Scale an image linearly between its limits.

    Args:
        image: (1 or 3, y, x) values.
        limits: Values that become black and white, from `percentile_limits`.

    Returns:
        (y, x, 3) float32 in 0-1; not-finite pixels are white.
    """
    low, high = limits
    values = (np.asarray(image, np.float64) - low) / max(high - low, 1e-12)
    values = np.where(np.isfinite(values), np.clip(values, 0, 1), 1.0)
    if len(values) == 1:
        values = np.repeat(values, 3, axis=0)
    return values.transpose(1, 2, 0).astype(np.float32)


def clearest_date(mask: NDArray[Any] | None, dates: NDArray[Any], month: int = 7) -> int:
    """Position of the least covered image, nearest to the middle of a month among equals.

    Args:
        mask: (time, 2, y, x) snow and cloud probability 0-100, or None when there is no mask.
        dates: (time,) datetime64.
        month: Month to come near to, 1-12.
    """
    days = dates.astype("datetime64[D]")
    day_of_year = (days - days.astype("datetime64[Y]").astype("datetime64[D]")).astype(int)
    distance = np.abs(day_of_year - (30.4 * (month - 0.5)))
    covered = np.zeros(len(days)) if mask is None else (np.asarray(mask) > 1).any(axis=1).mean(axis=(1, 2))
    return int(np.lexsort((distance, np.round(covered, 3)))[0])
