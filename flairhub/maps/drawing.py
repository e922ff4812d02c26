"""A map in xarray as a picture in axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from flairhub.class_raster import paint
from flairhub.geo import metres_per_unit
from flairhub.maps.class_map import ClassMap
from flairhub.report import class_handles, draw_map
from flairhub.tasks import IGNORE_INDEX, Language

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_PX = 1600
"""Longest side of the picture: larger maps are thinned, their legend is that of all their pixels."""


def draw(
    mapped: ClassMap, axes: Axes | None, title: str | None, language: Language, legend: bool, scale_bar: bool
) -> Axes:
    """Draw a map; see `MapAccessor.plot`."""
    box = mapped.geobox
    step = max(1, math.ceil(max(box.height, box.width) / _MAX_PX))
    pictures, present = [], set()
    for (first, _), classes, _ in mapped.pieces():
        present.update(np.unique(classes).tolist())
        pictures.append(paint(classes[-first % step :: step, ::step], mapped.task))
    indices = sorted(present - {IGNORE_INDEX})
    handles = class_handles(indices, mapped.task, IGNORE_INDEX in present, language) if legend else []
    left, bottom, right, top = box.bounds
    picture = np.concatenate(pictures)
    return draw_map(picture, handles, (left, right, bottom, top), axes, title, scale_bar and _metric(mapped))


def _metric(mapped: ClassMap) -> bool:
    # The bar counts the units of the axes.
    return metres_per_unit(mapped.geobox.crs_wkt) == 1.0
