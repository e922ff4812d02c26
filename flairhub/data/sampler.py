"""Which patches make up which batch: pure arithmetic on cube positions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import UsageError

POOL_PATCHES = 4096
"""Patches that are shuffled among each other; a cube with fewer is shuffled uniformly."""


@dataclass(frozen=True)
class Sampler:
    """Order of patches in every epoch.

    Shuffling permutes the shards, takes groups of shards into a pool and permutes the patches inside it, so that
    reading stays within few shards at a time. A pool that holds everything gives a uniform permutation.

    A global batch is `batch_size * world_size` patches of that order, cut evenly into one part per rank, so every
    patch is seen by exactly one rank and the patches of a step do not depend on the number of ranks.

    Attributes:
        indices: (sample,) cube positions; in storage order without shuffling.
        batch_size: Patches per batch of one rank.
        shuffle: New order in every epoch.
        seed: Seed of the orders; an epoch's order follows from (seed, epoch) alone.
        rank: This process, 0-based.
        world_size: Number of processes.
        drop_last: Leave the incomplete last global batch out, unless it is the only one.
        shard_patches: Consecutive cube positions that are stored together.
        pool_patches: Size of the shuffle pool.
    """

    indices: NDArray[np.int64] = field(repr=False)
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    shard_patches: int = 1
    pool_patches: int = POOL_PATCHES

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch_size: got {self.batch_size}, expected at least 1.")
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank: got {self.rank}, expected 0..{self.world_size - 1}.")
        indices = np.asarray(self.indices, dtype=np.int64)
        if len(np.unique(indices)) != len(indices):
            raise UsageError("indices: a cube position is given more than once; every patch can be sampled once.")
        object.__setattr__(self, "indices", np.sort(indices))

    @property
    def _full_batches(self) -> int:
        return len(self.indices) // (self.batch_size * self.world_size)

    def __len__(self) -> int:
        """Batches of this rank per epoch."""
        tail = len(self.indices) - self._full_batches * self.batch_size * self.world_size
        if not tail or (self.drop_last and self._full_batches):
            return self._full_batches
        return self._full_batches + bool(len(self._share(np.empty(tail, dtype=np.int64))))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the cube positions of all ranks in the order of `epoch`."""
        if not self.shuffle:
            return self.indices
        rng = np.random.default_rng((self.seed, epoch))
        shards = np.split(self.indices, np.flatnonzero(np.diff(self.indices // self.shard_patches)) + 1)
        sizes = np.array([len(shard) for shard in shards])
        turn = rng.permutation(len(shards))
        # Shards that start in the same stretch of `pool_patches` patches form one pool.
        pool_of = (np.cumsum(sizes[turn]) - sizes[turn]) // max(self.pool_patches, 1)
        pools = np.split(turn, np.flatnonzero(np.diff(pool_of)) + 1)
        return np.concatenate([rng.permutation(np.concatenate([shards[i] for i in pool])) for pool in pools])

    def batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the cube positions of every batch of this rank in `epoch`."""
        order, step = self.order(epoch), self.batch_size * self.world_size
        shares = [self._share(order[start : start + step]) for start in range(0, len(order), step)]
        return shares[: len(self)]

    def _share(self, global_batch: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array_split(global_batch, self.world_size)[self.rank]
