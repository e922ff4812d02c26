"""What an ingest did: for the caller, and as a file in the cube."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flairhub.cube.spec import INGEST
from flairhub.ingest.job import Job
from flairhub.ingest.journal import Entry
from flairhub.jobs import write_file

REPORT = "report.json"

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
    held = {name: [file for job in jobs if job.modality == name for file in job.files] for name in names}
    skipped = skipped_patches(jobs, done)
    document = {
        "files": {name: sum(file is not None for file in files) for name, files in held.items()},
        "missing": {name: sum(file is None for file in files) for name, files in held.items()},
        "invalid": invalid_pixels(attributes),
        "skipped": [{"modality": name, "patch_id": patch, "reason": reason} for name, patch, reason in skipped],
    }
    write_file(store / INGEST / REPORT, [json.dumps(document, indent=2).encode()])
