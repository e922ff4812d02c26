"""Buffers that are used again, reading processes, transforms, positions, shuffle quality on a cube."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flairhub.cube import Cube, open_cube
from flairhub.data import Batch, BatchLoader, Sampler
from flairhub.data.buffers import BufferRing
from flairhub.errors import DataError, UsageError
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from flairhub.timeseries import SeriesPreparation
from tests.helpers.makers import PatchFiles
from tests.helpers.transforms import deadly, noisy, shuffled

LABEL = "AERIAL_LABEL-COSIA"
PREPARATIONS = {"AERIAL_RGBI": ImagePreparation(), "SENTINEL2_TS": SeriesPreparation()}


@pytest.fixture(scope="module")
def cube(patch_files: PatchFiles, make_cube: Callable[..., Path]) -> Cube:
    return open_cube(make_cube(patch_files))


def loader(cube: Cube, **options) -> BatchLoader:
    settings = {"batch_size": 3, "shuffle": True, "seed": 4, **options}
    return BatchLoader(cube, np.arange(cube.n_patches), PREPARATIONS, [default_task(LABEL)], **settings)


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for group in ("inputs", "dates", "masks", "targets"):
            there, here = getattr(b, group), getattr(a, group)
            assert set(there) == set(here)
            for name in there:
                assert torch.equal(here[name], there[name]), name
        assert torch.equal(a.index, b.index)


def test_memory_is_used_again_only_when_nobody_looks_at_it() -> None:
    ring = BufferRing()
    shape, dtype = (600, 1000), np.dtype(np.uint8)
    first, view = ring.take(shape, dtype)
    second, _ = ring.take(shape, dtype)
    places = [first.data_ptr(), second.data_ptr()]
    assert places[0] != places[1]
    part = first[5:7]
    del first, view
    gc.collect()
    # A slice is enough to keep it.
    third, _ = ring.take(shape, dtype)
    assert third.data_ptr() not in places
    del part
    gc.collect()
    again, _ = ring.take((300, 1000), np.dtype(np.uint16))
    assert again.data_ptr() == places[0]
    smaller, _ = ring.take((2, 2), np.dtype(np.float32))
    assert smaller.dtype == torch.float32
    for _ in range(100):
        kept = ring.take(shape, dtype)
    assert len(ring._buffers) <= 5
    assert kept[0].shape == shape


def test_kept_batches_never_change(cube: Cube) -> None:
    passes = [list(loader(cube, threads=2)) for _ in range(3)]
    copies = [[torch.clone(batch.inputs["AERIAL_RGBI"]) for batch in found] for found in passes]
    for _ in loader(cube, threads=2):
        pass
    for found, copy in zip(passes, copies, strict=True):
        assert_equal(found, passes[0])
        assert all(torch.equal(batch.inputs["AERIAL_RGBI"], values) for batch, values in zip(found, copy, strict=True))


def test_processes_give_what_threads_give(cube: Cube) -> None:
    for epoch in (0, 1):
        expected = list(loader(cube, threads=0, transform=noisy, epoch=epoch))
        assert_equal(list(loader(cube, threads=2, transform=noisy, epoch=epoch)), expected)
    processes = loader(cube, workers=2, transform=noisy)
    for epoch in (0, 1):
        processes.set_epoch(epoch)
        expected = list(loader(cube, threads=0, transform=noisy, epoch=epoch))
        assert_equal(list(processes), expected)
    processes.close()
    plain = list(loader(cube, threads=0, epoch=1))
    assert not torch.equal(plain[0].inputs["AERIAL_RGBI"], expected[0].inputs["AERIAL_RGBI"])
    dying = loader(cube, workers=1, transform=deadly)
    with pytest.raises(DataError, match="process that reads batches died"):
        list(dying)


def test_a_transform_keeps_its_patches(cube: Cube) -> None:
    with pytest.raises(UsageError, match="shuffled returned Batch, expected a Batch of the same patches"):
        list(loader(cube, transform=shuffled))
    with pytest.raises(UsageError, match="workers: got -1"):
        loader(cube, workers=-1)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_pass_continues_where_it_was_left(cube: Cube, threads: int) -> None:
    whole = loader(cube, threads=threads)
    whole.set_epoch(3)
    expected = list(whole)
    first = loader(cube, threads=threads)
    first.set_epoch(3)
    started = iter(first)
    begun = [next(started)]
    state = first.state_dict()
    started.close()
    second = loader(cube, threads=threads)
    second.load_state_dict(state)
    assert_equal(begun + list(second), expected)
    # The pass after it is whole again.
    second.set_epoch(4)
    assert len(list(second)) == len(expected)


def test_neighbours_in_an_epoch_come_from_many_areas() -> None:
    """241,100 patches would take a while: 24,000 in 280 areas of unequal size, shards of 128, the usual pool."""
    rng = np.random.default_rng(0)
    area = np.repeat(np.arange(280), rng.multinomial(24_000, rng.dirichlet(np.full(280, 4.0))))
    sampler = Sampler(np.arange(len(area)), batch_size=16, shuffle=True, seed=1, shard_patches=128)
    for epoch in (0, 1):
        order = sampler.order(epoch)
        np.testing.assert_array_equal(np.sort(order), np.arange(len(area)))
        batches = area[order[: len(order) // 16 * 16]].reshape(-1, 16)
        distinct = np.array([len(np.unique(batch)) for batch in batches])
        # A uniform shuffle has 15.5 areas in a batch of 16.
        assert distinct.mean() > 13
        assert distinct.min() >= 8
        assert (area[order[1:]] == area[order[:-1]]).mean() < 0.05
    moved = np.argsort(sampler.order(0)) - np.argsort(sampler.order(1))
    assert np.abs(moved).mean() > 0.25 * len(area)
