"""`ingest_zone`: the rasters of one area to a zone cube, block by block; killed anywhere, it continues."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.codecs import ChunkCodec, require_little_endian
from flairhub.cube.shards import ShardWriter
from flairhub.cube.template import root_attributes, set_status
from flairhub.cube.zone import open_zone_cube
from flairhub.cube.zone_spec import (
    DATA,
    MASK_CODEC,
    VALID,
    ZONE_FORMAT,
    ZONE_KEY,
    Tiling,
    ZoneLayer,
    data_codec,
    shard_key,
    tiling_of,
)
from flairhub.cube.zone_template import create_zone_store
from flairhub.errors import OutputExistsError, UsageError
from flairhub.ingest.job import digest
from flairhub.ingest.journal import Entry, Journal
from flairhub.ingest.target import make_place, writing
from flairhub.jobs import folder_bytes, reach, sweep, to_disk
from flairhub.progress import Progress, silent
from flairhub.zones import Raster, Zone, identity

STAGE = "ingest zone"


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
    zone: Zone,
    *,
    cube: str | Path,
    overwrite: bool = False,
    codec: str = "balanced",
    workers: int = 2,
    progress: Progress | None = None,
) -> ZoneIngestReport:
    """Write the rasters of a zone to one chunked store; a run that was stopped continues when called again.

    Args:
        zone: From `flairhub.open_zone`: its rasters are already known to fit each other.
        cube: Folder of the store.
        overwrite: Replace a zone cube made from other rasters or with other options.
        codec: `balanced`, `fast`, `dense` or `none`.
        workers: Threads; each holds one row of chunks of one shard at a time.
        progress: Told the number of finished shards.

    Raises:
        DataError: Pixels of a source cannot be read.
        OutputExistsError: Something else exists at `cube`.
        CubeError: Another process writes the cube, or the disk is full.
        UsageError: An unknown codec, or no worker.
    """
    started = time.perf_counter()
    require_little_endian()
    if workers < 1:
        raise UsageError(f"workers: got {workers}, expected at least 1.")
    rasters = tuple(zone.everything)
    layers = tuple(layer_of(raster) for raster in rasters)
    plan = _plan(rasters, codec)
    with writing(cube) as path:
        run = _Run(path, plan, codec, rasters, progress or silent)
        complete = run.prepare(overwrite)
        if not complete:
            run.work(workers)
            run.finish()
    seconds = time.perf_counter() - started
    return ZoneIngestReport(path, layers, len(run.jobs), run.n_reused, folder_bytes(path), seconds, complete)


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


class _Run:
    """The state of one ingest while it holds the writer lock."""

    def __init__(self, path: Path, plan: str, codec: str, rasters: Sequence[Raster], progress: Progress):
        self._path, self._plan, self._codec, self._progress = path, plan, codec, progress
        self._rasters = rasters
        self._journal = Journal(path)
        self._done: dict[str, Entry] = {}
        self.n_reused = 0
        self.jobs: list[_Job] = []
        for raster in rasters:
            tiling = tiling_of(layer_of(raster))
            n_rows, n_cols = tiling.n_shards
            self.jobs += [_Job(raster, tiling, shard) for shard in range(n_rows * n_cols)]

    def prepare(self, overwrite: bool) -> bool:
        """Make the store, or find what an earlier run finished; True when there is nothing to do."""
        keep = self._path.exists() and self._usable(overwrite)
        layers = [layer_of(raster) for raster in self._rasters]
        if make_place(self._path, keep, lambda folder: create_zone_store(folder, layers, self._codec, self._plan)):
            reach("store")
        sweep(self._path)
        found = self._journal.read()
        for job in self.jobs:
            entry = found.get(job.id)
            if entry is not None and entry.state == self._plan and self._journal.holds(entry):
                self._done[job.id] = entry
        self.n_reused = len(self._done)
        attributes = root_attributes(self._path, ZONE_KEY)
        assert attributes is not None
        if attributes["status"] == "complete" and self.n_reused < len(self.jobs):
            # Complete, but not whole: files are gone or cut off. They are made again.
            set_status(self._path, "building", ZONE_KEY)
            return False
        return bool(attributes["status"] == "complete")

    def _usable(self, overwrite: bool) -> bool:
        """Decide about what is at the path: True keeps it, False has it replaced.

        Raises:
            OutputExistsError: Another plan, or no zone cube.
        """
        if self._path.is_dir() and not any(self._path.iterdir()):
            return False
        attributes = root_attributes(self._path, ZONE_KEY)
        if attributes is None:
            raise OutputExistsError(
                f"{self._path} exists and is no zone cube; it is never removed. Choose another path."
            )
        if overwrite:
            return False
        if attributes.get("format") != ZONE_FORMAT:
            difference = f"of format {attributes.get('format')!r}, this version writes {ZONE_FORMAT}"
        elif attributes.get("plan") != self._plan:
            difference = "made from other rasters (or they have changed since) or with other options"
        else:
            return True
        raise OutputExistsError(f"{self._path}: a zone cube exists, {difference}. Pass --overwrite to replace it.")

    def work(self, workers: int) -> None:
        """Do the jobs that are not done."""
        report, total = self._progress, len(self.jobs)
        report(STAGE, len(self._done), total)
        remaining = iter([job for job in self.jobs if job.id not in self._done])
        pool = ThreadPoolExecutor(workers, thread_name_prefix="flairhub-ingest")
        waiting: dict[Future[Any], _Job] = {}
        try:
            while True:
                for job in islice(remaining, workers - len(waiting)):
                    waiting[pool.submit(_write_shard, self._path, job, self._codec)] = job
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    entry = Entry(waiting.pop(future).id, self._plan, future.result(), (), None)
                    reach("shard")
                    self._journal.note(entry)
                    self._done[entry.job] = entry
                    report(STAGE, len(self._done), total)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def finish(self) -> None:
        """Call the store complete, in one step."""
        sweep(self._path)
        self._journal.rewrite(self._done.values())
        reach("tables")
        set_status(self._path, "complete", ZONE_KEY)
        reach("complete")
        open_zone_cube(self._path)


def _write_shard(store: Path, job: _Job, codec: str) -> dict[str, tuple[int, int]]:
    """Write one shard, and that of the validity mask; return length and CRC-32C by file below the store."""
    layer, tiling = layer_of(job.raster), job.tiling
    chains: dict[str, ChunkCodec] = {DATA: data_codec(codec, layer)}
    if layer.has_mask:
        chains[VALID] = MASK_CODEC
    names = {kind: f"{layer.name}/{kind}/{_key(layer, kind, tiling, job.shard)}" for kind in chains}
    with ExitStack() as stack:
        writers = {
            kind: stack.enter_context(ShardWriter(store / name, tiling.chunks_per_shard))
            for kind, name in names.items()
        }
        for chunks in _rows_of_chunks(job):
            for chunk in chunks:
                for kind, chain in chains.items():
                    values = None if chunk is None else chunk[kind]
                    writers[kind].add(None if values is None else chain.encode_parts(values))
    # So that no journal line outlives its files when the power fails.
    to_disk(store / name for name in names.values())
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
