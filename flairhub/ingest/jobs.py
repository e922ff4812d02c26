"""Doing one job: read the files of a shard, check and encode them, write the shard whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.shards import pack_shard, write_file
from flairhub.cube.spec import NO_DAY
from flairhub.cube.template import AverageTemplate, side_chunk
from flairhub.errors import DataError
from flairhub.ingest.geotiff import Raster, gdal, lossless, read_raster
from flairhub.ingest.plan import Job
from flairhub.ingest.statistics import Tally, tally_bands
from flairhub.tasks import IGNORE_INDEX
from flairhub.timeseries import average_series, keep_dates


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
class _PeriodMeans:
    """Encoded means of one patch with their table rows: dates averaged and mid-period days since 1970-01-01."""

    chunk: bytes
    count: NDArray[np.int32]
    days: NDArray[np.int32]


@dataclass(frozen=True)
class _Patch:
    chunks: list[bytes]
    averages: list[_PeriodMeans]
    origin: tuple[float, float]
    tally: Tally


def run_job(job: Job, store: str) -> JobResult:
    """Read, check, encode and write one shard; memory holds one patch and the shard's compressed chunks.

    Args:
        job: What to do.
        store: Folder of the cube.

    Raises:
        DataError: A bad file, unless the job skips those.
    """
    patches: list[_Patch | None] = []
    tally = Tally()
    skipped: list[tuple[str, str]] = []
    with gdal():
        for row, patch_id in enumerate(job.patch_ids):
            patch = None
            try:
                if patch_id in job.problems:
                    raise DataError(job.problems[patch_id])
                patch = _read_patch(job, row)
            except DataError as error:
                if not job.skip:
                    raise
                skipped.append((patch_id, str(error)))
            patches.append(patch)
            if patch is not None:
                tally = tally + patch.tally
    files = _write(job, Path(store), patches)
    origins = np.array([(np.nan, np.nan) if patch is None else patch.origin for patch in patches])
    return JobResult(job.id, files, origins, tally, tuple(skipped))


def _read_patch(job: Job, row: int) -> _Patch | None:
    path = job.files[row]
    if path is None:
        return None
    days = None if job.days is None else job.days[row][job.days[row] != NO_DAY]
    raster = read_raster(path, job.expected, None if days is None else len(days))
    if job.level_sizes:
        return _label_patch(job, raster, path)
    values = lossless(raster.values, job.spec.dtype, path)
    if days is None:
        tally = Tally(bands=tuple(tally_bands(values, raster.nodata)))
        return _Patch([job.spec.codec.encode(np.ascontiguousarray(values))], [], raster.origin, tally)
    series = values.reshape(len(days), job.expected.bands, *values.shape[-2:])
    padded = np.zeros(job.spec.shape[1:], dtype=job.spec.dtype)
    padded[: len(series)] = series
    tally = Tally(bands=tuple(tally_bands(series, raster.nodata)))
    dates = days.astype(np.int64).astype("datetime64[D]")
    averages = [_average(job, average, series, dates, row) for average in job.averages]
    return _Patch([job.spec.codec.encode(padded)], averages, raster.origin, tally)


def _average(
    job: Job, average: AverageTemplate, series: NDArray[Any], dates: NDArray[np.datetime64], row: int
) -> _PeriodMeans:
    if average.cloud_filter is not None:
        path = job.masks[row]
        assert job.mask_expected is not None
        if path is None:
            raise DataError(
                f"{job.files[row]}: the filtered averages need the quality mask {job.mask_expected.modality} of patch "
                f"{job.patch_ids[row]}, which has none. Add it, or turn the filter off."
            )
        mask = read_raster(path, job.mask_expected, len(dates)).values
        keep = keep_dates(mask.reshape(len(dates), -1, *mask.shape[-2:]), average.cloud_filter)
        series, dates = series[keep], dates[keep]
    # With 1 January as reference, offsets are days into the year of the first date: adding its start gives dates.
    means = average_series(series, dates, average.average, "01-01")  # type: ignore[arg-type]
    days = np.full(len(means.count), NO_DAY, dtype=np.int32)
    if len(dates):
        days[:] = dates[0].astype("datetime64[Y]").astype("datetime64[D]").astype(np.int64) + means.offsets
    return _PeriodMeans(average.spec.codec.encode(means.values), means.count, days)


def _label_patch(job: Job, raster: Raster, path: str) -> _Patch:
    """Class indices as uint8: declared nodata and 255 become 255, other values outside the nomenclature are errors."""
    levels, counts, chunks = raster.values, [], []
    for level, (values, n_classes) in enumerate(zip(levels, job.level_sizes, strict=True), start=1):
        stored = _class_indices(values, raster.nodata, n_classes, f"{path}: level {level}", job.modality)
        counts.append(tuple(np.bincount(stored.reshape(-1), minlength=256).tolist()))
        chunks.append(job.spec.codec.encode(stored))
    return _Patch(chunks, [], raster.origin, Tally(classes=tuple(counts)))


def _class_indices(
    values: NDArray[Any], nodata: float | None, n_classes: int, where: str, label: str
) -> NDArray[np.uint8]:
    unknown = values == IGNORE_INDEX
    if nodata is not None:
        unknown |= np.isnan(values) if np.isnan(nodata) else values == nodata
    whole = values if values.dtype.kind != "f" else np.floor(values)
    bad = ~unknown & ~((values >= 0) & (values < n_classes) & (values == whole))
    if bad.any():
        found = ", ".join(str(value) for value in np.unique(values[bad])[:5])
        raise DataError(
            f"{where}: value {found} is outside the {n_classes} classes 0..{n_classes - 1} of {label} "
            f"({int(bad.sum())} pixels). Pixels without a label must be {IGNORE_INDEX} or the file's declared nodata."
        )
    return np.where(unknown, IGNORE_INDEX, np.where(unknown, 0, values)).astype(np.uint8)


def _write(job: Job, store: Path, patches: list[_Patch | None]) -> dict[str, tuple[int, int]]:
    per_patch = job.spec.chunks_per_patch
    chunks: list[bytes | None] = []
    for patch in patches:
        chunks.extend([None] * per_patch if patch is None else patch.chunks)
    written = {}
    for place, average in enumerate(job.averages):
        folder = f"{job.modality}/{average.average}"
        found = [None if patch is None else patch.averages[place] for patch in patches]
        encoded = [None if entry is None else entry.chunk for entry in found]
        path = f"{folder}/data/{average.spec.shard_path(job.shard)}"
        written[path] = _write_shard(store / path, encoded, average.spec.shard_patches)
        counts, days = _side_rows(found, average.spec.shape[1])
        for name, rows, fill in (("n_observations", counts, 0), ("date", days, NO_DAY)):
            path = f"{folder}/{name}/c/{job.shard}/0"
            written[path] = write_file(store / path, [side_chunk(rows, average.spec.shard_patches, fill)])
    path = f"{job.modality}/data/{job.spec.shard_path(job.shard)}"
    written[path] = _write_shard(store / path, chunks, job.spec.shard_patches * per_patch)
    return written


def _write_shard(path: Path, chunks: list[bytes | None], n_chunks: int) -> tuple[int, int]:
    """Write one shard; the last one of an array is filled up with chunks that do not exist."""
    return write_file(path, pack_shard([*chunks, *([None] * (n_chunks - len(chunks)))]))


def _side_rows(found: list[_PeriodMeans | None], n_periods: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Number of observations and mid-period day of each patch: two (patch, period) tables."""
    counts = np.zeros((len(found), n_periods), dtype=np.int32)
    days = np.full((len(found), n_periods), NO_DAY, dtype=np.int32)
    for row, entry in enumerate(found):
        if entry is not None:
            counts[row], days[row] = entry.count, entry.days
    return counts, days
