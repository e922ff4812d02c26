"""Zonal inference: whole runs against a bare loop of the same forward passes, reads, memory, graph.

    python benchmarks/zonal.py              # throughput, reads, graph
    python benchmarks/zonal.py --memory     # also peak memory from 4 to 64 square kilometres (some minutes)
    python benchmarks/zonal.py --memory-only --sides 500 1000     # only that, of smaller zones

The bare loop runs the network over prepared batches of the shapes that the run makes, and nothing else: no reading, no
preparation, no argmax, no files. Its time over the run's is the share of the run that is network.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import rasterio
import torch
from common import interleave, machine, measure, ratio, show, smooth
from rasterio.transform import from_origin
from torch import nn

from flairhub.inference import predict_zone, write_zone
from flairhub.inference.batches import make_batch, read_block
from flairhub.inference.map_plan import map_sizes, plan_map
from flairhub.inference.model_ref import load, model_ref
from flairhub.modalities import MODALITIES
from flairhub.models import NetworkSpec, SeriesOptions, build_network, save_bundle
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from flairhub.timeseries import SeriesPreparation
from flairhub.zones import RasterRequest, Zone, build_zone

WINDOW_PX, MARGIN_PX = 512, 128
LABEL = "AERIAL_LABEL-COSIA"
PREPARATIONS = {
    "AERIAL_RGBI": ImagePreparation((1, 2, 3), None, "custom", (105.0, 110.0, 101.0), (52.0, 46.0, 44.0)),
    "SENTINEL2_TS": SeriesPreparation(average="monthly"),
}


def write_tif(path: Path, values: np.ndarray, res_m: float) -> None:
    """Write (band, y, x) as a tiled, compressed GeoTIFF."""
    profile: dict[str, Any] = {"tiled": True, "blockxsize": 512, "blockysize": 512} if res_m < 1 else {}
    bands, height, width = values.shape
    transform = from_origin(650_000, 6_860_000, res_m, res_m)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=bands,
        height=height,
        width=width,
        dtype=values.dtype,
        crs="EPSG:2154",
        transform=transform,
        compress="deflate",
        **profile,
    ) as target:
        target.write(values)


def make_zone(folder: Path, length_px: int, series: bool = True, n_dates: int = 36) -> Zone:
    """Write an aerial image and a Sentinel-2 series over one square, and open them."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 24, (4, length_px, length_px), dtype=np.uint8)
    write_tif(folder / "aerial.tif", (smooth(rng, 4, length_px, 64) * 200).astype(np.uint8) + noise, 0.2)
    requests = [RasterRequest("AERIAL_RGBI", folder / "aerial.tif")]
    if series:
        coarse = length_px // 256 * 5
        write_tif(folder / "s2.tif", rng.integers(0, 4000, (n_dates * 10, coarse, coarse), dtype=np.uint16), 10.24)
        days = np.datetime64("2021-01-03") + 10 * np.arange(n_dates)
        (folder / "dates.txt").write_text("\n".join(str(day) for day in days))
        requests.append(RasterRequest("SENTINEL2_TS", folder / "s2.tif", folder / "dates.txt"))
    return build_zone(requests, suggested={"window_px": WINDOW_PX, "margin_px": MARGIN_PX, "batch_size": 4})


def make_bundle(path: Path, arch: str) -> Path:
    """Write a bundle of an untrained network."""
    spec = NetworkSpec(
        {"AERIAL_RGBI": 3, "SENTINEL2_TS": 10}, {LABEL: default_task(LABEL).n_classes}, arch, series=SeriesOptions()
    )
    torch.manual_seed(0)
    bands = {"AERIAL_RGBI": ("R", "G", "B", "NIR"), "SENTINEL2_TS": MODALITIES["SENTINEL2_TS"].bands}
    network = build_network(spec).eval()
    return save_bundle(
        path, network, preparations=PREPARATIONS, tasks=[default_task(LABEL)], ref_date="05-15", bands=bands
    )


def throughput(folder: Path, length_px: int, arch: str, rounds: int) -> dict[str, float]:
    """Whole runs and bare loops in turn."""
    zone, bundle = make_zone(folder, length_px), make_bundle(folder / "bundle", arch)
    ref = model_ref(bundle)
    plan, network = plan_map(zone, ref, map_sizes(zone)), load(ref).network
    sizes = []
    for block in plan.blocks():
        (row0, row1), (col0, col1) = plan.extent(block)
        n_windows = len(plan.rows.covering(row0, row1)) * len(plan.cols.covering(col0, col1))
        sizes += [min(4, n_windows - first) for first in range(0, n_windows, 4)]
    starts = [
        (plan.rows.start(i), plan.cols.start(j)) for i, j in product(range(plan.rows.count), range(plan.cols.count))
    ]
    pixels = read_block(zone, PREPARATIONS, (starts[0][0], starts[0][0] + 512), (starts[0][1], starts[0][1] + 512))
    batches = {
        size: make_batch(zone, pixels, PREPARATIONS, starts[:1] * size, WINDOW_PX, "cpu")[0] for size in set(sizes)
    }

    def bare() -> None:
        with torch.inference_mode():
            for size in sizes:
                batch = batches[size]
                network(batch.inputs, batch.dates, batch.masks, size=(512, 512))

    def run() -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        write_zone(zone, ref, folder / "out", "map", workers=2)

    timings = interleave({"bare loop": bare, "zonal run": run}, rounds)
    title = f"{length_px} px zone, aerial + Sentinel-2, {arch}, {plan.n_windows} windows in batches of 4"
    show(title, timings, "bare loop", plan.n_windows, "window")
    return {clock: ratio(timings["bare loop"], timings["zonal run"], clock) for clock in ("wall_s", "cpu_s")}


def read_share(folder: Path, length_px: int) -> float:
    """Bytes read from the rasters over their size, all blocks of a run with small blocks."""
    zone = make_zone(folder, length_px)
    plan = plan_map(zone, model_ref(CheapModel()), map_sizes(zone), 1024)
    sources = [zone.rasters["AERIAL_RGBI"]]
    before = _bytes_read()
    for block in plan.blocks():
        (row0, row1), (col0, col1) = plan.extent(block)
        rows, cols = plan.rows.covering(row0, row1), plan.cols.covering(col0, col1)
        reach = [
            (axis.start(span[0]), axis.start(span[-1]) + axis.window)
            for axis, span in ((plan.rows, rows), (plan.cols, cols))
        ]
        read_block(zone, CheapModel.preparations, *reach)
    return (_bytes_read() - before) / sum(Path(source.path).stat().st_size for source in sources)


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


class CheapNetwork(nn.Module):
    """Two classes by a threshold."""

    def forward(self, inputs: Any, dates: Any = None, masks: Any = None, **options: Any) -> Any:
        """Return logits of every pixel."""
        values = inputs["AERIAL_RGBI"]
        logits = torch.zeros((len(values), len(CheapModel.tasks[0].names), *values.shape[-2:]))
        logits[:, :2] = values[:, :2]
        # No class of its own: classes are in cycles, and their tensors would stay until the collector comes.
        return SimpleNamespace(logits={LABEL: logits})


class CheapModel:
    """A model that costs next to nothing."""

    preparations = {"AERIAL_RGBI": ImagePreparation()}
    tasks = (default_task(LABEL),)

    def __init__(self) -> None:
        self.network = CheapNetwork().eval()


def graph(folder: Path) -> dict[str, float]:
    """Size and time of a graph of 10,000 blocks; building it calls no network."""
    path = folder / "sparse.tif"
    _sparse(path, 100 * 512)
    zone = build_zone([RasterRequest("AERIAL_RGBI", path)], suggested={"window_px": 512, "margin_px": 0})
    model = CheapModel()
    model.network.forward = None  # type: ignore[assignment]
    made: list[Any] = []
    timing = measure(lambda: made.append(predict_zone(zone, model, block_px=512)))
    array = made[0]["class"].data
    return {"blocks": array.npartitions, "MB": len(pickle.dumps(array.__dask_graph__())) / 1e6, "s": timing.wall_s}


def _sparse(path: Path, length_px: int) -> None:
    transform = from_origin(650_000, 6_860_000, 0.2, 0.2)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=4,
        height=length_px,
        width=length_px,
        dtype="uint8",
        crs="EPSG:2154",
        transform=transform,
        tiled=True,
        blockxsize=512,
        blockysize=512,
        compress="deflate",
        sparse_ok=True,
    ):
        pass


def one_memory_run(folder: Path, side_m: int) -> None:
    """Map a square with the cheap model and print the peak memory of this process."""
    import resource

    path = folder / f"{side_m}.tif"
    _sparse(path, side_m * 5)
    zone = build_zone(
        [RasterRequest("AERIAL_RGBI", path)], suggested={"window_px": 1024, "margin_px": 64, "batch_size": 2}
    )
    torch.set_num_threads(1)
    timing = measure(lambda: write_zone(zone, CheapModel(), folder / f"out{side_m}", "map", workers=2))  # type: ignore[arg-type]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"side_m": side_m, "peak_mb": peak, "s": timing.wall_s}))


def memory(sides_m: list[int]) -> None:
    """Peak memory of a process per area."""
    for side_m in sides_m:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--memory-run", str(side_m), "--folder", folder]
            # GDAL's cache of decoded tiles grows to 5 % of the machine's memory by default.
            environment = {**os.environ, "GDAL_CACHEMAX": "128"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            found = json.loads(done.stdout)
        print(f"{side_m**2 / 1e6:.3g} km2: peak memory {found['peak_mb']:.0f} MB, {found['s']:.0f} s")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=2048, help="zone length in pixels, a multiple of 256")
    parser.add_argument("--arch", default="resnet34-unet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="also the memory of large zones")
    parser.add_argument("--memory-only", action="store_true", help="nothing but the memory of large zones")
    parser.add_argument(
        "--sides",
        type=int,
        nargs="+",
        default=[2000, 8000],
        help="sides of the large zones in metres; default 4 and 64 km2",
    )
    parser.add_argument("--memory-run", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_run:
        one_memory_run(Path(options.folder), options.memory_run)
        return
    print(machine(), f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    if options.memory_only:
        memory(options.sides)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = graph(folder)
        print(
            f"graph of {found['blocks']} blocks: {found['MB']:.2f} MB, built in {found['s']:.2f} s without a model call"
        )
        print(f"bytes read over raster size, blocks of 1024 px: {read_share(folder, 4096):.2f}")
        shares = throughput(folder, options.length, options.arch, options.rounds)
        print(f"network share of the whole run: wall {shares['wall_s']:.3f}, CPU {shares['cpu_s']:.3f}")
    if options.memory:
        memory(options.sides)


if __name__ == "__main__":
    main()
