"""A zonal run that a test has killed.

python killed_run.py FOLDER [--at STAGE DONE] [--in-call N]: kills itself when DONE jobs of a STAGE are
done, while the other threads work on; or in the N-th call of its network. Prints its progress.
"""

from __future__ import annotations

import argparse
import os
import signal
from itertools import count
from pathlib import Path
from typing import Any

from flairhub.inference import write_zone
from flairhub.inference.run import ZonalResult
from flairhub.prepare import ImagePreparation
from tests.helpers.zone_makers import FakeModel, MadeZone, SmallField, fake_model, make_zone

INPUTS = {"AERIAL_RGBI": ImagePreparation()}


class Mortal(SmallField):
    """Kills its process in its `dies_in`-th call."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.dies_in, self.numbers = 0, count(1)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        if next(self.numbers) == self.dies_in:
            die()
        return super().forward(*arguments, **options)


def die() -> None:
    """As a lack of memory does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def mortal_model(dies_in: int = 0) -> FakeModel:
    """The model of these runs; 0 = it does not die."""
    model = fake_model(INPUTS)
    network = Mortal({"AERIAL_RGBI": 4}, model.network.tasks).eval()
    network.dies_in = dies_in
    return FakeModel(network, model.preparations, model.tasks)


def run(made: MadeZone, out: Path, dies_in: int = 0, progress: Any = None, **options: Any) -> ZonalResult:
    zone = made.open(32, 4)
    return write_zone(
        zone, mortal_model(dies_in), out, "map", tiles=True, block_px=24, workers=2, progress=progress, **options
    )


def open_made(folder: Path) -> MadeZone:
    from flairhub.zones import RasterRequest

    path = folder / "AERIAL_RGBI.tif"
    if not path.exists():
        make_zone(folder, 96, 96, {"AERIAL_RGBI": 1})
    return MadeZone(folder, {}, {}, (RasterRequest("AERIAL_RGBI", path, key="modalities.AERIAL_RGBI"),))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--at", nargs=2, default=("", "0"))
    parser.add_argument("--in-call", type=int, default=0)
    options = parser.parse_args()
    stage_to_die_at, done_to_die_at = options.at

    def progress(stage: str, done: int, total: int) -> None:
        print(stage, done, total, flush=True)  # noqa: T201
        if stage_to_die_at and stage.startswith(stage_to_die_at) and done == int(done_to_die_at):
            die()

    run(open_made(options.folder), options.folder / "out", options.in_call, progress)


if __name__ == "__main__":
    main()
