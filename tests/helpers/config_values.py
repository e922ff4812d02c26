"""A complete configuration of each kind, with every published key."""

from __future__ import annotations

from typing import Any

from flairhub.modalities import INPUTS, MODALITIES
from flairhub.tasks import default_task

COSIA, LPIS = "AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS"


def train_values() -> dict[str, Any]:
    """Every published key of the training configuration, all inputs enabled."""
    return {
        "paths": {
            "out_folder": "./results/",
            "out_model_name": "test_base",
            "train_csv": "train.csv",
            "val_csv": "val.csv",
            "test_csv": "test.csv",
            "global_mtd_folder": "GLOBAL_ALL_MTD",
            "ckpt_model_path": "",
        },
        "tasks": {
            "train": True,
            "train_tasks": {"init_weights_only_from_ckpt": False, "resume_training_from_ckpt": False},
            "predict": True,
            "write_files": True,
            "georeferencing_output": True,
            "metrics_only": False,
        },
        "hyperparams": {
            "num_epochs": 2,
            "batch_size": 2,
            "seed": 7,
            "learning_rate": 0.02,
            "optimizer": "sgd",
            "optim_weight_decay": 0,
            "optim_betas": [0.8, 0.99],
            "scheduler": "reduce_on_plateau",
            "warmup_fraction": 0.1,
            "plateau_patience": 3,
        },
        "hardware": {
            "accelerator": "gpu",
            "num_nodes": 1,
            "gpus_per_node": 2,
            "strategy": "ddp",
            "num_workers": 0,
        },
        "saving": {
            "ckpt_save_also_last": True,
            "ckpt_weights_only": False,
            "ckpt_monitor": "val_loss",
            "ckpt_monitor_mode": "min",
            "ckpt_earlystopping_patience": 30,
            "cp_csv_and_conf_to_output": True,
            "enable_progress_bar": True,
            "progress_rate": 10,
            "ckpt_verbose": False,
            "verbose_config": False,
        },
        "modalities": _modalities(),
        "models": {
            "monotemp_model": {"arch": "swin_tiny_patch4_window7_224-upernet", "new_channels_init_mode": "copy_first"},
            "multitemp_model": {
                "ref_date": "05-15",
                "encoder_widths": [64, 64, 64, 128],
                "decoder_widths": [32, 32, 64, 128],
                "out_conv": [32, 19],
                "str_conv_k": 3,
                "str_conv_s": 1,
                "str_conv_p": 1,
                "agg_mode": "att_group",
                "encoder_norm": "group",
                "n_head": 16,
                "d_model": 256,
                "d_k": 4,
                "pad_value": 0,
                "padding_mode": "reflect",
            },
        },
        "labels": [COSIA, LPIS],
        "labels_configs": {label: _label(label) for label in (COSIA, LPIS)},
    }


def _modalities() -> dict[str, Any]:
    return {
        "inputs": dict.fromkeys(INPUTS, True),
        "inputs_channels": {
            "AERIAL_RGBI": [4, 1, 2],
            "SPOT_RGBI": [1, 2, 3],
            "SENTINEL2_TS": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
            "SENTINEL1-ASC_TS": [1, 2],
            "SENTINEL1-DESC_TS": [2, 1],
        },
        "aux_loss": dict.fromkeys(INPUTS, True),
        "aux_loss_weight": 0.5,
        "modality_dropout": {"AERIAL_RGBI": 0, "AERIAL-RLT_PAN": 0.25},
        "pre_processings": {
            "filter_sentinel2": True,
            "filter_sentinel2_max_cloud": 2,
            "filter_sentinel2_max_snow": 3,
            "filter_sentinel2_max_frac_cover": 0.1,
            "temporal_average_sentinel2": "semi-monthly",
            "temporal_average_sentinel1": False,
            "calc_elevation": True,
            "calc_elevation_stack_dsm": True,
            "use_augmentation": True,
        },
        "normalization": {
            "norm_type": "custom",
            "AERIAL_RGBI_means": [10, 20, 30],
            "AERIAL_RGBI_stds": [1, 2, 3],
            "AERIAL-RLT_PAN_means": [40],
            "AERIAL-RLT_PAN_stds": [4],
            "SPOT_RGBI_means": [50, 60, 70, 80],
            "SPOT_RGBI_stds": [5, 6, 7, 8],
            "DEM_ELEV_means": [90, 91],
            "DEM_ELEV_stds": [9, 10],
        },
    }


def _label(label: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "task_weight": 1,
        "value_name": dict(enumerate(default_task(label).names)),
        "value_weights": {"default": 1, "default_exceptions": None, "per_modality_exceptions": None},
    }
    if label == LPIS:
        return values | {"label_channel_nomenclature": 1}
    values["value_weights"] = {
        "default": 1,
        "default_exceptions": {15: 0, 16: 0},
        "per_modality_exceptions": {"AERIAL_RGBI": {15: 0.5, 3: 2}, "SENTINEL2_TS": None},
    }
    return values


def zonal_values() -> dict[str, Any]:
    """Every published key of the zonal configuration, all inputs enabled, a weights file."""
    modalities: dict[str, Any] = {"inputs": dict.fromkeys(INPUTS, True)}
    for name in INPUTS:
        row = MODALITIES[name]
        block: dict[str, Any] = {"input_img_path": f"{name}.tif", "channels": list(range(1, len(row.bands) + 1))}
        if row.is_series:
            block |= {"dates_txt": f"{name}.txt", "temporal_average": "monthly"}
        else:
            numbers = [1.5] * len(row.bands)
            block["normalization"] = {"type": "custom", "means": numbers, "stds": numbers}
        if row.quality_mask:
            block |= {"filter_clouds": True, "filter_clouds_img_path": "mask.tif"}
        if row.is_elevation:
            block |= {"calc_elevation": True, "calc_elevation_stack_dsm": False}
        modalities[name] = block
    return {
        "output_path": "maps",
        "output_name": "zone",
        "write_dataframe": True,
        "output_type": "class_prob",
        "cog_conversion": False,
        "model_weights": "weights.safetensors",
        "use_gpu": False,
        "batch_size": 3,
        "num_worker": 1,
        "img_pixels_detection": 256,
        "margin": 32,
        "output_px_meters": 0.2,
        "monotemp_arch": "resnet18-unet",
        "multitemp_model_ref_date": "05-15",
        "modalities": modalities,
        "tasks": [
            {"name": COSIA, "active": True, "class_names": dict(enumerate(default_task(COSIA).names))},
            {"name": LPIS, "active": False, "class_names": {}},
        ],
    }
