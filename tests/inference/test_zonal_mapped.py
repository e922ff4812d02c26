"""The block function for `xr.map_blocks`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from flairhub.errors import UsageError, ZoneError
from flairhub.inference import block_template, predict_block_dataset, predict_zone
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import SeriesPreparation
from tests.helpers.zone_makers import fake_model, make_zone

AERIAL = {"AERIAL_RGBI": ImagePreparation()}


def test_map_blocks_equals_predict_zone_and_computes_only_what_is_asked_for(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 64, 48, {"AERIAL_RGBI": 1})
    zone, model = made.open(16, 0), fake_model(AERIAL)
    images = zone.to_xarray(chunk_px=16)["AERIAL_RGBI"].to_dataset().rename(data="AERIAL_RGBI")
    outputs = ("class", "confidence")
    template = block_template(images, model, outputs)
    maps = xr.map_blocks(predict_block_dataset, images, args=[model, 16, outputs], template=template)
    assert model.network.calls == 0
    low, high = float(images.y[63]) - 0.01, float(images.y[32]) + 0.01
    part = maps["class"].sel(x=slice(images.x[16], images.x[29]), y=slice(high, low)).compute(scheduler="synchronous")
    assert model.network.samples == model.network.calls == 2
    expected = predict_zone(zone, model, outputs=outputs).compute()
    np.testing.assert_array_equal(part.values, expected["class"].values[32:64, 16:30])
    whole = maps.compute(scheduler="synchronous")
    for output in outputs:
        np.testing.assert_allclose(whole[output].values, expected[output].values, atol=1e-5)
        np.testing.assert_array_equal(whole[output].x, expected.x)


def test_blocks_that_windows_do_not_fill_and_missing_pixels() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 100, (4, 20, 11)).astype(np.float32)
    values[2, 3, 4] = np.nan
    values[:, 16:, :] = np.nan
    model = fake_model(AERIAL)
    found = predict_block_dataset(xr.Dataset({"AERIAL_RGBI": (("band", "y", "x"), values)}), model, 8)
    missing = np.isnan(values).any(axis=0)
    np.testing.assert_array_equal(found["class"].values == 255, missing)
    assert model.network.samples == 4


def test_what_does_not_fit() -> None:
    empty = xr.Dataset({"DEM_ELEV": (("band", "y", "x"), np.zeros((2, 8, 8)))})
    with pytest.raises(ZoneError, match="the model takes AERIAL_RGBI, but the dataset has DEM_ELEV"):
        predict_block_dataset(empty, fake_model(AERIAL), 8)
    with pytest.raises(ZoneError, match="SENTINEL2_TS is a time series"):
        predict_block_dataset(empty, fake_model({"SENTINEL2_TS": SeriesPreparation()}), 8)
    with pytest.raises(UsageError, match="expected some of class, confidence"):
        block_template(empty, fake_model(AERIAL), ("scaled",))
