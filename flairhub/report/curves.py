"""How a training went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from flairhub.errors import DataError
from flairhub.report.style import INK, figure_style, save

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
            _draw(figure.add_subplot(1, len(groups), i + 1), label, group)
        if title:
            figure.suptitle(title, fontsize=13, weight="bold", color=INK)
        return save(figure, path)


def needs_decades(curves: Iterable[np.ndarray]) -> bool:
    """Whether a logarithmic axis is needed: on a linear one, a first epoch far off would flatten all others."""
    values = np.concatenate([np.asarray(curve, np.float64).ravel() for curve in curves])
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() > 20 * np.median(values))


def _draw(axes: Axes, label: str, group: Mapping[str, np.ndarray]) -> None:
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
