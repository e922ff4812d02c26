"""The two ways to one stored chunk: the mapped shard file, and zarr-python. Tested to give the same.

Both raise `ChunkProblem`; `ArrayReader` adds the names.
"""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.codecs import ChunkCodec
from flairhub.cube.shards import ABSENT, index_bytes, parse_index

MOST_OPEN_SHARDS = 64
"""Mapped shards kept open per array: each holds a file descriptor and a mapping."""


class ChunkProblem(Exception):
    """A chunk cannot be given; the message says why, without names."""


class ChunkBackend(Protocol):
    """Gives single inner chunks."""

    def read_chunk(self, shard: int, position: int, out: NDArray[np.uint8]) -> None:
        """Decode a chunk into memory of the caller.

        Args:
            shard: Number of the shard.
            position: Place of the chunk in the shard's index.
            out: The chunk's bytes, one-dimensional, contiguous.

        Raises:
            ChunkProblem: Absent or damaged.
        """


class _Shard(NamedTuple):
    """A mapped shard and its checked index: offset and length of chunk i at 2 i and 2 i + 1.

    The view gives Python's own integers, whose arithmetic is many times faster than that of numpy's scalars.
    """

    data: NDArray[np.uint8]
    table: memoryview[int]


class DirectBackend:
    """Decodes from memory-mapped shard files of a local store; threads may share it."""

    def __init__(self, folder: Path, key: Any, n_chunks: int, codec: ChunkCodec):
        """Keep the places; nothing is opened yet.

        Args:
            folder: Folder of the array.
            key: Function from a shard's number to its path below `folder`.
            n_chunks: Inner chunks per shard.
            codec: Chain of the inner chunks.
        """
        self._folder, self._key, self._n_chunks, self._codec = folder, key, n_chunks, codec
        self._open: dict[int, _Shard] = {}
        self._lock = threading.Lock()

    def read_chunk(self, shard: int, position: int, out: NDArray[np.uint8]) -> None:
        """See `ChunkBackend.read_chunk`."""
        mapped = self._open.get(shard) or self._opened(shard)
        offset = mapped.table[2 * position]
        if offset == ABSENT:
            raise ChunkProblem("is absent")
        try:
            self._codec.decode_into(mapped.data[offset : offset + mapped.table[2 * position + 1]], out)
        except ValueError as error:
            raise ChunkProblem(f"is damaged: {error}") from error

    def _opened(self, shard: int) -> _Shard:
        """Map a shard; the one that was mapped first goes when there are too many."""
        mapped = self._map(shard)
        with self._lock:
            # A mapping that another thread still reads stays alive through its array.
            while len(self._open) >= MOST_OPEN_SHARDS:
                del self._open[next(iter(self._open))]
            self._open[shard] = mapped
        return mapped

    def _map(self, shard: int) -> _Shard:
        path = self._folder / self._key(shard)
        try:
            with path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                if size < index_bytes(self._n_chunks):
                    raise ChunkProblem(f"is damaged: its shard {path.name} has {size} bytes only")
                mapping = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ChunkProblem("is absent: its shard file does not exist") from None
        except OSError as error:
            raise ChunkProblem(f"cannot be read: {error.strerror}") from error
        data = np.frombuffer(mapping, dtype=np.uint8)
        try:
            index = parse_index(data[-index_bytes(self._n_chunks) :], self._n_chunks, size)
        except ValueError as error:
            raise ChunkProblem(f"is damaged: the shard {error}") from error
        return _Shard(data, memoryview(index.tobytes()).cast("Q"))


class ZarrBackend:
    """Reads through zarr-python: any store, any codec.

    zarr-python gives the fill value for a chunk that does not exist, so the shard's index is looked at first.
    """

    def __init__(self, array: Any, key: Any, n_chunks: int, codec: ChunkCodec | None):
        """Wrap an array.

        Args:
            array: `zarr.Array`, sharded along its first dimension.
            key: Function from a shard's number to its path below the array.
            n_chunks: Inner chunks per shard.
            codec: Unused here except to tell which chain the array has; None = unknown to this project.
        """
        self._array, self._key, self._n_chunks, self._codec = array, key, n_chunks, codec
        self._present: dict[int, NDArray[np.bool_]] = {}

    def read_chunk(self, shard: int, position: int, out: NDArray[np.uint8]) -> None:
        """See `ChunkBackend.read_chunk`."""
        if shard not in self._present:
            self._present[shard] = self._read_presence(shard)
        if not self._present[shard][position]:
            raise ChunkProblem("is absent")
        try:
            values = self._array[self._selection(shard, position)]
        except (ValueError, RuntimeError, OSError) as error:
            raise ChunkProblem(f"is damaged: {error}") from error
        out[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def _selection(self, shard: int, position: int) -> tuple[slice, ...]:
        chunk, shards = self._array.chunks, self._array.shards
        grid = [outer // inner for outer, inner in zip(shards, chunk, strict=True)]
        place = np.unravel_index(position, grid)
        starts = [int(i) * size for i, size in zip(place, chunk, strict=True)]
        starts[0] += shard * shards[0]
        return tuple(slice(start, start + size) for start, size in zip(starts, chunk, strict=True))

    def _read_presence(self, shard: int) -> NDArray[np.bool_]:
        from zarr.abc.store import SuffixByteRequest
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        place = self._array.store_path / self._key(shard)
        request = SuffixByteRequest(index_bytes(self._n_chunks))
        try:
            tail = sync(place.get(default_buffer_prototype(), byte_range=request))
            if tail is None:
                raise ChunkProblem("is absent: its shard file does not exist")
            index = parse_index(np.frombuffer(tail.to_bytes(), dtype=np.uint8), self._n_chunks, 2**62)
        except (ValueError, OSError) as error:
            raise ChunkProblem(f"is damaged: the shard {error}") from error
        return index[:, 0] != np.uint64(ABSENT)
