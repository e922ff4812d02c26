"""What is finished: one checksummed line per record, written after the thing itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c

from flairhub.jobs.faults import reach
from flairhub.jobs.placement import write_file


class Journal:
    """A file of records; only the holder of the writer lock writes it.

    A line is the CRC-32C of what follows as eight hexadecimal digits, a blank, and a JSON object with sorted keys.

    Attributes:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path):
        """Name the file."""
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Return the records in the order of their writing; lines that were cut off or damaged count as not written."""
        try:
            return [record for record in self.lines() if record is not None]
        except FileNotFoundError:
            return []

    def lines(self) -> list[dict[str, Any] | None]:
        """Return what each line that is not empty holds, None where it is damaged.

        Raises:
            OSError: The file cannot be read.
        """
        return [_parse(line) for line in self.path.read_bytes().split(b"\n") if line]

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record, JSON-ready; on return it survives a kill and a power failure."""
        line = _format(record)
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

    @staticmethod
    def content(records: Iterable[Mapping[str, Any]]) -> bytes:
        """Return the whole journal of some records."""
        return b"".join(_format(record) + b"\n" for record in records)

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace the journal by the records, in one step; it is not touched where it holds just these already."""
        content = self.content(records)
        if not self.path.is_file() or self.path.read_bytes() != content:
            write_file(self.path, [content], durable=True)


def _format(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    return _checksum(text) + b" " + text


def _checksum(text: bytes) -> bytes:
    return b"%08x" % google_crc32c.value(text)


def _parse(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.partition(b" ")
    if checksum != _checksum(text):
        return None
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
