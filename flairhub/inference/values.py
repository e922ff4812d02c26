"""Do sampled pixels look like what the model was trained on?"""

from __future__ import annotations

from itertools import permutations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flairhub.prepare import ImagePreparation, prepare_image

_FAR = 4.0
"""Means farther off than so many standard deviations are no other landscape."""

_SWAPPED = 0.5
"""Channels count as swapped when another order brings the mean distance from above this to below half of itself."""

_MAX_CHANNELS = 6
_SCALE = 8.0


def compare_values(
    pixels: NDArray[Any], preparation: ImagePreparation, where: str
) -> list[tuple[Literal["trouble", "note"], str]]:
    """Compare sampled pixels with the means and standard deviations that the model normalises by.

    Args:
        pixels: (band, sample) native values.
        preparation: Of the model; without statistics there is nothing to compare.
        where: Modality and file, for messages.

    Returns:
        (level, message) rows.
    """
    if preparation.normalisation != "custom":
        return []
    raw = prepare_image(pixels[:, None, :], preparation)[:, 0]
    stds = np.asarray(preparation.stds)
    found = raw.mean(axis=1) * stds + np.asarray(preparation.means)
    spread = np.ptp(raw, axis=1)
    shown = f"means {_listed(found)}, the model's {_listed(preparation.means)}"
    if not spread.any():
        return [("trouble", f"{where}: all sampled pixels have one value per channel ({shown}). Is the raster empty?")]
    factor = _common_factor(found, preparation)
    if factor is not None:
        return [
            (
                "trouble",
                f"{where}: values are about {factor} of the model's ({shown}). "
                f"8-bit instead of 16-bit, or another unit? Give the original values.",
            )
        ]
    distance = np.abs(raw.mean(axis=1))
    order = _better_order(found, preparation)
    if order is not None:
        return [
            (
                "trouble",
                f"{where}: the channels fit the model's statistics far better in the order {list(order)} ({shown}). "
                f"Are the bands permuted? Reorder the bands of the raster.",
            )
        ]
    if distance.max() > _FAR:
        worst = int(distance.argmax())
        return [
            (
                "trouble",
                f"{where}: channel {worst + 1} lies {distance[worst]:.1f} standard deviations from what the model was "
                f"trained on ({shown}). Wrong bands, units or raster?",
            )
        ]
    if distance.max() > _FAR / 2:
        return [("note", f"{where}: values differ from what the model was trained on ({shown}).")]
    return []


def _common_factor(found: NDArray[np.float64], preparation: ImagePreparation) -> str | None:
    means = np.asarray(preparation.means)
    # Heights may be anything; derived or single channels tell no factor.
    if preparation.elevation is not None or (means <= 0).any() or (found <= 0).any():
        return None
    factors = found / means
    if factors.min() > _SCALE:
        return f"{np.median(factors):.0f}x"
    return f"1/{1 / np.median(factors):.0f}" if factors.max() < 1 / _SCALE else None


def _better_order(found: NDArray[np.float64], preparation: ImagePreparation) -> tuple[int, ...] | None:
    n_channels = len(found)
    if preparation.elevation is not None or not 2 <= n_channels <= _MAX_CHANNELS:
        return None
    means, stds = np.asarray(preparation.means), np.asarray(preparation.stds)

    def cost(order: tuple[int, ...]) -> float:
        return float(np.abs((found[list(order)] - means) / stds).mean())

    as_is = cost(tuple(range(n_channels)))
    best = min(permutations(range(n_channels)), key=cost)
    if as_is < _SWAPPED or cost(best) > as_is / 2:
        return None
    return tuple(position + 1 for position in best)


def _listed(values: Any) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
