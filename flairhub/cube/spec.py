"""Format 1 of a cube: names, fill values, codecs and shard sizes (docs/cube-format.md says the same in prose)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from flairhub.cube.codecs import ChunkCodec
from flairhub.errors import UsageError
from flairhub.modalities import Kind, Modality
from flairhub.tasks import IGNORE_INDEX

FORMAT_VERSION = 1

ROOT_KEY = "flairhub"
"""Attribute of the root group that makes a Zarr store a cube."""

PATCHES = "patches"
"""Group of the patch table."""

INGEST = "ingest"
"""Group that holds the journal and the list of skipped patches; no arrays."""

JOURNAL = "journal.jsonl"

VALID, HAS_MASK, NODATA = "valid", "has_mask", "nodata"
"""Arrays beside `data`, where files need them: their masks, which patches have one, and declared nodata numbers."""

NO_DAY = int(np.iinfo(np.int32).min)
"""Stored value of a date that does not exist."""

DATE_ATTRIBUTES: Mapping[str, Any] = MappingProxyType(
    {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian", "_FillValue": NO_DAY}
)

Preset = Literal["fast", "balanced", "dense", "none"]
PRESETS: tuple[str, ...] = get_args(Preset)

SMALL_CODEC = ChunkCodec("zstd", level=3)
"""Chain of tables and coordinates."""

MASK_CODEC = ChunkCodec("zstd", level=1)
"""Chain of masks, whatever the preset: they shrink to almost nothing."""

_SHARD_TARGET_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ArraySpec:
    """Everything about one sharded array but its name.

    Attributes:
        shape: Patch first.
        dims: Dimension names.
        dtype: numpy name.
        chunk: Inner chunk: one patch (labels: one level of one patch).
        shard_patches: Patches per shard.
        codec: Chain of the inner chunks.
        fill: What zarr reports where nothing was written.
    """

    shape: tuple[int, ...]
    dims: tuple[str, ...]
    dtype: str
    chunk: tuple[int, ...]
    shard_patches: int
    codec: ChunkCodec
    fill: Any

    @property
    def shard(self) -> tuple[int, ...]:
        """Shape of a shard."""
        return (self.shard_patches, *self.shape[1:])

    @property
    def chunks_per_patch(self) -> int:
        """Inner chunks per patch: 1, or the number of levels."""
        return int(np.prod(self.shape[1:])) // int(np.prod(self.chunk[1:]))

    @property
    def n_shards(self) -> int:
        """Number of shards that cover all patches."""
        return -(-self.shape[0] // self.shard_patches)

    def shard_path(self, shard: int) -> str:
        """Path of a shard below the array's folder, in zarr's default key encoding."""
        return "/".join(["c", str(shard), *("0" for _ in self.shape[1:])])


def data_spec(
    modality: Modality, n_patches: int, size_px: tuple[int, int], n_dates: int, preset: str, shard: int | None
) -> ArraySpec:
    """Return the spec of `/<MODALITY>/data`.

    Args:
        modality: The row of the registry.
        n_patches: Patches in the cube.
        size_px: (height, width) of a patch.
        n_dates: Most dates of a patch; ignored for images and labels.
        preset: Codec preset.
        shard: Patches per shard; None = by size.
    """
    if modality.kind is Kind.LABEL:
        dims: tuple[str, ...] = ("patch", "level", "y", "x")
        sample: tuple[int, ...] = (len(modality.bands), *size_px)
        chunk: tuple[int, ...] = (1, 1, *size_px)
    elif modality.is_series:
        dims = ("patch", "time", "band", "y", "x")
        sample = (n_dates, len(modality.bands), *size_px)
        chunk = (1, *sample)
    else:
        dims = ("patch", "band", "y", "x")
        sample = (len(modality.bands), *size_px)
        chunk = (1, *sample)
    return ArraySpec(
        shape=(n_patches, *sample),
        dims=dims,
        dtype=modality.dtype,
        chunk=chunk,
        shard_patches=shard_patches(sample, modality.dtype, n_patches, shard),
        codec=codec_for(preset, modality.dtype, modality.kind is Kind.LABEL),
        fill=fill_value(modality),
    )


def average_spec(data: ArraySpec, n_periods: int, preset: str) -> ArraySpec:
    """Return the spec of `/<MODALITY>/<period>/data` beside the raw series `data`, shard for shard."""
    sample = (n_periods, *data.shape[2:])
    return ArraySpec(
        shape=(data.shape[0], *sample),
        dims=("patch", "period", "band", "y", "x"),
        dtype="float32",
        chunk=(1, *sample),
        shard_patches=data.shard_patches,
        codec=codec_for(preset, "float32", is_label=False),
        fill=float("nan"),
    )


def valid_spec(data: ArraySpec) -> ArraySpec:
    """Return the spec of `/<MODALITY>/valid` beside `data`, shard for shard; only patches with a mask have a chunk."""
    sample = (*data.shape[1:-3], *data.shape[-2:])
    return ArraySpec(
        shape=(data.shape[0], *sample),
        dims=(*data.dims[:-3], *data.dims[-2:]),
        dtype="uint8",
        chunk=(1, *sample),
        shard_patches=data.shard_patches,
        codec=MASK_CODEC,
        fill=1,
    )


def fill_value(modality: Modality) -> Any:
    """Fill of cells that do not exist: 255 for labels, NaN for floats, 0 for integers (see `present`)."""
    if modality.kind is Kind.LABEL:
        return IGNORE_INDEX
    return float("nan") if modality.dtype.startswith("float") else 0


def shard_patches(sample: tuple[int, ...], dtype: str, n_patches: int, wanted: int | None = None) -> int:
    """Return how many patches go into one shard.

    About 64 MiB uncompressed, as a power of two: 64-128 for patches of 512 px and more, up to 1024 for small ones.

    Args:
        sample: Shape of one patch.
        dtype: numpy name.
        n_patches: Patches in the cube; a shard is never larger.
        wanted: The user's choice.
    """
    if wanted is not None:
        if wanted < 1:
            raise UsageError(f"shard: got {wanted}, expected at least 1 patch per shard.")
        return min(wanted, n_patches)
    fitting = _SHARD_TARGET_BYTES // max(1, int(np.prod(sample)) * np.dtype(dtype).itemsize)
    most = 128 if max(sample[-2:]) >= 512 else 1024
    power = 1 << max(0, fitting.bit_length() - 1)
    return min(max(64, min(most, power)), n_patches)


def codec_for(preset: str, dtype: str, is_label: bool) -> ChunkCodec:
    """Return the chain of a preset for one kind of values."""
    if preset not in PRESETS:
        raise UsageError(f"codec: got {preset!r}, expected one of {', '.join(PRESETS)}.")
    size = np.dtype(dtype).itemsize
    shuffle = "shuffle" if np.dtype(dtype).kind == "f" else "bitshuffle"
    if preset == "none":
        return ChunkCodec("none")
    if preset == "fast":
        return ChunkCodec("blosc", level=1, cname="lz4", shuffle=shuffle if size > 1 else "noshuffle", typesize=size)
    if size == 1:
        level = {"balanced": 3 if is_label else 1, "dense": 12}[preset]
        return ChunkCodec("zstd", level=level)
    if preset == "dense":
        return ChunkCodec("blosc", level=7, cname="zstd", shuffle=shuffle, typesize=size)
    return ChunkCodec("blosc", level=5, cname="lz4", shuffle=shuffle, typesize=size)
