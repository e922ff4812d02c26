"""The zonal run: blocks to the work folder, maps to their names; killed anywhere, it continues."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flairhub.class_raster import category_xml, qgis_style
from flairhub.config import Paths, ZonalConfig
from flairhub.errors import UsageError, ZoneError
from flairhub.inference.block_jobs import BlockJob, block_jobs
from flairhub.inference.lazy_map import blank_block, computed_block, variable_name
from flairhub.inference.map_plan import PLAIN, MapPlan, Output, Style, fitted, map_sizes, plan_map
from flairhub.inference.map_store import BlockRecord, MapStore, Work
from flairhub.inference.model_ref import ModelRef, model_ref
from flairhub.inference.opening import open_zone
from flairhub.inference.outputs import Layer, MapSpec, OutputType, map_name, scaled_confidence, stored_maps, write_map
from flairhub.inference.run_identity import (
    COUNT_TAGS,
    check_absent,
    count_tags,
    is_finished,
    run_digest,
    run_key,
    run_tags,
    tags_of,
    with_record,
)
from flairhub.inference.sidecars import NONE, Extras, stac_item, write_task_polygons, write_tiles
from flairhub.jobs import explained, job_workers, run_jobs, write_text
from flairhub.not_finite import too_many_not_finite
from flairhub.progress import Progress, silent
from flairhub.tasks import IGNORE_INDEX, Task
from flairhub.zones import Zone, close_all

if TYPE_CHECKING:
    from flairhub.models import Model

log = logging.getLogger(__name__)

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
        nodata_share: Share of the pixels without data; of a zone with an area of interest, of the pixels in it.
        not_finite: Pixels with data that have no class because the network gave no finite logits, by task.
        n_blocks: Blocks of the zone, or of its area of interest.
        n_computed: Blocks computed by this run; the others were there from a killed one.
        n_windows: Windows of the zone, or of its area of interest.
        recompute_factor: Pixels the network sees per pixel of the zone, or of its area of interest.
        seconds: Wall time of this run.
        extras: Confidence rasters, polygons, STAC item, as asked for.
        already_complete: An earlier run of the same command had made all files; nothing was done.
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
    not_finite: Mapping[str, int] = field(default_factory=dict)
    already_complete: bool = False


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
    run: str = ""

    @property
    def config_file(self) -> Path:
        return self.folder / f"{self.name}_config.yaml"

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
        extra += [self.config_file.name] if self.config_yaml else []
        extra += self.extras.names(self.name, tasks)
        styles = [f"{name.removesuffix('.tif')}.qml" for name in maps] if self.output_type == "argmax" else []
        sidecars = [f"{name}.aux.xml" for name in maps] if self.output_type == "argmax" else []
        return [*extra, *styles, *sidecars, *maps]


def write_zone(
    zone: Zone | ZonalConfig | Paths,
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
    there with the same bytes. Maps appear under their names only complete and read back. When all files are there
    already and `config_yaml` beside them says that the same call made them from the same data, nothing is done.

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
        OutputExistsError: A file of another run exists, or other unfinished work does, and overwriting was not asked
            for.
        ZoneError: Zone and model do not fit, or a written map does not read back.
        LockError: Another process makes this map, or the file system has no locks.
        JobError: Workers die again and again, or are gone.
        OutputError: The system refuses to write; finished blocks are kept.
    """
    zone = open_zone(zone)
    if workers < 1:
        raise UsageError(f"workers: got {workers}, expected at least 1.")
    started = time.monotonic()
    report = progress or silent
    ref = fitted(zone, model_ref(model))
    sizes = map_sizes(zone, window_px, margin_px, output_px_m, batch_size, ref)
    plan = plan_map(zone, ref, sizes, block_px, style)
    tags = {**run_tags(plan, ref), **({"FLAIRHUB_CONFIG_SHA256": config_hash} if config_hash else {})}
    extras.check(output_type)
    target = _Target(Path(folder), name, output_type, cog, tiles, config_yaml, tags, extras)
    maps = stored_maps(plan, ref.tasks, output_type, extras.stores_confidence)
    key = run_key(plan, ref, output_type, maps)
    names, target = target.files(ref.tasks), replace(target, run=run_digest(key, replace(target, folder=Path()).digest))
    if not overwrite and not target.work_folder.exists() and is_finished(target.config_file, target.run, names):
        return _finished_result(plan, ref, target, started)
    store = MapStore(str((target.work_folder / "map.zarr").absolute()), plan.row_edges, plan.col_edges)
    if not overwrite:
        check_absent(target.folder, names, target.work_folder, key if resume else "")
    with (
        explained(target.folder, full="Make room and run the same command again. Finished blocks are kept."),
        Work.open(target.work_folder, key, store, maps, resume=resume, discard_other=overwrite, lock=lock) as work,
    ):
        before = len(work.done)
        try:
            _compute(plan, ref, work, target, workers, scheduler, report)
            _finish(plan, ref, work, target, report)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{len(work.done)} of {len(plan.blocks_inside())} blocks are done; the same command continues there."
            ) from None
        result = _result(plan, ref, work, target, before, started)
        work.remove()
    return result


def _compute(
    plan: MapPlan,
    ref: ModelRef,
    work: Work,
    target: _Target,
    workers: int,
    scheduler: str | None,
    report: Progress,
) -> None:
    blocks = [block for block in plan.blocks_inside() if block not in work.done]
    total = len(blocks) + len(work.done)
    report("map", len(work.done), total)
    _check_finite(plan, work)
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
                if any(record.not_finite.values()):
                    _check_finite(plan, work)
                report("map", len(work.done), total)
    finally:
        close_all()


def _check_finite(plan: MapPlan, work: Work) -> None:
    """Raise ZoneError as soon as it is certain that too many pixels of the map have no finite logits."""
    box, missing = plan.geobox, sum(record.nodata for record in work.done.values())
    for task, _ in plan.tasks:
        count = sum(record.not_finite[task] for record in work.done.values())
        # What is not computed yet may be all data, and all finite.
        problem = too_many_not_finite(count, box.height * box.width - missing, task)
        if problem is not None:
            raise ZoneError(problem)


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
    block = blank_block(plan, ref.tasks, outputs, job.block)
    maps, region = computed_block(block, job.zone or plan.zone, ref, stop)
    area, place = plan.zone.aoi, plan.on_zone(*plan.extent(job.block))
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
        nodata = (valid.size if area is None else int(area.mask(*place, plan.ratio).sum())) - region.n_valid
    return BlockRecord(crc, counts, nodata, region.not_finite)


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
            text = with_record(target.config_yaml, target.run, folder, names)
            write_text(folder / target.config_file.name, text)
        write_text(moving, plan_text)
    for raster in plan.zone.everything:
        raster.check_unchanged()
    for name in names:
        if (folder / name).exists():
            os.replace(folder / name, target.folder / name)


def _write_task(
    plan: MapPlan, tasks: Sequence[Task], task: Task, work: Work, target: _Target, folder: Path, report: Progress
) -> None:
    extras = target.extras
    for layer in target.layers:
        tags = {**target.tags, **count_tags(work, task)}
        spec = MapSpec.of(plan, task, tasks, layer, tags, target.cog, extras.language)
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
    result = _finished_result(plan, ref, target, started)
    return replace(result, n_computed=len(work.done) - before, already_complete=False)


def _finished_result(plan: MapPlan, ref: ModelRef, target: _Target, started: float) -> ZonalResult:
    """What a finished run made, as its maps say."""
    maps, not_finite, nodata = [], {}, 0
    for task in ref.tasks:
        path = target.folder / map_name(target.name, task.label, target.output_type)
        tags = tags_of(path)
        counts = [int(number) for number in tags[COUNT_TAGS[0]].split(",")]
        nodata, not_finite[task.label] = (int(tags[name]) for name in COUNT_TAGS[1:])
        total = sum(counts)
        shares = {name: n / total for name, n in zip(task.names, counts, strict=True) if n}
        maps.append(MapFile(task.label, path, path.stat().st_size, shares, task))
    return ZonalResult(
        maps=tuple(maps),
        tiles=target.folder / f"{target.name}_tiles.gpkg" if target.tiles else None,
        nodata_share=nodata / max(nodata + total + not_finite[task.label], 1),
        n_blocks=len(plan.blocks_inside()),
        n_computed=0,
        n_windows=plan.n_windows,
        recompute_factor=plan.recompute_factor,
        seconds=time.monotonic() - started,
        extras=tuple(target.folder / name for name in target.extras.names(target.name, ref.tasks)),
        not_finite=not_finite,
        already_complete=True,
    )
