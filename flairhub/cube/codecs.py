"""Chunk codecs: the few chains a cube is written with, encoded and decoded without zarr-python.

A chain is what one inner chunk of a shard goes through: little-endian bytes, at most one compressor, crc32c last.
Both directions live here, so the writer and the direct reader cannot drift apart; zarr-python reads the same bytes.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numcodecs.blosc
import numcodecs.zstd
import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from flairhub.errors import CubeError

# Blosc writes blocks in the order its threads finish: one thread makes stored bytes reproducible, and parallelism
# belongs to the callers' threads. zarr-python sets the same switch.
numcodecs.blosc.use_threads = False

CRC_BYTES = 4
CRC_RESIDUE = 0x48674BC7
"""CRC-32C of any bytes that are followed by their own CRC-32C."""

_uint32_at: Callable[[Any, int], tuple[int]] = struct.Struct("<I").unpack_from
_blosc_sizes_at: Callable[[Any, int], tuple[int, int]] = struct.Struct("<I4xI").unpack_from
_CUT_OFF = "its file was cut off"
_WRONG_CRC = "its crc32c does not fit its bytes"
_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")
_BLOSC_NAMES = ("lz4", "lz4hc", "zstd", "zlib", "blosclz")


@dataclass(frozen=True)
class ChunkCodec:
    """One chain: compressor and its settings; crc32c always follows.

    Attributes:
        compressor: `zstd`, `blosc`, or `none`.
        level: Compression level.
        cname: Inner compressor of blosc.
        shuffle: Shuffle of blosc.
        typesize: Item size in bytes that blosc shuffles.
        blocksize: Block size of blosc in bytes, 0 = automatic.
        checked: The chain ends with crc32c. Cubes of this project always do.
    """

    compressor: Literal["zstd", "blosc", "none"]
    level: int = 0
    cname: str = "lz4"
    shuffle: str = "noshuffle"
    typesize: int = 1
    blocksize: int = 0
    checked: bool = True

    def encode(self, values: NDArray[Any]) -> bytes:
        """Return the stored bytes of one chunk; see `encode_parts`."""
        return b"".join(self.encode_parts(values))

    def encode_parts(self, values: NDArray[Any]) -> tuple[bytes, ...]:
        """Return the stored bytes of one chunk in pieces, which saves a copy.

        Args:
            values: The chunk, C-contiguous, native little-endian.
        """
        raw = values.reshape(-1).view(np.uint8)
        if self.compressor == "zstd":
            packed = numcodecs.zstd.compress(raw, self.level)
        elif self.compressor == "blosc":
            packed = numcodecs.blosc.compress(
                raw,
                self.cname.encode(),
                self.level,
                _SHUFFLES.index(self.shuffle),
                self.blocksize,
                typesize=self.typesize,
            )
        else:
            packed = raw.tobytes()
        return (packed, crc_bytes(packed)) if self.checked else (packed,)

    def decode_into(self, stored: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Decode one chunk straight into the caller's memory.

        Args:
            stored: Bytes of the chunk, one-dimensional uint8.
            out: Exactly the chunk's memory, one-dimensional uint8, contiguous.

        Raises:
            ValueError: The checksum or the decoded size is wrong; `out` is then undefined.
        """
        if self.compressor == "none":
            _copy(stored, out, self.checked)
            return
        if self.checked:
            stored = checked_payload(stored)
        size = _zstd_content_size(stored) if self.compressor == "zstd" else _blosc_content_size(stored)
        if size != len(out):
            raise ValueError(f"decodes to {size} bytes, expected {len(out)}")
        try:
            if self.compressor == "zstd":
                numcodecs.zstd.decompress(stored, out)
            else:
                numcodecs.blosc.decompress(stored, out)
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    def read_into(self, descriptor: int, offset: int, length: int, out: NDArray[np.uint8]) -> None:
        """Read and decode one chunk of an open file straight into the caller's memory.

        Args:
            descriptor: The file.
            offset: Where the chunk begins.
            length: Its stored bytes.
            out: Exactly the chunk's memory, one-dimensional uint8, contiguous.

        Raises:
            ValueError: The file ends inside the chunk, the checksum or the decoded size is wrong; `out` is then
                undefined.
            OSError: The file cannot be read.
        """
        if self.compressor != "none":
            self.decode_into(_read(descriptor, offset, length), out)
            return
        _check_plain_length(length, len(out), self.checked)
        checksum = bytearray(CRC_BYTES if self.checked else 0)
        if os.preadv(descriptor, (out.data, checksum), offset) != length:
            raise ValueError(_CUT_OFF)
        if self.checked and crc32c(out) != _uint32_at(checksum, 0)[0]:
            raise ValueError(_WRONG_CRC)

    def to_zarr(self) -> list[Any]:
        """Return the chain as zarr-python codecs, for creating metadata."""
        from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

        chain: list[Any] = []
        if self.compressor == "zstd":
            chain.append(ZstdCodec(level=self.level))
        elif self.compressor == "blosc":
            settings: dict[str, Any] = {"cname": self.cname, "shuffle": self.shuffle}
            chain.append(BloscCodec(clevel=self.level, typesize=self.typesize, blocksize=self.blocksize, **settings))
        return [*chain, Crc32cCodec()]

    def describe(self) -> str:
        """Short name for tables: `blosc-lz4-5 bitshuffle`, `zstd-1`, `none`."""
        if self.compressor == "blosc":
            return f"blosc-{self.cname}-{self.level} {self.shuffle}"
        return self.compressor if self.compressor == "none" else f"zstd-{self.level}"


def codec_of(metadata: Sequence[Mapping[str, Any]]) -> ChunkCodec | None:
    """Return the chain of zarr v3 codec metadata, or None when it is not one this module can decode.

    Args:
        metadata: `codecs` of the sharding codec's configuration, as in zarr.json.
    """
    names = [entry.get("name") for entry in metadata]
    settings = [entry.get("configuration") or {} for entry in metadata]
    if not names or names[0] != "bytes" or settings[0].get("endian", "little") != "little":
        return None
    checked = names[-1] == "crc32c"
    middle = names[1:-1] if checked else names[1:]
    if not middle:
        return ChunkCodec("none", checked=checked)
    options = settings[1]
    if middle == ["zstd"]:
        return ChunkCodec("zstd", level=options.get("level", 0), checked=checked)
    if middle == ["blosc"] and options.get("cname") in _BLOSC_NAMES and options.get("shuffle") in _SHUFFLES:
        return ChunkCodec(
            "blosc",
            level=options["clevel"],
            cname=options["cname"],
            shuffle=options["shuffle"],
            typesize=options.get("typesize") or 1,
            blocksize=options.get("blocksize") or 0,
            checked=checked,
        )
    return None


def crc_bytes(data: bytes | NDArray[np.uint8]) -> bytes:
    """Return the CRC-32C of `data` as the four little-endian bytes that follow it in a store."""
    return int(crc32c(data)).to_bytes(CRC_BYTES, "little")


def checked_payload(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return `stored` without its CRC-32C.

    Raises:
        ValueError: The checksum does not fit.
    """
    if len(stored) < CRC_BYTES or crc32c(stored) != CRC_RESIDUE:
        raise ValueError(_WRONG_CRC)
    return stored[:-CRC_BYTES]


class _Scratch(threading.local):
    memory: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)


_scratch = _Scratch()


def _read(descriptor: int, offset: int, length: int) -> NDArray[np.uint8]:
    """Return bytes of a file in memory of this thread, valid until its next call.

    Waiting for the disk is without the GIL. Checksum and decoder then find the bytes in the processor's cache, and
    nobody changes them between the two.
    """
    if len(_scratch.memory) < length:
        _scratch.memory = np.empty(length + length // 4, dtype=np.uint8)
    stored = _scratch.memory[:length]
    if os.preadv(descriptor, (stored.data,), offset) != length:
        raise ValueError(_CUT_OFF)
    return stored


def _copy(stored: NDArray[np.uint8], out: NDArray[np.uint8], checked: bool) -> None:
    """Copy an uncompressed chunk and check what has arrived, which is then in the processor's cache."""
    n = len(out)
    _check_plain_length(len(stored), n, checked)
    out[:] = stored[:n]
    if checked and crc32c(out) != _uint32_at(stored, n)[0]:
        raise ValueError(_WRONG_CRC)


def _check_plain_length(length: int, expected: int, checked: bool) -> None:
    found = length - CRC_BYTES if checked else length
    if found != expected:
        raise ValueError(f"holds {max(found, 0)} bytes, expected {expected}")


def _blosc_content_size(stored: NDArray[np.uint8]) -> int:
    """Uncompressed size from the blosc header (bytes 4-7), or -1 when too short or inconsistent."""
    if len(stored) < 16:
        return -1
    size, length = _blosc_sizes_at(stored, 4)
    return size if length == len(stored) else -1


def _zstd_content_size(stored: NDArray[np.uint8]) -> int:
    """Uncompressed size from the zstd frame header (RFC 8878, 3.1.1.1), or -1 when it is not given."""
    head = stored[:18].tobytes()
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return -1
    flags = head[4]
    single, size_code = bool(flags & 0x20), flags >> 6
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    width = (1 if single else 0, 2, 4, 8)[size_code]
    if width == 0 or len(head) < start + width:
        return -1
    size = int.from_bytes(head[start : start + width], "little")
    return size + 256 if width == 2 else size


def require_little_endian() -> None:
    """Raise CubeError on machines whose numbers are not stored little-endian."""
    import sys

    if sys.byteorder != "little":
        raise CubeError(f"cubes can only be written on little-endian machines, this one is {sys.byteorder}-endian.")
