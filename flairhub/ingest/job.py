"""The unit of work: what it is to do, what it gives, and what the journal keeps of it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flairhub.cube import ArraySpec, AverageTemplate
from flairhub.ingest.archives import file_state
from flairhub.ingest.patch_geotiff import Expectation
from flairhub.ingest.statistics import Tally


@dataclass(frozen=True)
class Job:
    """One whole shard of one modality (and of its averages): the unit of work.

    Attributes:
        id: `<MODALITY>/<shard>`.
        modality: Name.
        rank: Place of the modality in the registry's order.
        shard: Number of the shard.
        first: Position of its first patch in the cube.
        patch_ids: Its patches.
        files: Their files, None = missing.
        masks: Their quality masks where averages need them, else None.
        days: (patch, time) days since 1970-01-01 of a series, `NO_DAY` beyond its dates; None for images and labels.
        expected: What every file must be.
        mask_expected: Likewise for the masks.
        spec: The `data` array.
        averages: Period means to store.
        level_sizes: Classes per level, for labels.
        problems: (patch id, reason) of patches that planning found to be bad.
        skip: Record bad patches as missing instead of stopping.
    """

    id: str
    modality: str
    rank: int
    shard: int
    first: int
    patch_ids: tuple[str, ...]
    files: tuple[str | None, ...]
    masks: tuple[str | None, ...]
    days: NDArray[np.int32] | None
    expected: Expectation
    mask_expected: Expectation | None
    spec: ArraySpec
    averages: tuple[AverageTemplate, ...]
    level_sizes: tuple[int, ...]
    problems: Mapping[str, str]
    skip: bool

    def state(self, plan: str) -> str:
        """Digest of the plan and of the size and modification time of each source file."""
        stats = [file_state(path) for path in (*self.files, *self.masks)]
        return digest([plan, self.id, stats])


@dataclass(frozen=True)
class JobResult:
    """What a finished job tells.

    Attributes:
        job: Its id.
        files: Length and CRC-32C of each file it wrote, by path below the store.
        origins: (patch, 2) x_min and y_max, NaN where there is no file.
        tally: Sums for the statistics.
        skipped: (patch id, reason) of patches recorded as missing because they are bad.
    """

    job: str
    files: dict[str, tuple[int, int]]
    origins: NDArray[np.float64]
    tally: Tally
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Entry:
    """A finished job, as the journal has it.

    Attributes:
        job: Its id.
        state: Digest of the plan and the source files it was done from.
        files: (length, CRC-32C) of the files it wrote, by path below the store.
        skipped: (patch id, reason) of patches recorded as missing.
        result: What the finished metadata is made of; None where there is nothing, and in the journal of a finished
            cube, whose metadata has it.
    """

    job: str
    state: str
    files: Mapping[str, tuple[int, int]]
    skipped: tuple[tuple[str, str], ...] = ()
    result: JobResult | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, the inverse of `from_json`."""
        fields = {"job": self.job, "state": self.state, "files": dict(self.files), "skipped": self.skipped}
        if self.result is None:
            return fields
        origins = base64.b64encode(self.result.origins.astype("<f8").tobytes()).decode()
        return {**fields, "tally": self.result.tally.to_json(), "origins": origins}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Build from the dictionary of `to_json`."""
        files = {name: (length, crc) for name, (length, crc) in fields["files"].items()}
        skipped = tuple((patch_id, reason) for patch_id, reason in fields["skipped"])
        result = None
        if "tally" in fields:
            origins = np.frombuffer(base64.b64decode(fields["origins"]), dtype="<f8").reshape(-1, 2).copy()
            result = JobResult(fields["job"], files, origins, Tally.from_json(fields["tally"]), skipped)
        return cls(fields["job"], fields["state"], files, skipped, result)

    def shortened(self) -> Self:
        """Return the entry as a finished cube keeps it."""
        return replace(self, result=None)

    def is_whole(self, store: Path) -> bool:
        """True when its files are in the store with their lengths."""
        for name, (length, _) in self.files.items():
            try:
                if os.stat(store / name).st_size != length:
                    return False
            except OSError:
                return False
        return True


def digest(facts: Any) -> str:
    """Return the SHA-256 of JSON-ready facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
