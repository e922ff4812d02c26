"""A zonal run for tests to kill: `python killed_run.py FOLDER SECONDS_PER_CALL`; prints a line per finished block."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from flairhub.inference import write_zone
from flairhub.inference.run import ZonalResult
from flairhub.prepare import ImagePreparation
from tests.helpers.zone_makers import FakeModel, MadeZone, SmallField, fake_model, make_zone

INPUTS = {"AERIAL_RGBI": ImagePreparation()}


class Slow(SmallField):
    """Takes its time, so that a kill hits the middle."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.seconds = 0.0

    def forward(self, *arguments: Any, **options: Any) -> Any:
        time.sleep(self.seconds)
        return super().forward(*arguments, **options)


def slow_model(seconds: float) -> FakeModel:
    model = fake_model(INPUTS)
    network = Slow({"AERIAL_RGBI": 4}, model.network.tasks).eval()
    network.seconds = seconds
    return FakeModel(network, model.preparations, model.tasks)


def run(made: MadeZone, out: Path, seconds: float = 0.0, progress: Any = None, **options: Any) -> ZonalResult:
    zone = made.open(32, 4)
    return write_zone(
        zone, slow_model(seconds), out, "map", tiles=True, block_px=24, workers=2, progress=progress, **options
    )


def open_made(folder: Path) -> MadeZone:
    from flairhub.inference import RasterRequest

    path = folder / "AERIAL_RGBI.tif"
    if not path.exists():
        make_zone(folder, 96, 96, {"AERIAL_RGBI": 1})
    return MadeZone(folder, {}, {}, (RasterRequest("AERIAL_RGBI", path, key="modalities.AERIAL_RGBI"),))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    run(
        open_made(target),
        target / "out",
        float(sys.argv[2]),
        lambda stage, done, total: print(stage, done, total, flush=True),  # noqa: T201
    )
