"""What patches without data in some pixels teach."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from flairhub.config import load_train_config
from flairhub.ingest import ingest
from flairhub.models import load_model
from flairhub.training import train
from tests.helpers.makers import make_patch_files, write_patch, write_train_config
from tests.training.conftest import SMALL_MODELS

NAMES = ("AERIAL_RGBI", "DEM_ELEV", "AERIAL_LABEL-COSIA")


def trained(folder: Path, number: float, nodata: float | None, mask: bool, aerial: bool) -> dict[str, torch.Tensor]:
    """Weights after an epoch on patches whose upper left corner has no height, and with `aerial` no colour."""
    files = make_patch_files(
        folder / "files", n_rois=1, rows=2, cols=4, modalities=NAMES, sizes_px=dict.fromkeys(NAMES, 32)
    )
    corner = np.zeros((32, 32), dtype=bool)
    corner[:8, :6] = True
    for patch in files.patch_ids:
        for name in ("DEM_ELEV", "AERIAL_RGBI") if aerial else ("DEM_ELEV",):
            values = files.arrays[name][patch].copy()
            declared: dict[str, Any] = {}
            if name == "DEM_ELEV":
                values[:, corner] = number
                declared = {} if nodata is None else {"nodata": nodata}
            else:
                values[:, corner] = 0
                declared = {"nodata": 0}
            files.files[name][patch].unlink()
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                write_patch(files.files[name][patch], values, files.origins[patch], **declared)
                if mask and name == "DEM_ELEV":
                    with rasterio.open(files.files[name][patch], "r+") as target:
                        target.write_mask(np.where(corner, 0, 255).astype(np.uint8))
    config = load_train_config(
        write_train_config(
            folder / "config",
            files,
            models=SMALL_MODELS,
            hyperparams={"num_epochs": 1, "batch_size": 2},
            hardware={"precision": "32-true"},
            tasks={"predict": False},
            saving={"enable_progress_bar": False},
            modalities={"pre_processings": {"use_augmentation": True}},
        )
    )
    ingest(config, cube=folder / "c.zarr")
    return load_model(train(config, cube=folder / "c.zarr").bundle).network.state_dict()


def test_however_a_pixel_says_that_it_holds_no_data_the_weights_are_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="flairhub"):
        expected = trained(tmp_path / "nan", np.nan, None, False, False)
        assert "labelled pixels out of the losses" not in caplog.text, "there are colours"
        for name, *source in (
            ("declared", -9999, -9999, False),
            ("mask", 5.0, None, True),
            ("infinite", np.inf, None, False),
        ):
            weights = trained(tmp_path / name, *source, False)  # type: ignore[misc]
            assert weights.keys() == expected.keys()
            assert all(torch.equal(weights[key], value) for key, value in expected.items()), name
        as_heights = trained(tmp_path / "learned", -9999, None, False, False)
        assert not all(torch.equal(as_heights[key], value) for key, value in expected.items())
        trained(tmp_path / "nothing", np.nan, None, False, True)
    # Four patches for training, 8 x 6 pixels each.
    assert f"left {4 * 48} labelled pixels out of the losses" in caplog.text
