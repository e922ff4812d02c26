"""Kill a command at random times, start it again, compare what it leaves with an uninterrupted run.

python -m tests.tools.kills STAGE [--kills N] [--seed N] [--folder FOLDER], STAGE one of ingest, zone, zonal, train,
demo. Without a seed, the time decides. Ends with exit code 1 at the first difference, and keeps the folder then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.processes import Running, start_server
from tests.helpers.waiting import HANG_S

VOLATILE = (
    "seconds",
    "duration",
    "date",
    "time",
    "created",
    "started",
    "ended",
    "host",
    "process",
    "plan",
    "contents",
    "digest",
)
"""Keys of JSON files whose values depend on the clock or the machine, times of change of source files among them."""


@dataclass(frozen=True)
class Stage:
    """A command and what it leaves.

    Attributes:
        command: Arguments of `program`.
        results: Files and folders that it makes; removed for a fresh start.
        program: What runs; None is the command line of flairhub.
        compared: True for a file, by its path below the folder, that must be equal.
    """

    command: tuple[str, ...]
    results: tuple[Path, ...]
    program: Callable[[list[str]], object] | None = None
    compared: Callable[[Path], bool] = lambda path: True


@dataclass(frozen=True)
class Counts:
    """How often a stage was killed, and how often it came to its end and was compared."""

    killed: int
    compared: int


def ingest_stage(folder: Path) -> Stage:
    """Patches of two modalities into a cube, one patch in a shard."""
    from tests.helpers.makers import make_patch_files

    files = make_patch_files(folder / "files", n_rois=1, modalities=("AERIAL_RGBI", "SENTINEL1-ASC_TS"))
    cube = folder / "cube.zarr"
    command = ("ingest", "--root", str(files.folder), "--cube", str(cube), "--shard", "1", "--workers", "0")
    return Stage(command, (cube,))


def _zonal_yaml(folder: Path) -> Path:
    from flairhub.prepare import ImagePreparation
    from flairhub.timeseries import CloudFilter, SeriesPreparation
    from tests.helpers.bundle_makers import make_bundle, write_zonal_config
    from tests.helpers.zone_makers import make_zone

    preparations: Mapping[str, Any] = {
        "AERIAL_RGBI": ImagePreparation((1, 2, 3), None, "custom", (50.0, 51.0, 52.0), (20.0, 21.0, 22.0)),
        "SENTINEL2_TS": SeriesPreparation((1, 3, 4, 9), CloudFilter(55, 65, 0.4), "monthly"),
    }
    ratios = {"AERIAL_RGBI": 1, "SENTINEL2_TS": 8}
    made = make_zone(folder / "zone", 96, 80, ratios, n_dates=6, quality=True)
    bundle = make_bundle(folder / "bundle", preparations)
    extras = {"block_px": 40, "write_confidence": True, "output_path": str(folder / "map")}
    return write_zonal_config(folder / "zonal.yaml", made, bundle, extras)


def zonal_stage(folder: Path) -> Stage:
    """A zone of an image and a series to maps, confidence included."""
    return Stage(("zonal", "--config", str(_zonal_yaml(folder)), "--workers", "2"), (folder / "map",))


def zone_stage(folder: Path) -> Stage:
    """The rasters of a zone into a zone cube."""
    cube = folder / "zone.zarr"
    command = ("ingest", "--zone", str(_zonal_yaml(folder)), "--cube", str(cube), "--workers", "1")
    return Stage(command, (cube,))


def train_stage(folder: Path) -> Stage:
    """Two epochs, predictions and scores of a small network; a checkpoint after each step."""
    from flairhub.ingest import ingest
    from tests.helpers.config_makers import write_train_config
    from tests.helpers.makers import make_patch_files

    sizes = {"AERIAL_RGBI": 32, "AERIAL_LABEL-COSIA": 32}
    files = make_patch_files(folder / "files", n_rois=1, rows=2, cols=4, modalities=sizes, sizes_px=sizes)
    cube = folder / "cube.zarr"
    ingest(root=files.folder, cube=cube)
    configs = write_train_config(
        folder / "configs",
        files,
        hyperparams={"num_epochs": 3, "batch_size": 2},
        models={"monotemp_model": {"arch": "tu-test_resnet.r160_in1k-linknet", "pretrained": False}},
        modalities={"pre_processings": {"use_augmentation": True}, "aux_loss": {"AERIAL_RGBI": False}},
        saving={"ckpt_every_n_steps": 1},
    )
    command = ("train", "--config", str(configs), "--cube", str(cube))
    return Stage(command, (folder / "configs" / "out",), compared=is_training_result)


def is_training_result(path: Path) -> bool:
    """Not the log of events, nor drawings."""
    return path.suffix in {".json", ".tif", ".safetensors", ".yaml", ".npy", ".csv"}


def demo_stage(folder: Path) -> Stage:
    """The whole chain, on two patches."""
    return Stage((str(folder / "demo"),), (folder / "demo",), small_demo, is_demo_result)


def small_demo(arguments: list[str]) -> None:
    """The demo of a test: an epoch, three patches of each split."""
    from flairhub.demo import DemoPlan
    from flairhub.demo.walkthrough import run_demo

    plan = DemoPlan(
        roi_splits=(("train", "valid", "test"),),
        roi_grid=(1, 3),
        zone_grid=(1, 2),
        arch="tu-lcnet_050-linknet",
        epochs=1,
        batch_size=2,
    )
    run_demo(arguments[0], seed=1, plan=plan)


def is_demo_result(path: Path) -> bool:
    """Data, cube, training and map; not the pictures."""
    return "pictures" not in path.parts and (path.suffix == "" or is_training_result(path))


STAGES: Mapping[str, Callable[[Path], Stage]] = {
    "ingest": ingest_stage,
    "zone": zone_stage,
    "zonal": zonal_stage,
    "train": train_stage,
    "demo": demo_stage,
}


def digests(stage: Stage, folder: Path) -> dict[str, str]:
    """SHA-256 of what a stage has left, by path."""
    result = {}
    for root in stage.results:
        for path in sorted(root.rglob("*")):
            if path.is_file() and stage.compared(path.relative_to(folder)):
                result[str(path.relative_to(folder))] = hashlib.sha256(_content(path)).hexdigest()
    return result


def _content(path: Path) -> bytes:
    if path.suffix == ".json":
        return json.dumps(_steady(json.loads(path.read_text())), sort_keys=True).encode()
    if path.name.endswith("_config.yaml"):
        # The last line of a finished zonal run knows when its sources were changed.
        return b"".join(line for line in path.read_bytes().splitlines(True) if not line.startswith(b"# finished"))
    return path.read_bytes()


def _steady(value: Any) -> Any:
    """A JSON value without what depends on the clock or the machine."""
    if isinstance(value, dict):
        return {key: _steady(part) for key, part in value.items() if not any(word in key for word in VOLATILE)}
    return [_steady(part) for part in value] if isinstance(value, list) else value


def start(stage: Stage) -> Running:
    """Start the command in a process, and a session, of its own."""
    return Running(list(stage.command), program=stage.program)


def finish(stage: Stage, folder: Path) -> dict[str, str]:
    """Run the command to its end; return its digests.

    Raises:
        AssertionError: It fails.
    """
    process = start(stage)
    out, err = process.communicate(HANG_S)
    assert process.returncode == 0, f"exit code {process.returncode}: {out}{err}"
    return digests(stage, folder)


def clear(stage: Stage) -> None:
    """Remove everything that the command has left, its locks and unfinished work included."""
    for path in stage.results:
        shutil.rmtree(path, ignore_errors=True)
        for rest in path.parent.glob(f"*{path.name}*"):
            if rest.is_dir():
                shutil.rmtree(rest)
            else:
                rest.unlink()


def kill_at_random(stage: Stage, folder: Path, kills: int, seed: int) -> Counts:
    """Kill the command `kills` times; whenever it ends, compare and begin anew.

    Raises:
        AssertionError: A run fails, or leaves something else than an uninterrupted one.
    """
    clock = random.Random(seed)
    whole = finish(stage, folder)
    clear(stage)
    # Not the first one, for which the server was still importing.
    begun = time.monotonic()
    assert_equal(finish(stage, folder), whole)
    longest = time.monotonic() - begun
    assert whole, "nothing to compare"
    clear(stage)
    killed = compared = 0
    while killed < kills:
        process = start(stage)
        process.wait(clock.uniform(0.0, longest))
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        if process.returncode == -signal.SIGKILL:
            killed += 1
            continue
        out, err = process.communicate()
        assert process.returncode == 0, f"after {killed} kills: exit code {process.returncode}: {out}{err}"
        assert_equal(digests(stage, folder), whole)
        compared += 1
        clear(stage)
    assert_equal(finish(stage, folder), whole)
    return Counts(killed, compared + 1)


def assert_equal(result: Mapping[str, str], whole: Mapping[str, str]) -> None:
    """Name the files that differ."""
    differing = sorted(name for name in {*result, *whole} if result.get(name) != whole.get(name))
    assert not differing, f"other than without kills: {differing}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    start_server("flairhub.inference.run", "flairhub.training.phases", "segmentation_models_pytorch")
    begun = time.monotonic()
    stage = STAGES[options.stage](folder)
    try:
        counts = kill_at_random(stage, folder, options.kills, options.seed)
    except AssertionError as error:
        sys.exit(f"{options.stage}, seed {options.seed}: {error}\nSee {folder}.")
    seconds = time.monotonic() - begun
    print(  # noqa: T201
        f"{options.stage}, seed {options.seed}: {counts.killed} kills, {counts.compared} finished runs equal, "
        f"{seconds:.0f} s"
    )
    if not options.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
