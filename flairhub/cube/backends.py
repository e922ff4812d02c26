"""The two ways to one stored chunk: the shard file, and zarr-python. Tested to give the same.

Both raise `ChunkProblem`; `ArrayReader` adds the names.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.codecs import ChunkCodec
from flairhub.cube.seal import OpenedStore
from flairhub.cube.shards import ABSENT, index_bytes, parse_index

MOST_OPEN_SHARDS = 64
"""Shards kept open per array: each holds a file descriptor."""

_NO_TABLE = memoryview(b"").cast("Q")


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


class _Shard:
    """An open shard file and its checked index: offset and length of chunk i at 2 i and 2 i + 1.

    The view gives Python's own integers, whose arithmetic is many times faster than that of numpy's scalars. Bytes are
    read, not mapped: a file that is cut off under a mapping kills the process (SIGBUS), a read comes back short.
    """

    __slots__ = ("descriptor", "table")

    def __init__(self, descriptor: int, table: memoryview[int]):
        self.descriptor, self.table = descriptor, table

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.descriptor)


class DirectBackend:
    """Decodes straight from the shard files of a local store; threads may share it."""

    def __init__(self, folder: Path, key: Any, n_chunks: int, codec: ChunkCodec, opened: OpenedStore):
        """Keep the places; nothing is opened yet.

        Args:
            folder: Folder of the array.
            key: Function from a shard's number to its path below `folder`.
            n_chunks: Inner chunks per shard.
            codec: Chain of the inner chunks.
            opened: The store that shards must belong to.
        """
        self._folder, self._key, self._n_chunks, self._codec = folder, key, n_chunks, codec
        self._store = opened
        self._open: dict[int, _Shard] = {}
        self._lock = threading.Lock()

    def read_chunk(self, shard: int, position: int, out: NDArray[np.uint8]) -> None:
        """See `ChunkBackend.read_chunk`."""
        opened = self._open.get(shard) or self._opened(shard)
        offset = opened.table[2 * position]
        if offset == ABSENT:
            raise ChunkProblem("is absent")
        try:
            self._codec.read_into(opened.descriptor, offset, opened.table[2 * position + 1], out)
        except ValueError as error:
            raise ChunkProblem(f"is damaged: {error}") from error
        except OSError as error:
            raise ChunkProblem(f"cannot be read: {error.strerror}") from error

    def _opened(self, shard: int) -> _Shard:
        """Open a shard; the one that was opened first goes when there are too many."""
        try:
            opened = self._checked(shard)
        except ChunkProblem:
            # Of another store it is no damage.
            self._store.check()
            raise
        self._store.check()
        with self._lock:
            # A file that another thread still reads stays open through its shard.
            while len(self._open) >= MOST_OPEN_SHARDS:
                del self._open[next(iter(self._open))]
            self._open[shard] = opened
        return opened

    def _checked(self, shard: int) -> _Shard:
        """Open a shard and read its index."""
        path, length = self._folder / self._key(shard), index_bytes(self._n_chunks)
        try:
            opened = _Shard(os.open(path, os.O_RDONLY | os.O_CLOEXEC), _NO_TABLE)
            size = os.fstat(opened.descriptor).st_size
            if size < length:
                raise ChunkProblem(f"is damaged: its shard {path.name} has {size} bytes only")
            tail = np.frombuffer(os.pread(opened.descriptor, length, size - length), dtype=np.uint8)
            index = parse_index(tail, self._n_chunks, size)
        except FileNotFoundError:
            raise ChunkProblem("is absent: its shard file does not exist") from None
        except OSError as error:
            raise ChunkProblem(f"cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ChunkProblem(f"is damaged: the shard {error}") from error
        opened.table = memoryview(index.tobytes()).cast("Q")
        return opened


class ZarrBackend:
    """Reads through zarr-python: any store, any codec.

    zarr-python gives the fill value for a chunk that does not exist, so the shard's index is looked at first.
    """

    def __init__(self, array: Any, key: Any, n_chunks: int, folder: Path | None, opened: OpenedStore):
        """Wrap an array.

        Args:
            array: `zarr.Array`, sharded along its first dimension.
            key: Function from a shard's number to its path below the array.
            n_chunks: Inner chunks per shard.
            folder: Folder of the array when the store is local, else None.
            opened: The store that shards must belong to.
        """
        self._array, self._key, self._n_chunks = array, key, n_chunks
        self._folder, self._store = folder, opened
        self._present: dict[int, tuple[Any, NDArray[np.bool_]]] = {}

    def read_chunk(self, shard: int, position: int, out: NDArray[np.uint8]) -> None:
        """See `ChunkBackend.read_chunk`."""
        stamp = self._stamp(shard)
        known = self._present.get(shard)
        try:
            if known is None or known[0] != stamp:
                known = self._present[shard] = stamp, self._read_presence(shard)
                self._store.check()
            if not known[1][position]:
                raise ChunkProblem("is absent")
            try:
                values = self._array[self._selection(shard, position)]
            except (ValueError, RuntimeError, OSError) as error:
                raise ChunkProblem(f"is damaged: {error}") from error
            if self._stamp(shard) != stamp:
                raise ChunkProblem("is damaged: its shard file changed while it was read")
        except ChunkProblem:
            # Of another store it is no damage.
            self._store.check()
            raise
        self._store.check_file()
        out[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def _stamp(self, shard: int) -> Any:
        """What tells a shard file from a later one; zarr-python opens it anew for every chunk."""
        if self._folder is None:
            return None
        try:
            found = os.stat(self._folder / self._key(shard))
        except OSError:
            return "absent"
        return found.st_ino, found.st_size, found.st_mtime_ns

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
