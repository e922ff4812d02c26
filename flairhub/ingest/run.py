"""`ingest`: the one entry point."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flairhub.cube.codecs import require_little_endian
from flairhub.cube.cube import open_cube
from flairhub.cube.spec import FORMAT_VERSION
from flairhub.cube.template import GroupResult, create_store, finish_store, root_attributes
from flairhub.errors import CubeError, DataError, FlairhubError, OutputExistsError, UsageError
from flairhub.ingest.execute import choose_workers, run_jobs
from flairhub.ingest.job import Job, JobResult
from flairhub.ingest.journal import Entry, Journal
from flairhub.ingest.origins import Origins
from flairhub.ingest.plan import AverageRequest, Options, Plan, Planner
from flairhub.ingest.sources import Source, modalities_of_config, restrict, source_of_config, source_of_folder
from flairhub.ingest.statistics import add_all, summarise
from flairhub.ingest.summary import MAX_SKIPPED, IngestReport, invalid_pixels, skipped_patches, write_report
from flairhub.ingest.target import make_place, reading, writing
from flairhub.jobs import folder_bytes, is_disk_full, reach, sweep, to_disk
from flairhub.modalities import MODALITIES, modality
from flairhub.progress import Progress, silent
from flairhub.tasks import level_sizes

if TYPE_CHECKING:
    from flairhub.config import TrainConfig

logger = logging.getLogger(__name__)

STAGE = "ingest"


def ingest(
    config: TrainConfig | None = None,
    *,
    cube: str | Path,
    root: str | Path | None = None,
    modalities: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    overwrite: bool = False,
    workers: int | None = 0,
    scheduler: str | None = None,
    on_error: str = "raise",
    max_skipped: float = MAX_SKIPPED,
    codec: str = "balanced",
    shard: int | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Convert source files to a cube; a run that was stopped continues when called again.

    Args:
        config: Training configuration: its CSVs name the files, its modalities, filter and averages what is stored.
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
        on_error: `raise` stops at the first bad file, `skip` records the patch as missing.
        max_skipped: Share of the files, 0-1, above which the report's `too_many_skipped` is set.
        codec: `balanced`, `fast`, `dense` or `none`.
        shard: Patches per shard, None = by size.
        progress: Told the number of finished shards.

    Raises:
        DataError: A source file is missing, damaged, or not what it should be.
        OutputExistsError: The cube exists and was made from another plan.
        CubeError: Another process writes the cube, the disk is full, or jobs failed.
        UsageError: Contradictory arguments.
    """
    started = time.perf_counter()
    _check_arguments(config, root, on_error, workers, max_skipped)
    require_little_endian()
    for name in modalities or ():
        modality(name)
    if config is not None and not workers:
        scheduler = scheduler or config.hardware.scheduler
    with reading():
        source = _source(config, root, modalities, domains)
    options = Options(codec, shard, _averages(config, source), _level_sizes(config, source), skip=on_error == "skip")
    with writing(cube) as path:
        run = _Run(path, Planner(source, options).plan(), progress or silent)
        complete = run.prepare(overwrite)
        if not complete:
            run.work(workers, scheduler)
            run.finish()
        return run.report(complete, max_skipped, started)


class _Run:
    """The state of one ingest while it holds the writer lock."""

    def __init__(self, path: Path, plan: Plan, progress: Progress):
        self._path, self._plan, self._progress = path, plan, progress
        self._journal = Journal(path)
        self._states = {job.id: job.state(plan.digest) for job in plan.jobs}
        self._done: dict[str, Entry] = {}
        self._reused = 0
        n_patches = len(plan.template.columns["patch_id"])
        self._origins = Origins(plan.jobs, n_patches, min(min(group.gsd) for group in plan.template.groups))

    def prepare(self, overwrite: bool) -> bool:
        """Make the store, or find what an earlier run finished; True when there is nothing to do."""
        keep = self._path.exists() and self._usable(overwrite)
        if make_place(self._path, keep, lambda folder: create_store(folder, self._plan.template)):
            reach("store")
        swept = sweep(self._path)
        if swept:
            logger.info("%s: removed %d leftovers of a stopped run", self._path, swept)
        attributes = root_attributes(self._path)
        assert attributes is not None
        found = self._journal.read()
        reasons: Counter[str] = Counter()
        for job in self._plan.jobs:
            entry = found.get(job.id)
            if entry is None or not self._journal.holds(entry):
                reasons["{} of {} shards are gone, cut off, or not in the journal"] += 1
            elif entry.state != self._states[job.id]:
                reasons["the source files of {} of {} shards have changed since"] += 1
            elif entry.skipped and not job.skip:
                reasons["bad patches of {} of {} shards were left out, and --on-error is raise"] += 1
            else:
                self._done[job.id] = entry
        self._reused = len(self._done)
        if attributes["status"] == "complete":
            if reasons:
                told = "; ".join(text.format(count, len(self._plan.jobs)) for text, count in reasons.items())
                raise OutputExistsError(f"{self._path}: complete, but {told}. Pass --overwrite to replace the cube.")
            if any(entry.result is not None for entry in found.values()):
                # Killed between the status and the short journal.
                self._journal.rewrite(self._done.values())
            return True
        return False

    def _usable(self, overwrite: bool) -> bool:
        """Decide about what is at the path: True keeps it, False has it replaced.

        Raises:
            OutputExistsError: Another plan, or no cube.
        """
        if self._path.is_dir() and not any(self._path.iterdir()):
            return False
        attributes = root_attributes(self._path)
        if attributes is None:
            raise OutputExistsError(f"{self._path} exists and is no cube; it is never removed. Choose another path.")
        if overwrite:
            return False
        if attributes.get("format") != FORMAT_VERSION:
            difference = f"of format {attributes.get('format')!r}, this version writes {FORMAT_VERSION}"
        elif attributes.get("plan") != self._plan.digest:
            difference = "made from other files, modalities or options"
        else:
            return True
        raise OutputExistsError(f"{self._path}: a cube exists, {difference}. Pass --overwrite to replace it.")

    def work(self, workers: int | None, scheduler: str | None) -> None:
        """Do the jobs that are not done, then again those with patches that lie elsewhere, without these."""
        self._progress(STAGE, len(self._done), len(self._plan.jobs))
        for job in self._plan.jobs:
            entry = self._done.get(job.id)
            if entry is not None and entry.result is not None:
                self._origins.put(job, entry.result.origins)
        todo = [job for job in self._plan.jobs if job.id not in self._done]
        workers = choose_workers(todo) if workers is None else workers
        self._do(todo, workers, scheduler)
        misplaced = self._origins.misplaced()
        again = [job for job in self._plan.jobs if job.id in misplaced]
        self._do([replace(job, problems={**job.problems, **misplaced[job.id]}) for job in again], 0, None)

    def _do(self, jobs: Sequence[Job], workers: int, scheduler: str | None) -> None:
        failures: list[tuple[Job, Exception]] = []
        for job, told in run_jobs(jobs, str(self._path), workers, scheduler):
            result = told if isinstance(told, Exception) else self._to_disk(told)
            if isinstance(result, Exception):
                if isinstance(result, FlairhubError) or is_disk_full(result):
                    raise result
                failures.append((job, result))
                continue
            reach("shard")
            self._origins.put(job, result.origins)
            if not job.skip:
                self._origins.check(job)
            state = self._states[job.id]
            self._journal.append(result, state)
            self._done[job.id] = Entry(job.id, state, result.files, result.skipped, result)
            self._progress(STAGE, len(self._done), len(self._plan.jobs))
        if failures:
            raise CubeError(_failure_message(failures, len(self._plan.jobs)))

    def finish(self) -> None:
        """Write what the jobs found and mark the cube complete."""
        results = {}
        for group in self._plan.template.groups:
            jobs = [job for job in self._plan.jobs if job.modality == group.name]
            jobs.sort(key=lambda job: job.shard)
            present = np.zeros(len(self._plan.template.columns["patch_id"]), dtype=bool)
            for job in jobs:
                bad = {patch_id for patch_id, _ in self._done[job.id].skipped}
                pairs = zip(job.files, job.patch_ids, strict=True)
                held = [file is not None and patch_id not in bad for file, patch_id in pairs]
                present[job.first : job.first + len(held)] = held
            tallies = [result.tally for job in jobs if (result := self._done[job.id].result) is not None]
            whole = add_all(tallies)
            attributes = summarise(whole, MODALITIES[group.name].bands, self._plan.level_sizes[group.name])
            results[group.name] = GroupResult(present, attributes, *whole.tables(len(present)))
        if not any(result.present.any() for result in results.values()):
            raise DataError(f"{self._path}: every patch was skipped, the cube would be empty.")
        # A worker that was killed left its temporary file although its job was done again elsewhere.
        sweep(self._path)
        attributes = {name: result.attributes for name, result in results.items()}
        write_report(self._path, self._plan.jobs, self._done, attributes)
        finish_store(self._path, self._plan.template, self._origins.chosen(), results)
        self._journal.rewrite(self._done.values())

    def _to_disk(self, result: JobResult) -> JobResult | OSError:
        """Have a job's files on disk, so that no journal line outlives them when the power fails."""
        try:
            to_disk(self._path / name for name in result.files)
        except OSError as error:
            return error
        return result

    def report(self, already_complete: bool, max_skipped: float, started: float) -> IngestReport:
        """Return what was done since `started` (seconds of `time.perf_counter`)."""
        names = tuple(group.name for group in self._plan.template.groups)
        cube = open_cube(self._path)
        return IngestReport(
            cube=self._path,
            modalities=names,
            n_patches=len(self._plan.template.columns["patch_id"]),
            n_files=sum(file is not None for job in self._plan.jobs for file in job.files),
            n_jobs=len(self._plan.jobs),
            n_reused=self._reused,
            skipped=tuple(skipped_patches(self._plan.jobs, self._done)),
            invalid=invalid_pixels({name: cube.info(name) for name in names}),
            max_skipped=max_skipped,
            n_bytes=folder_bytes(self._path),
            seconds=time.perf_counter() - started,
            already_complete=already_complete,
        )


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


def _failure_message(failures: Sequence[tuple[Job, Exception]], total: int) -> str:
    lines = []
    for job, error in failures[:5]:
        ids = ", ".join(job.patch_ids[:3]) + (f", ... ({len(job.patch_ids)} patches)" if len(job.patch_ids) > 3 else "")
        lines.append(f"  {job.id} ({ids}): {type(error).__name__}: {error}")
    shown = "\n".join(lines)
    return f"{len(failures)} of {total} shards failed, the others are done; run again to continue.\n{shown}"


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
