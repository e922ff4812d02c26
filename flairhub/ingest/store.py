"""A store in the making, of patches or of a zone: where it may be, what is finished, when it is complete."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flairhub.cube import INGEST, JOURNAL, METADATA_JOB, ROOT_FILE, contents_digest, root_attributes, set_status
from flairhub.errors import CubeError, DataError, OutputExistsError, UsageError
from flairhub.ingest.job import Entry
from flairhub.jobs import (
    Journal,
    discard_folder,
    explained,
    file_checksum,
    place_folder,
    reach,
    remove_leftovers,
    sweep,
    to_disk,
    writer_lock,
)
from flairhub.modalities import MODALITIES
from flairhub.progress import Progress

logger = logging.getLogger(__name__)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""Also a URL that went through `Path`, which makes one slash of two."""

_GROUPS = "|".join(map(re.escape, MODALITIES))
_SHARD = re.compile(rf"({_GROUPS})/([a-z-]+/)?[a-z_]+/c(/\d+)+")
_OF_A_STORE = re.compile(
    rf"zarr\.json|(patches|{INGEST}|{_GROUPS})/([A-Za-z_-]+/)*zarr\.json|{_SHARD.pattern}|patches/[a-z_]+/c/0"
    rf"|({_GROUPS})/([a-z-]+/)?[a-z_]+/c|{INGEST}/(journal\.jsonl|report\.json)|([A-Za-z0-9_.-]+/)*\.[^/]+\.partial"
)


@contextmanager
def writing(cube: str | Path, lock: bool = True) -> Iterator[Path]:
    """Hold the right to write a cube; yield its path without symbolic links, so that one store has one lock.

    Args:
        cube: Folder of the store.
        lock: Use the locks of the file system; see `flairhub.jobs.writer_lock`.

    Raises:
        UsageError: No cube can be there.
        LockError: Another process writes it, or the file system has no locks.
        CubeError: The disk is full, or the system refuses.
    """
    if _URL.match(str(cube)):
        raise UsageError(f"{cube}: a cube is written to a local folder. Copy it to its place when it is complete.")
    with explained(Path(cube), CubeError):
        path = Path(cube).resolve()
    if not path.name:
        raise UsageError(f"{path}: no place for a cube. Name a folder that does not exist yet.")
    with explained(path, CubeError):
        around = next((parent for parent in path.parents if os.path.isfile(parent / ROOT_FILE)), None)
        if around is not None:
            raise UsageError(f"{path} lies inside the Zarr store {around}. Choose another path.")
        with writer_lock(path, "cube", lock):
            yield path


@contextmanager
def reading() -> Iterator[None]:
    """Turn what the system says about a source folder into a DataError.

    Raises:
        DataError: A folder or file that cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror or error}.") from error


def journal_of(store: Path) -> Journal:
    """Return the journal of a store; see `flairhub.ingest.job.Entry` for its records."""
    return Journal(store / INGEST / JOURNAL)


def is_leftover(folder: Path) -> bool:
    """True for what an ingest left that has no readable root metadata any more: two at once, or a damaged file.

    Nothing but files of a store of ours may be in it, at the places where an ingest writes them, and at least one that
    only an ingest writes: somebody's data are never taken for it.
    """
    if not folder.is_dir() or folder.is_symlink():
        return False
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    if not names or not all(_OF_A_STORE.fullmatch(name) for name in names):
        return False
    return any(_SHARD.fullmatch(name) for name in names) or any(
        isinstance(record.get("job"), str) for record in journal_of(folder).read()
    )


def read_entries(store: Path) -> dict[str, Entry]:
    """Return the finished jobs of a store by their ids; of a job that was done again, the last."""
    entries = map(Entry.from_json, journal_of(store).read())
    return {entry.job: entry for entry in entries}


@dataclass(frozen=True)
class StoreKind:
    """What an ingest makes, for decisions and messages about what exists already.

    Attributes:
        noun: `cube` or `zone cube`.
        key: Its root attribute.
        format: Version that is written.
        other_plan: How one of another plan differs.
        mends: Shards that a complete store has lost can be made again; otherwise its statistics would be lost.
    """

    noun: str
    key: str
    format: int
    other_plan: str
    mends: bool


class StoreRun:
    """The state of one ingest while it holds the writer lock.

    Attributes:
        path: The store.
        plan: Digest of what is ingested and how.
        states: By job, the digest of what it is done from.
        done: Finished jobs by id.
        n_jobs: All jobs.
        n_reused: Jobs that an earlier run had finished.
    """

    def __init__(
        self, path: Path, kind: StoreKind, plan: str, states: Mapping[str, str], stage: str, progress: Progress
    ):
        """Begin.

        Args:
            path: The store.
            kind: What it is.
            plan: Digest of what is to be ingested and how.
            states: By job, the digest of what it is done from.
            stage: Name of the work for `progress`.
            progress: Told about finished jobs.
        """
        self.path, self.done, self.n_jobs, self.n_reused = path, dict[str, Entry](), len(states), 0
        self._kind, self.plan, self.states = kind, plan, states
        self._stage, self._progress = stage, progress
        self._journal = journal_of(path)
        self._metadata: Entry | None = None

    def prepare(self, overwrite: bool, create: Callable[[Path], None], skip: bool = True) -> bool:
        """Make the store, or take over what an earlier run finished; True when there is nothing to do.

        Args:
            overwrite: Replace a store of another plan.
            create: Writes the empty store to a new folder.
            skip: Jobs that left patches out count as finished.

        Raises:
            OutputExistsError: What is at the path is not replaced.
        """
        keep = self.path.exists() and self._is_usable(overwrite)
        remove_leftovers(self.path)
        if not keep:
            if self.path.exists():
                discard_folder(self.path)
            place_folder(self.path, create)
            reach("store")
        swept = sweep(self.path)
        if swept:
            logger.info("%s: removed %d leftovers of a stopped run", self.path, swept)
        reasons = self._take_over(skip)
        if (root_attributes(self.path, self._kind.key) or {})["status"] != "complete":
            return False
        if not reasons:
            # A kill between the status and the short journal left the long one.
            self._shorten_journal()
            return True
        if not self._kind.mends:
            listed = "; ".join(text.format(count, self.n_jobs) for text, count in reasons.items())
            raise OutputExistsError(f"{self.path}: complete, but {listed}. Pass --overwrite to replace the cube.")
        set_status(self.path, "building", self._kind.key)
        return False

    def _is_usable(self, overwrite: bool) -> bool:
        """Decide about what is at the path: True keeps it, False has it replaced."""
        if self.path.is_dir() and not any(self.path.iterdir()):
            return False
        attributes, noun = root_attributes(self.path, self._kind.key), self._kind.noun
        if attributes is None:
            if not is_leftover(self.path):
                raise OutputExistsError(
                    f"{self.path} exists and is no {noun}; it is never removed. Choose another path."
                )
            if overwrite:
                return False
            raise OutputExistsError(
                f"{self.path}: what is left of a {noun} whose {ROOT_FILE} is absent or damaged. Pass --overwrite to "
                "replace it."
            )
        if overwrite:
            return False
        if attributes.get("format") != self._kind.format:
            difference = f"of format {attributes.get('format')!r}, this version writes {self._kind.format}"
        elif attributes.get("plan") != self.plan:
            difference = self._kind.other_plan
        else:
            return True
        raise OutputExistsError(f"{self.path}: a {noun} exists, {difference}. Pass --overwrite to replace it.")

    def _take_over(self, skip: bool) -> Counter[str]:
        """Collect the jobs that are finished; return how many are not, by reason."""
        entries = read_entries(self.path)
        reasons: Counter[str] = Counter()
        self._metadata = entries.get(METADATA_JOB)
        for job, state in self.states.items():
            entry = entries.get(job)
            if entry is None or not entry.is_whole(self.path):
                reasons["{} of {} shards are gone, cut off, or not in the journal"] += 1
            elif entry.state != state:
                reasons["the source files of {} of {} shards have changed since"] += 1
            elif entry.skipped and not skip:
                reasons["bad patches of {} of {} shards were left out, and --on-error is raise"] += 1
            else:
                self.done[job] = entry
        self.n_reused = len(self.done)
        return reasons

    def report_progress(self) -> None:
        """Report how many jobs are finished."""
        self._progress(self._stage, len(self.done), self.n_jobs)

    def record(self, job: str, files: Mapping[str, tuple[int, int]], **more: Any) -> None:
        """Note a finished job, whose files are on disk; on return it survives a kill. `more`: see `Entry`."""
        reach("shard")
        self.done[job] = entry = Entry(job, self.states[job], files, **more)
        self._journal.append(entry.to_json())
        self.report_progress()

    def finish(self, fill: Callable[[], None] | None = None) -> None:
        """Call the store complete, in one step, after all of it is on disk.

        Args:
            fill: Writes what the jobs gave to the metadata; safe to repeat.
        """
        # A worker that was killed left its temporary file although its job was done again elsewhere.
        sweep(self.path)
        self._check_same()
        if fill is not None:
            fill()
        to_disk(path for path in self.path.rglob("*") if path.is_file())
        reach("tables")
        self._check_same()
        self._metadata = Entry(METADATA_JOB, self.plan, self._other_files())
        self._journal.append(self._metadata.to_json())
        set_status(self.path, "complete", self._kind.key, contents_digest(self._final_records()))
        reach("complete")
        self._shorten_journal()

    def _check_same(self) -> None:
        """See that nobody has put another store, or files of another one, in the place of this one meanwhile."""
        attributes = root_attributes(self.path, self._kind.key) or {}
        strange = [job for job, entry in self.done.items() if not entry.is_whole(self.path)]
        if attributes.get("plan") != self.plan or strange:
            raise CubeError(
                f"{self.path}: another process has written to this {self._kind.noun} at the same time, it is not "
                "complete. See that only one does, and run the same command again."
            )

    def _other_files(self) -> dict[str, tuple[int, int]]:
        """Length and CRC-32C of every file that belongs to no job, but for the two that say so."""
        known = {name for entry in self.done.values() for name in entry.files} | {ROOT_FILE, f"{INGEST}/{JOURNAL}"}
        paths = {path.relative_to(self.path).as_posix(): path for path in self.path.rglob("*") if path.is_file()}
        return {name: file_checksum(paths[name]) for name in sorted(paths.keys() - known)}

    def _final_records(self) -> list[Mapping[str, Any]]:
        """Return the journal of the finished store: sorted entries, without what its metadata holds."""
        entries = [*self.done.values(), *([] if self._metadata is None else [self._metadata])]
        return [entry.shortened().to_json() for entry in sorted(entries, key=lambda entry: entry.job)]

    def _shorten_journal(self) -> None:
        self._journal.rewrite(self._final_records())
