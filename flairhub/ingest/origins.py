"""Where patches lie, told by the files of every modality: they must agree to 0.01 pixel of the finest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import DataError
from flairhub.geo import ALIGNMENT_TOLERANCE_PX
from flairhub.ingest.job import Job


class Origins:
    """Upper left corners by modality and patch, as jobs finish."""

    def __init__(self, jobs: Sequence[Job], n_patches: int, finest_m: float):
        """Start without any origin.

        Args:
            jobs: All jobs of the plan.
            n_patches: Patches of the cube.
            finest_m: Smallest pixel size.
        """
        self._jobs = {(job.modality, job.shard): job for job in jobs}
        names = dict.fromkeys(job.modality for job in sorted(jobs, key=lambda job: job.rank))
        self._corners: dict[str, NDArray[np.float64]] = {name: np.full((n_patches, 2), np.nan) for name in names}
        self._tolerance = ALIGNMENT_TOLERANCE_PX * finest_m

    def put(self, job: Job, origins: NDArray[np.float64]) -> None:
        """Take (or replace) the origins (patch, 2) of a job."""
        self._corners[job.modality][job.first : job.first + len(origins)] = origins

    def check(self, job: Job) -> None:
        """Compare a job's origins with those known so far.

        Raises:
            DataError: A file lies elsewhere than another modality's file of the same patch.
        """
        patches = slice(job.first, job.first + len(job.patch_ids))
        corners_of_job = self._corners[job.modality][patches]
        for name, corners in self._corners.items():
            off = self._apart(corners_of_job, corners[patches])
            if off.any():
                position = job.first + int(off.argmax())
                raise DataError(self._message(position, job.modality, name))

    def chosen(self) -> NDArray[np.float64]:
        """Return (patch, 2): where most modalities of a patch say that it lies, the first of them where votes tie."""
        values, _ = self._vote()
        return values

    def misplaced(self) -> Mapping[str, Mapping[str, str]]:
        """Return by job id the patches, with the reason, that lie elsewhere than most modalities say."""
        values, winners = self._vote()
        names = list(self._corners)
        result: dict[str, dict[str, str]] = {}
        for name, corners in self._corners.items():
            for position in np.flatnonzero(self._apart(corners, values)):
                job = self._job(name, int(position))
                reason = self._message(int(position), name, names[winners[position]])
                result.setdefault(job.id, {})[job.patch_ids[int(position) - job.first]] = reason
        return result

    def _vote(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Corner of every patch, and the number of the modality that gives it; the same in any order of jobs."""
        stack = np.stack(list(self._corners.values()))
        known = ~np.isnan(stack[..., 0])
        votes = np.zeros(known.shape, dtype=np.int64)
        for other in stack:
            votes += (np.abs(stack - other) <= self._tolerance).all(axis=-1)
        winners = np.where(known, votes, -1).argmax(axis=0)
        return stack[winners, np.arange(stack.shape[1])], winners

    def _apart(self, one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.bool_]:
        # A comparison with NaN, an origin that is not known, is False.
        return np.any(np.abs(one - two) > self._tolerance, axis=-1, keepdims=True)[..., 0]

    def _message(self, position: int, name: str, other: str) -> str:
        corners = self._corners
        return (
            f"{self._file(name, position)}: upper left corner {_point(corners[name][position])}, expected "
            f"{_point(corners[other][position])} as in {self._file(other, position)}. All modalities of a patch cover "
            f"the same ground (tolerance {self._tolerance:g} m)."
        )

    def _file(self, name: str, position: int) -> str | None:
        job = self._job(name, position)
        return job.files[position - job.first]

    def _job(self, name: str, position: int) -> Job:
        shard_patches = self._jobs[name, 0].spec.shard_patches
        return self._jobs[name, position // shard_patches]


def _point(origin: NDArray[np.float64]) -> str:
    return f"({origin[0]:.3f}, {origin[1]:.3f})"
