"""Stand-ins for `run_job` that die; in a module of their own because worker processes import them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from flairhub.ingest.job import Job, JobResult
from flairhub.ingest.patch_shards import run_job

VICTIM = "SENTINEL2_TS/000003"


def die_once(job: Job, store: str, overlap: bool) -> JobResult:
    """Kill the worker in the middle of the victim, the first time; it leaves a temporary file."""
    marker = Path(store + ".died")
    if job.id == VICTIM and not marker.exists():
        marker.touch()
        folder = Path(store) / "SENTINEL2_TS/data/c/3/0/0/0"
        folder.mkdir(parents=True)
        (folder / ".0.0123456789ab.partial").write_bytes(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    return run_job(job, store, overlap)


def die_always(job: Job, store: str, overlap: bool) -> JobResult:
    """Kill the worker that does the victim, every time."""
    if job.id == VICTIM:
        os.kill(os.getpid(), signal.SIGKILL)
    return run_job(job, store, overlap)


def fail_always(job: Job, store: str, overlap: bool) -> JobResult:
    """Fail at the victim as a broken disk does."""
    if job.id == VICTIM:
        raise OSError(5, "Input/output error")
    return run_job(job, store, overlap)


def no_room(job: Job, store: str, overlap: bool) -> JobResult:
    """Fail as on a full disk."""
    raise OSError(28, "No space left on device")
