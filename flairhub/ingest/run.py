"""`ingest`: the files of patches to a cube."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flairhub.cube import (
    FORMAT_VERSION,
    INGEST,
    ROOT_KEY,
    GroupResult,
    create_store,
    fill_store,
    open_cube,
    require_little_endian,
)
from flairhub.errors import CubeError, DataError, FlairhubError, JobError, UsageError
from flairhub.ingest.job import Entry, Job, JobResult
from flairhub.ingest.origins import Origins
from flairhub.ingest.patch_shards import run_job
from flairhub.ingest.patch_sources import Source, modalities_of_config, restrict, source_of_config, source_of_folder
from flairhub.ingest.plan import AverageRequest, Options, Plan, Planner
from flairhub.ingest.statistics import add_all, summarise
from flairhub.ingest.store import StoreKind, StoreRun, reading, writing
from flairhub.jobs import folder_bytes, is_disk_full, job_workers, run_jobs, to_disk, usable_cores, write_file
from flairhub.modalities import MODALITIES, modality
from flairhub.progress import Progress, silent
from flairhub.tasks import default_task, level_sizes

if TYPE_CHECKING:
    from flairhub.config import Paths, TrainConfig

logger = logging.getLogger(__name__)

REPORT = "report.json"

NODATA_CLASSES = "nodata_classes"
"""Attribute of label groups: how many files declare a class as nodata."""

MAX_SKIPPED = 0.01
"""Default share of files that may be bad before an ingest with `on_error="skip"` counts as failed."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did.

    Attributes:
        cube: The store.
        modalities: What it holds.
        n_patches: Patches.
        n_files: Source files, all modalities together.
        n_jobs: Shards in all.
        n_reused: Shards that an earlier run had finished.
        skipped: (modality, patch id, reason) of bad patches recorded as missing.
        invalid: By image and series, pixels (of a series: of all dates) without data.
        max_skipped: Share of the files that may be skipped.
        n_bytes: Size of the store.
        seconds: Wall time of this run.
        already_complete: Nothing had to be done.
    """

    cube: Path
    modalities: tuple[str, ...]
    n_patches: int
    n_files: int
    n_jobs: int
    n_reused: int
    skipped: tuple[tuple[str, str, str], ...]
    invalid: dict[str, int]
    max_skipped: float
    n_bytes: int
    seconds: float
    already_complete: bool

    @property
    def skipped_share(self) -> float:
        """Share of the source files that were skipped, 0-1."""
        return len(self.skipped) / self.n_files

    @property
    def too_many_skipped(self) -> bool:
        """True when more was skipped than the caller allows; the command then exits with 1."""
        return self.skipped_share > self.max_skipped


KIND = StoreKind("cube", ROOT_KEY, FORMAT_VERSION, "made from other files, modalities or options", mends=False)

FILES_WORTH_WORKERS = 4000
"""Below, starting processes takes longer than reading the files: about 10 ms each."""


def ingest(
    config: TrainConfig | Paths | None = None,
    *,
    cube: str | Path,
    root: str | Path | None = None,
    modalities: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    overwrite: bool = False,
    workers: int | None = 0,
    scheduler: str | None = None,
    lock: bool = True,
    on_error: str = "raise",
    max_skipped: float = MAX_SKIPPED,
    codec: str = "balanced",
    shard: int | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Convert source files to a cube; a run that was stopped continues when called again.

    Args:
        config: Training configuration, or its path or paths: its CSVs name the files, its modalities, filter and
            averages what is stored.
        cube: Folder of the store.
        root: Folder in the published layout, instead of the configuration's CSVs; without a configuration all its
            modalities are taken.
        modalities: Only these.
        domains: Only these, e.g. `D012-2019`.
        overwrite: Replace a cube made from another plan.
        workers: Local dask worker processes; 0 = this process, None = one per core where that pays. Scripts that ask
            for any need an `if __name__ == "__main__"` guard.
        scheduler: Address of a dask scheduler whose workers see the same files; without it and without `workers`, the
            configuration's `hardware.scheduler`.
        lock: Use the locks of the file system; False only where it has none.
        on_error: `raise` stops at the first bad file, `skip` records the patch as missing.
        max_skipped: Share of the files, 0-1, above which the report's `too_many_skipped` is set.
        codec: `balanced`, `fast`, `dense` or `none`.
        shard: Patches per shard, None = by size.
        progress: Told the number of finished shards.

    Raises:
        DataError: A source file is missing, damaged, or not what it should be.
        OutputExistsError: The cube exists and was made from another plan.
        LockError: Another process writes the cube, or the file system has no locks.
        CubeError: The disk is full, or jobs failed.
        JobError: The scheduler or all workers are gone.
        UsageError: Contradictory arguments.
    """
    started = time.perf_counter()
    if config is not None:
        from flairhub.config import load_train_config

        config = load_train_config(config)
    _check_arguments(config, root, on_error, workers, max_skipped)
    require_little_endian()
    for name in modalities or ():
        modality(name)
    if config is not None and not workers:
        scheduler = scheduler or config.hardware.scheduler
    with reading():
        source = _source(config, root, modalities, domains)
    options = Options(codec, shard, _averages(config, source), _level_sizes(config, source), skip=on_error == "skip")
    with writing(cube, lock) as path:
        plan = Planner(source, options).plan()
        states = {job.id: job.state(plan.digest) for job in plan.jobs}
        store = StoreRun(path, KIND, plan.digest, states, "ingest", progress or silent)
        complete = store.prepare(overwrite, partial(create_store, template=plan.template), options.skip)
        if not complete:
            origins = _work(store, plan, workers, scheduler)
            store.finish(partial(_fill, store, plan, origins))
        return _report(store, plan, complete, max_skipped, started)


def choose_workers(jobs: Sequence[Job]) -> int:
    """Return how many worker processes pay: one per core, or 0 (this process) for few files or a single core."""
    n_files = sum(file is not None for job in jobs for file in job.files)
    return 0 if n_files < FILES_WORTH_WORKERS or usable_cores() == 1 else usable_cores()


def _work(store: StoreRun, plan: Plan, workers: int | None, scheduler: str | None) -> Origins:
    """Do the jobs that are not done, then again those with patches that lie elsewhere, without these."""
    store.report_progress()
    n_patches = len(plan.template.columns["patch_id"])
    origins = Origins(plan.jobs, n_patches, min(min(group.gsd) for group in plan.template.groups))
    for job in plan.jobs:
        entry = store.done.get(job.id)
        if entry is not None and entry.result is not None:
            origins.put(job, entry.result.origins)
    left = [job for job in plan.jobs if job.id not in store.done]
    workers = choose_workers(left) if workers is None else workers
    _do(store, origins, left, min(workers, len(left)), scheduler or ("processes" if workers else None))
    misplaced = origins.misplaced()
    again = [job for job in plan.jobs if job.id in misplaced]
    _do(store, origins, [replace(job, problems={**job.problems, **misplaced[job.id]}) for job in again], 0, None)
    return origins


def _do(store: StoreRun, origins: Origins, jobs: Sequence[Job], workers: int, scheduler: str | None) -> None:
    """Do jobs; a bad file or a full disk ends it, any other failure is reported after the others are done."""
    if not jobs:
        return
    failures: list[str] = []
    with job_workers(workers, scheduler) as pool:
        # Where reading has the process for itself, a second thread encodes beside it.
        overlap = pool.executor is None and usable_cores() > 1
        function = partial(_kept, partial(run_job, store=str(store.path), overlap=overlap), str(store.path))
        for job, result in run_jobs(pool, function, jobs, noun="shard", name=_named, errors="yield"):
            if isinstance(result, JobError):
                failures.append(str(result))
            elif isinstance(result, Exception):
                if isinstance(result, FlairhubError) or is_disk_full(result):
                    raise result
                failures.append(f"{_named(job)}: {type(result).__name__}: {result}")
            else:
                if job.state(store.plan) != store.states[job.id]:
                    raise DataError(
                        f"{_named(job)}: source files changed while they were read. What is finished is kept: run the "
                        "same command again when nobody writes them."
                    )
                origins.put(job, result.origins)
                if not job.skip:
                    origins.check(job)
                store.record(job.id, result.files, skipped=result.skipped, result=result)
    if failures:
        shown = "\n".join(f"  {line}" for line in failures[:5])
        raise CubeError(
            f"{len(failures)} of {store.n_jobs} shards failed, the others are done; run again to continue.\n{shown}"
        )


def _kept(do: Callable[[Job], JobResult], store: str, job: Job) -> JobResult:
    """Do a job and have its files on disk, so that no journal line outlives them when the power fails."""
    result = do(job)
    to_disk(Path(store) / name for name in result.files)
    return result


def _named(job: Job) -> str:
    ids = ", ".join(job.patch_ids[:3]) + (f", ... ({len(job.patch_ids)} patches)" if len(job.patch_ids) > 3 else "")
    return f"{job.id} ({ids})"


def _fill(store: StoreRun, plan: Plan, origins: Origins) -> None:
    """Write what the jobs gave: statistics, tables, report."""
    results = {}
    for group in plan.template.groups:
        jobs = [job for job in plan.jobs if job.modality == group.name]
        jobs.sort(key=lambda job: job.shard)
        present = np.zeros(len(plan.template.columns["patch_id"]), dtype=bool)
        for job in jobs:
            bad = {patch_id for patch_id, _ in store.done[job.id].skipped}
            pairs = zip(job.files, job.patch_ids, strict=True)
            taken = [file is not None and patch_id not in bad for file, patch_id in pairs]
            present[job.first : job.first + len(taken)] = taken
        tallies = [result.tally for job in jobs if (result := store.done[job.id].result) is not None]
        whole = add_all(tallies)
        attributes = summarise(whole, MODALITIES[group.name].bands, plan.level_sizes[group.name])
        if plan.level_sizes[group.name] and whole.nodata:
            numbers = Counter(int(number) for _, number in whole.nodata)
            attributes[NODATA_CLASSES] = {str(number): numbers[number] for number in sorted(numbers)}
            whole = replace(whole, nodata=())
            for text in nodata_classes(group.name, attributes):
                logger.warning("%s", text)
        results[group.name] = GroupResult(present, attributes, *whole.tables(len(present)))
    if not any(result.present.any() for result in results.values()):
        raise DataError(f"{store.path}: every patch was skipped, the cube would be empty.")
    write_report(store.path, plan.jobs, store.done, {name: result.attributes for name, result in results.items()})
    fill_store(store.path, plan.template, origins.chosen(), results)


def _report(store: StoreRun, plan: Plan, already_complete: bool, max_skipped: float, started: float) -> IngestReport:
    """Return what was done since `started` (seconds of `time.perf_counter`)."""
    names = tuple(group.name for group in plan.template.groups)
    cube = open_cube(store.path)
    return IngestReport(
        cube=store.path,
        modalities=names,
        n_patches=len(plan.template.columns["patch_id"]),
        n_files=sum(file is not None for job in plan.jobs for file in job.files),
        n_jobs=store.n_jobs,
        n_reused=store.n_reused,
        skipped=tuple(skipped_patches(plan.jobs, store.done)),
        invalid=invalid_pixels({name: cube.info(name) for name in names}),
        max_skipped=max_skipped,
        n_bytes=folder_bytes(store.path),
        seconds=time.perf_counter() - started,
        already_complete=already_complete,
    )


def nodata_classes(label: str, attributes: Mapping[str, Any], names: Sequence[str] = ()) -> list[str]:
    """Return a sentence per class that label files declare as nodata: its pixels count nowhere.

    Args:
        label: Name of the label set.
        attributes: Of its group.
        names: Class names; empty = the published ones of the first level.
    """
    known = names or default_task(label).names
    declared = {int(number): count for number, count in attributes.get(NODATA_CLASSES, {}).items()}
    return [
        f"{label}: {count} files declare {number} as nodata, which is class {number}"
        f"{f' ({known[number]})' if number < len(known) else ''}: its pixels in them are no labels and count nowhere."
        for number, count in declared.items()
    ]


def skipped_patches(jobs: Sequence[Job], done: dict[str, Entry]) -> list[tuple[str, str, str]]:
    """Return (modality, patch id, reason) of all bad patches, by modality and storage order."""
    ordered = sorted(jobs, key=lambda job: (job.rank, job.shard))
    return [(job.modality, patch_id, reason) for job in ordered for patch_id, reason in done[job.id].skipped]


def invalid_pixels(attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return the pixels without data by modality, from the attributes of the groups; labels are left out."""
    return {name: facts["statistics"][0]["invalid"] for name, facts in attributes.items() if facts.get("statistics")}


def write_report(
    store: Path, jobs: Sequence[Job], done: dict[str, Entry], attributes: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write `ingest/report.json`: files, missing and skipped patches, pixels without data by modality.

    No times, so that bytes repeat.
    """
    names = list(dict.fromkeys(job.modality for job in sorted(jobs, key=lambda job: job.rank)))
    files_of = {name: [file for job in jobs if job.modality == name for file in job.files] for name in names}
    skipped = skipped_patches(jobs, done)
    document = {
        "files": {name: sum(file is not None for file in files) for name, files in files_of.items()},
        "missing": {name: sum(file is None for file in files) for name, files in files_of.items()},
        "invalid": invalid_pixels(attributes),
        "skipped": [{"modality": name, "patch_id": patch, "reason": reason} for name, patch, reason in skipped],
    }
    write_file(store / INGEST / REPORT, [json.dumps(document, indent=2).encode()])


def _source(
    config: TrainConfig | None, root: str | Path | None, modalities: Sequence[str] | None, domains: Sequence[str] | None
) -> Source:
    """Collect the patches and files that are asked for."""
    if root is None:
        source = source_of_config(config, modalities)
    else:
        source = source_of_folder(Path(root))
        if config is not None and modalities is None:
            required, optional = modalities_of_config(config)
            modalities = [*required, *(name for name in optional if name in source.files)]
    return restrict(source, modalities, domains)


def _check_arguments(config: Any, root: Any, on_error: str, workers: int | None, max_skipped: float) -> None:
    if config is None and root is None:
        raise UsageError("nothing to ingest: pass a configuration (--config) or a folder (--root).")
    if on_error not in ("raise", "skip"):
        raise UsageError(f"on_error: got {on_error!r}, expected raise or skip.")
    if not 0 <= max_skipped <= 1:
        raise UsageError(f"max_skipped: got {max_skipped}, expected a share between 0 and 1.")
    if workers is not None and workers < 0:
        raise UsageError(f"workers: got {workers}, expected 0 or more.")


def _averages(config: TrainConfig | None, source: Source) -> dict[str, AverageRequest]:
    """Period means that the configuration asks for, of the series that are ingested."""
    if config is None:
        return {}
    from flairhub.config import input_preparations
    from flairhub.timeseries import SeriesPreparation

    return {
        name: AverageRequest(preparation.average, preparation.cloud_filter)
        for name, preparation in input_preparations(config).items()
        if isinstance(preparation, SeriesPreparation) and preparation.average and name in source.files
    }


def _level_sizes(config: TrainConfig | None, source: Source) -> dict[str, tuple[int, ...]]:
    """Classes per level: the published ones, but the configured number at the level that is trained on."""
    sizes = {name: level_sizes(name) for name in source.files if level_sizes(name)}
    if config is not None:
        from flairhub.config import label_tasks

        for task in label_tasks(config):
            if task.label in sizes:
                levels = list(sizes[task.label])
                levels[task.level - 1] = task.n_classes
                sizes[task.label] = tuple(levels)
    return sizes
