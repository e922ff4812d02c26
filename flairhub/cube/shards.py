"""One shard: inner chunks one after the other, then their index and its checksum (zarr v3 sharding codec).

Index: (offset, length) of every inner chunk as little-endian uint64 in C order, both 2**64 - 1 where there is no
chunk, followed by the CRC-32C of the index. https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from flairhub.cube.codecs import CRC_BYTES, checked_payload, crc_bytes
from flairhub.cube.faults import reach

ABSENT = 2**64 - 1
"""Offset and length, in an index, of a chunk that does not exist."""

TEMPORARY_SUFFIX = ".tmp"

_SYNC_THREADS = 8


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


class FileWriter:
    """Writes a file piece by piece, so that it is either whole or absent: a context manager.

    Attributes:
        length: Bytes so far.
        checksum: CRC-32C so far.
    """

    def __init__(self, path: Path, durable: bool = False):
        """Open a temporary file beside `path`; its folder is made.

        Args:
            path: The file.
            durable: Have it on disk before it gets its name, in case the power fails.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.length = self.checksum = 0
        self._durable = durable
        self._path, self._temporary = path, path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")
        self._stream = self._temporary.open("wb")

    def __enter__(self) -> Self:
        return self

    def write(self, piece: bytes) -> None:
        """Append bytes."""
        self._stream.write(piece)
        self.checksum, self.length = google_crc32c.extend(self.checksum, piece), self.length + len(piece)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._durable:
                self._stream.flush()
                os.fsync(self._stream.fileno())
            self._stream.close()
            if kind is None:
                reach("file-rename")
                os.replace(self._temporary, self._path)
                return
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise
        self._temporary.unlink(missing_ok=True)


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

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                for piece in _index_pieces(self._lengths + [None] * (self._n_chunks - len(self._lengths))):
                    self.write(piece)
        except BaseException as error:
            super().__exit__(type(error), *rest)
            raise
        super().__exit__(kind, *rest)


def write_file(path: Path, pieces: Sequence[bytes], durable: bool = False) -> tuple[int, int]:
    """Write a file so that it is either whole or absent; `durable`: also when the power fails.

    Returns:
        Its length in bytes and the CRC-32C of all of it.
    """
    with FileWriter(path, durable) as target:
        for piece in pieces:
            target.write(piece)
    return target.length, target.checksum


def to_disk(paths: Iterable[Path]) -> None:
    """Wait until the system has written files to disk.

    In several threads: a file system commits what they ask for together, ten times faster than one after the other.
    """
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        for _ in pool.map(_sync, paths):
            pass


def folder_bytes(folder: Path) -> int:
    """Return the size of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
