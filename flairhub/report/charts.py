"""How a run went: losses and scores over the epochs, and the confusion matrix at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from flairhub.errors import DataError
from flairhub.report.style import INK, figure_style, save

_CELL_IN = 0.46
_COLOURS = ("#1f5fa8", "#d1602d", "#3a8f5a", "#8a4fa0", "#b08b1e", "#5a6b7b")


def save_curves(path: str | Path, history: Mapping[str, Sequence[float]], title: str | None = None) -> Path:
    """Draw losses on the left and scores on the right, one value per epoch.

    Args:
        path: PNG to write.
        history: Values by name; names with `loss` go to the left, all others to the right. NaN = not measured.
        title: Above both.

    Returns:
        The written path.
    """
    curves = {name: np.asarray(values, np.float64) for name, values in history.items() if len(values)}
    if not curves:
        raise DataError("the history holds no curve to draw.")
    groups = [
        ("loss", {name: values for name, values in curves.items() if "loss" in name}),
        ("score", {name: values for name, values in curves.items() if "loss" not in name}),
    ]
    groups = [(label, group) for label, group in groups if group]
    with figure_style():
        figure = Figure(figsize=(4.8 * len(groups) + 0.4, 3.6), layout="constrained")
        for i, (label, group) in enumerate(groups):
            _draw_curves(figure.add_subplot(1, len(groups), i + 1), label, group)
        if title:
            figure.suptitle(title, fontsize=13, weight="bold", color=INK)
        return save(figure, path)


def needs_decades(curves: Iterable[np.ndarray]) -> bool:
    """Whether a logarithmic axis is needed: on a linear one, a first epoch far off would flatten all others."""
    values = np.concatenate([np.asarray(curve, np.float64).ravel() for curve in curves])
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() > 20 * np.median(values))


def _draw_curves(axes: Axes, label: str, group: Mapping[str, np.ndarray]) -> None:
    for colour, (name, values) in zip(_COLOURS * (len(group) // len(_COLOURS) + 1), group.items(), strict=False):
        epochs = np.arange(1, len(values) + 1)
        measured = np.isfinite(values)
        axes.plot(
            epochs[measured], values[measured], color=colour, marker="o", markersize=3.5, label=name.replace("_", " ")
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if label == "score":
        axes.set_ylim(0, max(1.0, *(float(np.nanmax(values)) for values in group.values())) * 1.02)
    elif needs_decades(group.values()):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)


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
        _draw_matrix(axes, shares, labels)
        for row, text in enumerate(support):
            axes.text(len(used) - 0.3, row, text, va="center", ha="left", fontsize=8.5)
        axes.text(len(used) - 0.3, -0.75, "share", va="center", ha="left", fontsize=8.5, style="italic")
        if title:
            figure.text(0.5, 1 - 0.12 / height, title, ha="center", va="top", fontsize=12, weight="bold", color=INK)
    return save(figure, path)


def _draw_matrix(axes: Axes, shares: NDArray[np.float64], labels: Sequence[str]) -> None:
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
