"""What a run is: the hash that decides its bytes, the tags of its maps, and whether its maps are there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from rasterio.errors import RasterioError

from flairhub.errors import OutputExistsError
from flairhub.inference.map_plan import MapPlan
from flairhub.inference.map_store import Work, stored_key
from flairhub.inference.model_ref import ModelRef
from flairhub.inference.outputs import OutputType
from flairhub.tasks import Task
from flairhub.version import __version__
from flairhub.zones import identity

_FORMAT = 3

_RECORD = "# finished: "
"""Begins the last line of the configuration beside finished maps."""


def tags_of(path: Path) -> Mapping[str, str]:
    """Return the tags of a map; none where it does not open."""
    try:
        with rasterio.open(path, driver="GTiff", sharing=False) as dataset:
            return dict(dataset.tags())
    except RasterioError:
        return {}


def run_digest(key: str, target: str) -> str:
    """Hash of all that decides the files of a run: of their pixels, and of what is written and how."""
    return hashlib.sha256(f"{key} {target}".encode()).hexdigest()


def with_record(config_yaml: str, run: str, folder: Path, names: Sequence[str]) -> str:
    """Return a configuration that says in a comment which run made the files of a folder, and their sizes."""
    files = {name: (folder / name).stat().st_size for name in names if (folder / name).exists()}
    record = json.dumps({"run": run, "files": files}, sort_keys=True)
    return f"{config_yaml.rstrip()}\n{_RECORD}{record}\n"


def is_of_config(path: Path, config_yaml: str) -> bool:
    """True when a configuration beside finished maps is this one."""
    return _record(path)[0] == config_yaml.rstrip()


def is_finished(path: Path, run: str, names: Sequence[str]) -> bool:
    """True when all files of a run are there, as it left them.

    Args:
        path: Its configuration beside the maps.
        run: See `run_digest`.
        names: Names of the files beside it.
    """
    record = _record(path)[1]
    if record.get("run") != run:
        return False
    wanted, present = record["files"], [path.with_name(name) for name in names if name != path.name]
    return all(file.is_file() and wanted.get(file.name) == file.stat().st_size for file in present)


def _record(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text, _, record = path.read_text(encoding="utf-8").rpartition(_RECORD)
        return text.rstrip(), dict(json.loads(record))
    except (OSError, ValueError, TypeError):
        return "", {}


COUNT_TAGS = "FLAIRHUB_CLASS_PX", "FLAIRHUB_NODATA_PX", "FLAIRHUB_NOT_FINITE_PX"
"""Tags of the maps of a task: its pixels per class, without data, and with data but without finite logits."""


def count_tags(work: Work, task: Task) -> dict[str, str]:
    """Pixels per class, without data, and with data but without finite logits, as tags of the maps of a task."""
    records = work.done.values()
    classes = np.sum([record.counts[task.label] for record in records], axis=0)
    numbers = sum(record.nodata for record in records), sum(record.not_finite[task.label] for record in records)
    return dict(zip(COUNT_TAGS, (",".join(map(str, classes.tolist())), *map(str, numbers)), strict=True))


def check_absent(folder: Path, names: Sequence[str], work_folder: Path | None = None, key: str = "") -> None:
    """Raise OutputExistsError when a file is there already.

    Args:
        folder: Where the files go.
        names: Their names.
        work_folder: Unfinished work; files that a killed run with the same key has already moved to their names are
            its own and no obstacle.
        key: See `Work`.
    """
    moved: set[str] = set()
    if work_folder is not None and key and stored_key(work_folder) == key and (work_folder / "moving.json").is_file():
        moved = set(json.loads((work_folder / "moving.json").read_text())["names"])
    existing = [folder / name for name in names if (folder / name).exists() and name not in moved]
    if existing:
        raise OutputExistsError(
            f"{', '.join(map(str, existing))} exists already. Choose another output_name or output_path, "
            f"or replace it with --overwrite."
        )


def run_tags(plan: MapPlan, ref: ModelRef) -> dict[str, str]:
    """Return what the maps say about how they were made."""
    return {
        "FLAIRHUB_VERSION": __version__,
        "FLAIRHUB_MODEL": "in memory" if ref.kind == "memory" else Path(ref.path).name,
        "FLAIRHUB_MODEL_SHA256": ref.weights_sha256,
        "FLAIRHUB_INPUTS": ",".join(ref.preparations),
        "FLAIRHUB_WINDOW_PX": str(plan.sizes.window_px),
        "FLAIRHUB_MARGIN_PX": str(plan.sizes.margin_px),
        **(
            {}
            if plan.zone.aoi is None
            else {"FLAIRHUB_AOI": plan.zone.aoi.name, "FLAIRHUB_AOI_SHA256": plan.zone.aoi.digest}
        ),
    }


def run_key(plan: MapPlan, ref: ModelRef, output_type: OutputType, maps: xr.Dataset) -> str:
    """Hash of all that decides the bytes of the blocks; batch size, workers and device do not."""
    zone = plan.zone
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "version": __version__,
        "model": ref.identity,
        "preparations": {name: preparation.to_json() for name, preparation in ref.preparations.items()},
        "tasks": [[task.label, list(task.names)] for task in ref.tasks],
        "rasters": [identity(raster) for raster in zone.everything],
        "geobox": [*zone.geobox.transform, zone.geobox.height, zone.geobox.width],
        "windows": [plan.sizes.window_px, plan.sizes.margin_px],
        "ratio": str(plan.ratio),
        "blocks": [plan.row_edges, plan.col_edges],
        **({} if zone.aoi is None else {"aoi": zone.aoi.digest}),
        "output": [output_type, {str(name): array.shape for name, array in maps.data_vars.items()}],
        "style": asdict(plan.style),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
