"""Chunk codecs and shards: what one side writes, zarr-python and the other side read."""

from __future__ import annotations

from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from flairhub.cube.codecs import ChunkCodec, codec_of
from flairhub.cube.shards import ABSENT, ShardWriter, index_bytes, parse_index
from flairhub.cube.spec import PRESETS, codec_for, shard_patches
from flairhub.errors import UsageError

DTYPES = ("uint8", "uint16", "float32")


def write_shard(path: Path, chunks: list[bytes | None]) -> tuple[int, int]:
    with ShardWriter(path, 3) as writer:
        for chunk in chunks:
            writer.add(None if chunk is None else [chunk])
    return writer.length, writer.checksum


def chain_metadata(codec: ChunkCodec) -> list[dict]:
    return [{"name": "bytes", "configuration": {"endian": "little"}}, *(entry.to_dict() for entry in codec.to_zarr())]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_label", [False, True])
def test_chain_survives_its_zarr_metadata(preset: str, dtype: str, is_label: bool) -> None:
    codec = codec_for(preset, dtype, is_label)
    assert codec_of(chain_metadata(codec)) == codec


@settings(max_examples=40, deadline=None)
@given(
    preset=st.sampled_from(PRESETS),
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
    top=st.sampled_from([1, 7, 200]),
    seed=st.integers(0, 2**16),
)
def test_decode_gives_what_was_encoded(preset: str, dtype: str, shape: tuple, top: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, top, shape).astype(dtype)
    codec = codec_for(preset, dtype, False)
    stored = np.frombuffer(codec.encode(values), dtype=np.uint8)
    out = np.full_like(values, 99)
    codec.decode_into(stored, out.reshape(-1).view(np.uint8))
    np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("preset", PRESETS)
def test_any_changed_byte_is_noticed(preset: str) -> None:
    values = np.arange(600, dtype=np.uint16).reshape(6, 10, 10)
    codec = codec_for(preset, "uint16", False)
    stored = bytearray(codec.encode(values))
    out = np.empty(values.nbytes, dtype=np.uint8)
    for place in range(0, len(stored), 7):
        changed = bytearray(stored)
        changed[place] ^= 0x10
        with pytest.raises(ValueError, match="crc32c"):
            codec.decode_into(np.frombuffer(bytes(changed), dtype=np.uint8), out)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_chunk_of_another_size_is_refused(preset: str) -> None:
    codec = codec_for(preset, "uint8", False)
    stored = np.frombuffer(codec.encode(np.zeros((3, 8, 8), dtype=np.uint8)), dtype=np.uint8)
    for size in (0, 191, 193):
        with pytest.raises(ValueError, match=f"expected {size}"):
            codec.decode_into(stored, np.empty(size, dtype=np.uint8))


@pytest.mark.parametrize("size", [1, 200, 255, 256, 65_535, 65_792, 70_000, 5_000_000])
def test_zstd_frame_sizes_of_every_width(size: int) -> None:
    codec = ChunkCodec("zstd", level=1)
    values = np.arange(size, dtype=np.uint8)
    out = np.empty_like(values)
    codec.decode_into(np.frombuffer(codec.encode(values), dtype=np.uint8), out)
    np.testing.assert_array_equal(out, values)


def test_shard_layout_is_the_specified_one(tmp_path: Path) -> None:
    length, crc = write_shard(tmp_path / "a" / "shard", [b"abc", None, b"de"])
    data = (tmp_path / "a" / "shard").read_bytes()
    table = np.array([[0, 3], [2**64 - 1, 2**64 - 1], [3, 2]], dtype="<u8").tobytes()
    assert data == b"abcde" + table + google_crc32c.value(table).to_bytes(4, "little")
    assert (length, crc) == (len(data), google_crc32c.value(data))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["shard"]
    tail = np.frombuffer(data, dtype=np.uint8)[-index_bytes(3) :]
    index = parse_index(tail, 3, len(data))
    assert index.tolist() == [[0, 3], [int(ABSENT), int(ABSENT)], [3, 2]]
    with pytest.raises(ValueError, match="outside"):
        parse_index(tail, 3, len(data) - 1)
    with pytest.raises(ValueError, match="too short"):
        parse_index(tail[:-1], 3, len(data))


def test_a_shard_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 3 chunks only"):
        write_shard(tmp_path / "a" / "shard", [b"abc", None, b"de", b"f"])
    assert list((tmp_path / "a").iterdir()) == []


def test_zarr_reads_our_shard(tmp_path: Path) -> None:
    codec = codec_for("balanced", "uint16", False)
    array = zarr.create_array(
        str(tmp_path / "a"),
        shape=(5, 2, 8, 8),
        dtype="uint16",
        chunks=(1, 2, 8, 8),
        shards=(3, 2, 8, 8),
        compressors=codec.to_zarr(),
        fill_value=7,
    )
    values = np.random.default_rng(0).integers(0, 4000, array.shape).astype("uint16")
    write_shard(tmp_path / "a/c/0/0/0/0", [codec.encode(values[0]), None, codec.encode(values[2])])
    write_shard(tmp_path / "a/c/1/0/0/0", [codec.encode(values[3]), codec.encode(values[4])])
    read = array[:]
    np.testing.assert_array_equal(read[[0, 2, 3, 4]], values[[0, 2, 3, 4]])
    assert (read[1] == 7).all()


def test_shard_sizes_follow_the_design() -> None:
    many = 241_100
    assert shard_patches((4, 512, 512), "uint8", many) == 64
    assert shard_patches((2, 512, 512), "float32", many) == 64
    assert shard_patches((1, 512, 512), "uint8", many) == 128
    assert shard_patches((3, 512, 512), "uint8", many) == 64
    assert shard_patches((4, 64, 64), "uint16", many) == 1024
    assert shard_patches((91, 10, 10, 10), "uint16", many) == 256
    assert shard_patches((95, 2, 10, 10), "float32", many) == 512
    assert shard_patches((4, 512, 512), "uint8", 10) == 10
    assert shard_patches((4, 512, 512), "uint8", many, 100) == 100
    with pytest.raises(UsageError, match="at least 1 patch"):
        shard_patches((4, 512, 512), "uint8", many, 0)
    with pytest.raises(UsageError, match="codec: got 'best', expected one of fast, balanced"):
        codec_for("best", "uint8", False)


def test_codecs_follow_the_design() -> None:
    def named(dtype: str, is_label: bool = False) -> str:
        return codec_for("balanced", dtype, is_label).describe()

    assert named("uint8") == "zstd-1"
    assert named("uint8", True) == "zstd-3"
    assert named("uint16") == "blosc-lz4-5 bitshuffle"
    assert named("float32") == "blosc-lz4-5 shuffle"
    assert codec_for("none", "float32", False).describe() == "none"
