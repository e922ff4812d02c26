"""A small class map in xarray."""

from __future__ import annotations

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr

from flairhub.class_raster import class_attributes
from flairhub.tasks import default_task

HEIGHT, WIDTH, GSD_M, X_MIN, Y_MAX = 30, 50, 0.2, 650_000.0, 6_860_000.0


@pytest.fixture
def maps() -> xr.Dataset:
    """(30, 50) px of 0.2 m: fields of 10 x 10 px of classes 0-6, no data in the upper left; confidence 0.5 or 1."""
    rows, cols = np.mgrid[0:HEIGHT, 0:WIDTH]
    classes = ((cols // 10 + rows // 10) % 7).astype(np.uint8)
    classes[:4, :5] = 255
    confidence = np.where(classes == 255, np.nan, np.where(classes % 2, 0.5, 1.0)).astype(np.float32)
    coords = {"y": Y_MAX - GSD_M * (np.arange(HEIGHT) + 0.5), "x": X_MIN + GSD_M * (np.arange(WIDTH) + 0.5)}
    attributes = class_attributes(default_task("AERIAL_LABEL-COSIA")) | {"_FillValue": 255}
    variables = {"class": (("y", "x"), classes, attributes), "confidence": (("y", "x"), confidence)}
    return xr.Dataset(variables, coords).rio.write_crs("EPSG:2154")
