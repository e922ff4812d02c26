"""A small slice of the lazy map of a large zone: from files, from lazily indexed xarray, from dask, side by side.

    python benchmarks/slices.py                 # 100 square kilometres at 0.2 m, a slice of 100 m
    python benchmarks/slices.py --length 10000  # 4 square kilometres

The zone is a sparse GeoTIFF with pixels only around the slice, the network one that costs nothing: what is measured is
the way to the pixels and back. `windows` counts the windows that the slice made the network see.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import rasterio
import rioxarray
import torch
import xarray as xr
from common import interleave, machine, measure, show
from rasterio.windows import Window
from torch import nn

import flairhub as fh
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task

LABEL = "AERIAL_LABEL-COSIA"
LEFT, TOP, RES_M = 650_000.0, 6_860_000.0, 0.2


class Free(nn.Module):
    """Classes from the first band; counts its windows."""

    def __init__(self) -> None:
        """Start at 0."""
        super().__init__()
        self.windows = 0

    def forward(self, inputs: Any, *_: Any, **__: Any) -> Any:
        """Return (window, class, y, x) logits."""
        image = inputs["AERIAL_RGBI"]
        self.windows += len(image)
        logits = torch.zeros(len(image), default_task(LABEL).n_classes, *image.shape[-2:])
        logits[:, 0] = image[:, 0]
        return SimpleNamespace(logits={LABEL: logits})


def sparse_file(path: Path, length_px: int, around_px: int) -> Path:
    """Write a GeoTIFF of length_px x length_px that holds pixels only around its middle."""
    profile: dict[str, Any] = {"driver": "GTiff", "count": 4, "dtype": "uint8", "crs": "EPSG:2154"}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "sparse_ok": True}
    transform = rasterio.Affine(RES_M, 0, LEFT, 0, -RES_M, TOP)
    with rasterio.open(
        path, "w", height=length_px, width=length_px, transform=transform, bigtiff="yes", **profile
    ) as out:
        first, size = max(0, length_px // 2 - around_px), min(length_px, 2 * around_px)
        values = np.random.default_rng(0).integers(1, 255, (4, size, size), dtype=np.uint8)
        out.write(values, window=Window(first, first, size, size))
    return path


def main() -> None:
    """Print build times, graph sizes and slice times of the three kinds of sources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=50_000, help="pixels of 0.2 m along the zone")
    parser.add_argument("--slice-m", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    network = Free().eval()
    model = SimpleNamespace(
        network=network, preparations={"AERIAL_RGBI": ImagePreparation((1, 2, 3))}, tasks=[default_task(LABEL)]
    )
    with tempfile.TemporaryDirectory() as folder:
        path = sparse_file(Path(folder) / "ortho.tif", args.length, 3_000)
        sources: dict[str, Any] = {
            "files": path,
            "lazily indexed": rioxarray.open_rasterio(path),
            "dask, chunks of 2048": rioxarray.open_rasterio(path, chunks={"x": 2048, "y": 2048}),
        }
        print(f"{machine()}; {args.length} px = {(args.length * RES_M / 1000) ** 2:.0f} km2, slice {args.slice_m} m")
        middle_x, middle_y = LEFT + args.length * RES_M / 2, TOP - args.length * RES_M / 2
        part = {"x": slice(middle_x, middle_x + args.slice_m), "y": slice(middle_y, middle_y - args.slice_m)}
        for block_px in (None, 512):
            runs: dict[str, Callable[[], object]] = {}
            for name, source in sources.items():
                made: list[xr.DataArray] = []

                def build(source: Any = source, made: list[xr.DataArray] = made, block_px: Any = block_px) -> None:
                    zone = fh.zone(AERIAL_RGBI=source)
                    maps = fh.predict_zone(zone, model, window_px=512, margin_px=64, batch_size=4, block_px=block_px)
                    made.append(maps["class"].sel(part))

                timing = measure(build)
                network.windows = 0
                made[0].compute()
                size = len(pickle.dumps(made[0].data.__dask_graph__())) / 1e6
                print(f"{name}: built in {timing.wall_s:.2f} s, graph {size:.2f} MB, {network.windows} windows")
                runs[name] = made[0].compute
            show(f"slice, block_px={block_px}", interleave(runs, args.rounds), "files", unit="slice")


if __name__ == "__main__":
    main()
