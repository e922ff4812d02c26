"""What is finished: one checksummed line per shard, written after the shard itself."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from flairhub.cube.spec import INGEST, JOURNAL
from flairhub.ingest.job import JobResult
from flairhub.ingest.statistics import Tally
from flairhub.jobs import reach, write_file


@dataclass(frozen=True)
class Entry:
    """A finished job.

    Attributes:
        job: Its id.
        state: Digest of the plan and the source files it was done from.
        files: (length, CRC-32C) of the files it wrote, by path below the store.
        skipped: (patch id, reason) of patches recorded as missing.
        result: What the job told; None in the journal of a finished cube, where the metadata holds it.
    """

    job: str
    state: str
    files: dict[str, tuple[int, int]]
    skipped: tuple[tuple[str, str], ...]
    result: JobResult | None


class Journal:
    """The journal of one store; only the holder of the writer lock writes it."""

    def __init__(self, store: Path):
        """Name the file; it need not exist."""
        self.store, self.path = store, store / INGEST / JOURNAL

    def read(self) -> dict[str, Entry]:
        """Return finished jobs; lines that were cut off or damaged count as not written."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        entries = {}
        for line in lines:
            entry = _parse(line)
            if entry is not None:
                entries[entry.job] = entry
        return entries

    def append(self, result: JobResult, state: str) -> None:
        """Add a finished job; on return it survives a kill."""
        self._append(
            {
                "job": result.job,
                "state": state,
                "files": result.files,
                "skipped": result.skipped,
                "tally": result.tally.to_json(),
                "origins": base64.b64encode(result.origins.astype("<f8").tobytes()).decode(),
            }
        )

    def note(self, entry: Entry) -> None:
        """Add a finished job that told nothing but its files; on return it survives a kill."""
        fields = {"job": entry.job, "state": entry.state, "files": entry.files, "skipped": entry.skipped}
        self._append(fields)

    def _append(self, fields: dict[str, Any]) -> None:
        line = _format(fields)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as stream:
            # A line that a kill cut off must not swallow the next one; an empty line is nothing.
            half = len(line) // 2
            stream.write(b"\n" + line[:half])
            stream.flush()
            reach("journal-half")
            stream.write(line[half:])
            stream.flush()
            os.fsync(stream.fileno())
            reach("journal-line")

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Replace the journal by the entries, sorted and without what the finished metadata holds."""
        lines = []
        for entry in sorted(entries, key=lambda entry: entry.job):
            fields = {"job": entry.job, "state": entry.state, "files": entry.files, "skipped": entry.skipped}
            lines.append(_format(fields))
        write_file(self.path, [b"\n".join([*lines, b""])], durable=True)

    def holds(self, entry: Entry) -> bool:
        """True when the files of an entry are there with their lengths."""
        for name, (length, _) in entry.files.items():
            try:
                if os.stat(self.store / name).st_size != length:
                    return False
            except OSError:
                return False
        return True


def _format(fields: dict[str, Any]) -> bytes:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return f"{google_crc32c.value(text):08x} ".encode() + text


def _parse(line: bytes) -> Entry | None:
    checksum, _, text = line.partition(b" ")
    try:
        if int(checksum, 16) != google_crc32c.value(text):
            return None
        fields = json.loads(text)
    except ValueError:
        return None
    files = {name: (length, crc) for name, (length, crc) in fields["files"].items()}
    skipped = tuple((patch_id, reason) for patch_id, reason in fields["skipped"])
    result = None
    if "tally" in fields:
        tally = Tally.from_json(fields["tally"])
        result = JobResult(fields["job"], files, _origins(fields["origins"]), tally, skipped)
    return Entry(fields["job"], fields["state"], files, skipped, result)


def _origins(text: str) -> NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(text), dtype="<f8").reshape(-1, 2).copy()
