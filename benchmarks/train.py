"""Training: how much of a step is not spent in the network, and images per second against random tensors in memory.

python benchmarks/train.py [--patches 64] [--rounds 3] [--batch 8] [--arch resnet18-unet] [--device cpu]

Contenders, same network, loss and optimizer, aerial + Sentinel-2 of published sizes:
  random tensors   a plain loop over one prepared batch that stays on the device: forward, loss, backward, step
  cube             a plain loop over BatchLoader and prepare_batch
  flairhub train   Lightning around the same: logging, checks, schedule; one epoch without validation
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import perf_counter

import lightning.pytorch as pl
import numpy as np
import torch
from common import interleave, machine, make_files, ratio, show

import flairhub as fh
from flairhub.config import Hyperparams, PreProcessings, Saving
from flairhub.cube import Cube
from flairhub.data import BatchLoader, PreparedBatch, prepare_batch
from flairhub.models import NetworkSpec, build_network
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from flairhub.timeseries import CloudFilter, SeriesPreparation
from flairhub.training.logits import network_output
from flairhub.training.losses import Criterion, TaskObjective
from flairhub.training.module import SegmentationModule
from flairhub.training.optimizers import build_optimizer
from flairhub.training.trainer import quiet_lightning

TASK = default_task("AERIAL_LABEL-COSIA")
PREPARATIONS = {
    "AERIAL_RGBI": ImagePreparation(None, None, "custom", (106.6, 105.7, 111.4, 100.0), (39.8, 52.2, 45.6, 40.0)),
    "SENTINEL2_TS": SeriesPreparation(cloud_filter=CloudFilter(), average="monthly"),
}


class Bench:
    """One network and what trains it."""

    def __init__(self, cube: Cube, batch: int, arch: str, device: str):
        torch.manual_seed(0)
        inputs, sizes = {"AERIAL_RGBI": 4, "SENTINEL2_TS": 10}, {"AERIAL_RGBI": 512, "SENTINEL2_TS": 10}
        spec = NetworkSpec(inputs, {TASK.label: TASK.n_classes}, arch, sizes=sizes)
        self.cube, self.batch, self.device = cube, batch, device
        self.network = build_network(spec).to(device).train()
        weights = np.ones(TASK.n_classes, np.float32)
        self.criterion = Criterion((TaskObjective(TASK, 1.0, weights),)).to(device)
        self.optimizer = build_optimizer("adamw", self.network.parameters(), 1e-4, fused=device == "cpu")
        self.ready = prepare_batch(next(iter(self.loader())), PREPARATIONS, device)
        self.inside = 0.0

    def loader(self) -> BatchLoader:
        return BatchLoader(
            self.cube,
            np.arange(self.cube.n_patches),
            PREPARATIONS,
            (TASK,),
            batch_size=self.batch,
            shuffle=True,
            drop_last=True,
            threads=2,
            pin_memory=self.device == "cuda",
        )

    @property
    def steps(self) -> int:
        return self.cube.n_patches // self.batch

    def step(self, prepared: PreparedBatch) -> None:
        """Forward, loss, backward, optimizer: the network's part."""
        started = perf_counter()
        logits, aux = network_output(self.network, prepared, aux=True)
        loss, _ = self.criterion(logits, aux, prepared.targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.inside += perf_counter() - started

    def random_tensors(self) -> None:
        for _ in range(self.steps):
            self.step(self.ready)

    def from_cube(self) -> None:
        for batch in self.loader():
            self.step(prepare_batch(batch, PREPARATIONS, self.device))

    def lightning(self) -> None:
        module = SegmentationModule(
            self.network,
            self.criterion,
            PREPARATIONS,
            self.steps,
            self.cube.patch_ids,
            Hyperparams(learning_rate=1e-4, optim_weight_decay=0.0, seed=0),
            PreProcessings(),
            Saving(log_images=0),
        )
        with tempfile.TemporaryDirectory() as folder, quiet_lightning():
            trainer = pl.Trainer(
                accelerator="gpu" if self.device == "cuda" else "cpu",
                devices=1,
                max_epochs=1,
                limit_val_batches=0,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
                logger=pl.loggers.TensorBoardLogger(folder),
            )
            trainer.fit(module, self.loader())
        self.network.to(self.device).train()


def main() -> None:
    """Make files, ingest them, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--arch", default="resnet18-unet")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    print(machine(), torch.cuda.get_device_name() if options.device == "cuda" else "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_files(folder / "files", options.patches)
        fh.ingest(cube=folder / "cube.zarr", root=files.root)
        bench = Bench(fh.open_cube(folder / "cube.zarr"), options.batch, options.arch, options.device)
        contenders = {
            "random tensors": bench.random_tensors,
            "cube": bench.from_cube,
            "flairhub train": bench.lightning,
        }
        timings = interleave(contenders, options.rounds)
        seen = bench.steps * options.batch
        show(f"One epoch, {options.arch} + U-TAE, batches of {options.batch}", timings, "random tensors", seen, "patch")
        base = timings["random tensors"]
        for label in ("cube", "flairhub train"):
            wall, cpu = (1 - ratio(base, timings[label], clock) for clock in ("wall_s", "cpu_s"))
            print(f"{label}: not the network's: {100 * wall:.1f} % of the wall time, {100 * cpu:.1f} % of the CPU time")
        started, bench.inside = perf_counter(), 0.0
        bench.from_cube()
        outside = 1 - bench.inside / (perf_counter() - started)
        print(f"cube, measured inside the loop: {100 * outside:.1f} % of a step outside forward, backward and step")


if __name__ == "__main__":
    main()
