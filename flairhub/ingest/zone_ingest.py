"""`ingest_zone`: the rasters of one area to a zone cube, block by block; killed anywhere, it continues."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.config import Paths, ZonalConfig
from flairhub.cube import (
    DATA,
    MASK_CODEC,
    VALID,
    ZONE_FORMAT,
    ZONE_KEY,
    ChunkCodec,
    ShardWriter,
    Tiling,
    ZoneLayer,
    create_zone_store,
    data_codec,
    open_zone_cube,
    require_little_endian,
    shard_key,
    tiling_of,
)
from flairhub.errors import UsageError
from flairhub.ingest.job import digest
from flairhub.ingest.store import StoreKind, StoreRun, writing
from flairhub.jobs import Stopped, folder_bytes, job_workers, run_jobs, to_disk
from flairhub.progress import Progress, silent
from flairhub.zones import Raster, Zone, identity, zone_of_config

KIND = StoreKind(
    "zone cube",
    ZONE_KEY,
    ZONE_FORMAT,
    "made from other rasters (or they have changed since) or with other options",
    mends=True,
)


@dataclass(frozen=True)
class ZoneIngestReport:
    """What an ingest of a zone made.

    Attributes:
        cube: The store.
        layers: What it holds.
        n_jobs: Shards.
        n_reused: Shards that a stopped run had finished.
        n_bytes: Size of all files.
        seconds: Wall time.
        already_complete: There was nothing to do.
    """

    cube: Path
    layers: tuple[ZoneLayer, ...]
    n_jobs: int
    n_reused: int
    n_bytes: int
    seconds: float
    already_complete: bool


@dataclass(frozen=True)
class _Job:
    """One shard of one raster."""

    raster: Raster
    tiling: Tiling
    shard: int

    @property
    def id(self) -> str:
        return f"{self.raster.name}/{self.shard:06d}"


def ingest_zone(
    zone: Zone | ZonalConfig | Paths,
    *,
    cube: str | Path,
    overwrite: bool = False,
    codec: str = "balanced",
    workers: int = 2,
    scheduler: str | None = None,
    lock: bool = True,
    progress: Progress | None = None,
) -> ZoneIngestReport:
    """Write the rasters of a zone to one chunked store; a run that was stopped continues when called again.

    Args:
        zone: From `flairhub.open_zone` or `flairhub.zone`; or a zonal configuration, or its path or paths, whose
            masks are all opened.
        cube: Folder of the store.
        overwrite: Replace a zone cube made from other rasters or with other options.
        codec: `balanced`, `fast`, `dense` or `none`.
        workers: Threads, or processes with `scheduler="processes"`; each holds a row of chunks of one shard at a time.
        scheduler: None or `threads`, `processes`, or the address of a dask scheduler whose workers see the same files.
        lock: Use the locks of the file system; False only where it has none.
        progress: Told the number of finished shards.

    Raises:
        DataError: Pixels of a source cannot be read, or it was changed meanwhile.
        OutputExistsError: Something else exists at `cube`.
        LockError: Another process writes the cube, or the file system has no locks.
        CubeError: The disk is full.
        JobError: Workers die again and again, or are gone.
        UsageError: An unknown codec, no worker, or no such scheduler.
    """
    zone = zone_of_config(zone, all_masks=True)
    started = time.perf_counter()
    require_little_endian()
    if workers < 1:
        raise UsageError(f"workers: got {workers}, expected at least 1.")
    rasters = tuple(zone.everything)
    layers = tuple(layer_of(raster) for raster in rasters)
    plan = _plan(rasters, codec)
    jobs = _jobs(rasters)
    with writing(cube, lock) as path:
        store = StoreRun(path, KIND, plan, {job.id: plan for job in jobs}, "ingest zone", progress or silent)
        complete = store.prepare(overwrite, partial(create_zone_store, layers=layers, codec=codec, plan=plan))
        if not complete:
            _work(store, jobs, codec, workers, scheduler)
            for raster in rasters:
                raster.check_unchanged()
            store.finish()
            open_zone_cube(path)
    seconds = time.perf_counter() - started
    return ZoneIngestReport(path, layers, store.n_jobs, store.n_reused, folder_bytes(path), seconds, complete)


def _jobs(rasters: Sequence[Raster]) -> list[_Job]:
    jobs = []
    for raster in rasters:
        tiling = tiling_of(layer_of(raster))
        n_rows, n_cols = tiling.n_shards
        jobs += [_Job(raster, tiling, shard) for shard in range(n_rows * n_cols)]
    return jobs


def _work(store: StoreRun, jobs: Sequence[_Job], codec: str, workers: int, scheduler: str | None) -> None:
    """Do the jobs that are not done."""
    store.report_progress()
    left = [job for job in jobs if job.id not in store.done]
    if not left:
        return
    with job_workers(workers, scheduler) as pool:
        function = partial(_write_shard, str(store.path), codec, stop=pool.stop)
        for job, files in run_jobs(pool, function, left, noun="shard", name=attrgetter("id")):
            store.record(job.id, files)


def layer_of(raster: Raster) -> ZoneLayer:
    """What a zone cube stores of a raster."""
    nodata = raster.nodata
    if isinstance(nodata, Sequence):
        nodata = tuple(None if value is None or not np.isfinite(value) else value for value in nodata)
    elif nodata is not None and not np.isfinite(nodata):
        # JSON knows no NaN, and NaN is without data in any case.
        nodata = None
    return ZoneLayer(
        raster.name,
        raster.geobox,
        raster.bands,
        raster.dtype,
        nodata,
        raster.may_be_masked,
        raster.dates,
        raster.alpha,
    )


def _plan(rasters: Sequence[Raster], codec: str) -> str:
    """Digest of what is to be ingested and how."""
    rows = []
    for raster in rasters:
        layer = layer_of(raster)
        data_codec(codec, layer)
        tiling = tiling_of(layer)
        facts = {**identity(raster), "mask": layer.has_mask, "chunks": [tiling.chunk_px, tiling.shard_chunks]}
        rows.append(facts)
    return digest({"format": ZONE_FORMAT, "codec": codec, "rasters": rows})


def _write_shard(store: str, codec: str, job: _Job, stop: threading.Event | None = None) -> dict[str, tuple[int, int]]:
    """Write one shard, and that of the validity mask; return length and CRC-32C by file below the store."""
    layer, tiling = layer_of(job.raster), job.tiling
    chains: dict[str, ChunkCodec] = {DATA: data_codec(codec, layer)}
    if layer.has_mask:
        chains[VALID] = MASK_CODEC
    names = {kind: f"{layer.name}/{kind}/{_key(layer, kind, tiling, job.shard)}" for kind in chains}
    with ExitStack() as stack:
        writers = {
            kind: stack.enter_context(ShardWriter(Path(store) / name, tiling.chunks_per_shard))
            for kind, name in names.items()
        }
        for chunks in _rows_of_chunks(job):
            if stop is not None and stop.is_set():
                raise Stopped
            for chunk in chunks:
                for kind, chain in chains.items():
                    values = None if chunk is None else chunk[kind]
                    writers[kind].add(None if values is None else chain.encode_parts(values))
    job.raster.check_unchanged()
    # So that no journal line outlives its files when the power fails.
    to_disk(Path(store) / name for name in names.values())
    return {names[kind]: (writer.length, writer.checksum) for kind, writer in writers.items()}


def _key(layer: ZoneLayer, kind: str, tiling: Tiling, shard: int) -> str:
    return shard_key(len(layer.leading if kind == DATA else layer.mask_shape[:-2]), tiling, shard)


def _rows_of_chunks(job: _Job) -> Iterator[list[dict[str, NDArray[Any]] | None]]:
    """Yield the inner chunks of a shard, row by row; those beyond the raster are None."""
    layer, tiling, size = layer_of(job.raster), job.tiling, job.tiling.chunk_px
    shard_row, shard_col = divmod(job.shard, tiling.n_shards[1])
    left = shard_col * tiling.shard_px
    right = min(left + tiling.shard_px, tiling.width)
    for row in range(tiling.shard_chunks):
        top = shard_row * tiling.shard_px + row * size
        if top >= tiling.height:
            yield [None] * tiling.shard_chunks
            continue
        values, mask = job.raster.load((top, min(top + size, tiling.height)), (left, right))
        arrays = {DATA: values.astype(layer.dtype, copy=False)}
        if layer.has_mask:
            valid = np.ones(values.shape[-2:], dtype=bool) if mask is None else mask
            shape = (*layer.mask_shape[:-2], *values.shape[-2:])
            arrays[VALID] = np.broadcast_to(valid, shape).astype(np.uint8)
        yield [
            None
            if left + col * size >= tiling.width
            else {kind: _padded(array[..., col * size : (col + 1) * size], size) for kind, array in arrays.items()}
            for col in range(tiling.shard_chunks)
        ]


def _padded(part: NDArray[Any], size: int) -> NDArray[Any]:
    """Return a whole chunk, C-contiguous; beyond the raster it is 0."""
    if part.shape[-2:] == (size, size):
        return np.ascontiguousarray(part)
    chunk = np.zeros((*part.shape[:-2], size, size), dtype=part.dtype)
    chunk[..., : part.shape[-2], : part.shape[-1]] = part
    return chunk
