"""A training in a process of its own, to be killed or to be joined by others.

python separate_run.py CONFIG CUBE PROGRESS [--die-in-checkpoint N] [--plain-layers]
"""

from __future__ import annotations

import argparse
import io
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flairhub.config import load_train_config
from flairhub.training import run


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


def plain_layers() -> None:
    """Networks whose result for a patch does not depend on the other patches of its batch, nor on chance."""
    original = run.build_network

    def build(*args: Any, **kwargs: Any) -> nn.Module:
        network = original(*args, **kwargs)
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
                layer.train = lambda mode=True, layer=layer: layer  # type: ignore[method-assign]
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        return network

    run.build_network = build


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("cube", type=Path)
    parser.add_argument("progress", type=Path)
    parser.add_argument("--die-in-checkpoint", type=int, default=0)
    parser.add_argument("--plain-layers", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.die_in_checkpoint:
        die_in_checkpoint(options.die_in_checkpoint)
    if options.plain_layers:
        plain_layers()

    def note(stage: str, done: int, total: int) -> None:
        with options.progress.open("a") as stream:
            stream.write(f"{stage} {done}\n")

    run.train(load_train_config(options.config), cube=options.cube, progress=note)


if __name__ == "__main__":
    main()
