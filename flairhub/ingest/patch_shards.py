"""Doing one job: read the files of a shard, check and encode them, write the shard whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flairhub.cube import NO_DAY, VALID, ArraySpec, AverageTemplate, ShardWriter, side_chunk, valid_spec
from flairhub.errors import DataError
from flairhub.ingest.job import Job, JobResult
from flairhub.ingest.patch_geotiff import Raster, gdal, lossless, read_raster
from flairhub.ingest.statistics import BandTally, Tally, add_bands, tally_bands
from flairhub.jobs import reach, write_file
from flairhub.tasks import IGNORE_INDEX
from flairhub.timeseries import average_series, keep_dates
from flairhub.validity import stored_nodata, valid_pixels

ENCODE_AHEAD = 2
"""Patches that may wait for their encoding while the next is read."""


@dataclass(frozen=True)
class _PeriodMeans:
    """Encoded means of one patch with their table rows: dates averaged and mid-period days since 1970-01-01."""

    chunk: tuple[bytes, ...]
    count: NDArray[np.int32]
    days: NDArray[np.int32]


@dataclass(frozen=True)
class _Patch:
    """An encoded patch: `bands` of images and series, or `counts` (level, 256) of labels, tell what it holds.

    `nodata` is the number that stands for no data among its values, of labels a class that has no pixels by it; `mask`
    says what that number and NaN cannot.
    """

    chunks: list[tuple[bytes, ...]]
    averages: list[_PeriodMeans]
    origin: tuple[float, float]
    bands: tuple[BandTally, ...] = ()
    counts: NDArray[np.int64] | None = None
    nodata: float | None = None
    mask: tuple[bytes, ...] | None = None


@dataclass(frozen=True)
class _Loaded:
    raster: Raster
    mask: Raster | None


def run_job(job: Job, store: str, overlap: bool = False) -> JobResult:
    """Read, check, encode and write one shard; memory holds a few patches, whatever the size of the shard.

    Args:
        job: What to do.
        store: Folder of the cube.
        overlap: Encode in a second thread while the next file is read.

    Raises:
        DataError: A bad file, unless the job skips those.
    """
    origins = np.full((len(job.patch_ids), 2), np.nan)
    skipped: list[tuple[str, str]] = []
    bands: tuple[BandTally, ...] = ()
    nodata: list[tuple[int, float]] = []
    counts = np.zeros((len(job.level_sizes), 256), dtype=np.int64)
    with gdal(), _ShardFiles(job, Path(store)) as files:
        for row, patch in enumerate(_encoded(job, overlap)):
            if isinstance(patch, DataError):
                if not job.skip:
                    raise patch
                skipped.append((job.patch_ids[row], str(patch)))
                patch = None
            files.add(patch)
            reach("patch")
            if patch is None:
                continue
            origins[row] = patch.origin
            bands = add_bands(bands, patch.bands)
            if patch.counts is not None:
                counts += patch.counts
            if patch.nodata is not None:
                nodata.append((job.first + row, patch.nodata))
    levels = tuple(tuple(level) for level in counts.tolist()) if counts.any() else ()
    masked = tuple(job.first + row for row in files.masked)
    tally = Tally(bands, levels, tuple(nodata), masked)
    return JobResult(job.id, files.written, origins, tally, tuple(skipped))


def _encoded(job: Job, overlap: bool) -> Iterator[_Patch | DataError | None]:
    """Yield every patch of a job in order: encoded, missing (None), or what is wrong with it."""
    loaded = (_load(job, row) for row in range(len(job.patch_ids)))
    if not overlap:
        for row, entry in enumerate(loaded):
            yield _encode(job, row, entry)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as encoder:
        waiting: deque[Future[_Patch | DataError | None]] = deque()
        for row, entry in enumerate(loaded):
            waiting.append(encoder.submit(_encode, job, row, entry))
            if len(waiting) > ENCODE_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _load(job: Job, row: int) -> _Loaded | DataError | None:
    path, patch_id = job.files[row], job.patch_ids[row]
    if patch_id in job.problems:
        return DataError(job.problems[patch_id])
    if path is None:
        return None
    try:
        n_dates = None if job.days is None else int((job.days[row] != NO_DAY).sum())
        raster = read_raster(path, job.expected, n_dates, masks=not job.level_sizes)
        if not any(average.cloud_filter is not None for average in job.averages):
            return _Loaded(raster, None)
        mask, expected = job.masks[row], job.mask_expected
        assert expected is not None
        if mask is None:
            raise DataError(
                f"{path}: the filtered averages need the quality mask {expected.modality} of patch {patch_id}, which "
                "has none. Add it, or turn the filter off."
            )
        return _Loaded(raster, read_raster(mask, expected, n_dates))
    except DataError as error:
        return error


def _encode(job: Job, row: int, loaded: _Loaded | DataError | None) -> _Patch | DataError | None:
    if loaded is None or isinstance(loaded, DataError):
        return loaded
    try:
        return _encode_label(job, row, loaded.raster) if job.level_sizes else _encode_image(job, row, loaded)
    except DataError as error:
        return error


def _encode_image(job: Job, row: int, loaded: _Loaded) -> _Patch:
    """Encode an image, or a series padded to the longest."""
    raster, spec = loaded.raster, job.spec
    shape = raster.values.shape[-2:]
    days = None if job.days is None else job.days[row][job.days[row] != NO_DAY]
    leading = () if days is None else (len(days),)
    pixels = raster.values.reshape(*leading, job.expected.bands, *shape)
    valid = valid_pixels(pixels, raster.nodata, raster.mask)
    values, exact = lossless(pixels, spec.dtype, str(job.files[row]), valid)
    nodata = stored_nodata(raster.nodata, values.dtype)
    mask = raster.mask if exact is None else exact if raster.mask is None else exact & raster.mask
    if values.dtype != pixels.dtype:
        # What the numbers tell changes with their kind: one rule, for what is stored.
        valid = valid_pixels(values, nodata, mask)
    encoded = None if mask is None else _encode_mask(spec, mask, leading)
    bands = tuple(tally_bands(values, valid))
    if days is None:
        chunk = spec.codec.encode_parts(np.ascontiguousarray(values))
        return _Patch([chunk], [], raster.origin, bands, nodata=nodata, mask=encoded)
    padded = np.zeros(spec.shape[1:], dtype=spec.dtype)
    padded[: len(values)] = values
    dates = days.astype(np.int64).astype("datetime64[D]")
    averages = [_average(average, values, dates, loaded.mask, valid) for average in job.averages]
    return _Patch([spec.codec.encode_parts(padded)], averages, raster.origin, bands, nodata=nodata, mask=encoded)


def _encode_mask(data: ArraySpec, mask: NDArray[np.bool_], leading: tuple[int, ...]) -> tuple[bytes, ...]:
    """Encode (y, x) or (time, y, x) for the array `valid`; there are no dates beyond a patch's own: 0."""
    spec = valid_spec(data)
    stored = np.zeros(spec.shape[1:], dtype=spec.dtype)
    stored[tuple(slice(length) for length in leading)] = mask
    return spec.codec.encode_parts(stored)


def _average(
    average: AverageTemplate,
    series: NDArray[Any],
    dates: NDArray[np.datetime64],
    mask: Raster | None,
    valid: NDArray[np.bool_] | None,
) -> _PeriodMeans:
    keep = np.ones(len(dates), dtype=bool) if valid is None else valid.any(axis=(1, 2))
    if average.cloud_filter is not None:
        assert mask is not None
        quality = mask.values.reshape(len(dates), -1, *mask.values.shape[-2:])
        known = valid_pixels(quality, mask.nodata, mask.mask)
        keep &= keep_dates(quality, average.cloud_filter, valid, known)
    if not keep.all():
        series, dates, valid = series[keep], dates[keep], None if valid is None else valid[keep]
    # With 1 January as reference, offsets are days into the year of the first date: adding its start gives dates.
    means = average_series(series, dates, average.average, "01-01", valid)  # type: ignore[arg-type]
    days = np.full(len(means.count), NO_DAY, dtype=np.int32)
    if len(dates):
        days[:] = dates[0].astype("datetime64[Y]").astype("datetime64[D]").astype(np.int64) + means.offsets
    values = means.values
    if means.observed is not None:
        # NaN tells a pixel without an observation from a mean of 0.
        lacking = ~means.observed & (means.count > 0)[:, None, None]
        values = np.where(lacking[:, None], np.float32(np.nan), values)
    return _PeriodMeans(average.spec.codec.encode_parts(values), means.count, days)


def _encode_label(job: Job, row: int, raster: Raster) -> _Patch:
    """Class indices as uint8: declared nodata and 255 become 255, other values outside the nomenclature are errors."""
    counts = np.zeros((len(job.level_sizes), 256), dtype=np.int64)
    chunks = []
    for level, (values, n_classes) in enumerate(zip(raster.values, job.level_sizes, strict=True)):
        where = f"{job.files[row]}: level {level + 1}"
        stored, counts[level] = _class_indices(values, raster.nodata, n_classes, where, job.modality)
        chunks.append(job.spec.codec.encode_parts(stored))
    nodata, most = raster.nodata, max(job.level_sizes)
    is_class = nodata is not None and 0 <= nodata < most and nodata == int(nodata)
    return _Patch(chunks, [], raster.origin, counts=counts, nodata=nodata if is_class else None)


def _class_indices(
    values: NDArray[Any], nodata: float | None, n_classes: int, where: str, label: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return (y, x) class indices and their (256,) histogram."""
    if values.dtype == np.uint8 and nodata in (None, IGNORE_INDEX):
        counts = _histogram(values)
        if not counts[n_classes:IGNORE_INDEX].any():
            return values, counts
    unknown = values == IGNORE_INDEX
    if nodata is not None:
        unknown |= np.isnan(values) if np.isnan(nodata) else values == nodata
    whole = values if values.dtype.kind != "f" else np.floor(values)
    bad = ~unknown & ~((values >= 0) & (values < n_classes) & (values == whole))
    if bad.any():
        outside = ", ".join(str(value) for value in np.unique(values[bad])[:5])
        raise DataError(
            f"{where}: value {outside} is outside the {n_classes} classes 0..{n_classes - 1} of {label} "
            f"({int(bad.sum())} pixels). Pixels without a label must be {IGNORE_INDEX} or the file's declared nodata."
        )
    stored = np.where(unknown, IGNORE_INDEX, np.where(unknown, 0, values)).astype(np.uint8)
    return stored, _histogram(stored)


def _histogram(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bincount(values.reshape(-1), minlength=256)


class _ShardFiles:
    """The files of one job while they are written: `data` of the modality and of its averages, `valid` if needed.

    Attributes:
        written: Length and CRC-32C by path below the store, once all are.
        masked: Rows of the patches that have a chunk in `valid`.
    """

    def __init__(self, job: Job, store: Path):
        self._job, self._store = job, store
        self._n_added = 0
        self._mask_writer: ShardWriter | None = None
        self.masked: list[int] = []
        self._averages: list[list[_PeriodMeans | None]] = [[] for _ in job.averages]
        self._writers: dict[str, ShardWriter] = {}
        self._stack = ExitStack()
        self.written: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for folder, spec in (
                (self._job.modality, self._job.spec),
                *((f"{self._job.modality}/{average.average}", average.spec) for average in self._job.averages),
            ):
                path = f"{folder}/data/{spec.shard_path(self._job.shard)}"
                writer = ShardWriter(self._store / path, spec.shard_patches * spec.chunks_per_patch)
                self._writers[path] = stack.enter_context(writer)
            self._stack = stack.pop_all()
        return self

    def add(self, patch: _Patch | None) -> None:
        """Append the next patch; None = missing."""
        data, *averages = self._writers.values()
        for chunk in [None] * self._job.spec.chunks_per_patch if patch is None else patch.chunks:
            data.add(chunk)
        for place, writer in enumerate(averages):
            means = None if patch is None else patch.averages[place]
            writer.add(None if means is None else means.chunk)
            # The means themselves are in the shard: only the rows of the tables are kept.
            self._averages[place].append(None if means is None else replace(means, chunk=()))
        self._add_mask(None if patch is None else patch.mask)
        self._n_added += 1

    def _add_mask(self, mask: tuple[bytes, ...] | None) -> None:
        """Append to the shard of `valid`, which begins with the first patch that has a mask."""
        if mask is not None:
            self.masked.append(self._n_added)
            if self._mask_writer is None:
                spec = self._job.spec
                path = self._store / self._mask_path()
                self._mask_writer = self._stack.enter_context(ShardWriter(path, spec.shard_patches))
                for _ in range(self._n_added):
                    self._mask_writer.add(None)
        if self._mask_writer is not None:
            self._mask_writer.add(mask)

    def _mask_path(self) -> str:
        return f"{self._job.modality}/{VALID}/{valid_spec(self._job.spec).shard_path(self._job.shard)}"

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        self._stack.__exit__(kind, *rest)
        if kind is not None:
            return
        writers = dict(self._writers)
        if self._mask_writer is not None:
            writers[self._mask_path()] = self._mask_writer
        else:
            # Of a stopped run, before the files changed.
            (self._store / self._mask_path()).unlink(missing_ok=True)
        self.written = {path: (writer.length, writer.checksum) for path, writer in writers.items()}
        for average, means in zip(self._job.averages, self._averages, strict=True):
            counts, days = _side_rows(means, average.spec.shape[1])
            for name, rows, fill in (("n_observations", counts, 0), ("date", days, NO_DAY)):
                path = f"{self._job.modality}/{average.average}/{name}/c/{self._job.shard}/0"
                chunk = side_chunk(rows, average.spec.shard_patches, fill)
                self.written[path] = write_file(self._store / path, [chunk])


def _side_rows(means: list[_PeriodMeans | None], n_periods: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Number of observations and mid-period day of each patch: two (patch, period) tables."""
    counts = np.zeros((len(means), n_periods), dtype=np.int32)
    days = np.full((len(means), n_periods), NO_DAY, dtype=np.int32)
    for row, entry in enumerate(means):
        if entry is not None:
            counts[row], days[row] = entry.count, entry.days
    return counts, days
