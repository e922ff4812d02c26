"""What all figures share: fonts, the way from values to colours, legends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from numpy.typing import NDArray

from flairhub.class_raster import NO_CLASS_COLOUR
from flairhub.tasks import IGNORE_INDEX, Language, Task

DPI = 110
INK = "#333333"
_RC: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 11,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def figure_style() -> AbstractContextManager[None]:
    """Settings of every figure, inside a `with` statement, so that nothing global changes."""
    return rc_context(_RC)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, creating its folder, and return the path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with figure_style():
        figure.savefig(target, dpi=DPI, facecolor="white")
    return target


def class_colormap(task: Task) -> tuple[ListedColormap, BoundaryNorm]:
    """The colours of a task's classes for matplotlib: pass both as `cmap` and `norm`; 255 is to be masked before."""
    colours = [tuple(part / 255 for part in row.colour) for row in task.classes]
    return ListedColormap(colours, task.label), BoundaryNorm(range(task.n_classes + 1), task.n_classes)


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


def present_classes(maps: Sequence[NDArray[Any]], task: Task) -> list[int]:
    """Sorted class indices that occur in any of the maps."""
    values = {int(value) for class_map in maps for value in np.unique(class_map)}
    return sorted(value for value in values if value < task.n_classes)


def class_handles(
    indices: Sequence[int], task: Task, with_ignored: bool = False, language: Language = "en"
) -> list[Patch]:
    """One colour patch per class for a legend."""
    names = task.names_in(language)
    rows = [(names[index], task.classes[index].colour) for index in indices]
    if with_ignored:
        rows.append(("sans étiquette" if language == "fr" else "no label", NO_CLASS_COLOUR))
    return [
        Patch(
            facecolor=(colour[0] / 255, colour[1] / 255, colour[2] / 255),
            edgecolor="#666666",
            linewidth=0.5,
            label=_label(name),
        )
        for name, colour in rows
    ]


def _label(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def legend_rows(count: int, columns: int) -> int:
    """Rows a legend of `count` entries takes."""
    return -(-count // columns) if count else 0


def legend_below(figure: Figure, handles: Sequence[Patch], columns: int, bottom_in: float = 0.1) -> Legend:
    """Put a frameless legend at the lower edge of a figure."""
    height = figure.get_size_inches()[1]
    return figure.legend(
        handles=list(handles),
        loc="lower center",
        bbox_to_anchor=(0.5, bottom_in / height),
        ncols=columns,
        frameon=False,
        fontsize=9.5,
        handlelength=1.3,
        handleheight=1.1,
        columnspacing=1.4,
    )


def blank(axes: Axes) -> None:
    """A picture needs no ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)


def has_ignored(maps: Sequence[NDArray[Any]]) -> bool:
    """True when some pixel has no label."""
    return any(bool((np.asarray(class_map) == IGNORE_INDEX).any()) for class_map in maps)
