"""A confusion matrix to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flairhub.errors import DataError
from flairhub.report.style import INK, figure_style, save

_CELL_IN = 0.46


def row_shares(matrix: NDArray[Any]) -> NDArray[np.float64]:
    """(class, class) share of each truth row; NaN where a class has no truth."""
    counts = np.asarray(matrix, np.float64)
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)


def save_confusion(path: str | Path, matrix: NDArray[Any], names: Sequence[str], title: str | None = None) -> Path:
    """Draw a row-normalised confusion matrix with its numbers in percent.

    Classes that are neither true nor predicted are left out; rows without truth stay empty.

    Args:
        path: PNG to write.
        matrix: (class, class) counts, rows = truth.
        names: Class names in index order.
        title: Above the matrix.

    Returns:
        The written path.
    """
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape != (len(names), len(names)):
        raise DataError(f"a confusion matrix of {len(names)} classes is square, got shape {counts.shape}.")
    used = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1)).tolist()
    if not used:
        raise DataError("the confusion matrix is empty: no pixel was counted.")
    shares = row_shares(counts)[np.ix_(used, used)]
    labels = [names[index].replace("_", " ") for index in used]
    total = counts.sum()
    support = [f"{counts[index].sum() / total:.1%}" for index in used]
    side = _CELL_IN * len(used)
    margin = 0.3 + 0.085 * max(len(label) for label in labels)
    bottom, top = 0.35 + 0.66 * (margin - 0.3), 0.7 if title else 0.4
    width, height = margin + side + 0.75, bottom + side + top
    with figure_style():
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((margin / width, bottom / height, side / width, side / height))
        _draw(axes, shares, labels)
        for row, text in enumerate(support):
            axes.text(len(used) - 0.3, row, text, va="center", ha="left", fontsize=8.5)
        axes.text(len(used) - 0.3, -0.75, "share", va="center", ha="left", fontsize=8.5, style="italic")
        if title:
            figure.text(0.5, 1 - 0.12 / height, title, ha="center", va="top", fontsize=12, weight="bold", color=INK)
    return save(figure, path)


def _draw(axes: Axes, shares: NDArray[np.float64], labels: Sequence[str]) -> None:
    axes.imshow(np.where(np.isnan(shares), 0, shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    size = len(labels)
    axes.set_xticks(range(size), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(size), labels, fontsize=9)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted", fontsize=10)
    axes.set_ylabel("truth", fontsize=10)
    for row, column in np.argwhere(~np.isnan(shares) & (np.nan_to_num(shares) >= 0.005)):
        share = shares[row, column]
        colour = "white" if share > 0.55 else INK
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=9, color=colour)
