"""Order of patches: exactly once, same for any number of ranks, shard by shard."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flairhub.data import Sampler
from flairhub.errors import UsageError


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 200),
    batch_size=st.integers(1, 9),
    world=st.integers(1, 4),
    shuffle=st.booleans(),
    shard=st.integers(1, 40),
    pool=st.integers(1, 120),
    epoch=st.integers(0, 3),
)
def test_every_patch_exactly_once(
    n: int, batch_size: int, world: int, shuffle: bool, shard: int, pool: int, epoch: int
) -> None:
    indices = np.random.default_rng(n).choice(5 * n, n, replace=False)
    options = {"batch_size": batch_size, "shuffle": shuffle, "seed": 3, "shard_patches": shard, "pool_patches": pool}
    ranks = [Sampler(indices, rank=rank, world_size=world, **options) for rank in range(world)]
    batches = [sampler.batches(epoch) for sampler in ranks]
    assert [len(sampler) for sampler in ranks] == [len(found) for found in batches]
    seen = np.concatenate([batch for found in batches for batch in found])
    np.testing.assert_array_equal(np.sort(seen), np.sort(indices))
    assert max(len(batch) for found in batches for batch in found) <= batch_size
    # Step by step the ranks together see what one process with the whole batch sees.
    single = Sampler(indices, **{**options, "batch_size": batch_size * world}).batches(epoch)
    for step, expected in enumerate(single):
        together = np.concatenate([found[step] for found in batches if step < len(found)])
        np.testing.assert_array_equal(together, expected)


def test_without_shuffling_patches_come_in_storage_order() -> None:
    batches = Sampler(np.array([9, 1, 4, 3, 7]), batch_size=2).batches(5)
    assert [batch.tolist() for batch in batches] == [[1, 3], [4, 7], [9]]


def test_drop_last_keeps_the_only_batch() -> None:
    assert len(Sampler(np.arange(10), batch_size=4, drop_last=True).batches(0)) == 2
    assert len(Sampler(np.arange(3), batch_size=4, drop_last=True).batches(0)) == 1
    assert [len(b) for b in Sampler(np.arange(10), batch_size=4).batches(0)] == [4, 4, 2]


def test_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return Sampler(np.arange(50), batch_size=5, shuffle=True, seed=seed, shard_patches=8).order(epoch).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) == 6


def test_a_pool_that_holds_everything_shuffles_uniformly() -> None:
    sampler = Sampler(np.arange(12), batch_size=1, shuffle=True, shard_patches=4, pool_patches=12)
    places = np.zeros((12, 12))
    for epoch in range(3000):
        places[np.arange(12), sampler.order(epoch)] += 1
    # Every patch at every place 250 times, give or take five standard deviations.
    assert np.abs(places - 250).max() < 5 * np.sqrt(250)


def test_reading_stays_within_the_shards_of_a_pool() -> None:
    sampler = Sampler(np.arange(1000), batch_size=10, shuffle=True, shard_patches=20, pool_patches=100)
    order = sampler.order(0)
    for start in range(0, 1000, 100):
        assert len(np.unique(order[start : start + 100] // 20)) == 5
    # Neighbours come from many shards, not one after the other.
    assert (order[1:] // 20 != order[:-1] // 20).mean() > 0.6


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="batch_size: got 0"):
        Sampler(np.arange(3), batch_size=0)
    with pytest.raises(UsageError, match=r"rank: got 2, expected 0\.\.1"):
        Sampler(np.arange(3), batch_size=1, rank=2, world_size=2)
    with pytest.raises(UsageError, match="more than once"):
        Sampler(np.array([1, 1]), batch_size=1)
