"""One shard: inner chunks one after the other, then their index and its checksum (zarr v3 sharding codec).

Index: (offset, length) of every inner chunk as little-endian uint64 in C order, both 2**64 - 1 where there is no
chunk, followed by the CRC-32C of the index. https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.codecs import CRC_BYTES, checked_payload, crc_bytes
from flairhub.jobs import FileWriter

ABSENT = 2**64 - 1
"""Offset and length, in an index, of a chunk that does not exist."""


def index_bytes(n_chunks: int) -> int:
    """Length of a shard's index with its checksum."""
    return 16 * n_chunks + CRC_BYTES


def parse_index(tail: NDArray[np.uint8], n_chunks: int, shard_bytes: int) -> NDArray[np.uint64]:
    """Return (n_chunks, 2) offsets and lengths.

    Args:
        tail: The last `index_bytes(n_chunks)` bytes of the shard.
        n_chunks: Inner chunks of the shard.
        shard_bytes: Length of the whole shard.

    Raises:
        ValueError: The checksum is wrong or a chunk lies outside the shard.
    """
    if len(tail) != index_bytes(n_chunks):
        raise ValueError(f"holds {len(tail)} bytes, too short for an index of {n_chunks} chunks")
    index = np.frombuffer(checked_payload(tail).tobytes(), dtype="<u8").reshape(n_chunks, 2)
    present = index[index[:, 0] != np.uint64(ABSENT)]
    room = np.uint64(shard_bytes - len(tail))
    if (present > room).any() or (present.sum(axis=1) > room).any():
        raise ValueError("its index points outside the file")
    return index


def _index_pieces(lengths: Sequence[int | None]) -> list[bytes]:
    """Return the index of chunks that stand one after the other, and its checksum."""
    index = np.full((len(lengths), 2), ABSENT, dtype="<u8")
    offset = 0
    for position, length in enumerate(lengths):
        if length is not None:
            index[position] = offset, length
            offset += length
    table = index.tobytes()
    return [table, crc_bytes(table)]


class ShardWriter(FileWriter):
    """Writes one shard chunk by chunk; only the index stays in memory."""

    def __init__(self, path: Path, n_chunks: int):
        """Open the shard.

        Args:
            path: Its file.
            n_chunks: Inner chunks of a shard; those that are not added do not exist.
        """
        super().__init__(path)
        self._n_chunks = n_chunks
        self._lengths: list[int | None] = []

    def add(self, parts: Sequence[bytes] | None) -> None:
        """Append the next inner chunk, in one or several parts; None = it does not exist."""
        if len(self._lengths) == self._n_chunks:
            raise ValueError(f"{self._path}: the shard has {self._n_chunks} chunks only.")
        for part in parts or ():
            self.write(part)
        self._lengths.append(None if parts is None else sum(len(part) for part in parts))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for piece in _index_pieces(self._lengths + [None] * (self._n_chunks - len(self._lengths))):
                    self.write(piece)
        except BaseException as failure:
            super().__exit__(type(failure), failure, failure.__traceback__)
            raise
        super().__exit__(kind, error, trace)
