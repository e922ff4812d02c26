"""The graph of a map: a task per block, with the source chunks that the block reads as its inputs.

A template has such blocks, too: its values are blank, but they bring the source chunks of their pixels along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
import xarray as xr
from dask._task_spec import Task, TaskRef
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import DTypeLike, NDArray

from flairhub.data import Preparation
from flairhub.inference.batches import source_regions
from flairhub.inference.block import block_region
from flairhub.inference.map_plan import MapPlan
from flairhub.zones import Regions, Zone, attach, chunk_bytes, detach, is_edge, joined, needed_chunks

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
    edges = edge_names(plan.zone, preparations)
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
        regions = edge_regions(plan, preparations, edges, block)
        inputs = [refer(*chunk) for chunk in needed_chunks(zone, regions)]
        tasks[name, *block] = Task((name, *block), attached, block, *inputs)
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[*arrays.values()])  # type: ignore[list-item]
    return da.Array(graph, name, chunks, dtype=object, meta=meta)


def _chunk_key(array: da.Array, row: int, col: int) -> tuple[str | int, ...]:
    return (array.name, *(0,) * (array.ndim - 2), row, col)


def edge_names(zone: Zone, preparations: Mapping[str, Preparation]) -> tuple[str, ...]:
    """Return the modalities and masks that a network reads and whose pixels enter graphs chunk by chunk."""
    sources = source_regions(zone, preparations, (0, 0), (0, 0))
    return tuple(source for source in sources if is_edge(zone.raster(source)))


def edge_regions(
    plan: MapPlan, preparations: Mapping[str, Preparation], edges: tuple[str, ...], block: Block
) -> Regions:
    """Return the rows and columns of those that a block reads; none outside the zone's area of interest."""
    region = block_region(plan, block)
    if region is None:
        return {}
    regions = source_regions(plan.zone, preparations, *region)
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
    zone = attach(plan.zone, edge_regions(plan, preparations, edges, block), chunks)
    return predict(replace(plan, zone=zone), block)


@dataclass(frozen=True, eq=False)
class Blank:
    """Values of a part of a template: zeros, with a zone that holds the source chunks of these pixels.

    To dask and xarray it is an array. What is sliced or moved keeps the zone, what is joined has the chunks of all.

    Attributes:
        zeros: Of its shape and dtype; takes no memory.
        zone: Complete for the windows of these pixels.
    """

    zeros: NDArray[Any]
    zone: Zone

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: DTypeLike, zone: Zone) -> Blank:
        """Make one of a shape."""
        return cls(np.broadcast_to(np.zeros((), dtype), shape), zone)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, as an array has it."""
        return self.zeros.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its dtype, as an array has it."""
        return self.zeros.dtype

    @property
    def ndim(self) -> int:
        """Number of its dimensions."""
        return self.zeros.ndim

    def __sizeof__(self) -> int:
        return chunk_bytes(self.zone)

    def __reduce__(self) -> tuple[Any, ...]:
        return Blank.of, (self.shape, self.dtype, self.zone)

    def __getitem__(self, key: Any) -> Blank:
        return Blank.of(self.zeros[key].shape, self.dtype, self.zone)

    def astype(self, dtype: DTypeLike, **_: Any) -> Blank:
        """Return it with another dtype."""
        return Blank.of(self.shape, dtype, self.zone)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.zeros, dtype)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        zones: list[Zone] = []
        result = function(*_bare(args, zones), **_bare(kwargs, zones))
        return Blank.of(result.shape, result.dtype, joined(zones)) if isinstance(result, np.ndarray) else result

    def __array_ufunc__(self, function: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.__array_function__(getattr(function, method), (), args, kwargs)


def _bare(value: Any, zones: list[Zone]) -> Any:
    """Arguments with zeros in place of what is blank, whose zones are added to `zones`."""
    if isinstance(value, Blank):
        zones.append(value.zone)
        return value.zeros
    if isinstance(value, list | tuple):
        return type(value)(_bare(item, zones) for item in value)
    if isinstance(value, dict):
        return {key: _bare(item, zones) for key, item in value.items()}
    return value


def blank_array(plan: MapPlan, sources: da.Array | None, leading: tuple[int, ...], dtype: str) -> da.Array:
    """Return the values of a variable of a template, (*leading, y, x).

    Args:
        plan: Its blocks.
        sources: From `block_sources`; None where no source enters graphs.
        leading: Lengths of the axes before y and x.
        dtype: numpy name.
    """
    blocks = tuple(tuple(np.diff(edges).tolist()) for edges in (plan.row_edges, plan.col_edges))
    chunks = (*((length,) for length in leading), *blocks)
    if sources is None:
        return da.broadcast_to(da.zeros((), dtype=dtype), tuple(map(sum, chunks)), chunks=chunks)
    return da.map_blocks(
        partial(_blank, leading, dtype),
        sources,
        dtype=dtype,
        meta=np.empty((0,) * len(chunks), dtype),
        chunks=chunks,
        new_axis=list(range(len(leading))) or None,
        name=f"blank-{uuid4().hex}",
    )


def block_sources(plan: MapPlan, preparations: Mapping[str, Preparation]) -> da.Array | None:
    """Return by block the zone with its source chunks, for `blank_array`; None where no source enters graphs."""
    return block_array(plan, preparations, _with_shape) if edge_names(plan.zone, preparations) else None


def _with_shape(plan: MapPlan, block: Block) -> tuple[tuple[int, int], Zone]:
    (top, bottom), (left, right) = plan.extent(block)
    return (bottom - top, right - left), plan.zone


def _blank(leading: tuple[int, ...], dtype: str, sources: tuple[tuple[int, int], Zone]) -> Blank:
    shape, zone = sources
    return Blank.of((*leading, *shape), dtype, zone)


def zones_in(chunk: xr.Dataset) -> Iterator[Zone]:
    """Yield the zones that the values of a part of a template bring along."""
    for name in chunk.data_vars:
        values = chunk.variables[name].data
        if isinstance(values, Blank):
            yield values.zone
