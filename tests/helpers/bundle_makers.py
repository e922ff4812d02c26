"""Small real bundles and zonal configurations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from flairhub.modalities import INPUTS, MODALITIES
from flairhub.models import NetworkSpec, SeriesOptions, build_network, save_bundle
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from flairhub.timeseries import SeriesPreparation
from tests.helpers.zone_makers import MadeZone

ARCH = "mobilenetv3_small_050-linknet"
SERIES = SeriesOptions(encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8), out_conv=(8, 19), n_head=4, d_model=16)


def make_bundle(
    path: Path,
    preparations: Mapping[str, ImagePreparation | SeriesPreparation],
    labels: tuple[str, ...] = ("AERIAL_LABEL-COSIA",),
    seed: int = 0,
) -> Path:
    """Write a bundle of a tiny random network."""
    bands = {name: MODALITIES[name].bands for name in preparations}
    tasks = [default_task(label) for label in labels]
    spec = NetworkSpec(
        {name: preparation.n_channels(len(bands[name])) for name, preparation in preparations.items()},
        {task.label: task.n_classes for task in tasks},
        ARCH,
        series=SERIES,
    )
    torch.manual_seed(seed)
    network = build_network(spec).eval()
    return save_bundle(path, network, preparations=preparations, tasks=tasks, ref_date="05-15", bands=bands)


def write_zonal_config(path: Path, made: MadeZone, weights: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Write a zonal YAML for a made zone; outputs go to `out` beside it."""
    blocks: dict[str, Any] = {}
    for request in made.requests:
        block: dict[str, Any] = {"input_img_path": str(request.path)}
        if request.dates_path:
            block["dates_txt"] = str(request.dates_path)
        if request.quality_path:
            block |= {"filter_clouds": True, "filter_clouds_img_path": str(request.quality_path)}
        blocks[request.name] = block
    config: dict[str, Any] = {
        "output_path": str(path.parent / "out"),
        "output_name": "map",
        "write_dataframe": False,
        "output_type": "argmax",
        "cog_conversion": True,
        "model_weights": str(weights),
        "use_gpu": False,
        "batch_size": 2,
        "num_worker": 0,
        "img_pixels_detection": 32,
        "margin": 4,
        "output_px_meters": None,
        "modalities": {"inputs": {name: name in blocks for name in INPUTS}, **blocks},
        "tasks": [{"name": "AERIAL_LABEL-COSIA", "active": True}],
    }
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        holder = config
        for parent in parents:
            holder = holder[parent]
        holder[last] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
