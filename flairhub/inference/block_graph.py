"""The graph of a map: a task per block, with the source chunks that the block reads as its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
from dask._task_spec import Task, TaskRef
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from flairhub.data import Preparation
from flairhub.inference.batches import source_regions
from flairhub.inference.block import block_region
from flairhub.inference.map_plan import MapPlan
from flairhub.zones import Regions, attach, detach, is_edge, needed_chunks

Block = tuple[int, int]
Predict = Callable[[MapPlan, Block], Any]


def block_array(plan: MapPlan, preparations: Mapping[str, Preparation], predict: Predict) -> da.Array:
    """Return the blocks of a map as one lazy array of whatever `predict` makes of each.

    Rasters that are in memory or dask-backed enter as edges: their chunks are computed once, whichever blocks read
    them, and never inside a task. Other rasters travel with their description.

    Args:
        plan: Windows and blocks.
        preparations: By modality, what the network takes.
        predict: Called with the plan, whose zone is complete for that block, and the block's row and column number; can
            be pickled.

    Returns:
        (y, x) objects, chunked like the blocks.
    """
    chunks = tuple(tuple(np.diff(edges).tolist()) for edges in (plan.row_edges, plan.col_edges))
    name, meta = f"predict-{uuid4().hex}", np.empty((0, 0), dtype=object)
    sources = source_regions(plan.zone, preparations, (0, 0), (0, 0))
    edges = tuple(source for source in sources if is_edge(plan.zone.raster(source)))
    if not edges:
        described = partial(_predict_described, plan, predict)
        return da.map_blocks(described, chunks=chunks, dtype=object, meta=meta, name=name)
    zone, arrays = detach(plan.zone, edges)
    plan = replace(plan, zone=zone)
    attached = partial(_predict_attached, plan, preparations, predict, edges)
    # References are shared: neighbouring blocks need the same chunks.
    refer = lru_cache(maxsize=None)(lambda source, row, col: TaskRef(_chunk_key(arrays[source], row, col)))
    tasks: dict[Any, Task] = {}
    for block in plan.blocks():
        regions = _edge_regions(plan, preparations, edges, block)
        inputs = [refer(source, *number) for source in edges for number in needed_chunks(zone, source, regions[source])]
        tasks[name, *block] = Task((name, *block), attached, block, *inputs)
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[*arrays.values()])  # type: ignore[list-item]
    return da.Array(graph, name, chunks, dtype=object, meta=meta)


def _chunk_key(array: da.Array, row: int, col: int) -> tuple[str | int, ...]:
    return (array.name, *(0,) * (array.ndim - 2), row, col)


def _edge_regions(
    plan: MapPlan, preparations: Mapping[str, Preparation], edges: tuple[str, ...], block: Block
) -> Regions:
    regions = source_regions(plan.zone, preparations, *block_region(plan, block))
    return {source: regions[source] for source in edges}


def _predict_described(plan: MapPlan, predict: Predict, block_id: Block | None = None) -> Any:
    assert block_id is not None
    return predict(plan, block_id)


def _predict_attached(
    plan: MapPlan,
    preparations: Mapping[str, Preparation],
    predict: Predict,
    edges: tuple[str, ...],
    block: Block,
    *chunks: NDArray[Any],
) -> Any:
    zone = attach(plan.zone, _edge_regions(plan, preparations, edges, block), chunks)
    return predict(replace(plan, zone=zone), block)
