"""Jobs: one engine for plans of frozen jobs, one journal, one lock, one way to put files in place, fault points."""

from flairhub.jobs.engine import Stopped, Workers, job_workers, run_jobs, usable_cores
from flairhub.jobs.faults import reach
from flairhub.jobs.journal import Journal
from flairhub.jobs.lock import locks_around, writer_lock
from flairhub.jobs.placement import (
    FileWriter,
    discard_folder,
    file_checksum,
    folder_bytes,
    is_disk_full,
    place_folder,
    placed,
    remove_leftovers,
    sha256_of,
    sweep,
    temporary_name,
    to_disk,
    write_file,
    write_text,
)
from flairhub.jobs.refusals import explained, output_folder, refusals, try_folder

__all__ = [
    "FileWriter",
    "Journal",
    "Stopped",
    "Workers",
    "discard_folder",
    "explained",
    "file_checksum",
    "folder_bytes",
    "is_disk_full",
    "job_workers",
    "locks_around",
    "output_folder",
    "place_folder",
    "placed",
    "reach",
    "refusals",
    "remove_leftovers",
    "run_jobs",
    "sha256_of",
    "sweep",
    "temporary_name",
    "to_disk",
    "try_folder",
    "usable_cores",
    "write_file",
    "write_text",
    "writer_lock",
]
