"""What a configuration with only the required keys holds, and that every published key arrives."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from flairhub.config import TrainConfig, ZonalConfig, train_config_from_dict, zonal_config_from_dict
from flairhub.config.derive import plain
from flairhub.modalities import INPUTS

OFF = dict.fromkeys(INPUTS, False)

TRAIN_DEFAULTS = {
    "paths": {
        "out_folder": "out",
        "out_model_name": "model",
        "train_csv": None,
        "val_csv": None,
        "test_csv": None,
        "global_mtd_folder": None,
        "ckpt_model_path": None,
        "cube": "hub.zarr",
        "data_root": None,
    },
    "tasks": {
        "train": True,
        "train_tasks": {"init_weights_only_from_ckpt": False, "resume_training_from_ckpt": False},
        "predict": True,
        "write_files": True,
        "georeferencing_output": True,
        "metrics_only": False,
        "test_time_augmentation": False,
    },
    "hyperparams": {
        "num_epochs": 150,
        "batch_size": 5,
        "seed": 2025,
        "learning_rate": 5e-5,
        "optimizer": "adamw",
        "optim_weight_decay": 0.01,
        "optim_betas": [0.9, 0.999],
        "scheduler": "one_cycle_lr",
        "warmup_fraction": 0.2,
        "plateau_patience": 10,
        "accumulate": 1,
        "gradient_clip": 0.0,
        "ema": 0.0,
        "losses": {"cross_entropy": 1.0, "dice": 0.0, "lovasz": 0.0, "focal": 0.0},
    },
    "hardware": {
        "accelerator": "auto",
        "num_nodes": 1,
        "gpus_per_node": 1,
        "strategy": "auto",
        "num_workers": 0,
        "precision": "auto",
        "threads": None,
        "compile": False,
        "scheduler": None,
    },
    "saving": {
        "ckpt_save_also_last": True,
        "ckpt_weights_only": False,
        "ckpt_monitor": "val_miou",
        "ckpt_monitor_mode": "max",
        "ckpt_earlystopping_patience": 30,
        "ckpt_every_n_steps": 0,
        "cp_csv_and_conf_to_output": True,
        "enable_progress_bar": True,
        "progress_rate": 10,
        "ckpt_verbose": False,
        "verbose_config": False,
        "log_images": 4,
    },
    "modalities": {
        "inputs": OFF | {"SENTINEL2_TS": True},
        "inputs_channels": {},
        "aux_loss": OFF,
        "aux_loss_weight": 1.0,
        "modality_dropout": dict.fromkeys(INPUTS, 0.0),
        "pre_processings": {
            "filter_sentinel2": False,
            "filter_sentinel2_max_cloud": 1.0,
            "filter_sentinel2_max_snow": 1.0,
            "filter_sentinel2_max_frac_cover": 0.05,
            "temporal_average_sentinel2": False,
            "temporal_average_sentinel1": False,
            "temporal_average_fill": "masked",
            "calc_elevation": False,
            "calc_elevation_stack_dsm": False,
            "use_augmentation": False,
            "augmentation_brightness": 0.0,
            "augmentation_contrast": 0.0,
        },
        "normalization": {
            "norm_type": "custom",
            "AERIAL_RGBI_means": None,
            "AERIAL_RGBI_stds": None,
            "AERIAL-RLT_PAN_means": None,
            "AERIAL-RLT_PAN_stds": None,
            "DEM_ELEV_means": None,
            "DEM_ELEV_stds": None,
            "SPOT_RGBI_means": None,
            "SPOT_RGBI_stds": None,
        },
        "missing": "error",
    },
    "models": {
        "monotemp_model": {"arch": None, "new_channels_init_mode": "random", "pretrained": True},
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
            "pad_value": 0.0,
            "padding_mode": "reflect",
        },
    },
    "labels": ["AERIAL_LABEL-COSIA"],
    "labels_configs": {
        "AERIAL_LABEL-COSIA": {
            "task_weight": 1.0,
            "label_channel_nomenclature": 1,
            "value_name": {},
            "value_weights": {"default": 1.0, "default_exceptions": {}, "per_modality_exceptions": {}},
        }
    },
}

OURS = {
    "tasks": ["test_time_augmentation"],
    "hyperparams": ["accumulate", "gradient_clip", "ema", "losses"],
    "saving": ["ckpt_every_n_steps", "log_images"],
    "pre_processings": ["temporal_average_fill", "augmentation_brightness", "augmentation_contrast"],
}
"""Keys that the published files do not have."""

ZONAL_DEFAULTS = {
    "output_path": "maps",
    "aoi": None,
    "output_name": "zone",
    "write_dataframe": False,
    "output_type": "argmax",
    "cog_conversion": True,
    "model_weights": "best.bundle",
    "use_gpu": None,
    "batch_size": 4,
    "num_worker": 0,
    "img_pixels_detection": 512,
    "margin": 128,
    "output_px_meters": None,
    "monotemp_arch": None,
    "multitemp_model_ref_date": None,
    "tasks": [],
    "cube": None,
    "roi": None,
    "block_px": None,
    "workers": None,
    "threads": None,
    "scheduler": None,
    "overwrite": False,
    "overlap": "crop",
    "precision": "float32",
    "flips": False,
    "missing": "nodata",
    "align": "strict",
    "write_confidence": False,
    "write_polygons": False,
    "polygon_min_area_m2": 0.0,
    "write_stac": False,
    "write_quicklook": False,
    "class_language": "en",
}


def minimal_train() -> TrainConfig:
    return train_config_from_dict(
        {
            "paths": {"out_folder": "out", "cube": "hub.zarr"},
            "modalities": {"inputs": {"SENTINEL2_TS": True}},
            "labels": ["AERIAL_LABEL-COSIA"],
            "labels_configs": {"AERIAL_LABEL-COSIA": None},
        }
    )


def minimal_zonal() -> ZonalConfig:
    return zonal_config_from_dict(
        {
            "output_path": "maps",
            "output_name": "zone",
            "model_weights": "best.bundle",
            "modalities": {"inputs": {"AERIAL_RGBI": True}, "AERIAL_RGBI": {"input_img_path": "a.tif"}},
        }
    )


def test_train_defaults():
    assert plain(minimal_train()) == TRAIN_DEFAULTS


def test_zonal_defaults():
    result = plain(minimal_zonal())
    modalities = result.pop("modalities")
    assert result == ZONAL_DEFAULTS
    block = {"input_img_path": "a.tif", "channels": None, "bands": None, "normalization": None}
    assert modalities == {
        "inputs": OFF | {"AERIAL_RGBI": True},
        **dict.fromkeys(INPUTS),
        "AERIAL_RGBI": block,
    }


def test_every_published_train_key_arrives(train):
    result = plain(train_config_from_dict(train))
    train["paths"] |= {"out_folder": "results", "ckpt_model_path": None, "cube": None, "data_root": None}
    train["hardware"] |= {"precision": "auto", "threads": None, "compile": False, "scheduler": None}
    for section in ("tasks", "hyperparams", "saving"):
        added = OURS[section]
        train[section] |= {key: TRAIN_DEFAULTS[section][key] for key in added}
    train["modalities"]["missing"] = "error"
    options = TRAIN_DEFAULTS["modalities"]["pre_processings"]
    train["modalities"]["pre_processings"] |= {key: options[key] for key in OURS["pre_processings"]}
    train["modalities"]["modality_dropout"] = dict.fromkeys(INPUTS, 0) | {"AERIAL-RLT_PAN": 0.25}
    train["models"]["monotemp_model"]["pretrained"] = True
    train["labels_configs"]["AERIAL_LABEL-COSIA"]["label_channel_nomenclature"] = 1
    del train["labels_configs"]["AERIAL_LABEL-COSIA"]["value_weights"]["per_modality_exceptions"]["SENTINEL2_TS"]
    lpis = train["labels_configs"]["ALL_LABEL-LPIS"]["value_weights"]
    lpis |= {"default_exceptions": {}, "per_modality_exceptions": {}}
    assert result == train


def test_every_published_zonal_key_arrives(zonal):
    result = plain(zonal_config_from_dict(zonal))
    for key, value in zonal.items():
        if key != "modalities":
            assert result[key] == value, key
    for name in INPUTS:
        for key, value in zonal["modalities"][name].items():
            assert result["modalities"][name][key] == value, (name, key)


def test_attributes_are_the_keys(train, zonal):
    config = train_config_from_dict(train)
    assert config.modalities.inputs["AERIAL-RLT_PAN"] is True
    assert config.modalities.active == INPUTS
    assert config.paths.ckpt_model_path is None
    assert config.paths.train_csv == Path("train.csv")
    assert config.modalities.normalization.means("SPOT_RGBI") == (50.0, 60.0, 70.0, 80.0)
    assert config.modalities.normalization.means("SENTINEL2_TS") is None
    assert config.modalities.inputs_channels["SENTINEL1-DESC_TS"] == (2, 1)
    assert config.models.multitemp_model.out_conv == (32, 19)
    mapped = zonal_config_from_dict(zonal)
    assert mapped.modalities.block("SENTINEL2_TS").filter_clouds_img_path == Path("mask.tif")
    assert [name for name, _ in mapped.modalities.blocks()] == list(INPUTS)
    assert [task.name for task in mapped.active_tasks] == ["AERIAL_LABEL-COSIA"]


@pytest.mark.parametrize("weights", ["a.safetensors", "b.ckpt", "C.PTH", "d.pt", "e.bin"])
def test_weights_files_are_no_bundles(zonal, weights):
    assert not zonal_config_from_dict(zonal | {"model_weights": weights}).is_bundle
    assert zonal_config_from_dict(zonal | {"model_weights": "best.bundle"}).is_bundle


def test_frozen_and_picklable():
    for config in (minimal_train(), minimal_zonal()):
        assert pickle.loads(pickle.dumps(config)) == config
        with pytest.raises(ValueError, match="frozen"):
            config.modalities = None
        with pytest.raises(TypeError, match="frozen"):
            config.modalities.inputs["AERIAL_RGBI"] = False
        with pytest.raises(TypeError, match="frozen"):
            config.modalities.inputs |= {}


def test_given_dictionaries_are_not_changed(train):
    import copy

    before = copy.deepcopy(train)
    train_config_from_dict(train, ["hyperparams.num_epochs=9", "labels_configs.ALL_LABEL-LPIS.task_weight=2"])
    assert train == before


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), ("weights/swin.pth", Path("weights/swin.pth"))]
)
def test_pretrained(train, value, expected):
    train["models"]["monotemp_model"]["pretrained"] = value
    result = train_config_from_dict(train).models.monotemp_model.pretrained
    assert result == expected
    assert type(result) is type(expected) or isinstance(result, Path)
