"""The zonal run: blocks to the work folder, maps to their names; killed anywhere, it continues."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from flairhub.class_raster import category_xml, qgis_style
from flairhub.errors import OutputExistsError, UsageError
from flairhub.inference.block_jobs import BlockJob, block_jobs
from flairhub.inference.lazy_map import blank_block, predict_block, variable_name
from flairhub.inference.map_plan import PLAIN, MapPlan, Output, Style, fitted, map_sizes, plan_map
from flairhub.inference.map_store import BlockRecord, MapStore, Work, stored_key
from flairhub.inference.model_ref import ModelRef, model_ref
from flairhub.inference.outputs import Layer, MapSpec, OutputType, map_name, scaled_confidence, stored_maps, write_map
from flairhub.inference.sidecars import NONE, Extras, stac_item, write_task_polygons, write_tiles
from flairhub.jobs import job_workers, run_jobs, write_text
from flairhub.progress import Progress, silent
from flairhub.tasks import IGNORE_INDEX, Task
from flairhub.version import __version__
from flairhub.zones import Zone, close_all, identity

if TYPE_CHECKING:
    from flairhub.models import Model

log = logging.getLogger(__name__)

_FORMAT = 2

_LESS_MEMORY = "Use a smaller block_px or batch_size."


@dataclass(frozen=True)
class MapFile:
    """A finished map.

    Attributes:
        task: What it shows.
        path: The GeoTIFF.
        size_bytes: Its size.
        shares: Share of the pixels with data, by class name; empty when there is no such pixel.
        classes: Names and colours of its classes.
    """

    task: str
    path: Path
    size_bytes: int
    shares: Mapping[str, float]
    classes: Task


@dataclass(frozen=True)
class ZonalResult:
    """What a zonal run made.

    Attributes:
        maps: One per task.
        tiles: GeoPackage of the windows, when asked for.
        nodata_share: Share of the pixels without data.
        n_blocks: Blocks of the zone.
        n_computed: Blocks computed by this run; the others were there from a killed one.
        n_windows: Windows of the zone.
        recompute_factor: Pixels the network sees per pixel of the zone.
        seconds: Wall time of this run.
        extras: Confidence rasters, polygons, STAC item, as asked for.
    """

    maps: tuple[MapFile, ...]
    tiles: Path | None
    nodata_share: float
    n_blocks: int
    n_computed: int
    n_windows: int
    recompute_factor: float
    seconds: float
    extras: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Target:
    """Files of a run and how to write them."""

    folder: Path
    name: str
    output_type: OutputType
    cog: bool
    tiles: bool
    config_yaml: str
    tags: Mapping[str, str]
    extras: Extras

    @property
    def work_folder(self) -> Path:
        return self.folder / f".{self.name}.unfinished"

    @property
    def layers(self) -> list[Layer]:
        """Rasters per task."""
        layers: list[Layer] = [self.output_type]
        return [*layers, "confidence"] if self.extras.confidence else layers

    @property
    def digest(self) -> str:
        """Hash of everything: files of another target are not this one's."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def files(self, tasks: Sequence[Task]) -> list[str]:
        """Names of all files, the maps last: a map that is there has its companions."""
        maps = [map_name(self.name, task.label, self.output_type) for task in tasks]
        extra = [f"{self.name}_tiles.gpkg"] if self.tiles else []
        extra += [f"{self.name}_config.yaml"] if self.config_yaml else []
        extra += self.extras.names(self.name, tasks)
        styles = [f"{name.removesuffix('.tif')}.qml" for name in maps] if self.output_type == "argmax" else []
        sidecars = [f"{name}.aux.xml" for name in maps] if self.output_type == "argmax" else []
        return [*extra, *styles, *sidecars, *maps]


def write_zone(
    zone: Zone,
    model: Model | ModelRef | str | Path,
    folder: str | Path,
    name: str,
    *,
    output_type: OutputType = "argmax",
    cog: bool = True,
    tiles: bool = False,
    block_px: int | None = None,
    window_px: int | None = None,
    margin_px: int | None = None,
    output_px_m: float | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    resume: bool = True,
    workers: int = 1,
    scheduler: str | None = None,
    lock: bool = True,
    config_yaml: str = "",
    config_hash: str = "",
    style: Style = PLAIN,
    extras: Extras = NONE,
    progress: Progress | None = None,
) -> ZonalResult:
    """Map a zone to GeoTIFFs, one per task.

    Blocks go to a work folder beside the outputs (`.<name>.unfinished`) and are journalled; a killed run continues
    there with the same bytes. Maps appear under their names only complete and read back.

    Args:
        zone: The rasters.
        model: Path of a bundle, a loaded model (threads only) or a reference.
        folder: Where the files go; made when absent.
        name: How their names begin.
        output_type: `argmax` or `class_prob`.
        cog: Cloud-optimised GeoTIFF with overviews; otherwise tiled.
        tiles: Also write the footprints of the windows.
        block_px: Largest block in output pixels; default 2048, less for long series.
        window_px: Window length in finest pixels; default as the configuration that opened the zone has it.
        margin_px: Margin in finest pixels; likewise.
        output_px_m: Pixel of the maps in metres; likewise.
        batch_size: Windows per call of the network; likewise.
        overwrite: Replace existing files, and unfinished work of another model, configuration or data.
        resume: Continue unfinished work; False starts over.
        workers: Threads, or processes with `scheduler="processes"`.
        scheduler: None or `threads`, `processes`, or the address of a dask scheduler.
        lock: Use the locks of the file system; False only where it has none.
        config_yaml: Configuration to keep beside the maps.
        config_hash: For the tags.
        style: Blending, precision, flips, missing inputs.
        extras: Files beside the maps.
        progress: Told about finished blocks and pieces.

    Raises:
        OutputExistsError: A file exists, or other unfinished work does, and overwriting was not asked for.
        ZoneError: Zone and model do not fit, or a written map does not read back.
        LockError: Another process makes this map, or the file system has no locks.
        JobError: Workers die again and again, or are gone.
    """
    if workers < 1:
        raise UsageError(f"workers: got {workers}, expected at least 1.")
    started = time.monotonic()
    report = progress or silent
    ref = fitted(zone, model_ref(model))
    sizes = map_sizes(zone, window_px, margin_px, output_px_m, batch_size, ref)
    plan = plan_map(zone, ref, sizes, block_px, style)
    tags = {**_tags(plan, ref), **({"FLAIRHUB_CONFIG_SHA256": config_hash} if config_hash else {})}
    extras.check(output_type)
    target = _Target(Path(folder), name, output_type, cog, tiles, config_yaml, tags, extras)
    store = MapStore(str((target.work_folder / "map.zarr").absolute()), plan.row_edges, plan.col_edges)
    maps = stored_maps(plan, ref.tasks, output_type, extras.stores_confidence)
    key = _key(plan, ref, output_type, maps)
    if not overwrite:
        check_absent(target.folder, target.files(ref.tasks), target.work_folder, key if resume else "")
    with Work.open(target.work_folder, key, store, maps, resume=resume, discard_other=overwrite, lock=lock) as work:
        before = len(work.done)
        try:
            _compute(plan, ref, work, target, workers, scheduler, report)
            _finish(plan, ref, work, target, report)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{len(work.done)} of {plan.n_blocks[0] * plan.n_blocks[1]} blocks are done; "
                f"the same command continues there."
            ) from None
        result = _result(plan, ref, work, target, before, started)
        work.remove()
    return result


def check_absent(folder: Path, names: Sequence[str], work_folder: Path | None = None, key: str = "") -> None:
    """Raise OutputExistsError when a file is there already.

    Args:
        folder: Where the files go.
        names: Their names.
        work_folder: Unfinished work; files that a killed run with the same key has already moved to their names are
            its own and no obstacle.
        key: See `Work`.
    """
    moved: set[str] = set()
    if work_folder is not None and key and stored_key(work_folder) == key and (work_folder / "moving.json").is_file():
        moved = set(json.loads((work_folder / "moving.json").read_text())["names"])
    existing = [folder / name for name in names if (folder / name).exists() and name not in moved]
    if existing:
        raise OutputExistsError(
            f"{', '.join(map(str, existing))} exists already. Choose another output_name or output_path, "
            f"or replace it with --overwrite."
        )


def _compute(
    plan: MapPlan,
    ref: ModelRef,
    work: Work,
    target: _Target,
    workers: int,
    scheduler: str | None,
    report: Progress,
) -> None:
    blocks = [block for block in plan.blocks() if block not in work.done]
    total = len(blocks) + len(work.done)
    report("map", len(work.done), total)
    if not blocks:
        return
    if work.done:
        log.info("%s: continuing, %d of %d blocks are there", work.folder, len(work.done), total)
    plan, jobs = block_jobs(plan, ref.preparations, blocks, work.folder / "chunks")
    try:
        with job_workers(workers, scheduler) as pool:
            confidence = target.extras.stores_confidence
            function = partial(compute_block, plan, ref, work.store, target.output_type, confidence, stop=pool.stop)
            for job, record in run_jobs(pool, function, jobs, noun="block", name=attrgetter("name"), hint=_LESS_MEMORY):
                work.record(job.block, record)
                report("map", len(work.done), total)
    finally:
        close_all()


def compute_block(
    plan: MapPlan,
    ref: ModelRef,
    store: MapStore,
    output_type: OutputType,
    with_confidence: bool,
    job: BlockJob,
    stop: threading.Event | None = None,
) -> BlockRecord:
    """Predict a block and write it to the store: one job."""
    outputs: list[Output] = ["class"] if output_type == "argmax" else ["class", "scaled"]
    outputs += ["confidence"] if with_confidence else []
    maps = predict_block(blank_block(plan, ref.tasks, outputs, job.block), job.zone or plan.zone, ref, stop=stop)
    crc: dict[str, int] = {}
    counts, nodata = {}, 0
    for task in ref.tasks:
        name = partial(variable_name, task=task, tasks=ref.tasks)
        classes = maps[name("class")].values
        valid = classes != IGNORE_INDEX
        stored = {name("class"): classes}
        if output_type == "class_prob":
            stored = {name("probabilities"): maps[name("scaled")].values, name("valid"): valid.astype(np.uint8)}
        if with_confidence:
            stored[name("confidence")] = scaled_confidence(maps[name("confidence")].values)
        crc |= {array: store.write(array, job.block, values) for array, values in stored.items()}
        counts[task.label] = tuple(np.bincount(classes[valid], minlength=task.n_classes).tolist())
        nodata = int((~valid).sum())
    return BlockRecord(crc, counts, nodata)


def _finish(plan: MapPlan, ref: ModelRef, work: Work, target: _Target, report: Progress) -> None:
    """Write all files into the work folder, then move them to their names."""
    names, folder = target.files(ref.tasks), work.folder / "files"
    moving, plan_text = work.folder / "moving.json", json.dumps({"names": names, "target": target.digest})
    if not moving.is_file() or moving.read_text() != plan_text:
        folder.mkdir(exist_ok=True)
        for task in ref.tasks:
            _write_task(plan, ref.tasks, task, work, target, folder, report)
        if target.extras.stac:
            layers = target.layers
            files = {map_name(target.name, task.label, layer): (layer, task) for task in ref.tasks for layer in layers}
            item = stac_item(plan, ref.tasks, target.name, files, target.tags)
            write_text(folder / f"{target.name}_stac.json", item)
        if target.tiles:
            tiles = folder / f"{target.name}_tiles.gpkg"
            tiles.unlink(missing_ok=True)
            write_tiles(plan, tiles)
        if target.config_yaml:
            write_text(folder / f"{target.name}_config.yaml", target.config_yaml)
        write_text(moving, plan_text)
    for name in names:
        if (folder / name).exists():
            os.replace(folder / name, target.folder / name)


def _write_task(
    plan: MapPlan, tasks: Sequence[Task], task: Task, work: Work, target: _Target, folder: Path, report: Progress
) -> None:
    extras = target.extras
    for layer in target.layers:
        spec = MapSpec.of(plan, task, tasks, layer, target.tags, target.cog, extras.language)
        write_map(spec, work, folder / map_name(target.name, task.label, layer), report)
    if target.output_type == "argmax":
        name = map_name(target.name, task.label, "argmax")
        write_text(folder / f"{name}.aux.xml", category_xml(task, extras.language))
        write_text(folder / f"{name.removesuffix('.tif')}.qml", qgis_style(task, extras.language))
    if extras.polygons is not None:
        path = folder / f"{target.name}_{task.label}_polygons.{extras.polygons}"
        arrays = variable_name("class", task, tasks), variable_name("confidence", task, tasks)
        write_task_polygons(extras, work, task, arrays, plan.geobox, path)


def _result(plan: MapPlan, ref: ModelRef, work: Work, target: _Target, before: int, started: float) -> ZonalResult:
    maps = []
    for task in ref.tasks:
        path = target.folder / map_name(target.name, task.label, target.output_type)
        counts = np.sum([record.counts[task.label] for record in work.done.values()], axis=0)
        total = int(counts.sum())
        shares = {name: int(n) / total for name, n in zip(task.names, counts, strict=True) if n} if total else {}
        maps.append(MapFile(task.label, path, path.stat().st_size, shares, task))
    box = plan.geobox
    nodata = sum(record.nodata for record in work.done.values())
    return ZonalResult(
        maps=tuple(maps),
        tiles=target.folder / f"{target.name}_tiles.gpkg" if target.tiles else None,
        nodata_share=nodata / (box.height * box.width),
        n_blocks=len(work.done),
        n_computed=len(work.done) - before,
        n_windows=plan.n_windows,
        recompute_factor=plan.recompute_factor,
        seconds=time.monotonic() - started,
        extras=tuple(target.folder / name for name in target.extras.names(target.name, ref.tasks)),
    )


def _tags(plan: MapPlan, ref: ModelRef) -> dict[str, str]:
    return {
        "FLAIRHUB_VERSION": __version__,
        "FLAIRHUB_MODEL": "in memory" if ref.kind == "memory" else Path(ref.path).name,
        "FLAIRHUB_MODEL_SHA256": ref.weights_sha256,
        "FLAIRHUB_INPUTS": ",".join(ref.preparations),
        "FLAIRHUB_WINDOW_PX": str(plan.sizes.window_px),
        "FLAIRHUB_MARGIN_PX": str(plan.sizes.margin_px),
    }


def _key(plan: MapPlan, ref: ModelRef, output_type: OutputType, maps: xr.Dataset) -> str:
    """Hash of all that decides the bytes of the blocks; batch size, workers and device do not."""
    zone = plan.zone
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "version": __version__,
        "model": ref.identity,
        "preparations": {name: preparation.to_json() for name, preparation in ref.preparations.items()},
        "tasks": [[task.label, list(task.names)] for task in ref.tasks],
        "rasters": [identity(raster) for raster in zone.everything],
        "geobox": [*zone.geobox.transform, zone.geobox.height, zone.geobox.width],
        "windows": [plan.sizes.window_px, plan.sizes.margin_px],
        "ratio": str(plan.ratio),
        "blocks": [plan.row_edges, plan.col_edges],
        "output": [output_type, {str(name): array.shape for name, array in maps.data_vars.items()}],
        "style": asdict(plan.style),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
