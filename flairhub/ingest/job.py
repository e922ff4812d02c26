"""The unit of work: what it is told, and what it tells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.spec import ArraySpec
from flairhub.cube.template import AverageTemplate
from flairhub.ingest.archives import file_state
from flairhub.ingest.geotiff import Expectation
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


def digest(facts: Any) -> str:
    """Return the SHA-256 of JSON-ready facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
