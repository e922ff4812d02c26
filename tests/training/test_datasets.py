"""The public datasets give what training sees: order, values, positions, shares of processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import flairhub as fh
from flairhub.config import TrainConfig
from flairhub.cube import Cube, open_cube
from flairhub.data import Batch, PreparedBatch, dihedral_codes, prepare_batch
from flairhub.errors import TrainingError
from flairhub.training.training_plan import training_plan
from tests.helpers.makers import PatchFiles, write_train_config
from tests.training.conftest import SMALL_MODELS


@pytest.fixture(scope="module")
def folder(learnable: PatchFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes: dict[str, Any] = {
        "models": SMALL_MODELS,
        "hyperparams": {"batch_size": 3, "seed": 5},
        "modalities": {"pre_processings": {"use_augmentation": True}},
    }
    return write_train_config(tmp_path_factory.mktemp("configs"), learnable, **changes)


@pytest.fixture(scope="module")
def config(folder: Path) -> TrainConfig:
    loaded = fh.load_config(folder)
    assert isinstance(loaded, TrainConfig)
    return loaded


@pytest.fixture(scope="module")
def cube(learnable: PatchFiles, make_cube: Callable[..., Path]) -> Cube:
    return open_cube(make_cube(learnable))


def assert_same(one: Batch | PreparedBatch, other: Batch | PreparedBatch) -> None:
    assert type(one) is type(other)
    assert torch.equal(one.index, other.index)
    for field in fields(one):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(first, dict):
            assert first.keys() == second.keys()
            for name in first:
                assert torch.equal(first[name], second[name]), (field.name, name)


def order(batches: Any) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]


def test_raw_batches_are_those_of_the_training_loader(cube: Cube, config: TrainConfig) -> None:
    plan = training_plan(config)
    expected = plan.loader(cube, plan.split(cube, "train"), shuffle=True, drop_last=True)
    dataset = fh.loader(cube, config, prepared=False)
    assert len(dataset) == len(expected) > 1
    assert dataset.n_samples == expected.n_samples
    for epoch in (0, 1, 4):
        expected.set_epoch(epoch)
        dataset.set_epoch(epoch)
        for one, other in zip(dataset, expected, strict=True):
            assert_same(one, other)


def test_prepared_batches_are_augmented_as_in_training(cube: Cube, config: TrainConfig) -> None:
    plan = training_plan(config)
    raw = fh.loader(cube, config, prepared=False)
    raw.set_epoch(2)
    prepared = fh.loader(cube, config)
    prepared.set_epoch(2)
    for batch, given in zip(raw, prepared, strict=True):
        assert isinstance(batch, Batch)
        codes = dihedral_codes(batch.index.numpy(), 5, 2)
        assert_same(given, prepare_batch(batch, plan.preparations, "cpu", codes))
    plain, still = fh.loader(cube, config, "valid", prepared=False), fh.loader(cube, config, "valid")
    for batch, given in zip(plain, still, strict=True):
        assert isinstance(batch, Batch)
        assert_same(given, prepare_batch(batch, plan.preparations, "cpu"))


def test_a_pass_moves_on_to_the_next_epoch(cube: Cube, config: TrainConfig) -> None:
    dataset = fh.loader(cube, config)
    first, second = order(dataset), order(dataset)
    assert first != second
    dataset.set_epoch(0)
    assert order(dataset) == first
    dataset.set_epoch(1)
    assert order(dataset) == second
    valid = fh.loader(cube, config, "valid")
    assert order(valid) == order(valid)
    assert np.concatenate(order(valid)).tolist() == cube.patches.in_split("valid").tolist()


def test_a_position_is_kept_in_a_state(cube: Cube, config: TrainConfig) -> None:
    dataset = fh.loader(cube, config)
    dataset.set_epoch(3)
    whole = order(dataset)
    assert dataset.state_dict() == {"epoch": 4, "position": 0}
    dataset.set_epoch(3)
    batches = iter(dataset)
    next(batches)
    state = dataset.state_dict()
    assert state == {"epoch": 3, "position": 1}
    other = fh.loader(cube, config)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert order(other) == whole[1:]
    assert order(other) != whole[1:]  # the next epoch, from its start


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_and_its_processes_share_the_batches(cube: Cube, config: TrainConfig, workers: int) -> None:
    dataset = fh.loader(cube, config, batch_size=2)
    expected = order(dataset)
    dataset.set_epoch(0)
    loading = DataLoader(dataset, batch_size=None, num_workers=workers)
    assert len(loading) == len(expected)
    assert order(loading) == expected


def test_processes_of_a_group_share_the_batches(
    cube: Cube, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = order(fh.loader(cube, config, "valid", batch_size=2))
    dataset = fh.loader(cube, config, "valid", batch_size=1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        dataset.set_epoch(0)
        parts.append(order(dataset))
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in alone]


def test_lightning_takes_it(cube: Cube, config: TrainConfig, tmp_path: Path) -> None:
    import lightning.pytorch as pl

    seen: list[list[int]] = []

    class Seeing(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch: PreparedBatch, batch_idx: int) -> torch.Tensor:
            seen.append(batch.index.tolist())
            return self.weight * batch.inputs["AERIAL_RGBI"].mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    dataset = fh.loader(cube, config)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(Seeing(), DataLoader(dataset, batch_size=None))
    dataset.set_epoch(0)
    assert seen == [*order(dataset), *order(dataset)]


def test_patches_by_number_and_id(cube: Cube, config: TrainConfig) -> None:
    dataset = fh.patches(cube, config, "train", prepared=False)
    indices = cube.patches.in_split("train")
    assert len(dataset) == len(indices)
    assert dataset.patch_ids == [cube.patch_ids[index] for index in indices]
    for key in (2, 2 - len(indices), dataset.patch_ids[2]):
        patch = dataset[key]
        assert patch["index"] == indices[2]
        assert patch["patch_id"] == cube.patch_ids[indices[2]]
        np.testing.assert_array_equal(patch["inputs"]["AERIAL_RGBI"], cube.read("AERIAL_RGBI", [indices[2]])[0])
        assert patch["present"] == dict.fromkeys(patch["inputs"], True)
        assert patch["valid"]["AERIAL_RGBI"].all()
    with pytest.raises(IndexError):
        dataset[len(indices)]
    with pytest.raises(KeyError, match="D999_X_1-1 is not among the"):
        dataset["D999_X_1-1"]
    assert [patch["index"] for patch in dataset] == indices.tolist()


def test_prepared_patches_are_those_of_the_batches(cube: Cube, config: TrainConfig) -> None:
    dataset = pickle.loads(pickle.dumps(fh.patches(cube, config, "valid")))
    (batch,) = fh.loader(cube, config, "valid", batch_size=99)
    assert len(dataset) == len(batch)
    for row in range(len(dataset)):
        patch = dataset[row]
        for name, values in patch["inputs"].items():
            given = batch.inputs[name][row]
            assert torch.equal(values, given[: len(values)] if name in patch["dates"] else given)
        for name, target in patch["targets"].items():
            assert torch.equal(target, batch.targets[name][row])
    images = DataLoader([{"x": patch["inputs"]["AERIAL_RGBI"]} for patch in dataset], batch_size=2)
    assert next(iter(images))["x"].shape[0] == min(2, len(dataset))


def test_paths_do_as_well_as_objects(cube: Cube, folder: Path, config: TrainConfig) -> None:
    expected = order(fh.loader(cube, config))
    assert order(fh.loader(str(cube.path), str(folder))) == expected
    assert order(fh.loader(cube.path, [folder])) == expected
    assert fh.patches(cube.path, folder, "valid").patch_ids == fh.patches(cube, config, "valid").patch_ids
    with pytest.raises((TrainingError, KeyError)):
        fh.loader(cube, config, "nothing")
