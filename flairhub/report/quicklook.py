"""A map in the published colours, with legend and scale bar."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from flairhub.class_raster import paint
from flairhub.errors import DataError
from flairhub.report.style import (
    INK,
    blank,
    class_handles,
    figure_style,
    has_ignored,
    legend_below,
    legend_rows,
    percentile_limits,
    present_classes,
    save,
    stretch,
)
from flairhub.tasks import Task

_MAX_PX = 1600
_LONG_SIDE_IN = 7.5


def save_quicklook(
    path: str | Path,
    class_map: NDArray[Any],
    task: Task,
    *,
    gsd_m: float,
    title: str | None = None,
    image: NDArray[Any] | None = None,
) -> Path:
    """Draw a class map in its published colours.

    Args:
        path: PNG to write.
        class_map: (y, x) class indices, 255 = nodata. Large maps are thinned to about 1,600 px.
        task: Names and colours; the legend holds the classes present.
        gsd_m: Pixel size in metres, for the scale bar.
        title: Above the map.
        image: (1 or 3, y, x) picture of the same area at any pixel size, drawn to the left.

    Returns:
        The written path.
    """
    classes = np.asarray(class_map)
    if classes.ndim != 2 or not classes.size:
        raise DataError(f"a quicklook needs a map of (y, x) classes, got shape {classes.shape}.")
    height_px, width_px = classes.shape
    pictures = [] if image is None else [_thin(stretch(image, percentile_limits([image])))]
    pictures.append(_thin(paint(classes, task)))
    handles = class_handles(present_classes([classes], task), task, has_ignored([classes]))
    scale = _LONG_SIDE_IN / max(height_px, width_px)
    size_in = (max(width_px * scale, 2.5), max(height_px * scale, 1.5))
    with figure_style():
        figure, cells = _layout(len(pictures), size_in, len(handles), title)
        extent = (0, width_px * gsd_m, height_px * gsd_m, 0)
        for axes, picture in zip(cells, pictures, strict=True):
            axes.imshow(picture, extent=extent, interpolation="nearest", aspect="auto")
            blank(axes)
        _scale_bar(cells[-1], width_px * gsd_m, height_px * gsd_m, size_in[1])
        legend_below(figure, handles, _legend_columns(figure))
    return save(figure, path)


def _thin(picture: NDArray[Any]) -> NDArray[Any]:
    step = max(1, math.ceil(max(picture.shape[:2]) / _MAX_PX))
    return picture[::step, ::step]


def _legend_columns(figure: Figure) -> int:
    return max(1, int(figure.get_size_inches()[0] / 1.9))


def _layout(count: int, size_in: tuple[float, float], n_handles: int, title: str | None) -> tuple[Figure, list[Axes]]:
    edge, gap = 0.2, 0.15
    width = 2 * edge + count * size_in[0] + (count - 1) * gap
    columns = max(1, int(width / 1.9))
    bottom = 0.2 + 0.235 * legend_rows(n_handles, columns) + 0.12
    top = 0.55 if title else edge
    height = bottom + size_in[1] + top
    figure = Figure(figsize=(width, height))
    cells = []
    for i in range(count):
        left = edge + i * (size_in[0] + gap)
        box = (left / width, bottom / height, size_in[0] / width, size_in[1] / height)
        cells.append(figure.add_axes(box))
    if title:
        figure.text(0.5, 1 - 0.15 / height, title, ha="center", va="top", fontsize=13, weight="bold", color=INK)
    return figure, cells


def nice_length(limit_m: float) -> float:
    """The longest of 1, 2, 5 times a power of ten that is not above `limit_m`."""
    power = 10 ** math.floor(math.log10(limit_m))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= limit_m * (1 + 1e-9))


def _scale_bar(axes: Axes, width_m: float, height_m: float, height_in: float) -> None:
    length = nice_length(width_m / 4)
    inch = height_m / height_in
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    left, bottom = 0.18 * inch, height_m - 0.18 * inch
    box = Rectangle(
        (left - 0.08 * inch, bottom - 0.4 * inch), length + 0.16 * inch, 0.5 * inch, facecolor="white", alpha=0.85
    )
    axes.add_patch(box)
    for i, colour in enumerate(("black", "white")):
        bar = (left + i * length / 2, bottom - 0.08 * inch)
        axes.add_patch(Rectangle(bar, length / 2, 0.08 * inch, facecolor=colour, edgecolor="black", linewidth=0.8))
    axes.text(left + length / 2, bottom - 0.12 * inch, text, ha="center", va="bottom", fontsize=9, color="black")
