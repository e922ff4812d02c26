"""Ingest against only reading the same GeoTIFFs with GDAL.

python benchmarks/ingest.py [--patches 192] [--rounds 5] [--workers 2]

Per modality and over all: CPU and wall time of `read` (rasterio opens and reads every file, keeps nothing) and of
`ingest` (a whole `flairhub.ingest` of that modality: plan, check, read, statistics, encode, write, journal, finish).
Then size and number of files, and the peak memory of ingests of 1x and 4x as many patches, each in its own process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import rasterio
from common import Files, interleave, machine, make_files, ratio, show

import flairhub as fh


def read_all(files: Files, names: Sequence[str]) -> None:
    """Open and read every file."""
    for name in names:
        for path in files.paths[name].values():
            with rasterio.open(path) as source:
                source.read()


def compare(files: Files, folder: Path, rounds: int, workers: int) -> None:
    """Print times per modality, then of all together, also in worker processes."""
    number = 0

    def ingest(names: Sequence[str], **options: int) -> Callable[[], None]:
        def run() -> None:
            nonlocal number
            number += 1
            # A new place each time: replacing files makes the file system write the old ones out first.
            fh.ingest(cube=folder / f"{number}.zarr", root=files.root, modalities=names, **options)
            shutil.rmtree(folder / f"{number}.zarr")

        return run

    n_patches = len(files.patch_ids)
    for name in files.paths:
        names = [name]
        contenders = {"read": lambda names=names: read_all(files, names), "ingest": ingest(names)}
        report(name, interleave(contenders, rounds), n_patches)
    names = list(files.paths)
    contenders = {"read": lambda: read_all(files, names), "ingest": ingest(names)}
    if workers:
        contenders[f"ingest, {workers} workers"] = ingest(names, workers=workers)
    report("All", interleave(contenders, rounds), n_patches)


def report(title: str, timings: dict, n_patches: int) -> None:
    """Print a table and the share of the budget."""
    show(title, timings, "read", n_patches, "patch")
    for name in timings:
        if name != "read":
            wall, cpu = (100 * ratio(timings["read"], timings[name], clock) for clock in ("wall_s", "cpu_s"))
            print(f"read / {name}: CPU {cpu:.0f} %, wall {wall:.0f} %")
    print()


def compare_sizes(files: Files, folder: Path) -> None:
    """Print bytes and files of the cube against the GeoTIFFs, per modality and together."""
    fh.ingest(cube=folder / "size.zarr", root=files.root)
    held = [(name, [path.stat() for path in entry.values()]) for name, entry in files.paths.items()]
    total = [0, 0, 0, 0]
    for name, stats in held:
        stored = [path.stat() for path in (folder / "size.zarr" / name).rglob("*") if path.is_file()]
        sizes = sum(stat.st_size for stat in stats), sum(stat.st_size for stat in stored)
        print(f"{name}: {sizes[1] / sizes[0]:.2f}x the bytes, {len(stored)} files for {len(stats)}")
        total = [a + b for a, b in zip(total, (*sizes, len(stats), len(stored)), strict=True)]
    print(f"All: {total[1] / total[0]:.2f}x the bytes, {total[3]} files for {total[2]}")
    shutil.rmtree(folder / "size.zarr")


def compare_memory(small: Files, large: Files, folder: Path) -> None:
    """Print the peak memory of one process that ingests the small and one that ingests the large data set."""
    context = multiprocessing.get_context("spawn")
    for files in (small, large):
        with context.Pool(1) as pool:
            peak = pool.apply(_peak, (str(files.root), str(folder / "memory.zarr")))
        shutil.rmtree(folder / "memory.zarr")
        print(f"{len(files.patch_ids)} patches: peak memory {peak / 2**10:.0f} MiB")


def _peak(root: str, cube: str) -> int:
    fh.ingest(cube=cube, root=root, shard=16)
    # Not ru_maxrss, which starts at what the parent had.
    return int(next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM")))


def main() -> None:
    """Make files, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_files(folder / "files", options.patches)
        compare(files, folder, options.rounds, options.workers)
        compare_sizes(files, folder)
        small = make_files(folder / "small", options.patches // 4)
        compare_memory(small, files, folder)


if __name__ == "__main__":
    main()
