"""Loading batches: the cube against one GeoTIFF per patch, a memory map, and decoding alone.

python benchmarks/loader.py [--patches 64] [--rounds 5]

Contenders, all over the same patches (aerial + DEM + label + Sentinel-2 with its mask, published sizes):
  files      one rasterio read per file, float32 images, float32 one-hot label, torch DataLoader (what a plain
             implementation of the published preparation does)
  cube       BatchLoader: native dtypes, uint8 label
  cube float the same followed by prepare_batch on the CPU: float32 normalised images, the values of `files`
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import rasterio
import torch
from common import Files, interleave, machine, make_files, ratio, show
from torch.utils.data import DataLoader, Dataset

import flairhub as fh
from flairhub.cube import Cube
from flairhub.data import BatchLoader, prepare_batch
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from flairhub.timeseries import CloudFilter, SeriesPreparation

BATCH = 8
LABEL = "AERIAL_LABEL-COSIA"
MEANS, STDS = (106.6, 105.7, 111.4, 100.0), (39.8, 52.2, 45.6, 40.0)
PREPARATIONS = {
    "AERIAL_RGBI": ImagePreparation(None, None, "custom", MEANS, STDS),
    "DEM_ELEV": ImagePreparation(None, "dsm_ndsm", "custom", (311.0, 3.0), (100.0, 5.0)),
    "SENTINEL2_TS": SeriesPreparation(cloud_filter=CloudFilter()),
}


class PatchDataset(Dataset):
    """A plain per-file data set: read, normalise, one-hot."""

    def __init__(self, files: Files, dates: list[np.ndarray]):
        self.files, self.dates = files, dates

    def __len__(self) -> int:
        return len(self.files.patch_ids)

    def _read(self, name: str, index: int) -> np.ndarray:
        with rasterio.open(self.files.paths[name][self.files.patch_ids[index]]) as source:
            return source.read()

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        aerial = self._read("AERIAL_RGBI", index).astype(np.float32)
        for band in range(4):
            aerial[band] = (aerial[band] - MEANS[band]) / STDS[band]
        heights = self._read("DEM_ELEV", index).astype(np.float32)
        elevation = np.stack([heights[0], heights[0] - heights[1]])
        elevation = (elevation - np.array([311.0, 3.0])[:, None, None]) / np.array([100.0, 5.0])[:, None, None]
        label = self._read(LABEL, index)[0]
        one_hot = np.stack([label == c for c in range(19)]).astype(np.float32)
        series = self._read("SENTINEL2_TS", index).reshape(-1, 10, 10, 10)
        quality = self._read("SENTINEL2_MSK-SC", index).reshape(-1, 2, 10, 10)
        clear = (quality <= 1).all(axis=1).mean(axis=(1, 2)) >= 0.95
        return {
            "AERIAL_RGBI": torch.from_numpy(aerial),
            "DEM_ELEV": torch.from_numpy(elevation.astype(np.float32)),
            "SENTINEL2_TS": torch.from_numpy(series[clear].astype(np.float32)),
            "offsets": torch.from_numpy(self.dates[index][clear].astype(np.float32)),
            LABEL: torch.from_numpy(one_hot),
        }


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack; pad series to the longest."""
    batch = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        stacked = name in ("SENTINEL2_TS", "offsets")
        batch[name] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True) if stacked else torch.stack(values)
    return batch


def drain(batches: object) -> None:
    """Iterate to the end."""
    for _ in batches:  # type: ignore[attr-defined]
        pass


def loader(cube: Cube, threads: int, shuffle: bool = False) -> BatchLoader:
    """Return the cube's loader."""
    everything = np.arange(cube.n_patches)
    tasks = (default_task(LABEL),)
    return BatchLoader(cube, everything, PREPARATIONS, tasks, batch_size=BATCH, threads=threads, shuffle=shuffle)


def compare_loaders(files: Files, cube: Cube, rounds: int) -> None:
    """Print loader ratios, one and two threads."""
    info = cube.series("SENTINEL2_TS")
    dates = [days[:count].astype(np.int64) for days, count in zip(info.dates, info.n_dates, strict=True)]
    plain = PatchDataset(files, dates)

    def cube_float(threads: int) -> None:
        for batch in loader(cube, threads):
            prepare_batch(batch, PREPARATIONS, "cpu")

    one = {
        "files, 0 workers": lambda: drain(DataLoader(plain, BATCH, collate_fn=collate)),
        "cube, 1 thread": lambda: drain(loader(cube, 1)),
        "cube float, 1 thread": lambda: cube_float(1),
    }
    show("One thread", interleave(one, rounds), "files, 0 workers", cube.n_patches, "patch")
    two = {
        "files, 2 workers": lambda: drain(DataLoader(plain, BATCH, collate_fn=collate, num_workers=2)),
        "cube, 2 threads": lambda: drain(loader(cube, 2)),
        "cube float, 2 threads": lambda: cube_float(2),
    }
    timings = interleave(two, rounds)
    show("Two threads (against two worker processes)", timings, "files, 2 workers", cube.n_patches, "patch")
    both = interleave({"files": one["files, 0 workers"], "cube": two["cube, 2 threads"]}, max(2, rounds // 2))
    show("Two threads against the plain loader in one process", both, "files", cube.n_patches, "patch")


def compare_reads(cube: Cube, plain_cube: Cube, folder: Path, rounds: int) -> None:
    """Print one-patch reads against decoding alone and against a memory map."""
    import numcodecs.blosc
    import numcodecs.zstd

    order = np.random.default_rng(1).permutation(cube.n_patches)
    for name in ("AERIAL_RGBI", "DEM_ELEV", "SENTINEL2_TS", LABEL):
        array, uncompressed = cube.array(name), plain_cube.array(name)
        out = np.empty((1, *array.shape[1:]), array.dtype)
        flat = out.reshape(-1).view(np.uint8)
        everything = cube.read(name, range(cube.n_patches))
        mapped = np.memmap(folder / f"{name}.raw", everything.dtype, "w+", shape=everything.shape)
        mapped[:] = everything
        mapped.flush()
        mapped = np.memmap(folder / f"{name}.raw", everything.dtype, "r", shape=everything.shape)
        is_zstd = array.codec.startswith("zstd")
        packed = [
            numcodecs.zstd.compress(patch, int(array.codec.split("-")[1]))
            if is_zstd
            else numcodecs.blosc.compress(
                patch, b"lz4", 5, 2 if "bit" in array.codec else 1, typesize=patch.dtype.itemsize
            )
            for patch in everything
        ]
        decode = numcodecs.zstd.decompress if is_zstd else numcodecs.blosc.decompress

        def read_all(reader=array, out=out) -> None:
            for index in order:
                reader.read_into([index], out)

        def decode_all(decode=decode, packed=packed, flat=flat) -> None:
            for index in order:
                decode(packed[index], flat)

        def copy_all(mapped=mapped, out=out) -> None:
            for index in order:
                out[0] = mapped[index]

        contenders = {
            f"decode in memory ({array.codec})": decode_all,
            "read one patch": read_all,
            "memmap copy": copy_all,
            "read one patch, uncompressed": lambda reader=uncompressed, out=out: read_all(reader, out),
        }
        timings = interleave(contenders, rounds)
        names = list(contenders)
        show(name, timings, names[0], cube.n_patches, "patch")
        print(f"read / decode: {100 * ratio(timings[names[0]], timings[names[1]]):.0f} %")
        print(f"uncompressed read / memmap copy: {100 * ratio(timings[names[2]], timings[names[3]]):.0f} %\n")


def main() -> None:
    """Make files, ingest them, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_files(folder / "files", options.patches)
        for codec in ("balanced", "none"):
            fh.ingest(cube=folder / f"{codec}.zarr", root=files.root, codec=codec)
        cube, plain = fh.open_cube(folder / "balanced.zarr"), fh.open_cube(folder / "none.zarr")
        compare_loaders(files, cube, options.rounds)
        compare_reads(cube, plain, folder, options.rounds)


if __name__ == "__main__":
    main()
