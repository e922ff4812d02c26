"""The full data set on paper: a real plan, real metadata and a real index of 241,100 patches; only pixels are absent.

python benchmarks/scaling.py [--patches 241100] [--rois 2822]

Every input file of the published layout is made as an empty file (a hard link to one real GeoTIFF per modality), so the
folder scan, the checks of all files and the plan are those of an ingest. The store is created as ingest does; every
patch is then marked as present, as after an ingest, and the store is opened and its index used.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
from common import FOOTPRINT_M, machine
from rasterio.transform import from_origin

import flairhub as fh
from flairhub.cube.template import GroupResult, create_store, fill_store, set_status
from flairhub.ingest.patch_sources import source_of_folder
from flairhub.ingest.plan import Options, Plan, Planner
from flairhub.modalities import MODALITIES

DEPARTMENTS = 74
SIZES_PX = {"AERIAL_RGBI": 512, "AERIAL-RLT_PAN": 256, "DEM_ELEV": 512, "SPOT_RGBI": 64}
SERIES_PX, LABEL_PX = 10, 512
N_DATES = {"SENTINEL2_TS": 91, "SENTINEL1-ASC_TS": 95, "SENTINEL1-DESC_TS": 95}


def cells(n_patches: int, n_rois: int) -> Iterator[tuple[str, str, int, int]]:
    """Yield (domain, ROI, row, col): ROIs of nearly equal size, on square lattices."""
    for number in range(n_rois):
        count = (number + 1) * n_patches // n_rois - number * n_patches // n_rois
        side = int(np.ceil(np.sqrt(count)))
        domain = f"D{number % DEPARTMENTS:03d}-2019"
        for place in range(count):
            yield domain, f"{chr(65 + number % 26)}F-S1-{number}", place // side, place % side


def make_tree(root: Path, patches: list[tuple[str, str, int, int]]) -> int:
    """Link every file of the published layout; return their number."""
    count = 0
    for name, row in MODALITIES.items():
        model = root / f"{name}.model"
        write_model(model, name)
        place, links = model, 0
        for domain, roi, i, j in patches:
            own = domain.split("-")[0] + "-195X" if row.undated_domain else domain
            folder = root / f"{own}_{name}" / roi
            if not links % 60_000:
                # File systems limit the links of one file.
                place = root / f"{name}.model{links}"
                place.write_bytes(model.read_bytes())
            if i == j == 0:
                folder.mkdir(parents=True)
            os.link(place, f"{folder}/{own}_{name}_{roi}_{i}-{j}.tif")
            links += 1
        count += links
    return count


def write_model(path: Path, name: str) -> None:
    """Write a sparse GeoTIFF with the right header; its pixels are never read."""
    row = MODALITIES[name]
    size = SIZES_PX.get(name, SERIES_PX if row.is_series else LABEL_PX)
    dates = N_DATES.get(row.dates_of or name, 1) if row.is_series else 1
    profile = {"driver": "GTiff", "width": size, "height": size, "count": len(row.bands) * dates, "dtype": row.dtype}
    step = FOOTPRINT_M / size
    with rasterio.open(path, "w", **profile, crs="EPSG:2154", transform=from_origin(0, 0, step, step), SPARSE_OK=True):
        pass


def make_dates(root: Path, patches: list[tuple[str, str, int, int]]) -> int:
    """Write the date GeoPackages, one entry per patch; return their bytes."""
    folder = root / "GLOBAL_ALL_MTD"
    folder.mkdir()
    total = 0
    for name, count in N_DATES.items():
        rng = np.random.default_rng(count)
        entries: dict[str, str] = {}
        for _, roi, _, _ in patches:
            # The patches of an ROI share their dates.
            if roi not in entries:
                days = np.sort(rng.choice(365, count, replace=False)) + np.datetime64("2019-01-01")
                entries[roi] = json.dumps({str(i + 1): str(day).replace("-", "") for i, day in enumerate(days)})
        file = MODALITIES[name].dates_file
        assert file is not None
        connection = sqlite3.connect(folder / file)
        connection.execute("CREATE TABLE gpkg_contents (table_name TEXT)")
        connection.execute("INSERT INTO gpkg_contents VALUES ('dates')")
        connection.execute("CREATE TABLE dates (patch_id TEXT, acquisition_dates TEXT)")
        rows = ((f"{domain}_{roi}_{i}-{j}", entries[roi]) for domain, roi, i, j in patches)
        connection.executemany("INSERT INTO dates VALUES (?, ?)", rows)
        connection.commit()
        connection.close()
        total += (folder / file).stat().st_size
    return total


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print how long a block took, and this process's memory after it."""
    started = time.perf_counter()
    yield
    print(f"{title}: {time.perf_counter() - started:.1f} s; process {resident_mib():.0f} MiB", flush=True)


def resident_mib() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def describe_plan(plan: Plan) -> None:
    """Print numbers of the plan."""
    import pickle

    one = pickle.dumps(plan.jobs[0])
    shards = sum(group.spec.n_shards for group in plan.template.groups)
    largest = max(len(pickle.dumps(job)) for job in plan.jobs[:: max(1, len(plan.jobs) // 200)])
    print(f"plan: {len(plan.jobs)} jobs = {shards} shards; a job is {len(one) / 2**10:.0f} KiB pickled, at most")
    print(f"      {largest / 2**10:.0f} KiB (two per worker are with the scheduler at a time)")
    for group in plan.template.groups:
        spec = group.spec
        whole = np.prod(spec.shape[1:], dtype=float) * np.dtype(spec.dtype).itemsize * spec.shape[0]
        print(
            f"  {group.name}: {spec.shape} {spec.dtype}, {spec.n_shards} shards of {spec.shard_patches} patches, "
            f"{whole / 2**30:.0f} GiB uncompressed"
        )


def finish(store: Path, plan: Plan) -> None:
    """Mark every patch as present, as after an ingest."""
    n_patches = len(plan.template.columns["patch_id"])
    origins = np.zeros((n_patches, 2))
    result = GroupResult(np.ones(n_patches, dtype=bool), {})
    fill_store(store, plan.template, origins, {group.name: result for group in plan.template.groups})
    set_status(store, "complete")


def describe_cube(store: Path) -> None:
    """Print what opening costs."""
    started = time.perf_counter()
    cube = fh.open_cube(store)
    opened = time.perf_counter() - started
    n_ids = len(cube.patch_ids)
    table = time.perf_counter() - started
    for name in cube.modalities:
        cube.array(name)
    readers = time.perf_counter() - started
    for name in N_DATES:
        cube.series(name)
    everything = time.perf_counter() - started
    print(f"open_cube: {opened:.2f} s; + patch table of {n_ids}: {table:.2f} s; + all readers: {readers:.2f} s;")
    print(f"  + dates of all three series: {everything:.2f} s")
    started = time.perf_counter()
    cube.indices(cube.patch_ids[::7])
    print(f"positions of {n_ids // 7} patch ids: {time.perf_counter() - started:.2f} s")
    started = time.perf_counter()
    lazy = cube.to_xarray("SENTINEL2_TS")
    print(f"to_xarray of a series: {time.perf_counter() - started:.2f} s, {lazy.data.data.npartitions} blocks")
    del cube, lazy
    tracemalloc.start()
    cube = fh.open_cube(store)
    cube.indices(cube.patch_ids[:1])
    for name in cube.modalities:
        cube.array(name)
    index, _ = tracemalloc.get_traced_memory()
    for name in N_DATES:
        cube.series(name)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"memory: index {index / 2**20:.0f} MiB, dates of all three series {(held - index) / 2**20:.0f} MiB")


def main() -> None:
    """Make, plan, create, open."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=241_100)
    parser.add_argument("--rois", type=int, default=2_822)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        root, store = Path(name) / "files", Path(name) / "cube.zarr"
        root.mkdir()
        patches = list(cells(options.patches, options.rois))
        with step("make the input tree (not part of an ingest)"):
            count = make_tree(root, patches)
            n_bytes = make_dates(root, patches)
        print(f"{count} input files, {n_bytes / 2**20:.0f} MiB of date tables")
        del patches
        with step("scan the folder"):
            source = source_of_folder(root)
        with step("plan"):
            plan = Planner(source, Options()).plan()
        with step("state (size and modification time) of all files"):
            for job in plan.jobs:
                job.state(plan.digest)
        describe_plan(plan)
        with step("create the store: all metadata and tables"):
            create_store(store, plan.template)
        with step("finish the store"):
            finish(store, plan)
        files = [path for path in store.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        shards = sum(group.spec.n_shards for group in plan.template.groups)
        print(f"metadata and tables: {len(files)} files, {size / 2**20:.1f} MiB; with {shards} shards and the journal")
        print(f"  {len(files) + shards + 2} files = {100 * (len(files) + shards + 2) / count:.2f} % of the input files")
        del source, plan
        describe_cube(store)


if __name__ == "__main__":
    main()
