"""The blocks of a run as jobs.

Sources that enter graphs chunk by chunk (dask-backed, in memory) are read by the process that runs the jobs, between
them and outside of any: a job gets the chunks that it reads. A chunk is computed once and kept until its last job.
"""

from __future__ import annotations

import pickle
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
from dask.base import get_scheduler
from numpy.typing import NDArray

from flairhub.data import Preparation
from flairhub.errors import DataError
from flairhub.inference.block_graph import edge_names, edge_regions
from flairhub.inference.map_plan import MapPlan
from flairhub.zones import Chunk, Zone, attach, detach, needed_chunks

Block = tuple[int, int]
KEPT_BYTES = 256_000_000
"""Chunks that later jobs read again stay in memory up to so many bytes, the others go to files."""


@dataclass(frozen=True)
class BlockJob:
    """A block to compute.

    Attributes:
        block: Its row and column number.
        zone: The zone with the chunks that the block reads; None where all of it travels with the plan.
    """

    block: Block
    zone: Zone | None = None

    @property
    def name(self) -> str:
        """The block, for messages."""
        return str(self.block)


def block_jobs(
    plan: MapPlan, preparations: Mapping[str, Preparation], blocks: Sequence[Block], folder: Path
) -> tuple[MapPlan, Iterator[BlockJob]]:
    """Return the plan that travels with jobs, and the jobs, each made when it is asked for.

    Args:
        plan: Windows and blocks.
        preparations: By modality, what the network takes.
        blocks: What is to be computed, in this order.
        folder: For chunks that wait in files; removed in the end.
    """
    edges = edge_names(plan.zone, preparations)
    if not edges:
        return plan, map(BlockJob, blocks)
    zone, arrays = detach(plan.zone, edges)
    bare = replace(plan, zone=zone)
    # Of the caller, not of the workers that start meanwhile.
    chunks = _Chunks(plan.zone, arrays, get_scheduler() or "threads", folder)
    return bare, _supplied(bare, preparations, edges, blocks, chunks)


def _supplied(
    plan: MapPlan,
    preparations: Mapping[str, Preparation],
    edges: tuple[str, ...],
    blocks: Sequence[Block],
    chunks: _Chunks,
) -> Iterator[BlockJob]:
    regions_of = partial(edge_regions, plan, preparations, edges)
    left = Counter(chunk for block in blocks for chunk in needed_chunks(plan.zone, regions_of(block)))
    with chunks:
        for block in blocks:
            regions = regions_of(block)
            wanted = needed_chunks(plan.zone, regions)
            left.subtract(wanted)
            values = chunks.take(wanted, [chunk for chunk in wanted if not left[chunk]])
            yield BlockJob(block, attach(plan.zone, regions, values))


class _Chunks:
    """Chunks of some arrays, computed when they are first needed."""

    def __init__(self, zone: Zone, arrays: Mapping[str, da.Array], scheduler: Any, folder: Path):
        self._zone, self._arrays, self._scheduler, self._folder = zone, arrays, scheduler, folder

    def __enter__(self) -> _Chunks:
        from zict import Buffer, File, Func

        shutil.rmtree(self._folder, ignore_errors=True)
        files = Func(pickle.dumps, pickle.loads, File(self._folder))
        self._kept = Buffer({}, files, KEPT_BYTES, weight=lambda _, values: values.nbytes)
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def take(self, wanted: Sequence[Chunk], last: Sequence[Chunk]) -> list[NDArray[Any]]:
        """Return chunks in their order; those of `last` are not needed again."""
        values = {chunk: self._kept[_key(chunk)] for chunk in wanted if _key(chunk) in self._kept}
        absent = [chunk for chunk in wanted if chunk not in values]
        values |= zip(absent, self._computed(absent), strict=True)
        for chunk in last:
            self._kept.pop(_key(chunk), None)
        for chunk in set(absent) - set(last):
            self._kept[_key(chunk)] = values[chunk]
        return [values[chunk] for chunk in wanted]

    def _computed(self, chunks: Sequence[Chunk]) -> Sequence[NDArray[Any]]:
        if not chunks:
            return ()
        pieces = [self._arrays[name].blocks[..., row, col] for name, row, col in chunks]
        try:
            # One call for all, so that what they share is computed once.
            computed: Sequence[NDArray[Any]] = dask.compute(*pieces, scheduler=self._scheduler)
        except Exception as error:
            # Whatever the library behind a lazy array raises.
            names = ", ".join(dict.fromkeys(self._zone.raster(name).where for name, *_ in chunks))
            raise DataError(
                f"{names}: cannot read ({type(error).__name__}: {error}). What it reads is damaged or gone; restore it."
            ) from error
        return computed


def _key(chunk: Chunk) -> str:
    return "-".join(map(str, chunk))
