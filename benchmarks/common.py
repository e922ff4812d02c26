"""Shared by the benchmarks: published-size patches, interleaved rounds, ratios.

Absolute times say little on a shared machine. Every benchmark therefore runs its contenders in turn, round by round in
one process, and prints the median ratio over rounds.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rich.console import Console
from rich.table import Table

FOOTPRINT_M = 102.4
DOMAIN = "D012-2019"
ROI = "AF-S1-27"


def smooth(rng: np.random.Generator, bands: int, size: int, cell: int) -> np.ndarray:
    """Return (band, y, x) float32 in 0-1: a coarse random field, enlarged, so that codecs find structure."""
    coarse = rng.random((bands, size // cell + 2, size // cell + 2)).astype(np.float32)
    steps = np.arange(size) / cell
    low, part = steps.astype(int), (steps % 1).astype(np.float32)
    rows = coarse[:, low] * (1 - part)[None, :, None] + coarse[:, low + 1] * part[None, :, None]
    return rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part


def noisy(rng: np.random.Generator, bands: int, size: int, cell: int, noise: float) -> np.ndarray:
    """Like `smooth`, with pixel noise of the given standard deviation."""
    field = smooth(rng, bands, size, cell)
    return field + noise * rng.standard_normal(field.shape, dtype=np.float32)


@dataclass(frozen=True)
class Files:
    """A data set of published patch sizes.

    Attributes:
        root: Folder in the published layout.
        csv_path: Split file that names every patch.
        paths: `paths[modality][patch_id]`.
        patch_ids: In storage order.
    """

    root: Path
    csv_path: Path
    paths: dict[str, dict[str, Path]]
    patch_ids: list[str]


def make_files(root: Path, n_patches: int, n_dates: int = 60, seed: int = 0) -> Files:
    """Write aerial, DEM, labels, Sentinel-2 and its mask for `n_patches` patches of published size, LZW-compressed."""
    rng = np.random.default_rng(seed)
    names = ("AERIAL_RGBI", "DEM_ELEV", "SENTINEL2_TS", "SENTINEL2_MSK-SC", "AERIAL_LABEL-COSIA")
    paths: dict[str, dict[str, Path]] = {name: {} for name in names}
    dates = {}
    side = int(np.ceil(np.sqrt(n_patches)))
    patch_ids = []
    for number in range(n_patches):
        row, col = divmod(number, side)
        patch_id = f"{DOMAIN}_{ROI}_{row}-{col}"
        patch_ids.append(patch_id)
        days = np.sort(rng.choice(365, n_dates, replace=False))
        dates[patch_id] = [str(np.datetime64("2019-01-01") + int(d)).replace("-", "") for d in days]
        for name, values in _patch(rng, n_dates).items():
            path = root / f"{DOMAIN}_{name}" / ROI / f"{DOMAIN}_{name}_{ROI}_{row}-{col}.tif"
            _write(path, values, 800000 + col * FOOTPRINT_M, 6300000 - row * FOOTPRINT_M)
            paths[name][patch_id] = path
    _write_dates(root / "GLOBAL_ALL_MTD", dates)
    csv_path = root / "train.csv"
    with csv_path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["patch_id", *names])
        for patch_id in patch_ids:
            writer.writerow([patch_id, *(paths[name][patch_id].relative_to(root) for name in names)])
    return Files(root, csv_path, paths, patch_ids)


def _patch(rng: np.random.Generator, n_dates: int) -> dict[str, np.ndarray]:
    ground = smooth(rng, 1, 512, 128) * 80 + 200
    label = (smooth(rng, 1, 512, 64) * 19).astype(np.uint8)
    quality = np.zeros((n_dates, 2, 10, 10), np.uint8)
    quality[rng.random(n_dates) < 0.4, 1] = 80
    series = noisy(rng, 10 * n_dates, 10, 4, 0.05) * 4000
    return {
        "AERIAL_RGBI": np.clip(noisy(rng, 4, 512, 16, 0.03) * 255, 0, 255).astype(np.uint8),
        "DEM_ELEV": np.concatenate([ground + (noisy(rng, 1, 512, 16, 0.01) > 0.7) * 8, ground]).astype(np.float32),
        "SENTINEL2_TS": np.clip(series, 0, 65535).astype(np.uint16),
        "SENTINEL2_MSK-SC": quality.reshape(-1, 10, 10),
        "AERIAL_LABEL-COSIA": label,
    }


def _write(path: Path, values: np.ndarray, x_min: float, y_max: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    profile = {
        "driver": "GTiff",
        "count": bands,
        "height": height,
        "width": width,
        "dtype": values.dtype.name,
        "crs": "EPSG:2154",
        "transform": from_origin(x_min, y_max, FOOTPRINT_M / width, FOOTPRINT_M / height),
        "compress": "lzw",
    }
    with rasterio.open(path, "w", **profile) as target:
        target.write(values)


def _write_dates(folder: Path, dates: Mapping[str, list[str]]) -> None:
    import geopandas
    from shapely.geometry import Point

    folder.mkdir(parents=True, exist_ok=True)
    entries = [json.dumps({str(i + 1): day for i, day in enumerate(days)}) for days in dates.values()]
    frame = geopandas.GeoDataFrame(
        {"patch_id": list(dates), "acquisition_dates": entries}, geometry=[Point(0, 0)] * len(dates), crs="EPSG:2154"
    )
    frame.to_file(folder / "GLOBAL_SENTINEL2_MTD_DATES.gpkg", driver="GPKG")


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: wall clock and CPU (all threads and finished children)."""

    wall_s: float
    cpu_s: float


def measure(run: Callable[[], object]) -> Timing:
    """Run once and return its times."""
    started, cpu = time.perf_counter(), _cpu_s()
    run()
    return Timing(time.perf_counter() - started, _cpu_s() - cpu)


def _cpu_s() -> float:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def interleave(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Timing]]:
    """Run every contender once per round, after one round that is not counted."""
    timings: dict[str, list[Timing]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            timing = measure(run)
            if number:
                timings[name].append(timing)
    return timings


def ratio(slow: list[Timing], fast: list[Timing], clock: str = "wall_s") -> float:
    """Median over rounds of slow / fast."""
    return statistics.median(getattr(a, clock) / getattr(b, clock) for a, b in zip(slow, fast, strict=True))


def show(title: str, timings: Mapping[str, list[Timing]], baseline: str, per: int = 1, unit: str = "run") -> None:
    """Print a table: median times per unit and ratios against the baseline (above 1 = faster than it)."""
    table = Table(title=title, title_justify="left")
    for column in ("contender", f"wall ms/{unit}", f"CPU ms/{unit}", "wall ratio", "CPU ratio"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, runs in timings.items():
        table.add_row(
            name,
            f"{1e3 * statistics.median(run.wall_s for run in runs) / per:.3f}",
            f"{1e3 * statistics.median(run.cpu_s for run in runs) / per:.3f}",
            f"{ratio(timings[baseline], runs):.2f}",
            f"{ratio(timings[baseline], runs, 'cpu_s'):.2f}",
        )
    Console(width=110).print(table)


def machine() -> str:
    """Describe the machine in a line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    cores, python = len(os.sched_getaffinity(0)), platform.python_version()
    return f"{model}, {cores} cores, Python {python}, {time.strftime('%Y-%m-%d')}"
