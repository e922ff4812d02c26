"""One shard: inner chunks one after the other, then their index and its checksum (zarr v3 sharding codec).

Index: (offset, length) of every inner chunk as little-endian uint64 in C order, both 2**64 - 1 where there is no
chunk, followed by the CRC-32C of the index. https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from flairhub.cube.codecs import CRC_BYTES, checked_payload, crc_bytes

ABSENT = np.uint64(2**64 - 1)
TEMPORARY_SUFFIX = ".tmp"


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
    present = index[index[:, 0] != ABSENT]
    room = np.uint64(shard_bytes - len(tail))
    if (present > room).any() or (present.sum(axis=1) > room).any():
        raise ValueError("its index points outside the file")
    return index


def pack_shard(chunks: Sequence[bytes | None]) -> list[bytes]:
    """Return the pieces of a shard in file order; None marks a chunk that does not exist."""
    index = np.full((len(chunks), 2), ABSENT, dtype="<u8")
    offset = 0
    for position, chunk in enumerate(chunks):
        if chunk is not None:
            index[position] = offset, len(chunk)
            offset += len(chunk)
    table = index.tobytes()
    return [*(chunk for chunk in chunks if chunk is not None), table, crc_bytes(table)]


def write_file(path: Path, pieces: Sequence[bytes]) -> tuple[int, int]:
    """Write a file so that it is either whole or absent.

    Returns:
        Its length in bytes and the CRC-32C of all of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    checksum = length = 0
    try:
        with temporary.open("wb") as stream:
            for piece in pieces:
                stream.write(piece)
                checksum, length = google_crc32c.extend(checksum, piece), length + len(piece)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return length, checksum
