"""Makers of the four published training YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flairhub.modalities import INPUTS, LABELS, MODALITIES
from flairhub.tasks import default_task
from tests.helpers.config_values import train_values

if TYPE_CHECKING:
    from tests.helpers.makers import PatchFiles


def write_train_config(folder: Path, dataset: PatchFiles, **changes: Any) -> Path:
    """Write the four published YAML files for a made data set.

    Args:
        folder: Where to; made when absent.
        dataset: The data set whose CSVs, dates and modalities to use.
        changes: Per section (`hyperparams={"num_epochs": 1}`), merged into the defaults; lists are replaced,
            a value of `...` removes the key.

    Returns:
        The folder.
    """
    config = _merge(_train_config(folder, dataset), changes)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "config_task.yaml": ("paths", "tasks", "hyperparams", "hardware", "saving"),
        "config_modalities.yaml": ("modalities",),
        "config_models.yaml": ("models",),
        "config_supervision.yaml": ("labels", "labels_configs"),
    }
    extra = [key for key in config if not any(key in keys for keys in parts.values())]
    for name, keys in parts.items():
        chosen = [*keys, *(extra if name == "config_task.yaml" else [])]
        text = yaml.safe_dump({key: config[key] for key in chosen if key in config}, sort_keys=False)
        (folder / name).write_text(text)
    return folder


def _train_config(folder: Path, dataset: PatchFiles) -> dict[str, Any]:
    inputs = [name for name in INPUTS if name in dataset.modalities]
    labels = [name for name in LABELS if name in dataset.modalities]
    channels = {
        name: list(range(1, 1 + len(MODALITIES[name].bands)))
        for name in inputs
        if not MODALITIES[name].is_elevation and len(MODALITIES[name].bands) > 1
    }
    config = train_values()
    config["paths"] |= {
        "out_folder": str(folder / "out"),
        "out_model_name": "test_model",
        "train_csv": str(dataset.csvs["train"]),
        "val_csv": str(dataset.csvs["valid"]),
        "test_csv": str(dataset.csvs["test"]),
        "global_mtd_folder": str(dataset.mtd_folder),
        "ckpt_model_path": None,
    }
    config["hyperparams"] |= {
        "num_epochs": 1,
        "seed": 2025,
        "learning_rate": 0.001,
        "optimizer": "adamw",
        "optim_weight_decay": 0.01,
        "optim_betas": [0.9, 0.999],
        "scheduler": "one_cycle_lr",
        "warmup_fraction": 0.2,
        "plateau_patience": 10,
    }
    config["hardware"] |= {"accelerator": "cpu", "gpus_per_node": 1, "strategy": "auto"}
    config["saving"] |= {
        "ckpt_save_also_last": False,
        "ckpt_monitor": "val_miou",
        "ckpt_monitor_mode": "max",
        "enable_progress_bar": False,
    }
    config["modalities"] |= {
        "inputs": {name: name in inputs for name in INPUTS},
        "inputs_channels": channels,
        "aux_loss": dict.fromkeys(INPUTS, False),
        "aux_loss_weight": 1,
        "modality_dropout": dict.fromkeys(INPUTS, 0),
        "normalization": _normalization(inputs),
    }
    config["modalities"]["pre_processings"] |= {
        "filter_sentinel2": False,
        "filter_sentinel2_max_cloud": 1,
        "filter_sentinel2_max_snow": 1,
        "filter_sentinel2_max_frac_cover": 0.05,
        "temporal_average_sentinel2": False,
        "use_augmentation": False,
    }
    config["models"]["monotemp_model"] = {
        "arch": "resnet18-unet",
        "new_channels_init_mode": "random",
        "pretrained": False,
    }
    config["models"]["multitemp_model"] |= {
        "encoder_widths": [16, 16, 16, 32],
        "decoder_widths": [16, 16, 16, 32],
        "out_conv": [16, 19],
        "str_conv_k": 4,
        "str_conv_s": 2,
        "n_head": 4,
        "d_model": 32,
    }
    config["labels"] = labels
    config["labels_configs"] = {name: _label_config(name) for name in labels}
    return config


def _normalization(inputs: list[str]) -> dict[str, Any]:
    section: dict[str, Any] = {"norm_type": "custom"}
    for name in inputs:
        row = MODALITIES[name]
        if row.is_series:
            continue
        base = {"uint8": (110.0, 60.0), "uint16": (1900.0, 1000.0), "float32": (250.0, 20.0)}[row.dtype]
        section[f"{name}_means"] = [base[0] + i for i in range(len(row.bands))]
        section[f"{name}_stds"] = [base[1] + i for i in range(len(row.bands))]
    return section


def _label_config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "task_weight": 1,
        "value_name": {row.index: row.name for row in default_task(name).classes},
        "value_weights": {"default": 1, "default_exceptions": {}, "per_modality_exceptions": {}},
    }
    if len(MODALITIES[name].bands) > 1:
        config["label_channel_nomenclature"] = 1
    return config


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = deepcopy(dict(base))
    for key, value in changes.items():
        if value is ...:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = deepcopy(value)
    return merged
