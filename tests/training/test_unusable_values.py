"""Values that no network can use are named before the first step; a network that diverges says so, with its step."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flairhub.config import TrainConfig
from flairhub.cube import open_cube
from flairhub.data import check_values
from flairhub.data.batch_reader import BatchReader
from flairhub.errors import DataError, TrainingError
from flairhub.ingest import ingest
from flairhub.timeseries import CloudFilter, SeriesPreparation
from flairhub.training import train
from flairhub.training.module import SegmentationModule
from flairhub.training.trainer import Checkpoints
from tests.helpers.makers import PatchFiles, make_patch_files, write_patch, write_train_config

LAND = "AERIAL_LABEL-COSIA"
SIZES = {"DEM_ELEV": 16, "SENTINEL2_TS": 8, "SENTINEL2_MSK-SC": 8, LAND: 16}
NETWORKS: dict[str, Any] = {
    "monotemp_model": {"arch": "tu-test_resnet.r160_in1k-linknet", "pretrained": False},
    "multitemp_model": {
        "encoder_widths": [8, 8, 8, 16],
        "decoder_widths": [8, 8, 8, 16],
        "out_conv": [8, 19],
        "n_head": 4,
        "d_model": 16,
    },
}
Configure = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    """Eight patches; one of the test patches has no height, another is all cloud."""
    made = make_patch_files(tmp_path_factory.mktemp("data"), n_rois=1, rows=2, cols=4, modalities=SIZES, sizes_px=SIZES)
    first, second = [patch_id for patch_id in made.patch_ids if made.splits[patch_id] == "test"][:2]
    heights = np.full_like(made.arrays["DEM_ELEV"][first], np.nan)
    write_patch(made.files["DEM_ELEV"][first], heights, made.origins[first])
    clouds = np.full_like(made.arrays["SENTINEL2_MSK-SC"][second], 100)
    write_patch(made.files["SENTINEL2_MSK-SC"][second], clouds, made.origins[second])
    return made


@pytest.fixture(scope="module")
def cube(files: PatchFiles) -> Path:
    path = files.folder.parent / "values.zarr"
    ingest(root=files.folder, cube=path)
    return path


@pytest.mark.parametrize(
    ("name", "number", "text"),
    [("DEM_ELEV", 0, "DEM_ELEV: no pixel with data in patches"), ("SENTINEL2_TS", 1, "no usable date in patches")],
)
def test_test_patches_are_looked_at_before_the_first_step(
    files: PatchFiles, cube: Path, tmp_path: Path, name: str, number: int, text: str
) -> None:
    from flairhub.config import load_train_config

    modalities = {
        "inputs": {modality: modality == name for modality in ("AERIAL_RGBI", "DEM_ELEV", "SENTINEL2_TS")},
        "normalization": {"norm_type": "without"},
        "pre_processings": {"filter_sentinel2": True},
    }
    sections: dict[str, Any] = {"modalities": modalities, "models": NETWORKS, "labels": [LAND]}
    config = load_train_config(write_train_config(tmp_path, files, **sections, hyperparams={"num_epochs": 1}))
    steps: list[str] = []
    with pytest.raises(DataError, match=text) as refused:
        train(config, cube=cube, progress=lambda stage, done, total: steps.append(stage))
    bad = [patch_id for patch_id in files.patch_ids if files.splits[patch_id] == "test"][number]
    assert [patch_id for patch_id in files.patch_ids if patch_id in str(refused.value)] == [bad]
    assert "train" not in steps
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("average", [None, "monthly"])
def test_only_what_tables_and_masks_leave_in_doubt_is_read(
    files: PatchFiles, cube: Path, average: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patch without a clear date; a series is not read to find out that it has one."""
    read, seen = BatchReader.read_input, []

    def noted(reader: BatchReader, name: str, indices: Any) -> Any:
        seen.append((name, indices.tolist()))
        return read(reader, name, indices)

    monkeypatch.setattr(BatchReader, "read_input", noted)
    opened = open_cube(cube)
    every = np.arange(len(opened.patch_ids))
    preparations = {"SENTINEL2_TS": SeriesPreparation(cloud_filter=CloudFilter(), average=average)}
    with pytest.raises(DataError, match="no usable date in patches") as refused:
        check_values(opened, every, preparations, ())
    (bad,) = [index for index in every if opened.patch_ids[index] in str(refused.value)]
    assert seen == [("SENTINEL2_TS", [bad])]
    # Every patch by itself, read whole: the same answer.
    reader = BatchReader(opened, preparations, ())
    for index in every:
        if index == bad:
            continue
        read(reader, "SENTINEL2_TS", np.array([index]))
    with pytest.raises(DataError, match="no usable date"):
        read(reader, "SENTINEL2_TS", np.array([bad]))


SERIES: dict[str, Any] = {
    "modalities": {"inputs": {"AERIAL_RGBI": False, "SENTINEL2_TS": True}},
    "labels": ["ALL_LABEL-LPIS"],
    "hyperparams": {"num_epochs": 2, "batch_size": 4, "learning_rate": 0.01},
    "tasks": {"predict": False},
}


def test_weights_that_become_nan_in_the_last_step_are_named(
    configure: Configure, learnable: PatchFiles, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = SegmentationModule.optimizer_step, count(1)

    def diverging(self: SegmentationModule, *arguments: Any, **options: Any) -> None:
        step(self, *arguments, **options)
        if next(steps) == 4:
            with torch.no_grad():
                next(self.model.parameters()).fill_(torch.nan)

    monkeypatch.setattr(SegmentationModule, "optimizer_step", diverging)
    with pytest.raises(TrainingError) as stopped:
        train(configure(tmp_path, **SERIES), cube=learnable_cube)
    message = str(stopped.value)
    assert "epoch 1, step 4: the network gives logits that are not finite numbers for the validation patches" in message
    assert "Its weights are NaN or infinite: it has diverged." in message
    named = [patch_id for patch_id in learnable.patch_ids if patch_id in message]
    assert named == [patch_id for patch_id in learnable.patch_ids if learnable.splits[patch_id] == "valid"]
    assert (tmp_path / "out" / "test_model" / "checkpoints" / "last.ckpt").exists()


def test_one_patch_without_finite_logits_is_named(
    configure: Configure, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flairhub.training import module

    original, wanted = module.network_output, []

    def poisoned(network: Any, batch: Any, aux: bool = False) -> Any:
        logits, heads = original(network, batch, aux=aux)
        if not network.training and not wanted:
            wanted.append(int(batch.index[1]))
            for values in logits.values():
                values[1, 0, 3, 3] = torch.inf
        return logits, heads

    monkeypatch.setattr(module, "network_output", poisoned)
    from flairhub.cube import open_cube

    with pytest.raises(TrainingError, match=r"epoch 0, step 2: .* for the validation patches") as stopped:
        train(configure(tmp_path, **SERIES), cube=learnable_cube)
    ids = open_cube(learnable_cube).patch_ids
    assert [patch_id for patch_id in ids if patch_id in str(stopped.value)] == [ids[wanted[0]]]
    assert "diverged" not in str(stopped.value)


def test_statistics_that_are_not_finite_are_never_saved(
    configure: Configure, learnable_cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Checkpoints.on_train_epoch_end

    def broken(self: Checkpoints, trainer: Any, module: Any) -> None:
        statistics = next(value for name, value in module.model.named_buffers() if value.is_floating_point())
        statistics.fill_(torch.inf)
        save(self, trainer, module)

    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", broken)
    with pytest.raises(TrainingError, match="epoch 0: weights are not finite after step 2"):
        train(configure(tmp_path, **SERIES), cube=learnable_cube)
    assert not list((tmp_path / "out" / "test_model" / "checkpoints").glob("*.ckpt"))
