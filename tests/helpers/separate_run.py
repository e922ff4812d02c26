"""A training in a process of its own, to be killed or to be joined by others.

python separate_run.py CONFIG CUBE PROGRESS [--die-in-checkpoint N] [--die-after-step N SECONDS] [--exact-layers]
"""

from __future__ import annotations

import argparse
import io
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flairhub.config import load_train_config
from flairhub.training import phases
from flairhub.training.module import SegmentationModule


def die_in_checkpoint(number: int) -> None:
    """Kill the process in the middle of writing a checkpoint."""
    original, calls = torch.save, []

    def save(content: Any, stream: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(None)
        if len(calls) == number:
            memory = io.BytesIO()
            original(content, memory)
            stream.write(memory.getvalue()[: memory.tell() // 2])
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        original(content, stream, *args, **kwargs)

    torch.save = save


def exact_layers() -> None:
    """Compute in float64, with networks whose result for a patch depends on no other patch of its batch, nor on chance.

    What is then left between two ways to add up the same numbers is rounding, 1e-16 of a value per operation.
    """
    build, initialise, cross_entropy = phases.build_network, SegmentationModule.__init__, functional.cross_entropy

    def built(*args: Any, **kwargs: Any) -> nn.Module:
        network = build(*args, **kwargs).double()
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
                layer.train = lambda mode=True, layer=layer: layer  # type: ignore[method-assign]
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        return network

    def initialised(module: SegmentationModule, *args: Any, **kwargs: Any) -> None:
        initialise(module, *args, **kwargs)
        module.double()  # class weights too

    def checked(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert logits.dtype == torch.float64
        return cross_entropy(logits, *args, **kwargs)

    phases.build_network = built
    SegmentationModule.__init__ = initialised  # type: ignore[method-assign]
    functional.cross_entropy = checked
    # Inputs and logits that the package takes to single precision.
    Tensor.float = Tensor.double  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("cube", type=Path)
    parser.add_argument("progress", type=Path)
    parser.add_argument("--die-in-checkpoint", type=int, default=0)
    parser.add_argument(
        "--die-after-step", nargs=2, type=float, default=(0, 0), help="step, and seconds of its CPU time"
    )
    parser.add_argument("--exact-layers", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.die_in_checkpoint:
        die_in_checkpoint(options.die_in_checkpoint)
    if options.exact_layers:
        exact_layers()

    steps, seconds, seen = *options.die_after_step, 0

    def note(stage: str, done: int, total: int) -> None:
        nonlocal seen
        with options.progress.open("a") as stream:
            stream.write(f"{stage} {done}\n")
        seen += stage == "train"
        if seen == steps and stage == "train":
            # Not a clock's time: wherever a busy machine lets the process be by then, its work is the same.
            signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-4))

    phases.train(load_train_config(options.config), cube=options.cube, progress=note)


if __name__ == "__main__":
    main()
