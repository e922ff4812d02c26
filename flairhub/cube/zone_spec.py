"""Format 1 of a zone cube: names, sizes of chunks and shards (docs/cube-format.md says the same in prose)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.codecs import ChunkCodec
from flairhub.cube.spec import codec_for
from flairhub.geo import GeoBox
from flairhub.validity import Nodata

ZONE_FORMAT = 1

ZONE_KEY = "flairhub_zone"
"""Attribute of the root group that makes a Zarr store a zone cube."""

DATA, VALID = "data", "valid"
"""Arrays of a modality: its pixels, and where the source file's own mask says that there are any."""

_CHUNK_BYTES = 2**20
_SHARD_BYTES = 64 * 2**20
_CHUNK_PX = 8, 512
_SHARD_CHUNKS = 16

Span = tuple[int, int]
"""First row (or column) and one past the last."""


@dataclass(frozen=True)
class ZoneLayer:
    """What is known of one raster of an area without its pixels.

    Attributes:
        name: Modality.
        geobox: Its grid.
        bands: Names of the bands, of one date.
        dtype: numpy name.
        nodata: Declared nodata value, of all bands or per band, or None.
        has_mask: A validity mask belongs to it.
        dates: (time,) datetime64[D] of a series; None for images.
        alpha: Number (from 1) of a band marked as opacity that may be data all the same.
    """

    name: str
    geobox: GeoBox
    bands: tuple[str, ...]
    dtype: str
    nodata: Nodata = None
    has_mask: bool = False
    dates: NDArray[np.datetime64] | None = None
    alpha: int | None = None

    @property
    def leading(self) -> tuple[int, ...]:
        """Lengths of the axes before y and x: (band,) or (time, band)."""
        return (len(self.bands),) if self.dates is None else (len(self.dates), len(self.bands))

    @property
    def shape(self) -> tuple[int, ...]:
        """(band, y, x) or (time, band, y, x)."""
        return (*self.leading, self.geobox.height, self.geobox.width)

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes of `shape`."""
        return ("band", "y", "x") if self.dates is None else ("time", "band", "y", "x")

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Of the validity mask: (y, x) or (time, y, x)."""
        return (*self.leading[:-1], self.geobox.height, self.geobox.width)

    @property
    def mask_dims(self) -> tuple[str, ...]:
        """Names of the axes of `mask_shape`."""
        return tuple(dim for dim in self.dims if dim != "band")


@dataclass(frozen=True)
class Tiling:
    """How an array is cut along y and x; its leading axes are never cut.

    Attributes:
        height: Rows of the array.
        width: Columns.
        chunk_px: Rows and columns of an inner chunk.
        shard_chunks: Inner chunks of a shard along y and along x.
    """

    height: int
    width: int
    chunk_px: int
    shard_chunks: int

    @property
    def shard_px(self) -> int:
        """Rows and columns of a shard."""
        return self.chunk_px * self.shard_chunks

    @property
    def n_shards(self) -> tuple[int, int]:
        """Shards along y and x."""
        return -(-self.height // self.shard_px), -(-self.width // self.shard_px)

    @property
    def chunks_per_shard(self) -> int:
        """Inner chunks of a shard, the absent ones beyond the edge included."""
        return self.shard_chunks**2

    def place(self, row: int, col: int) -> tuple[int, int]:
        """Number of the shard (C order) and place in its index of an inner chunk."""
        (shard_row, in_row), (shard_col, in_col) = divmod(row, self.shard_chunks), divmod(col, self.shard_chunks)
        return shard_row * self.n_shards[1] + shard_col, in_row * self.shard_chunks + in_col


def tiling_of(layer: ZoneLayer) -> Tiling:
    """Choose chunks of at most 1 MiB (8 to 512 px, powers of two) and shards of at most 64 MiB, uncompressed."""
    per_px = int(np.prod(layer.leading)) * np.dtype(layer.dtype).itemsize
    least, most = _CHUNK_PX
    longest = max(layer.geobox.height, layer.geobox.width)
    chunk = most
    while chunk > least and (chunk * chunk * per_px > _CHUNK_BYTES or chunk >= 2 * longest):
        chunk //= 2
    shard = _SHARD_CHUNKS
    while shard > 1 and ((chunk * shard) ** 2 * per_px > _SHARD_BYTES or chunk * shard >= 2 * longest):
        shard //= 2
    return Tiling(layer.geobox.height, layer.geobox.width, chunk, shard)


def data_codec(preset: str, layer: ZoneLayer) -> ChunkCodec:
    """Return the chain of a layer's pixels, that of patch cubes."""
    return codec_for(preset, layer.dtype, is_label=False)


MASK_CODEC = ChunkCodec("zstd", level=1)
"""Chain of validity masks."""


def shard_key(n_leading: int, tiling: Tiling, shard: int) -> str:
    """Path of a shard below its array's folder, in zarr's default key encoding."""
    row, col = divmod(shard, tiling.n_shards[1])
    return "/".join(["c", *("0" for _ in range(n_leading)), str(row), str(col)])
