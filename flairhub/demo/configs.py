"""The demo's configurations: the four published training files and a zonal file, with choices for a laptop CPU.

The training files give what differs from the defaults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flairhub.demo.area import DemoPlan
from flairhub.demo.surfaces import BACKGROUND
from flairhub.modalities import INPUTS, LABELS, MODALITIES, Kind
from flairhub.tasks import default_task

ACTIVE = ("AERIAL_RGBI", "SENTINEL2_TS")
"""Inputs of the demo's model."""

REF_DATE = "05-15"

_MEANS_STDS: dict[str, tuple[list[float], list[float]]] = {
    "AERIAL_RGBI": ([113.0, 119.0, 85.0, 141.0], [43.0, 33.0, 34.0, 44.0]),
    "AERIAL-RLT_PAN": ([112.0], [34.0]),
    "SPOT_RGBI": ([1140.0, 1070.0, 715.0, 2520.0], [350.0, 230.0, 210.0, 660.0]),
    "DEM_ELEV": ([230.0, 4.0], [190.0, 6.0]),
}
IGNORED_COSIA = {15: 0, 16: 0, 17: 0, 18: 0}
"""Land-cover classes of weight 0, as published."""


def _channels() -> dict[str, list[int]]:
    """Every band of every input but the elevation, whose pair has no channel list."""
    rows = (MODALITIES[name] for name in INPUTS)
    return {row.name: list(range(1, len(row.bands) + 1)) for row in rows if not row.is_elevation}


def train_sections(csv: dict[str, Path], metadata: Path, root: Path, seed: int, plan: DemoPlan) -> dict[str, Any]:
    """The content of each of the four files, by file name."""
    return {
        "config_task.yaml": _task_sections(csv, metadata, root, seed, plan),
        "config_modalities.yaml": {"modalities": _modalities_section()},
        "config_models.yaml": {"models": _models_section(plan)},
        "config_supervision.yaml": _supervision_sections(),
    }


def _task_sections(csv: dict[str, Path], metadata: Path, root: Path, seed: int, plan: DemoPlan) -> dict[str, Any]:
    return {
        "paths": {
            "out_folder": str(root / "runs"),
            "out_model_name": "demo",
            "train_csv": str(csv["train"]),
            "val_csv": str(csv["valid"]),
            "test_csv": str(csv["test"]),
            "global_mtd_folder": str(metadata),
            "cube": str(root / "hub.zarr"),
        },
        "hyperparams": {
            "num_epochs": plan.epochs,
            "batch_size": plan.batch_size,
            "seed": seed % 2**32,
            "learning_rate": 1e-2,
            "warmup_fraction": 0.1,
        },
        "hardware": {"accelerator": "cpu"},
        "saving": {"ckpt_save_also_last": False, "enable_progress_bar": False},
    }


def _modalities_section() -> dict[str, Any]:
    normalization: dict[str, Any] = {"norm_type": "custom"}
    for name, (means, stds) in _MEANS_STDS.items():
        normalization |= {f"{name}_means": means, f"{name}_stds": stds}
    return {
        "inputs": {name: name in ACTIVE for name in INPUTS},
        "inputs_channels": _channels(),
        "pre_processings": {
            "filter_sentinel2": True,
            "temporal_average_sentinel2": "monthly",
            "temporal_average_sentinel1": "monthly",
            "calc_elevation": True,
            "calc_elevation_stack_dsm": True,
            "use_augmentation": True,
        },
        "normalization": normalization,
    }


def _models_section(plan: DemoPlan) -> dict[str, Any]:
    return {
        "monotemp_model": {"arch": plan.arch, "pretrained": False},
        "multitemp_model": {
            "ref_date": REF_DATE,
            "encoder_widths": [32, 32],
            "decoder_widths": [32, 32],
            "out_conv": [32, 19],
            "encoder_norm": "batch",
            "n_head": 8,
            "d_model": 128,
            "d_k": 8,
        },
    }


def _supervision_sections() -> dict[str, Any]:
    configs: dict[str, dict[str, Any]] = {}
    for label in LABELS:
        configs[label] = {
            "value_name": dict(enumerate(default_task(label).names)),
        }
    configs["AERIAL_LABEL-COSIA"]["value_weights"] = {"default_exceptions": IGNORED_COSIA}
    # Two pixels of three are no parcel: with less weight on them the crops are learnt in a few epochs.
    configs["ALL_LABEL-LPIS"]["value_weights"] = {"default_exceptions": {BACKGROUND: 0.3}}
    return {"labels": list(LABELS), "labels_configs": configs}


def zonal_sections(
    zone: Path, zone_dates: dict[str, Path], weights: Path, output: Path, plan: DemoPlan
) -> dict[str, Any]:
    """The content of the zonal file: every modality described, the demo's active."""
    modalities: dict[str, Any] = {"inputs": {name: name in ACTIVE for name in INPUTS}}
    for name in INPUTS:
        row = MODALITIES[name]
        block: dict[str, Any] = {"input_img_path": str(zone / f"{name}.tif")}
        if not row.is_elevation:
            block["channels"] = _channels()[name]
        if row.kind is Kind.SERIES:
            block |= {"dates_txt": str(zone_dates[name]), "temporal_average": "monthly"}
        else:
            means, stds = _MEANS_STDS[name]
            block["normalization"] = {"type": "custom", "means": means, "stds": stds}
        if row.quality_mask:
            block |= {"filter_clouds": True, "filter_clouds_img_path": str(zone / f"{row.quality_mask}.tif")}
        if row.is_elevation:
            block |= {"calc_elevation": True, "calc_elevation_stack_dsm": True}
        modalities[name] = block
    return {
        "output_path": str(output),
        "output_name": "zone",
        "write_dataframe": False,
        "output_type": "argmax",
        "cog_conversion": True,
        "model_weights": str(weights),
        "use_gpu": False,
        "batch_size": 4,
        "num_worker": 0,
        "img_pixels_detection": plan.patch_px,
        "margin": plan.patch_px // 4,
        "overlap": "blend",
        "output_px_meters": plan.gsd_m,
        "monotemp_arch": plan.arch,
        "multitemp_model_ref_date": REF_DATE,
        "modalities": modalities,
        "tasks": [
            {"name": label, "active": True, "class_names": dict(enumerate(default_task(label).names))}
            for label in LABELS
        ],
    }


def write_train_config(
    folder: Path, csv: dict[str, Path], metadata: Path, root: Path, seed: int, plan: DemoPlan
) -> None:
    """Write the four training files into `folder`."""
    folder.mkdir()
    for name, sections in train_sections(csv, metadata, root, seed, plan).items():
        _write_yaml(folder / name, sections)


def write_zonal_config(
    path: Path, zone: Path, zone_dates: dict[str, Path], weights: Path, output: Path, plan: DemoPlan
) -> None:
    """Write the zonal file."""
    _write_yaml(path, zonal_sections(zone, zone_dates, weights, output, plan))


class _Flow(list):
    """A list written in one line."""


def _write_yaml(path: Path, sections: dict[str, Any]) -> None:
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(_Flow, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True))
    text = yaml.dump(_in_one_line(sections), Dumper=Dumper, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def _in_one_line(value: Any) -> Any:
    """Lists of numbers are easier to read in one line."""
    if isinstance(value, dict):
        return {key: _in_one_line(entry) for key, entry in value.items()}
    if isinstance(value, list):
        scalars = all(isinstance(entry, (int, float)) for entry in value)
        return _Flow(value) if scalars else [_in_one_line(entry) for entry in value]
    return value
