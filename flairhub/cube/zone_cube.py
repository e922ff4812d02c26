"""An open zone cube: whole rasters of one area, read by region."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.backends import ChunkProblem, DirectBackend
from flairhub.cube.codecs import codec_of
from flairhub.cube.seal import ROOT_FILE, OpenedStore, identity_of, read_root, seal_problem
from flairhub.cube.template import root_attributes
from flairhub.cube.zone_spec import DATA, VALID, ZONE_FORMAT, ZONE_KEY, Span, Tiling, ZoneLayer, shard_key
from flairhub.errors import CubeError
from flairhub.geo import GeoBox

CACHE_BYTES = 128 * 2**20
"""Decoded chunks kept per process, so that a chunk on the border of two blocks is decoded once."""

_AGAIN = "Ingest again with --overwrite."


class ChunkCache:
    """Decoded chunks, the least recently used one goes first; threads may share it."""

    def __init__(self, limit: int):
        self._limit, self._n_bytes, self._lock = limit, 0, threading.Lock()
        self._chunks: OrderedDict[Any, NDArray[Any]] = OrderedDict()

    def get(self, key: Any) -> NDArray[Any] | None:
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is not None:
                self._chunks.move_to_end(key)
            return chunk

    def put(self, key: Any, chunk: NDArray[Any]) -> None:
        with self._lock:
            if key in self._chunks or chunk.nbytes > self._limit:
                return
            self._chunks[key] = chunk
            self._n_bytes += chunk.nbytes
            while self._n_bytes > self._limit:
                self._n_bytes -= self._chunks.popitem(last=False)[1].nbytes


_CACHE = ChunkCache(CACHE_BYTES)


class ZoneArray:
    """One array of a zone cube.

    Attributes:
        name: `<MODALITY>/data` or `<MODALITY>/valid`.
        shape: Leading axes, y, x.
        dtype: Stored dtype.
        tiling: How it is cut.
    """

    def __init__(self, array: Any, *, name: str, store: Path, opened: OpenedStore):
        """Wrap a `zarr.Array`.

        Raises:
            CubeError: It is not sharded along y and x as the format says.
        """
        where = f"{store}: {name}"
        metadata = array.metadata.to_dict()
        sharding = metadata["codecs"][0]
        n_leading = len(array.shape) - 2
        if sharding["name"] != "sharding_indexed" or array.shards is None:
            raise CubeError(f"{where} is not a sharded array; zone cubes of format 1 need sharding_indexed.")
        chunk, shard = array.chunks, array.shards
        whole = chunk[:n_leading] == shard[:n_leading] == array.shape[:n_leading]
        if not whole or chunk[-1] != chunk[-2] or shard[-1] != shard[-2]:
            raise CubeError(f"{where}: chunks {chunk} in shards {shard} are not as zone cubes of format 1 have them.")
        codec = codec_of(sharding["configuration"]["codecs"])
        if codec is None:
            raise CubeError(f"{where}: a chain of codecs that zone cubes of format 1 do not have. {_AGAIN}")
        self.name, self.shape, self.dtype = name, tuple(array.shape), np.dtype(array.dtype)
        self.tiling = Tiling(self.shape[-2], self.shape[-1], chunk[-1], shard[-1] // chunk[-1])
        self._store, self._key = store, (str(store), opened.identity, name)
        self._shard_key = partial(shard_key, n_leading, self.tiling)
        self._chunk_shape = (*self.shape[:-2], chunk[-1], chunk[-1])
        self._backend = DirectBackend(store / name, self._shard_key, self.tiling.chunks_per_shard, codec, opened)

    def read(self, rows: Span, cols: Span) -> NDArray[Any]:
        """Return a region (..., y, x) inside the array.

        Raises:
            CubeError: A chunk is absent or damaged; names store, array and chunk.
        """
        out = np.empty((*self.shape[:-2], rows[1] - rows[0], cols[1] - cols[0]), dtype=self.dtype)
        size = self.tiling.chunk_px
        for row in range(rows[0] // size, -(-rows[1] // size)):
            for col in range(cols[0] // size, -(-cols[1] // size)):
                top, bottom = max(rows[0], row * size), min(rows[1], (row + 1) * size)
                left, right = max(cols[0], col * size), min(cols[1], (col + 1) * size)
                part = self._chunk(row, col)[
                    ..., top - row * size : bottom - row * size, left - col * size : right - col * size
                ]
                out[..., top - rows[0] : bottom - rows[0], left - cols[0] : right - cols[0]] = part
        return out

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with every stored chunk, an empty text where nothing is."""
        size = self.tiling.chunk_px
        for row in range(-(-self.shape[-2] // size)):
            for col in range(-(-self.shape[-1] // size)):
                try:
                    self._decoded(row, col)
                    yield ""
                except CubeError as error:
                    yield str(error)

    def _chunk(self, row: int, col: int) -> NDArray[Any]:
        key = (*self._key, row, col)
        chunk = _CACHE.get(key)
        if chunk is None:
            chunk = self._decoded(row, col)
            _CACHE.put(key, chunk)
        return chunk

    def _decoded(self, row: int, col: int) -> NDArray[Any]:
        shard, position = self.tiling.place(row, col)
        out = np.empty(self._chunk_shape, dtype=self.dtype)
        try:
            self._backend.read_chunk(shard, position, out.reshape(-1).view(np.uint8))
        except ChunkProblem as problem:
            chunk = ".".join(str(i) for i in (*(0 for _ in self.shape[:-2]), row, col))
            raise CubeError(
                f"{self._store}: {self.name}: chunk {chunk} (shard {self._shard_key(shard)}) {problem}. {_AGAIN}"
            ) from problem
        return out


class ZoneCube:
    """A finished zone cube, open for reading. Make one with `open_zone_cube`; threads may share it.

    Attributes:
        path: Its folder.
        store: Tells whether the store is still the one that was opened.
        attributes: Its own attributes (format, plan, codec, ...).
        layers: What it holds, by modality.
    """

    def __init__(self, path: Path, group: Any, opened: OpenedStore):
        """Wrap an open root group; use `open_zone_cube`."""
        self.path, self.store = path, opened
        self.attributes: Mapping[str, Any] = dict(group.attrs[ZONE_KEY])
        self.arrays: dict[str, ZoneArray] = {}
        self.layers: dict[str, ZoneLayer] = {}
        for name in self.attributes["modalities"]:
            arrays = group[name]
            self.layers[name] = layer = _layer(name, arrays)
            for kind in (DATA, VALID) if layer.has_mask else (DATA,):
                self.arrays[f"{name}/{kind}"] = ZoneArray(
                    arrays[kind], name=f"{name}/{kind}", store=path, opened=opened
                )

    @property
    def identity(self) -> str:
        """What tells this zone cube from any other, also from one of the same plan (hexadecimal)."""
        return self.store.identity

    def read(self, name: str, rows: Span, cols: Span) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Return a region of a modality: values (..., y, x), and the validity mask or None: (y, x), or (time, y, x)
        of a series (in cubes that know it per date)."""
        mask = self.arrays[f"{name}/{VALID}"].read(rows, cols) > 0 if self.layers[name].has_mask else None
        return self.arrays[f"{name}/{DATA}"].read(rows, cols), mask


def is_zone_cube(path: str | Path) -> bool:
    """True for a zone cube in any state."""
    return root_attributes(Path(path), ZONE_KEY) is not None


def open_zone_cube(path: str | Path, identity: str | None = None) -> ZoneCube:
    """Open a finished zone cube for reading.

    Args:
        path: Its folder.
        identity: That of the zone cube that must be there (`ZoneCube.identity`); None = any.

    Raises:
        CubeError: Nothing there, no zone cube, not finished, damaged, of another format version or identity.
    """
    import zarr

    path = Path(path).absolute()
    make = f"Make one with `flairhub ingest --zone ZONAL_YAML --cube {path}`."
    if not os.path.isfile(path / ROOT_FILE):
        state = "is no zone cube (no zarr.json)" if os.path.exists(path) else "does not exist"
        raise CubeError(f"{path}: {state}. {make}")
    try:
        group = zarr.open_group(str(path), mode="r")
        facts, raw = dict(group.attrs).get(ZONE_KEY), read_root(group)()
    except Exception as error:
        raise CubeError(f"{path}: cannot be opened as a Zarr group: {error}") from error
    if not isinstance(facts, Mapping):
        raise CubeError(f"{path}: a Zarr store, but no zone cube (attribute {ZONE_KEY!r} is missing). {make}")
    if facts.get("format") != ZONE_FORMAT:
        raise CubeError(f"{path}: zone cube format {facts.get('format')!r}, this version reads {ZONE_FORMAT}. {_AGAIN}")
    problem = seal_problem(raw, facts)
    if problem:
        raise CubeError(f"{path}: its metadata is damaged: {ROOT_FILE}: {problem}. {_AGAIN}")
    if facts.get("status") != "complete":
        raise CubeError(
            f"{path}: the zone cube is not complete (status {facts.get('status')!r}). Run the same `flairhub ingest "
            "--zone` again: it continues where it stopped."
        )
    opened = OpenedStore(str(path), identity or identity_of(raw), read_root(group), path / ROOT_FILE)
    try:
        cube = ZoneCube(path, group, opened)
        opened.check()
        return cube
    except (KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        raise CubeError(f"{path}: its metadata is damaged ({type(error).__name__}: {error}). {_AGAIN}") from error


def _layer(name: str, group: Any) -> ZoneLayer:
    facts = dict(group.attrs)
    x_res, _, x_min, _, y_res, y_max = facts["transform"]
    shape = group[DATA].shape
    dates = None
    if "time" in group:
        days = np.asarray(_whole(group, name, "time"))
        dates = days.astype(np.int64).astype("datetime64[D]")
    box = GeoBox(facts["crs_wkt"], x_min, y_max, x_res, -y_res, shape[-2], shape[-1])
    return ZoneLayer(
        name=name,
        geobox=box,
        bands=tuple(facts["bands"]),
        dtype=str(group[DATA].dtype),
        nodata=tuple(facts["nodata"]) if isinstance(facts["nodata"], list) else facts["nodata"],
        has_mask=facts["has_mask"],
        dates=dates,
        alpha=facts.get("alpha"),
    )


def _whole(group: Any, name: str, array: str) -> Any:
    """Read a small array; zarr would give fill values for a chunk that is gone, this does not."""
    if group[array].nchunks_initialized != group[array].nchunks:
        raise ValueError(f"{name}/{array} is absent")
    return group[array][...]
