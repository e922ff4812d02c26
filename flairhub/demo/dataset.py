"""The made data set: a small FLAIR-HUB in the published layout, and a zone."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from flairhub.demo.area import REGIONS, SPLITS, ZONE_REGION, Area, DemoPlan, Region, render_area
from flairhub.demo.configs import write_train_config, write_zonal_config
from flairhub.demo.seasons import Dates
from flairhub.demo.writing import (
    compact_dates,
    dates_json,
    finish_folder,
    prepare_folder,
    write_geopackage,
    write_raster,
    write_table,
    writing_demo,
)
from flairhub.modalities import LABELS, MODALITIES
from flairhub.progress import Progress, silent
from flairhub.version import __version__

log = logging.getLogger(__name__)

THREADS = 2
_METADATA = "GLOBAL_ALL_MTD"
_ROI_KINDS = ("AF-S1", "UF-S2", "AU-S1", "FA-S2")


@dataclass(frozen=True)
class DemoData:
    """Where the made data set lies.

    Attributes:
        folder: Everything is below it.
        data: Root of the patches in the published layout, with the CSV splits.
        metadata: Folder of the date and split GeoPackages.
        csv: CSV file of each split (`train`, `valid`, `test`).
        zone: Folder with one raster per modality of the zone, named `<MODALITY>.tif`.
        zone_dates: Text file with the dates of each series of the zone.
        zone_labels: Truth raster of each label set of the zone.
        configs: Folder with the four training YAML files.
        zonal_config: Zonal YAML file.
        cube: Where the configuration expects the cube.
        bundle: Where the configuration lets training put its model and the zonal run look for it.
        patch_ids: All patches, in the order of the tables.
        seed: What everything was drawn from.
    """

    folder: Path
    data: Path
    metadata: Path
    csv: dict[str, Path]
    zone: Path
    zone_dates: dict[str, Path]
    zone_labels: dict[str, Path]
    configs: Path
    zonal_config: Path
    cube: Path
    bundle: Path
    patch_ids: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class _Patch:
    """One patch to cut from an area: its names, place, dates kept per series and split."""

    region: Region
    roi: str
    row: int
    col: int
    top_px: int
    left_px: int
    corner_m: tuple[float, float]
    keep: dict[str, np.ndarray]
    split: str

    @property
    def patch_id(self) -> str:
        return f"{self.region.name}_{self.roi}_{self.row}-{self.col}"

    def path(self, modality: str) -> Path:
        """Relative path in the published layout."""
        domain = self.region.name
        if MODALITIES[modality].undated_domain:
            domain = f"{domain.split('-')[0]}-195X"
        stem = f"{domain}_{modality}"
        return Path(stem) / self.roi / f"{stem}_{self.roi}_{self.row}-{self.col}.tif"


def make_demo_data(
    folder: str | Path,
    seed: int = 0,
    *,
    plan: DemoPlan = DemoPlan(),  # noqa: B008  (frozen)
    overwrite: bool = False,
    workers: int = THREADS,
    progress: Progress = silent,
) -> DemoData:
    """Make a small data set in the published FLAIR-HUB layout, a zone, and configurations for both.

    The rasters and tables depend on `seed` and `plan` alone, byte for byte. Land cover can be told from the aerial
    images; crops share one aerial look and differ by their season. `configs/` and `zonal.yaml` hold absolute paths.
    What an earlier call with the same `seed` and `plan` has finished in the folder is kept as it is; what it has begun
    is made anew.

    Args:
        folder: Where to put everything.
        seed: Fixes every value.
        plan: Sizes.
        overwrite: Replace a folder that an earlier call made; no other folder is ever replaced.
        workers: Threads.
        progress: Called with the stages `demo data` and `demo zone`.

    Raises:
        OutputExistsError: The folder holds another demo, or something else.
        LockError: Another process makes a demo there.
        DataError: The system refuses to write: full disk, no permission, ...
    """
    with writing_demo(folder):
        return make_in_folder(folder, seed, plan, overwrite, workers, progress)


def make_in_folder(
    folder: str | Path, seed: int, plan: DemoPlan, overwrite: bool, workers: int, progress: Progress
) -> DemoData:
    """Do what `make_demo_data` says, for the holder of `writing_demo`."""
    root = Path(folder).expanduser().absolute()
    facts = {"seed": seed, "plan": json.loads(json.dumps(asdict(plan))), "version": __version__}
    finished = prepare_folder(root, facts, overwrite)
    if finished is not None:
        return _located(root, seed, finished)
    data, zone = root / "data", root / "zone"
    (data / _METADATA).mkdir(parents=True)
    zone.mkdir()
    n_rois = sum(len(rois) for rois in plan.roi_splits)
    seeds = np.random.SeedSequence(seed).spawn(n_rois + 1)
    jobs = _roi_jobs(plan)
    patches: list[tuple[_Patch, dict[str, Dates]]] = []
    with ThreadPoolExecutor(workers) as pool:
        zone_future = pool.submit(_write_zone, zone, seeds[-1], plan)
        futures = [pool.submit(_write_roi, data, job, seed, plan) for job, seed in zip(jobs, seeds[:-1], strict=True)]
        for done, future in enumerate(futures, start=1):
            patches.extend(future.result())
            progress("demo data", done, len(futures))
        zone_future.result()
        progress("demo zone", 1, 1)
    _write_tables(data, patches, plan)
    result = _located(root, seed, tuple(patch.patch_id for patch, _ in patches))
    write_train_config(result.configs, result.csv, result.metadata, root, seed, plan)
    write_zonal_config(result.zonal_config, zone, result.zone_dates, result.bundle, root / "map", plan)
    finish_folder(root, facts, result.patch_ids)
    log.info("made %d patches and a zone in %s", len(patches), root)
    return result


def _located(root: Path, seed: int, patch_ids: tuple[str, ...]) -> DemoData:
    data, zone = root / "data", root / "zone"
    return DemoData(
        folder=root,
        data=data,
        metadata=data / _METADATA,
        csv={split: data / f"{split}.csv" for split in SPLITS},
        zone=zone,
        zone_dates={
            name: zone / f"{name}_dates.txt"
            for name, row in MODALITIES.items()
            if row.dates_file and row.dates_of is None
        },
        zone_labels={label: zone / f"{label}.tif" for label in LABELS},
        configs=root / "configs",
        zonal_config=root / "zonal.yaml",
        cube=root / "hub.zarr",
        bundle=root / "runs" / "demo" / "best.bundle",
        patch_ids=patch_ids,
        seed=seed,
    )


@dataclass(frozen=True)
class _RoiJob:
    region: Region
    roi: str
    split: str
    left_m: float
    top_m: float
    first: tuple[int, int]


def _roi_jobs(plan: DemoPlan) -> list[_RoiJob]:
    jobs = []
    for number, (region, splits) in enumerate(zip(REGIONS, plan.roi_splits, strict=False)):
        for i, split in enumerate(splits):
            roi = f"{_ROI_KINDS[i % len(_ROI_KINDS)]}-{11 + 7 * number + 3 * i}"
            left = region.left_m + 5000 * i
            jobs.append(_RoiJob(region, roi, split, left, region.top_m, (1 + 2 * i, 3 + number)))
    return jobs


def _write_roi(
    data: Path, job: _RoiJob, seed: np.random.SeedSequence, plan: DemoPlan
) -> list[tuple[_Patch, dict[str, Dates]]]:
    rows, columns = plan.roi_grid
    area = render_area(seed, job.region, (rows * plan.patch_px, columns * plan.patch_px), plan.gsd_m)
    rng = np.random.default_rng(seed.spawn(1)[0])
    missing = int(rng.integers(rows * columns)) if rows * columns > 1 else -1
    for modality in MODALITIES:
        (data / _first_patch(job).path(modality)).parent.mkdir(parents=True, exist_ok=True)
    result = []
    for cell in range(rows * columns):
        keep = _kept_dates(rng, area)
        if cell == missing:
            continue
        row, col = divmod(cell, columns)
        corner = (round(job.left_m + col * plan.patch_m, 6), round(job.top_m - row * plan.patch_m, 6))
        number = (job.first[0] + row, job.first[1] + col)
        top_left = (row * plan.patch_px, col * plan.patch_px)
        patch = _Patch(job.region, job.roi, *number, *top_left, corner, keep, job.split)
        result.append((patch, _write_patch(data, area, patch, plan)))
    return result


def _first_patch(job: _RoiJob) -> _Patch:
    return _Patch(job.region, job.roi, *job.first, 0, 0, (job.left_m, job.top_m), {}, job.split)


def _kept_dates(rng: np.random.Generator, area: Area) -> dict[str, np.ndarray]:
    """Not every patch has every date of its ROI."""
    keep = {}
    for name, dates in area.dates.items():
        if MODALITIES[name].dates_of is None:
            dropped = rng.choice(len(dates), int(rng.integers(0, 4)), replace=False)
            keep[name] = np.setdiff1d(np.arange(len(dates)), dropped)
    return keep | {name: keep[row.dates_of] for name, row in MODALITIES.items() if row.dates_of}


def _write_patch(data: Path, area: Area, patch: _Patch, plan: DemoPlan) -> dict[str, Dates]:
    dates = {}
    for name, factor in plan.factors.items():
        top, left, size = patch.top_px // factor, patch.left_px // factor, plan.patch_px // factor
        values = area.values[name][..., top : top + size, left : left + size]
        if name in area.dates:
            values = values[patch.keep[name]]
            dates[name] = area.dates[name][patch.keep[name]]
        write_raster(data / patch.path(name), values, *patch.corner_m, round(plan.gsd_m * factor, 6))
    return dates


def _write_zone(zone: Path, seed: np.random.SeedSequence, plan: DemoPlan) -> None:
    shape = (plan.zone_grid[0] * plan.patch_px, plan.zone_grid[1] * plan.patch_px)
    area = render_area(seed, ZONE_REGION, shape, plan.gsd_m)
    corner = (ZONE_REGION.left_m, ZONE_REGION.top_m)
    for name, factor in plan.factors.items():
        pixel_m = round(plan.gsd_m * factor, 6)
        write_raster(zone / f"{name}.tif", area.values[name], *corner, pixel_m, tiled=True)
    for name, dates in area.dates.items():
        if MODALITIES[name].dates_of is None:
            (zone / f"{name}_dates.txt").write_text("\n".join(compact_dates(dates)) + "\n", encoding="utf-8")


def _write_tables(data: Path, patches: Sequence[tuple[_Patch, dict[str, Dates]]], plan: DemoPlan) -> None:
    """CSV splits and the GeoPackages with dates and splits."""
    header = ("patch_id", *MODALITIES)
    for split in SPLITS:
        chosen = [patch for patch, _ in patches if patch.split == split]
        rows = ((patch.patch_id, *(patch.path(name).as_posix() for name in MODALITIES)) for patch in chosen)
        write_table(data / f"{split}.csv", header, rows)
    ids = [patch.patch_id for patch, _ in patches]
    corners = np.array([patch.corner_m for patch, _ in patches])
    for name, row in MODALITIES.items():
        if row.dates_file and row.dates_of is None:
            columns = {"patch_id": ids, "acquisition_dates": [dates_json(dates[name]) for _, dates in patches]}
            write_geopackage(data / _METADATA / row.dates_file, columns, corners, plan.patch_m)
    splits = [patch.split for patch, _ in patches]
    columns = {"patch_id": ids, "split_1": splits, "split_toy": splits}
    write_geopackage(data / _METADATA / f"{_METADATA}_SPLIT.gpkg", columns, corners, plan.patch_m)
