"""Inputs, truth and prediction of some patches side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flairhub.class_raster import paint
from flairhub.errors import DataError
from flairhub.report.stretch import percentile_limits, stretch
from flairhub.report.style import (
    INK,
    blank,
    class_handles,
    figure_style,
    has_ignored,
    legend_below,
    legend_rows,
    present_classes,
    save,
)
from flairhub.tasks import IGNORE_INDEX, Task

_CELL_IN = 2.35
_GAP_IN = 0.12


@dataclass(frozen=True)
class PanelRow:
    """One patch of a panel figure.

    Attributes:
        name: Shown at the left, such as the patch id.
        inputs: (1 or 3, y, x) by column title, raw values; every row has the same titles.
        truth: (y, x) class indices, 255 = no label.
        prediction: (y, x) class indices.
    """

    name: str
    inputs: Mapping[str, NDArray[Any]]
    truth: NDArray[Any]
    prediction: NDArray[Any]


def save_panels(path: str | Path, rows: Sequence[PanelRow], task: Task, title: str | None = None) -> Path:
    """Draw one line per patch: inputs (percentile stretch), truth, prediction; classes in their colours.

    Args:
        path: PNG to write.
        rows: Patches, top to bottom; at least one.
        task: Names and colours.
        title: Above everything.

    Returns:
        The written path.
    """
    if not rows:
        raise DataError("a panel figure needs at least one patch, got none.")
    titles = list(rows[0].inputs)
    if any(list(row.inputs) != titles for row in rows):
        raise DataError(f"every row of a panel figure needs the inputs {titles}.")
    limits = {name: percentile_limits([row.inputs[name] for row in rows]) for name in titles}
    maps = [array for row in rows for array in (row.truth, row.prediction)]
    handles = class_handles(present_classes(maps, task), task, has_ignored(maps))
    columns = [*titles, "truth", "prediction"]
    with figure_style():
        figure, cells = _grid(len(rows), columns, len(handles), title)
        for row, axes in zip(rows, cells, strict=True):
            for name, axis in zip(titles, axes, strict=False):
                axis.imshow(stretch(row.inputs[name], limits[name]), interpolation="nearest", aspect="auto")
            axes[-2].imshow(paint(row.truth, task), interpolation="nearest", aspect="auto")
            axes[-1].imshow(paint(row.prediction, task), interpolation="nearest", aspect="auto")
            axes[0].set_ylabel(row.name.replace("_", "\n"), fontsize=9, rotation=0, ha="right", va="center")
            counted = np.asarray(row.truth) != IGNORE_INDEX
            if counted.any():
                right = float((np.asarray(row.truth) == np.asarray(row.prediction))[counted].mean())
                axes[-1].set_xlabel(f"{right:.0%} of pixels right", fontsize=9, labelpad=2)
        legend_below(figure, handles, _legend_columns(len(columns)))
    return save(figure, path)


def _legend_columns(n_columns: int) -> int:
    return max(2, round(1.35 * n_columns))


def _grid(n_rows: int, columns: Sequence[str], n_handles: int, title: str | None) -> tuple[Figure, list[list[Any]]]:
    """Axes placed in inches, so that nothing overlaps however many rows there are."""
    left, right, row_gap = 0.95, 0.15, 0.32
    top = 0.35 + (0.4 if title else 0.0)
    bottom = 0.2 + 0.235 * legend_rows(n_handles, _legend_columns(len(columns))) + 0.25
    width = left + right + len(columns) * _CELL_IN + (len(columns) - 1) * _GAP_IN
    height = top + bottom + n_rows * _CELL_IN + (n_rows - 1) * row_gap
    figure = Figure(figsize=(width, height))
    cells = []
    for row in range(n_rows):
        y = height - top - (row + 1) * _CELL_IN - row * row_gap
        axes = []
        for column in range(len(columns)):
            x = left + column * (_CELL_IN + _GAP_IN)
            axis = figure.add_axes((x / width, y / height, _CELL_IN / width, _CELL_IN / height))
            blank(axis)
            if row == 0:
                axis.set_title(columns[column], pad=5)
            axes.append(axis)
        cells.append(axes)
    if title:
        figure.text(0.5, 1 - 0.12 / height, title, ha="center", va="top", fontsize=13, weight="bold", color=INK)
    return figure, cells
