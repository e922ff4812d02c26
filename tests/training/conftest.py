"""A small data set that can be learnt, its cube, and configurations for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flairhub.config import TrainConfig, load_train_config
from flairhub.ingest import ingest
from tests.helpers.makers import PatchFiles, make_patch_files, write_patch, write_train_config

SIZES = {"AERIAL_RGBI": 32, "SENTINEL2_TS": 8, "SENTINEL2_MSK-SC": 8, "AERIAL_LABEL-COSIA": 32, "ALL_LABEL-LPIS": 32}
LAND_CLASSES = (0, 6, 12)
CROP_CLASSES = (1, 3)

SMALL_MODELS: dict[str, Any] = {
    "monotemp_model": {"arch": "tu-test_resnet.r160_in1k-linknet", "pretrained": False},
    "multitemp_model": {
        "encoder_widths": [8, 8, 8, 16],
        "decoder_widths": [8, 8, 8, 16],
        "out_conv": [8, 19],
        "str_conv_k": 3,
        "str_conv_s": 1,
        "n_head": 4,
        "d_model": 16,
    },
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny layers are slower on several threads, and much slower on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def learnable(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    """16 patches: land cover shows in the aerial image, the crop in the series."""
    folder = tmp_path_factory.mktemp("learnable")
    files = make_patch_files(
        folder,
        n_rois=1,
        rows=2,
        cols=4,
        domains=("D012-2019", "D033-2018"),
        modalities=SIZES,
        sizes_px=SIZES,
        n_dates={"SENTINEL2_TS": (4, 6)},
    )
    rng = np.random.default_rng(8)
    for number, patch_id in enumerate(files.patch_ids):
        land = np.kron(rng.choice(LAND_CLASSES, (4, 4)), np.ones((8, 8), dtype=int))[None]
        crop = CROP_CLASSES[number // 4 % 2]
        image = np.clip(20 * land + rng.normal(0, 6, (4, 32, 32)), 0, 255)
        series = files.arrays["SENTINEL2_TS"][patch_id] * 0 + (500 if crop == 1 else 3000)
        replaced = {
            "AERIAL_LABEL-COSIA": land.astype(np.uint8),
            "ALL_LABEL-LPIS": np.full((3, 32, 32), crop, np.uint8),
            "AERIAL_RGBI": image.astype(np.uint8),
            "SENTINEL2_TS": series.astype(np.uint16),
        }
        for name, values in replaced.items():
            write_patch(files.files[name][patch_id], values, files.origins[patch_id])
            files.arrays[name][patch_id] = values
    return files


@pytest.fixture(scope="session")
def learnable_cube(learnable: PatchFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cube of `learnable`. Read only."""
    path = tmp_path_factory.mktemp("learnable_cube") / "cube.zarr"
    ingest(root=learnable.folder, cube=path)
    return path


@pytest.fixture(scope="session")
def configure(learnable: PatchFiles) -> Callable[..., TrainConfig]:
    """Return `configure(folder, **sections)`: a configuration of a small network, merged with the given sections."""

    def make(folder: Path, **sections: Any) -> TrainConfig:
        # Both domains in every split, and both crops.
        base: dict[str, Any] = {
            "models": SMALL_MODELS,
            "hyperparams": {"num_epochs": 4, "batch_size": 4, "learning_rate": 0.01, "scheduler": "cycle_then_plateau"},
            "hardware": {"precision": "32-true"},
            "saving": {"ckpt_save_also_last": True, "progress_rate": 1},
            "modalities": {"pre_processings": {"use_augmentation": True}},
        }
        for name, section in sections.items():
            base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
        return load_train_config(write_train_config(folder, learnable, **base))

    return make
