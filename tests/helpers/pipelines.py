"""The pipelines by name, each as the layers it is loaded from, and what a configuration acts on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from flairhub.config import TrainConfig, ZonalConfig, label_tasks
from flairhub.modalities import MODALITIES

PIPELINES = Path(__file__).parents[2] / "pipelines"
TRAININGS = {path.stem: (PIPELINES / "base", path) for path in sorted(PIPELINES.glob("*.yaml"))}
ROWS = [name for name in TRAININGS if name.startswith(("lc_", "lpis_"))]
ZONES = {
    path.stem: (PIPELINES / "zonal" / "base.yaml", path)
    for path in sorted((PIPELINES / "zonal").iterdir())
    if path.stem != "base"
}
_ZONE_FILES = ("input_img_path", "dates_txt", "filter_clouds_img_path")
_PREPARED_BY = {"sentinel2": "SENTINEL2_TS", "sentinel1": "SENTINEL1-ASC_TS", "calc_elevation": "DEM_ELEV"}


def digest(config: TrainConfig | ZonalConfig) -> str:
    """Return the sha256 of the values that act.

    Values that equal their default are left out, so that a new key changes no digest; so is what is said about inputs
    and label sets that are not enabled, and auxiliary losses of a single input.
    """
    values = _trained(config) if isinstance(config, TrainConfig) else _mapped(config)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _trained(config: TrainConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json", exclude_defaults=True)
    active, section = config.modalities.active, values["modalities"]
    for key in ("inputs", "inputs_channels", "modality_dropout", "aux_loss"):
        kept = {name: entry for name, entry in section.pop(key, {}).items() if name in active and entry}
        if kept and not (key == "aux_loss" and len(active) == 1):
            section[key] = kept
    statistics = section.get("normalization", {})
    section["normalization"] = {key: entry for key, entry in statistics.items() if key.rpartition("_")[0] in active}
    if any(not MODALITIES[name].is_series for name in active):
        section["normalization"]["norm_type"] = config.modalities.normalization.norm_type
    section["pre_processings"] = {
        key: entry
        for key, entry in section.get("pre_processings", {}).items()
        if all(name in active for word, name in _PREPARED_BY.items() if word in key)
    }
    values["labels_configs"] = {label: values["labels_configs"][label] for label in config.labels}
    return values


def _mapped(config: ZonalConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json", exclude_defaults=True)
    section, unused = values["modalities"], () if config.cube is None else _ZONE_FILES
    values["modalities"] = {"inputs": list(config.modalities.active)}
    for name in config.modalities.active:
        block = {key: entry for key, entry in section.get(name, {}).items() if key not in unused}
        values["modalities"] |= {name: block} if block else {}
    values["tasks"] = [[task.label, task.level, list(task.names)] for task in label_tasks(config)]
    return values
