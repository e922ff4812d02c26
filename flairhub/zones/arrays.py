"""xarray objects as rasters of a zone: in memory, lazily indexed, or dask-backed.

Lazily indexed arrays (no dask: rioxarray, `xr.open_zarr(chunks=None)`) travel by reference, and only a region of them
is read. What is in memory or dask-backed enters graphs chunk by chunk: see `edges.py`.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import DataError, FlairhubError, ZoneError
from flairhub.zones.raster import Raster, Span
from flairhub.zones.xarray_facts import Dims, Packing

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

_EDGE_CHUNK_PX = 1024
"""Arrays in memory enter graphs in pieces of this length."""


@dataclass(frozen=True)
class Member:
    """An array that holds some bands of a raster, or all.

    Attributes:
        variable: In memory or lazily indexed.
        dims: Its dimensions.
        bands: Positions along its band dimension, in the order of the raster's bands; one 0 without that dimension.
    """

    variable: xr.Variable
    dims: Dims
    bands: tuple[int, ...]

    def take(self, rows: slice, cols: slice) -> NDArray[Any]:
        """Read (time, band, y, x) of a region, times and bands of length 1 where there are no such dimensions."""
        index: dict[str, Any] = {self.dims["y"]: rows, self.dims["x"]: cols}
        first = min(self.bands)
        if "band" in self.dims:
            index[self.dims["band"]] = slice(first, max(self.bands) + 1)
        values = np.asarray(self.variable.isel(index).values)
        values = _ordered(values, [self.dims_in_order(what) for what in ("time", "band", "y", "x")])
        if "band" in self.dims and self.bands != tuple(range(first, first + values.shape[1])):
            values = values[:, [band - first for band in self.bands]]
        return values

    def dims_in_order(self, what: str) -> int | None:
        """Which axis is the time, the band, y or x; None = there is none."""
        return self.variable.dims.index(self.dims[what]) if what in self.dims else None

    def chunked(self) -> da.Array:
        """Return all of it as a dask array, (time, band, y, x)."""
        import dask.array as da

        variable = self.variable
        # Chunks that are there stay; others become one, whose pixels are read in one go.
        array = variable.data if variable.chunks is not None else variable.chunk().data
        array = _ordered(array, [self.dims_in_order(what) for what in ("time", "band", "y", "x")])
        if self.bands != tuple(range(array.shape[1])):
            array = da.take(array, list(self.bands), axis=1)
        return array


def _ordered(values: Any, axes: Sequence[int | None]) -> Any:
    present = [axis for axis in axes if axis is not None]
    if present != list(range(values.ndim)):
        values = values.transpose(present)
    # No new dask layer where nothing changes.
    whole = all(axis is not None for axis in axes)
    return values if whole else values[tuple(None if axis is None else slice(None) for axis in axes)]


@dataclass(frozen=True, eq=False)
class ArrayRaster(Raster):
    """An xarray object.

    Pickled, one that enters graphs chunk by chunk leaves its pixels behind: who needs them gets the chunks.

    Attributes:
        source: What names it in messages.
        members: Arrays with its bands, in their order; none where chunks stand for them.
        flips: Its rows go north, its columns go west.
        packing: By band, how numbers that were not decoded become values.
        array: (time,) band, y, x, north-up, one chunk along time and band, numbers not decoded; dask-backed sources.
        chunk_edges: Where its chunks begin and end along y and x, where it stands in a graph.
        pieces: Chunks by row and column number, inside a task of a graph.
        stamp: What tells these pixels from others; None = their content.
        files: Path, size and time of change in ns of the files it is read from, where that is known.
    """

    source: str = ""
    members: tuple[Member, ...] = ()
    flips: tuple[bool, bool] = (False, False)
    packing: tuple[Packing | None, ...] = ()
    array: da.Array | None = None
    chunk_edges: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    pieces: Mapping[tuple[int, int], NDArray[Any]] | None = None
    stamp: str | None = None
    files: tuple[tuple[str, int, int], ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        bare = self.detached() if self.has_pixels and self.is_edge else self
        state = {name: value for name, value in bare.__dict__.items() if name != "_stamp"}
        return _restored, (state,)

    def __copy__(self) -> ArrayRaster:
        return self

    def __deepcopy__(self, _: Any) -> ArrayRaster:
        return self

    @property
    def has_pixels(self) -> bool:
        """Whether it can be read as it is, all of it."""
        return self.array is not None or bool(self.members)

    @property
    def where(self) -> str:
        return self.source

    @property
    def may_be_masked(self) -> bool:
        return False

    def is_changed(self) -> bool:
        # Chunks may come from a machine that sees other files.
        return any(os.path.exists(path) and file_facts(path) != facts for path, *facts in self.files)

    def facts(self) -> dict[str, Any]:
        return {"xarray": self.source, "stamp": self._stamp}

    @cached_property
    def _stamp(self) -> str:
        from dask.base import tokenize

        if self.stamp is not None:
            return self.stamp
        return str(tokenize([(member.variable.values, member.dims, member.bands) for member in self.members]))

    @property
    def is_edge(self) -> bool:
        """Whether it enters graphs chunk by chunk; otherwise it travels with its description."""
        return self.array is not None or all(is_in_memory(member.variable) for member in self.members)

    def load(self, rows: Span, cols: Span) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        try:
            values = self._numbers(rows, cols)
        except FlairhubError:
            raise
        except Exception as error:
            # Whatever the library behind a lazy array raises.
            raise DataError(
                f"{self.source}: cannot read rows {rows[0]}-{rows[1] - 1}, columns {cols[0]}-{cols[1] - 1} "
                f"({type(error).__name__}: {error}). What it reads is damaged or gone; restore it."
            ) from error
        return self._decoded(values), None

    def _numbers(self, rows: Span, cols: Span) -> NDArray[Any]:
        if self.pieces is not None:
            return self._from_pieces(self.pieces, rows, cols)
        if self.array is not None:
            part = self.array[..., rows[0] : rows[1], cols[0] : cols[1]]
            # Within this thread: whoever asks may be a worker of another pool.
            return np.asarray(part.compute(scheduler="synchronous"))
        if not self.members:
            raise ZoneError(
                f"{self.source}: its pixels are in another process, this one has only its description. predict_zone, "
                f"write_zone and xr.map_blocks over zone.template(...) bring the pixels of every block along."
            )
        (top, bottom), (left, right) = (
            (length - span[1], length - span[0]) if flipped else span
            for span, length, flipped in zip(
                (rows, cols), (self.geobox.height, self.geobox.width), self.flips, strict=True
            )
        )
        parts = [member.take(slice(top, bottom), slice(left, right)) for member in self.members]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        values = values[..., :: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]
        return np.ascontiguousarray(values if self.dates is not None else values[0])

    def _from_pieces(self, pieces: Mapping[tuple[int, int], NDArray[Any]], rows: Span, cols: Span) -> NDArray[Any]:
        numbers = self.chunks_in(rows, cols)
        if not set(numbers) <= set(pieces):
            raise ZoneError(
                f"{self.source}: rows {rows[0]}-{rows[1] - 1}, columns {cols[0]}-{cols[1] - 1} reach beyond what this "
                f"block was given. Take a template of these window sizes, unchanged."
            )
        dtype = pieces[numbers[0]].dtype
        result = np.empty((*self.leading, rows[1] - rows[0], cols[1] - cols[0]), dtype)
        for row, col in numbers:
            piece, top, left = pieces[row, col], self.chunk_edges[0][row], self.chunk_edges[1][col]
            y0, y1 = max(rows[0], top), min(rows[1], top + piece.shape[-2])
            x0, x1 = max(cols[0], left), min(cols[1], left + piece.shape[-1])
            part = piece[..., y0 - top : y1 - top, x0 - left : x1 - left]
            result[..., y0 - rows[0] : y1 - rows[0], x0 - cols[0] : x1 - cols[0]] = part
        return result

    def chunks_in(self, rows: Span, cols: Span) -> list[tuple[int, int]]:
        """Row and column numbers of the chunks that hold a region."""
        ranges = []
        for edges, (first, last) in zip(self.chunk_edges, (rows, cols), strict=True):
            ranges.append(range(bisect_right(edges, first) - 1, bisect_left(edges, last)))
        return [(row, col) for row in ranges[0] for col in ranges[1]]

    def chunks(self) -> da.Array:
        """Return all of it as a dask array, (time,) band, y, x, numbers not decoded, one chunk along time and band."""
        import dask.array as da

        if self.array is not None:
            return self.array
        steps = (slice(None), slice(None), *(slice(None, None, -1 if flipped else 1) for flipped in self.flips))
        chunks = (-1, -1, _EDGE_CHUNK_PX, _EDGE_CHUNK_PX)
        arrays = []
        for number, member in enumerate(self.members):
            values = member.take(slice(None), slice(None))[steps]
            arrays.append(da.from_array(values, chunks=chunks, name=f"raster-{self._stamp}-{number}"))
        return one_chunk_deep(arrays, self.dates is not None)

    def detached(self) -> ArrayRaster:
        """Return its description, which takes its pixels from chunks."""
        rows, cols = self.chunks().chunks[-2:]
        edges = tuple(np.cumsum((0, *rows)).tolist()), tuple(np.cumsum((0, *cols)).tolist())
        return replace(self, members=(), array=None, chunk_edges=edges, stamp=self._stamp)

    def attached(self, pieces: Mapping[tuple[int, int], NDArray[Any]]) -> ArrayRaster:
        """Return the same raster with the chunks that a task has."""
        return replace(self, pieces=pieces)

    def _decoded(self, numbers: NDArray[Any]) -> NDArray[Any]:
        if not any(self.packing):
            return numbers.astype(self.dtype, copy=False)
        values = numbers.astype(self.dtype)
        for band, packing in enumerate(self.packing):
            if packing is None:
                continue
            plane, raw = values[..., band, :, :], numbers[..., band, :, :]
            plane *= np.asarray(packing.scale, self.dtype)
            plane += np.asarray(packing.offset, self.dtype)
            if packing.fill is not None:
                plane[raw == packing.fill] = np.nan
        return values


def is_edge(raster: Raster) -> bool:
    """Whether the pixels of a raster enter graphs chunk by chunk."""
    return isinstance(raster.origin, ArrayRaster) and raster.origin.is_edge


def chunks_under(raster: Raster, rows: Span, cols: Span) -> list[tuple[int, int]]:
    """Return the chunks that a raster made of an xarray object needs to read a region; always in the same order."""
    reach = raster.reach(*raster.inside(rows, cols))
    assert isinstance(raster.origin, ArrayRaster)
    return [] if reach is None else raster.origin.chunks_in(*reach)


def edge_array(raster: Raster, chunks: tuple[tuple[int, ...], ...]) -> da.Array:
    """Return a raster whose pixels enter graphs chunk by chunk as a dask array, (time,) band, y, x.

    Args:
        raster: The raster.
        chunks: Of the array; one along time and band.
    """
    import dask.array as da
    from dask._task_spec import Task, TaskRef
    from dask.highlevelgraph import HighLevelGraph

    origin = raster.origin
    assert isinstance(origin, ArrayRaster)
    source, bare = origin.chunks(), raster.with_origin(origin.detached())
    name, leading = f"{raster.name}-{uuid4().hex}", (0,) * (len(chunks) - 2)
    row_edges, col_edges = (np.cumsum((0, *lengths)).tolist() for lengths in chunks[-2:])
    tasks: dict[Any, Task] = {}
    for row, rows in enumerate(pairwise(row_edges)):
        for col, cols in enumerate(pairwise(col_edges)):
            refs = [TaskRef((source.name, *leading, *number)) for number in chunks_under(bare, rows, cols)]
            key = name, *leading, row, col
            tasks[key] = Task(key, _load_from, bare, rows, cols, *refs)
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[source])  # type: ignore[list-item]
    return da.Array(graph, name, chunks, dtype=raster.dtype, meta=np.empty((0,) * len(chunks), raster.dtype))


def _load_from(bare: Raster, rows: Span, cols: Span, *chunks: NDArray[Any]) -> NDArray[Any]:
    assert isinstance(bare.origin, ArrayRaster)
    pieces = dict(zip(chunks_under(bare, rows, cols), chunks, strict=True))
    return bare.with_origin(bare.origin.attached(pieces)).load(rows, cols)[0]


def _restored(state: dict[str, Any]) -> ArrayRaster:
    raster = object.__new__(ArrayRaster)
    raster.__dict__.update(state)
    return raster


def file_facts(path: str) -> list[int]:
    """Size and time of change in ns of a file, or of the metadata of a store."""
    stats = [os.stat(path)]
    if os.path.isdir(path):
        names = ("zarr.json", ".zmetadata", ".zgroup", ".zattrs")
        stats += [os.stat(file) for name in names if os.path.exists(file := os.path.join(path, name))]
    return [sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)]


def is_in_memory(variable: xr.Variable) -> bool:
    """True for numpy arrays. xarray has no public word for it: `.data` would read a lazily indexed array."""
    return bool(variable._in_memory)


def one_chunk_deep(arrays: Sequence[da.Array], is_series: bool) -> da.Array:
    """Put (time, band, y, x) arrays together along bands, each spatial chunk whole."""
    import dask.array as da

    array = arrays[0] if len(arrays) == 1 else da.concatenate(arrays, axis=1, allow_unknown_chunksizes=False)
    if array.numblocks[:2] != (1, 1):
        array = array.rechunk({0: -1, 1: -1})
    return array if is_series else array[0]
