"""From files to frozen jobs: what the cube will look like and which pieces of work fill it."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube import FORMAT_VERSION, NO_DAY, AverageTemplate, CubeTemplate, GroupTemplate, average_spec, data_spec
from flairhub.errors import DataError, UsageError
from flairhub.geo import ALIGNMENT_TOLERANCE_PX, GEOGRAPHIC, crs_name, is_geographic, metres_per_unit, same_crs
from flairhub.ingest.archives import file_exists
from flairhub.ingest.job import Job, digest
from flairhub.ingest.patch_geotiff import Expectation, Header, gdal, read_header
from flairhub.ingest.patch_sources import Source
from flairhub.ingest.tables import read_dates
from flairhub.modalities import MODALITIES, Kind, Modality
from flairhub.tasks import level_sizes
from flairhub.timeseries import CloudFilter, period_count

logger = logging.getLogger(__name__)

TIME_LIMIT = 4096
"""Most dates of a series; more is taken for a damaged entry."""


REFERENCES = 5
"""Files that vote on size and CRS of a modality when bad files may be skipped."""


@dataclass(frozen=True)
class AverageRequest:
    """Period means to store beside a series.

    Attributes:
        average: `monthly` or `semi-monthly`.
        cloud_filter: Filter that chooses the dates, None = all.
    """

    average: str
    cloud_filter: CloudFilter | None


@dataclass(frozen=True)
class Options:
    """Choices that change what is stored.

    Attributes:
        codec: Preset.
        shard: Patches per shard, None = by size.
        averages: Period means by series.
        level_sizes: Classes per nomenclature level by label set.
        skip: Record bad patches as missing instead of stopping.
    """

    codec: str = "balanced"
    shard: int | None = None
    averages: Mapping[str, AverageRequest] | None = None
    level_sizes: Mapping[str, tuple[int, ...]] | None = None
    skip: bool = False


@dataclass(frozen=True)
class Plan:
    """A cube to be: its template and the jobs that fill it, in an order that meets all modalities early.

    Attributes:
        template: Metadata.
        jobs: All work.
        level_sizes: Classes per level by label set.
    """

    template: CubeTemplate
    jobs: tuple[Job, ...]
    level_sizes: Mapping[str, tuple[int, ...]]

    @property
    def digest(self) -> str:
        """What tells one plan from another, whatever its files hold."""
        return self.template.plan


@dataclass(frozen=True)
class _Dates:
    days: NDArray[np.int32]
    problems: Mapping[str, str]


class Planner:
    """Builds a plan from a source; one instance per ingest."""

    def __init__(self, source: Source, options: Options):
        """Keep what is to be planned; nothing is read yet."""
        self._source, self._options = source, options
        self._ids = [key.patch_id for key in source.keys]

    def plan(self) -> Plan:
        """Read one header per modality and the date tables, and lay out the jobs.

        Raises:
            DataError: Missing files, modalities that do not fit each other, bad dates.
            UsageError: Averages of a series or mask that is not ingested.
        """
        if not self._options.skip:
            self._check_files()
        with gdal():
            references = {name: self._reference(name) for name in self._source.files}
        expectations = self._expectations(references)
        groups = tuple(self._group(name, expectations[name]) for name in self._source.files)
        first = next(iter(expectations.values()))
        _name_feet(first)
        template = CubeTemplate(
            columns=self._columns(),
            crs_wkt=first.crs_wkt,
            footprint_m=first.footprint,
            codec=self._options.codec,
            plan=self._plan_digest(groups, expectations),
            groups=groups,
        )
        jobs = [job for group in groups for job in self._jobs(group, expectations)]
        # All modalities of a patch come close together, so that files that do not fit each other are found early.
        jobs.sort(key=lambda job: (job.first + len(job.patch_ids), job.id))
        return Plan(template, tuple(jobs), {group.name: self._levels(group.name) for group in groups})

    def _check_files(self) -> None:
        missing = [path for paths in self._source.files.values() for path in paths if path and not file_exists(path)]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise DataError(
                f"no such file: {', '.join(missing[:3])}{more}. Leave the CSV cell empty for a patch without this "
                "modality, or pass --on-error skip."
            )

    def _reference(self, name: str) -> tuple[str, Header]:
        """The first file of a modality gives its size, CRS and resolution.

        Where bad files may be skipped, what most of the first readable ones say.
        """
        problem: DataError | None = None
        readable: list[tuple[str, Header]] = []
        for path in self._source.files[name]:
            if path is None:
                continue
            try:
                readable.append((path, read_header(path)))
            except DataError as error:
                if not self._options.skip:
                    raise
                problem = problem or error
            if len(readable) >= (REFERENCES if self._options.skip else 1):
                break
        if not readable:
            raise DataError(f"{name}: no readable file. First problem: {problem}")
        kinds = [_grid_kind(header) for _, header in readable]
        return readable[max(range(len(readable)), key=lambda place: kinds.count(kinds[place]))]

    def _expectations(self, references: Mapping[str, tuple[str, Header]]) -> dict[str, Expectation]:
        boxes = {name: header.box for name, (_, header) in references.items()}
        tolerance = ALIGNMENT_TOLERANCE_PX * min(min(box.x_res, box.y_res) for box in boxes.values())
        first = next(iter(references))
        footprint = (boxes[first].width * boxes[first].x_res, boxes[first].height * boxes[first].y_res)
        if is_geographic(boxes[first].crs_wkt):
            name = crs_name(boxes[first].crs_wkt)
            logger.warning("%s: is in %s, whose unit is the degree: %s", references[first][0], name, GEOGRAPHIC)
        result = {}
        for name, (path, _) in references.items():
            row, box = MODALITIES[name], boxes[name]
            if not same_crs(box.crs_wkt, boxes[first].crs_wkt):
                raise DataError(
                    f"{path}: CRS {crs_name(box.crs_wkt)}, expected {crs_name(boxes[first].crs_wkt)} as in "
                    f"{references[first][0]}. All modalities of a data set share one CRS."
                )
            size = (box.width * box.x_res, box.height * box.y_res)
            if any(abs(a - b) > tolerance for a, b in zip(size, footprint, strict=True)):
                raise DataError(
                    f"{path}: footprint {size[0]:g} x {size[1]:g} m ({box.width} x {box.height} px), "
                    f"expected {footprint[0]:g} x {footprint[1]:g} m as in {references[first][0]}. All modalities of a "
                    "patch cover the same ground."
                )
            result[name] = Expectation(
                name,
                len(row.bands),
                row.is_series,
                row.dtype,
                box.height,
                box.width,
                boxes[first].crs_wkt,
                footprint,
                path,
            )
        return result

    def _columns(self) -> dict[str, NDArray[Any]]:
        keys = self._source.keys
        return {
            "patch_id": np.array(self._ids),
            "domain": np.array([key.domain for key in keys]),
            "roi": np.array([key.roi for key in keys]),
            "row": np.array([key.row for key in keys], dtype=np.int32),
            "col": np.array([key.col for key in keys], dtype=np.int32),
            "split": np.array([self._source.splits.get(key.patch_id, "") for key in keys]),
        }

    def _group(self, name: str, expected: Expectation) -> GroupTemplate:
        row = MODALITIES[name]
        dates = self._dates(row)
        size = (expected.height, expected.width)
        n_dates = 0 if dates is None else max(1, dates.days.shape[1])
        spec = data_spec(row, len(self._ids), size, n_dates, self._options.codec, self._options.shard)
        averages = []
        request = (self._options.averages or {}).get(name)
        if request is not None:
            mask = row.quality_mask
            if request.cloud_filter is not None and mask not in self._source.files:
                raise UsageError(f"{name}: filtered averages need {mask}, which is not among the modalities to ingest.")
            periods = period_count(request.average)  # type: ignore[arg-type]
            beside = average_spec(spec, periods, self._options.codec)
            averages.append(AverageTemplate(request.average, request.cloud_filter, beside))
        return GroupTemplate(
            name=name,
            spec=spec,
            gsd=(expected.footprint[0] / expected.width, expected.footprint[1] / expected.height),
            days=None if dates is None else dates.days,
            averages=tuple(averages),
            attributes={"n_classes": list(self._levels(name))} if row.kind is Kind.LABEL else {},
        )

    def _levels(self, name: str) -> tuple[int, ...]:
        return (self._options.level_sizes or {}).get(name) or level_sizes(name)

    def _dates(self, row: Modality) -> _Dates | None:
        """Dates of the patches that have the series; a series and its mask share them."""
        if not row.is_series:
            return None
        assert row.dates_file is not None
        if row.dates_file not in self._read:
            self._read[row.dates_file] = self._read_dates(row.dates_file)
        table = self._read[row.dates_file]
        present = np.array([path is not None for path in self._source.files[row.name]])
        return _Dates(np.where(present[:, None], table.days, NO_DAY).astype(np.int32), table.problems)

    @cached_property
    def _read(self) -> dict[str, _Dates]:
        return {}

    def _read_dates(self, file: str) -> _Dates:
        if self._source.metadata is None:
            raise DataError(f"{file}: time series need the folder of the date GeoPackages (paths.global_mtd_folder).")
        path = self._source.metadata / file
        entries = read_dates(path, self._ids)
        users = [name for name in self._source.files if MODALITIES[name].dates_file == file]
        problems: dict[str, str] = {}
        days: dict[int, NDArray[np.int64]] = {}
        for position, patch_id in enumerate(self._ids):
            if all(self._source.files[name][position] is None for name in users):
                continue
            entry = entries.get(patch_id, DataError(f"{path}: patch {patch_id} has no entry."))
            if not isinstance(entry, DataError) and len(entry) > TIME_LIMIT:
                entry = DataError(
                    f"{path}: patch {patch_id} has {len(entry)} dates, at most {TIME_LIMIT} are accepted."
                )
            if isinstance(entry, DataError):
                if not self._options.skip:
                    raise entry
                problems[patch_id] = str(entry)
            else:
                days[position] = entry.astype(np.int64)
        table = np.full(
            (len(self._ids), max((len(entry) for entry in days.values()), default=0)), NO_DAY, dtype=np.int32
        )
        for position, stored in days.items():
            table[position, : len(stored)] = stored
        return _Dates(table, problems)

    def _jobs(self, group: GroupTemplate, expectations: Mapping[str, Expectation]) -> list[Job]:
        row, spec = MODALITIES[group.name], group.spec
        files = self._source.files[group.name]
        filtered = any(average.cloud_filter is not None for average in group.averages)
        mask = row.quality_mask if filtered else None
        problems = {} if row.dates_file is None else self._read[row.dates_file].problems
        jobs = []
        for shard in range(spec.n_shards):
            selected = slice(shard * spec.shard_patches, min((shard + 1) * spec.shard_patches, len(self._ids)))
            ids = tuple(self._ids[selected])
            jobs.append(
                Job(
                    id=f"{group.name}/{shard:06d}",
                    modality=group.name,
                    rank=list(MODALITIES).index(group.name),
                    shard=shard,
                    first=selected.start,
                    patch_ids=ids,
                    files=files[selected],
                    masks=self._source.files[mask][selected] if mask else (None,) * len(ids),
                    days=None if group.days is None else group.days[selected],
                    expected=expectations[group.name],
                    mask_expected=expectations[mask] if mask else None,
                    spec=spec,
                    averages=group.averages,
                    level_sizes=self._levels(group.name) if row.kind is Kind.LABEL else (),
                    problems={patch_id: problems[patch_id] for patch_id in ids if patch_id in problems},
                    skip=self._options.skip,
                )
            )
        return jobs

    def _plan_digest(self, groups: Sequence[GroupTemplate], expectations: Mapping[str, Expectation]) -> str:
        root = self._source.root
        facts: list[Any] = [FORMAT_VERSION, self._options.codec]
        facts += [[name, digest(column.tolist())] for name, column in self._columns().items()]
        for group in groups:
            expected = asdict(expectations[group.name]) | {"reference": ""}
            averages = [[average.average, _rule(average.cloud_filter)] for average in group.averages]
            days = None if group.days is None else hashlib.sha256(group.days.tobytes()).hexdigest()
            facts.append([expected, asdict(group.spec) | {"fill": str(group.spec.fill)}, averages, days])
            facts.append(digest([_relative(path, root) for path in self._source.files[group.name]]))
            facts.append(list(self._levels(group.name)))
        return digest(facts)


def _name_feet(expected: Expectation) -> None:
    """Say that lengths are not metres, where they are not: what a cube says of its pixels is in units of its CRS."""
    unit = metres_per_unit(expected.crs_wkt) if expected.crs_wkt else None
    if unit is not None and unit != 1:
        name = f"{expected.reference}: {crs_name(expected.crs_wkt)}"
        text = "%s has units of %g m: sizes of pixels and patches are in these units, not in metres."
        logger.warning(text, name, unit)


def _grid_kind(header: Header) -> tuple[Any, ...]:
    box = header.box
    return box.height, box.width, round(box.x_res, 6), round(box.y_res, 6), box.crs_wkt


def _rule(rule: CloudFilter | None) -> Any:
    return None if rule is None else asdict(rule)


def _relative(path: str | None, root: Path) -> str | None:
    if path is None:
        return None
    # Plain text: a quarter of a million Path objects per modality would take longer than reading the tables.
    prefix = str(root) + os.sep
    return path[len(prefix) :].replace(os.sep, "/") if path.startswith(prefix) else path
