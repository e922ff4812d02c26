"""A map in the published colours, with legend and scale bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
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
        figure, cells = _layout(Figure, len(pictures), size_in, len(handles), title)
        extent = (0.0, width_px * gsd_m, 0.0, height_px * gsd_m)
        for axes, picture in zip(cells, pictures, strict=True):
            axes.imshow(picture, extent=extent, interpolation="nearest", aspect="auto")
            blank(axes)
        _scale_bar(cells[-1], extent)
        legend_below(figure, handles, _legend_columns(figure))
    return save(figure, path)


def draw_map(
    picture: NDArray[np.uint8],
    handles: Sequence[Patch],
    extent: tuple[float, float, float, float],
    axes: Axes | None = None,
    title: str | None = None,
    scale_bar: bool = True,
) -> Axes:
    """Draw the picture of a map in its own coordinates, with legend and scale bar.

    Args:
        picture: (y, x, 3), also thinned.
        handles: Entries of the legend.
        extent: (left, right, bottom, top) in CRS units.
        axes: Where to; None makes a figure of the map's shape with pyplot, which a notebook shows.
        title: Above the map.
        scale_bar: Draw one; the unit must be the metre.

    Returns:
        The axes.
    """
    with figure_style():
        if axes is None:
            from matplotlib import pyplot

            width, height = extent[1] - extent[0], extent[3] - extent[2]
            scale = _LONG_SIDE_IN / max(width, height)
            size_in = (max(width * scale, 2.5), max(height * scale, 1.5))
            figure, cells = _layout(pyplot.figure, 1, size_in, len(handles), title)
            axes = cells[0]
            if handles:
                legend_below(figure, handles, _legend_columns(figure))
        else:
            if title:
                axes.set_title(title)
            if handles:
                axes.legend(handles=list(handles), loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
        axes.imshow(picture, extent=extent, interpolation="nearest", aspect="equal")
        blank(axes)
        if scale_bar:
            _scale_bar(axes, extent)
    return axes


def _thin(picture: NDArray[Any]) -> NDArray[Any]:
    step = max(1, math.ceil(max(picture.shape[:2]) / _MAX_PX))
    return picture[::step, ::step]


def _legend_columns(figure: Figure) -> int:
    return max(1, int(figure.get_size_inches()[0] / 1.9))


def _layout(
    make: Callable[..., Figure], count: int, size_in: tuple[float, float], n_handles: int, title: str | None
) -> tuple[Figure, list[Axes]]:
    edge, gap = 0.2, 0.15
    width = 2 * edge + count * size_in[0] + (count - 1) * gap
    columns = max(1, int(width / 1.9))
    bottom = 0.2 + 0.235 * legend_rows(n_handles, columns) + 0.12
    top = 0.55 if title else edge
    height = bottom + size_in[1] + top
    figure = make(figsize=(width, height))
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


def _scale_bar(axes: Axes, extent: tuple[float, float, float, float]) -> None:
    """Draw a bar of a round length into the lower left corner of a map in metres."""
    axes.apply_aspect()
    width_m = extent[1] - extent[0]
    box = axes.get_window_extent()
    inch = width_m / (box.width / axes.figure.dpi)
    length = nice_length(width_m / 4)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    left, bottom = extent[0] + 0.18 * inch, extent[2] + 0.18 * inch
    corner = (left - 0.08 * inch, bottom - 0.1 * inch)
    axes.add_patch(Rectangle(corner, length + 0.16 * inch, 0.5 * inch, facecolor="white", alpha=0.85))
    for i, colour in enumerate(("black", "white")):
        bar = (left + i * length / 2, bottom)
        axes.add_patch(Rectangle(bar, length / 2, 0.08 * inch, facecolor=colour, edgecolor="black", linewidth=0.8))
    middle, above = left + length / 2, bottom + 0.12 * inch
    axes.text(middle, above, text, ha="center", va="bottom", fontsize=9, color="black")
