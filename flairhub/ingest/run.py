"""`ingest`: the one entry point."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.codecs import require_little_endian
from flairhub.cube.cube import open_cube
from flairhub.cube.spec import FORMAT_VERSION
from flairhub.cube.template import GroupResult, create_store, finish_store, root_attributes, sweep
from flairhub.errors import CubeError, DataError, FlairhubError, OutputExistsError, UsageError
from flairhub.geo import ALIGNMENT_TOLERANCE_PX
from flairhub.ingest.execute import run_jobs
from flairhub.ingest.job import Job
from flairhub.ingest.journal import Entry, Journal
from flairhub.ingest.lock import writer_lock
from flairhub.ingest.plan import AverageRequest, Options, Plan, Planner
from flairhub.ingest.sources import Source, modalities_of_config, restrict, source_of_config, source_of_folder
from flairhub.ingest.statistics import summarise
from flairhub.modalities import MODALITIES, modality
from flairhub.progress import Progress, silent
from flairhub.tasks import level_sizes

if TYPE_CHECKING:
    from flairhub.config import TrainConfig

logger = logging.getLogger(__name__)

STAGE = "ingest"


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did.

    Attributes:
        cube: The store.
        modalities: What it holds.
        n_patches: Patches.
        n_jobs: Shards in all.
        n_reused: Shards that an earlier run had finished.
        skipped: (modality, patch id, reason) of bad patches recorded as missing.
        n_bytes: Size of the store.
        seconds: Wall time of this run.
        already_complete: Nothing had to be done.
    """

    cube: Path
    modalities: tuple[str, ...]
    n_patches: int
    n_jobs: int
    n_reused: int
    skipped: tuple[tuple[str, str, str], ...]
    n_bytes: int
    seconds: float
    already_complete: bool


def ingest(
    config: TrainConfig | None = None,
    *,
    cube: str | Path,
    root: str | Path | None = None,
    modalities: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    overwrite: bool = False,
    workers: int = 0,
    scheduler: str | None = None,
    on_error: str = "raise",
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
        workers: Local dask worker processes; 0 = this process. Scripts need an `if __name__ == "__main__"` guard.
        scheduler: Address of a dask scheduler whose workers see the same files.
        on_error: `raise` stops at the first bad file, `skip` records the patch as missing.
        codec: `balanced`, `fast`, `dense` or `none`.
        shard: Patches per shard, None = by size.
        progress: Told the number of finished shards.

    Raises:
        DataError: A source file is missing, damaged, or not what it should be.
        OutputExistsError: The cube exists and was made from another plan.
        CubeError: Another process writes the cube, or jobs failed.
        UsageError: Contradictory arguments.
    """
    started = time.perf_counter()
    _check_arguments(config, root, on_error, workers)
    require_little_endian()
    for name in modalities or ():
        modality(name)
    if root is None:
        source = source_of_config(config, modalities)
    else:
        source = source_of_folder(Path(root))
        if config is not None and modalities is None:
            required, optional = modalities_of_config(config)
            modalities = [*required, *(name for name in optional if name in source.files)]
    source = restrict(source, modalities, domains)
    options = Options(codec, shard, _averages(config, source), _level_sizes(config, source), skip=on_error == "skip")
    path = Path(cube).absolute()
    with writer_lock(path):
        plan = Planner(source, options).plan()
        run = _Run(path, plan, progress or silent, started)
        if run.prepare(overwrite):
            return run.report(already_complete=True)
        run.work(workers, scheduler)
        run.finish()
        return run.report(already_complete=False)


class _Run:
    """The state of one ingest while it holds the writer lock."""

    def __init__(self, path: Path, plan: Plan, progress: Progress, started: float):
        self._path, self._plan, self._progress, self._started = path, plan, progress, started
        self._journal = Journal(path)
        self._states = {job.id: job.state(plan.digest) for job in plan.jobs}
        self._done: dict[str, Entry] = {}
        self._reused = 0
        self._origins = Origins(plan)

    def prepare(self, overwrite: bool) -> bool:
        """Make the store, or find what an earlier run finished; True when there is nothing to do."""
        partial = self._path.with_name(self._path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        if self._path.exists() and not self._usable(overwrite):
            shutil.rmtree(self._path)
        if not self._path.exists():
            create_store(partial, self._plan.template)
            partial.rename(self._path)
        swept = sweep(self._path)
        if swept:
            logger.info("%s: removed %d leftovers of a stopped run", self._path, swept)
        attributes = root_attributes(self._path)
        assert attributes is not None
        found = self._journal.read()
        for job in self._plan.jobs:
            entry = found.get(job.id)
            stale = entry is None or entry.state != self._states[job.id] or (entry.skipped and not job.skip)
            if entry is not None and not stale and self._journal.holds(entry):
                self._done[job.id] = entry
        self._reused = len(self._done)
        if attributes["status"] == "complete":
            if self._reused < len(self._plan.jobs):
                raise OutputExistsError(
                    f"{self._path}: complete, but the source files of {len(self._plan.jobs) - self._reused} of "
                    f"{len(self._plan.jobs)} shards have changed since. Pass --overwrite to replace the cube."
                )
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

    def work(self, workers: int, scheduler: str | None) -> None:
        """Do the jobs that are not done."""
        total = len(self._plan.jobs)
        self._progress(STAGE, len(self._done), total)
        for job in self._plan.jobs:
            entry = self._done.get(job.id)
            if entry is not None and entry.result is not None:
                self._origins.add(job, entry.result.origins)
        failures: list[tuple[Job, Exception]] = []
        todo = [job for job in self._plan.jobs if job.id not in self._done]
        for job, result in run_jobs(todo, str(self._path), workers, scheduler):
            if isinstance(result, FlairhubError):
                raise result
            if isinstance(result, Exception):
                failures.append((job, result))
                continue
            self._origins.add(job, result.origins)
            state = self._states[job.id]
            self._journal.append(result, state)
            self._done[job.id] = Entry(job.id, state, result.files, result.skipped, result)
            self._progress(STAGE, len(self._done), total)
        if failures:
            raise CubeError(_failure_message(failures, total))

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
            levels = self._plan.level_sizes[group.name]
            attributes = summarise(tallies, MODALITIES[group.name].bands, levels)
            results[group.name] = GroupResult(present, attributes)
        if not any(result.present.any() for result in results.values()):
            raise DataError(f"{self._path}: every patch was skipped, the cube would be empty.")
        finish_store(self._path, self._plan.template, self._origins.values, results)
        self._journal.rewrite(self._done.values())
        open_cube(self._path)

    def report(self, already_complete: bool) -> IngestReport:
        """Return what was done."""
        skipped = [
            (job.modality, patch_id, reason)
            for job in self._plan.jobs
            for patch_id, reason in self._done[job.id].skipped
        ]
        return IngestReport(
            cube=self._path,
            modalities=tuple(group.name for group in self._plan.template.groups),
            n_patches=len(self._plan.template.columns["patch_id"]),
            n_jobs=len(self._plan.jobs),
            n_reused=self._reused,
            skipped=tuple(skipped),
            n_bytes=sum(file.stat().st_size for file in self._path.rglob("*") if file.is_file()),
            seconds=time.perf_counter() - self._started,
            already_complete=already_complete,
        )


class Origins:
    """Where patches lie, told by every modality's files: they must agree to 0.01 pixel of the finest."""

    def __init__(self, plan: Plan):
        """Start without any origin."""
        n_patches = len(plan.template.columns["patch_id"])
        self.values: NDArray[np.float64] = np.full((n_patches, 2), np.nan)
        self._said_by = np.full(n_patches, "", dtype=object)
        self._tolerance = ALIGNMENT_TOLERANCE_PX * min(min(group.gsd) for group in plan.template.groups)

    def add(self, job: Job, origins: NDArray[np.float64]) -> None:
        """Take a job's origins.

        Raises:
            DataError: A file lies elsewhere than another modality's file of the same patch.
        """
        for row, origin in enumerate(origins):
            if np.isnan(origin).any():
                continue
            position = job.first + row
            known = self.values[position]
            if np.isnan(known).any():
                self.values[position], self._said_by[position] = origin, job.files[row]
            elif (abs(known - origin) > self._tolerance).any():
                raise DataError(
                    f"{job.files[row]}: upper left corner {_point(origin)}, expected {_point(known)} as in "
                    f"{self._said_by[position]}. All modalities of a patch cover the same ground "
                    f"(tolerance {self._tolerance:g} m)."
                )


def _point(origin: NDArray[np.float64]) -> str:
    return f"({origin[0]:.3f}, {origin[1]:.3f})"


def _failure_message(failures: Sequence[tuple[Job, Exception]], total: int) -> str:
    lines = []
    for job, error in failures[:5]:
        ids = ", ".join(job.patch_ids[:3]) + (f", ... ({len(job.patch_ids)} patches)" if len(job.patch_ids) > 3 else "")
        lines.append(f"  {job.id} ({ids}): {type(error).__name__}: {error}")
    shown = "\n".join(lines)
    return f"{len(failures)} of {total} shards failed, the others are done; run again to continue.\n{shown}"


def _check_arguments(config: Any, root: Any, on_error: str, workers: int) -> None:
    if config is None and root is None:
        raise UsageError("nothing to ingest: pass a configuration (--config) or a folder (--root).")
    if on_error not in ("raise", "skip"):
        raise UsageError(f"on_error: got {on_error!r}, expected raise or skip.")
    if workers < 0:
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
