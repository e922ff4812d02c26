"""Reading patches of one array into buffers that the caller owns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.backends import ChunkBackend, ChunkProblem, DirectBackend, ZarrBackend
from flairhub.cube.codecs import codec_of
from flairhub.cube.seal import OpenedStore
from flairhub.cube.spec import VALID
from flairhub.errors import CubeError, UsageError

Backend = Literal["auto", "direct", "zarr"]


class ArrayReader:
    """One sharded array, read patch by patch. Threads may share it; pickling is up to the cube.

    Attributes:
        name: `<MODALITY>/data` or `<MODALITY>/<period>/data`.
        shape: Patch first.
        dims: Dimension names, e.g. `("patch", "band", "y", "x")`.
        dtype: Stored dtype.
        chunk_shape: Inner chunk: one patch, or one level of one patch.
        shard_patches: Patches per shard.
        backend: `direct` or `zarr`.
        codec: Short name of the chain, for tables.
    """

    def __init__(
        self,
        array: Any,
        *,
        name: str,
        store: str,
        patch_ids: Sequence[str],
        present: NDArray[np.bool_],
        folder: Path | None,
        opened: OpenedStore,
        backend: Backend = "auto",
    ):
        """Wrap a zarr array.

        Args:
            array: `zarr.Array` of the cube.
            name: Path in the store.
            store: The store's path, for messages.
            patch_ids: Ids in storage order, for messages.
            present: (patch,) which patches the array holds.
            folder: Folder of the array when the store is local, else None.
            opened: The store: every shard that is opened must belong to it.
            backend: `auto` takes `direct` where it can.

        Raises:
            CubeError: The array is not sharded as the format says.
        """
        metadata = array.metadata.to_dict()
        sharding = metadata["codecs"][0]
        if sharding["name"] != "sharding_indexed" or array.shards is None:
            raise CubeError(f"{store}: {name} is not a sharded array; format 1 needs sharding_indexed.")
        self.name, self.dims = name, tuple(metadata.get("dimension_names") or ())
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)
        self.chunk_shape, self.shard_patches = tuple(array.chunks), int(array.shards[0])
        if not self.shape[0] == len(patch_ids) == len(present):
            raise CubeError(
                f"{store}: {name} has {self.shape[0]} patches, the patch table {len(patch_ids)} and `present` "
                f"{len(present)}: the metadata is damaged. Ingest again with --overwrite."
            )
        self._store, self._patch_ids, self._sample = store, patch_ids, self.shape[1:]
        # Bytes: an element costs a tenth of what one of a numpy array does.
        self._here = np.asarray(present, dtype=bool).tobytes()
        self._chunk_bytes = int(np.prod(self.chunk_shape[1:])) * self.dtype.itemsize
        self._parts = int(np.prod(self.shape[1:])) // int(np.prod(self.chunk_shape[1:]))
        self._all_parts = tuple(range(self._parts))
        settings = sharding["configuration"]
        chain = codec_of(settings["codecs"])
        self.codec = chain.describe() if chain else "+".join(entry["name"] for entry in settings["codecs"][1:])
        key = self._key = _key_function(array, len(self.shape))
        n_chunks = self.shard_patches * self._parts
        readable = folder is not None and chain is not None and _plain_index(settings)
        if backend == "direct" and not readable:
            raise UsageError(f"{store}: {name} cannot be read directly (remote store or codec {self.codec}).")
        self._backend: ChunkBackend
        if readable and backend != "zarr":
            assert folder is not None
            assert chain is not None
            self.backend, self._backend = "direct", DirectBackend(folder, key, n_chunks, chain, opened)
        else:
            self.backend, self._backend = "zarr", ZarrBackend(array, key, n_chunks, folder, opened)

    @property
    def n_levels(self) -> int:
        """Inner chunks per patch: nomenclature levels of labels, else 1."""
        return self._parts

    def read_into(self, indices: Sequence[int] | NDArray[Any], out: NDArray[Any], level: int | None = None) -> None:
        """Read patches into a buffer.

        Args:
            indices: Positions in storage order, any order, repetitions allowed.
            out: (n, ...) of the array's dtype, C-contiguous: (n, band, y, x), (n, time, band, y, x) or, for labels,
                (n, level, y, x), without the level axis when `level` is given.
            level: 1-based nomenclature level of labels: the only one that is then read and decoded.

        Raises:
            CubeError: A patch outside the cube, recorded as missing, absent or damaged: names store, array, chunk, id.
            UsageError: The buffer or the level does not fit.
        """
        parts = self._all_parts if level is None else (self._checked_level(level),)
        expected = (len(indices), *(self._sample if level is None else self._sample[1:]))
        if out.shape != expected or out.dtype != self.dtype or not out.flags.c_contiguous:
            kind = "" if out.flags.c_contiguous else ", not C-contiguous"
            raise UsageError(
                f"{self.name}: the buffer is {out.dtype} {out.shape}{kind}, "
                f"expected C-contiguous {self.dtype} {expected}."
            )
        # A small chunk decodes in microseconds: what is done per chunk below shows.
        target, size, start = out.reshape(-1).view(np.uint8), self._chunk_bytes, 0
        present, n_patches, shard_patches = self._here, self.shape[0], self.shard_patches
        read_chunk, n_parts = self._backend.read_chunk, self._parts
        for number in indices:
            index = int(number)
            if not 0 <= index < n_patches or not present[index]:
                raise self._no_patch(index)
            shard, place = divmod(index, shard_patches)
            for part in parts:
                try:
                    read_chunk(shard, place * n_parts + part, target[start : start + size])
                except ChunkProblem as problem:
                    raise self._damage(index, part, problem) from problem
                start += size

    def read(self, indices: Sequence[int] | NDArray[Any], level: int | None = None) -> NDArray[Any]:
        """Return patches as a new array; see `read_into`."""
        out = np.empty((len(indices), *(self._sample if level is None else self._sample[1:])), dtype=self.dtype)
        self.read_into(indices, out, level)
        return out

    def shard_files(self) -> list[str]:
        """Return the paths of all shards below the store; of `valid`, those that hold a patch."""
        step = self.shard_patches
        shards = list(range(-(-self.shape[0] // step)))
        if self.name.endswith(f"/{VALID}"):
            shards = [shard for shard in shards if any(self._here[shard * step : (shard + 1) * step])]
        return [f"{self.name}/{self._key(shard)}" for shard in shards]

    def problems(self, index: int) -> list[str]:
        """Return what is wrong with the stored chunks of a present patch, one message per chunk."""
        scratch = np.empty(self._chunk_bytes, dtype=np.uint8)
        shard, place = divmod(index, self.shard_patches)
        result = []
        for part in range(self._parts):
            try:
                self._backend.read_chunk(shard, place * self._parts + part, scratch)
            except ChunkProblem as problem:
                result.append(str(self._damage(index, part, problem)))
        return result

    def _damage(self, index: int, part: int, problem: ChunkProblem) -> CubeError:
        chunk = ".".join(str(i) for i in (index, *([part] if self._parts > 1 else [])))
        shard = index // self.shard_patches
        return CubeError(
            f"{self._store}: {self.name}: chunk {chunk} (shard {shard}, patch {self._patch_ids[index]}) {problem}. "
            "Ingest again with --overwrite."
        )

    def _no_patch(self, index: int) -> CubeError:
        if not 0 <= index < self.shape[0]:
            return CubeError(f"{self._store}: {self.name}: no patch {index}, the cube has 0..{self.shape[0] - 1}.")
        modality = self.name.split("/")[0]
        return CubeError(
            f"{self._store}: {self.name}: patch {self._patch_ids[index]} is recorded as missing. "
            f'Choose patches with `cube.present("{modality}")`.'
        )

    def _checked_level(self, level: int) -> int:
        if "level" not in self.dims or not 1 <= level <= self._parts:
            levels = f"levels 1..{self._parts}" if "level" in self.dims else "no levels"
            raise UsageError(f"{self.name}: level {level} does not exist, the array has {levels}.")
        return level - 1


def _key_function(array: Any, n_dims: int) -> Callable[[int], str]:
    metadata = array.metadata

    def key(shard: int) -> str:
        return metadata.encode_chunk_key((shard, *([0] * (n_dims - 1))))

    return key


def _plain_index(settings: Any) -> bool:
    """True for the index layout that `shards.parse_index` reads."""
    names = [entry["name"] for entry in settings["index_codecs"]]
    location = settings.get("index_location", "end")
    return names == ["bytes", "crc32c"] and getattr(location, "value", location) == "end"
