"""From configuration to preparations, tasks, weights, text and hash."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flairhub.config import (
    class_weights,
    config_hash,
    input_preparations,
    label_tasks,
    load_config,
    resolved_yaml,
    train_config_from_dict,
    zonal_config_from_dict,
)
from flairhub.modalities import INPUTS
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from flairhub.timeseries import CloudFilter, SeriesPreparation
from tests.helpers.config_values import train_values, zonal_values

BANDS = tuple(range(1, 11))


def test_train_preparations(train):
    assert input_preparations(train_config_from_dict(train)) == {
        "AERIAL_RGBI": ImagePreparation((4, 1, 2), None, "custom", (10, 20, 30), (1, 2, 3)),
        "AERIAL-RLT_PAN": ImagePreparation(None, None, "custom", (40,), (4,)),
        "DEM_ELEV": ImagePreparation(None, "dsm_ndsm", "custom", (90, 91), (9, 10)),
        # One statistic per band of the file: they belong to the bands, whatever is selected.
        "SPOT_RGBI": ImagePreparation((1, 2, 3), None, "custom", (50, 60, 70), (5, 6, 7)),
        "SENTINEL2_TS": SeriesPreparation(BANDS, CloudFilter(2, 3, 0.1), "semi-monthly", "masked", "05-15"),
        "SENTINEL1-ASC_TS": SeriesPreparation((1, 2), None, None, "masked", "05-15"),
        "SENTINEL1-DESC_TS": SeriesPreparation((2, 1), None, None, "masked", "05-15"),
    }


def test_only_enabled_inputs_in_network_order(train):
    train["modalities"]["inputs"] = {"SENTINEL2_TS": True, "DEM_ELEV": True, "AERIAL_RGBI": False, "SPOT_RGBI": True}
    assert list(input_preparations(train_config_from_dict(train))) == ["DEM_ELEV", "SPOT_RGBI", "SENTINEL2_TS"]


def test_zonal_preparations_are_those_of_training(train, zonal):
    """One preparation path: the same choices, written in either schema, give the same objects."""
    for name in INPUTS:
        block = zonal["modalities"][name]
        block.pop("temporal_average", None)
        if name in train["modalities"]["inputs_channels"]:
            block["channels"] = train["modalities"]["inputs_channels"][name]
        normalization = train["modalities"]["normalization"]
        if f"{name}_means" in normalization:
            means, stds = normalization[f"{name}_means"], normalization[f"{name}_stds"]
            block["normalization"] = {"type": "custom", "means": means, "stds": stds}
    zonal["modalities"]["AERIAL-RLT_PAN"].pop("channels")
    zonal["modalities"]["DEM_ELEV"] |= {"calc_elevation": True, "calc_elevation_stack_dsm": True}
    zonal["modalities"]["SENTINEL2_TS"] |= {
        "temporal_average": "semi-monthly",
        "filter_clouds_max_cloud": 2,
        "filter_clouds_max_snow": 3,
        "filter_clouds_max_frac_cover": 0.1,
    }
    mine, other = zonal_config_from_dict(zonal), train_config_from_dict(train)
    assert input_preparations(mine) == input_preparations(other)


def test_zonal_filter_defaults(zonal):
    result = input_preparations(zonal_config_from_dict(zonal))["SENTINEL2_TS"]
    assert result.cloud_filter == CloudFilter(1, 1, 0.05)
    zonal["modalities"]["SENTINEL2_TS"]["filter_clouds_max_cloud"] = 0
    result = input_preparations(zonal_config_from_dict(zonal))["SENTINEL2_TS"]
    assert result.cloud_filter == CloudFilter(0, 1, 0.05)


@pytest.mark.parametrize(
    ("calc", "stack", "mode", "means"),
    [
        (False, False, "dsm_dtm", (1.0, 2.0)),
        (False, True, "dsm_dtm", (1.0, 2.0)),
        (True, True, "dsm_ndsm", (1.0, 2.0)),
        (True, False, "ndsm", (1.0,)),
    ],
)
def test_elevation(train, calc, stack, mode, means):
    options = train["modalities"]["pre_processings"]
    options |= {"calc_elevation": calc, "calc_elevation_stack_dsm": stack}
    train["modalities"]["normalization"] |= {"DEM_ELEV_means": [1, 2], "DEM_ELEV_stds": [3, 4]}
    result = input_preparations(train_config_from_dict(train))["DEM_ELEV"]
    assert (result.elevation, result.means, len(result.stds)) == (mode, means, len(means))


def test_single_height_takes_one_value(train):
    train["modalities"]["pre_processings"]["calc_elevation_stack_dsm"] = False
    train["modalities"]["normalization"] |= {"DEM_ELEV_means": 5, "DEM_ELEV_stds": [6]}
    result = input_preparations(train_config_from_dict(train))["DEM_ELEV"]
    assert (result.means, result.stds) == ((5.0,), (6.0,))


@pytest.mark.parametrize(
    ("channels", "means", "expected"),
    [
        ([4, 1, 2], [9, 8, 7], (9, 8, 7)),  # one per selected channel, in its order
        ([4, 1, 2], [1, 2, 3, 4], (4, 1, 2)),  # one per band of the file
        ([4, 1, 2], {"NIR": 4, "G": 2, "R": 1}, (4, 1, 2)),
        ([4, 1, 2], {"R": 1, "G": 2, "B": 3, "NIR": 4}, (4, 1, 2)),
        (None, {"B": 3, "NIR": 4, "R": 1, "G": 2}, (1, 2, 3, 4)),
        ([2], 5, (5,)),
    ],
)
def test_statistics_belong_to_bands(train, channels, means, expected):
    train["modalities"]["inputs_channels"]["AERIAL_RGBI"] = channels
    train["modalities"]["normalization"] |= {"AERIAL_RGBI_means": means, "AERIAL_RGBI_stds": means}
    assert input_preparations(train_config_from_dict(train))["AERIAL_RGBI"].means == expected


def test_label_tasks(train, zonal):
    train["labels_configs"]["ALL_LABEL-LPIS"] |= {"label_channel_nomenclature": 3, "value_name": None}
    train["labels_configs"]["AERIAL_LABEL-COSIA"]["value_name"] = {0: "building", 1: "else"}
    train["labels_configs"]["AERIAL_LABEL-COSIA"]["value_weights"] = None
    cosia, lpis = label_tasks(train_config_from_dict(train))
    assert (cosia.label, cosia.level, cosia.names) == ("AERIAL_LABEL-COSIA", 1, ("building", "else"))
    assert cosia.classes[0].colour == (0xDB, 0x0E, 0x9A)
    assert (lpis.label, lpis.level, lpis.n_classes) == ("ALL_LABEL-LPIS", 3, 46)
    zonal["tasks"][1] = {"name": "ALL_LABEL-LPIS", "active": True, "class_names": {i: str(i) for i in range(31)}}
    mapped = label_tasks(zonal_config_from_dict(zonal))
    assert mapped[0] == default_task("AERIAL_LABEL-COSIA")
    assert (mapped[1].level, mapped[1].n_classes) == (2, 31)


def test_class_weights(train):
    config = train_config_from_dict(train)
    expected = np.ones(19, dtype=np.float32)
    expected[[15, 16]] = 0
    np.testing.assert_array_equal(class_weights(config, "AERIAL_LABEL-COSIA"), expected)
    np.testing.assert_array_equal(class_weights(config, "AERIAL_LABEL-COSIA", "SPOT_RGBI"), expected)
    expected[[15, 3]] = 0.5, 2
    result = class_weights(config, "AERIAL_LABEL-COSIA", "AERIAL_RGBI")
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(class_weights(config, "ALL_LABEL-LPIS"), np.ones(23, dtype=np.float32))


@pytest.mark.parametrize("kind", ["train", "zonal", "bands"])
def test_resolved_configuration_loads_to_an_equal_one(kind, train, zonal, write):
    if kind == "bands":
        train["modalities"]["normalization"]["AERIAL_RGBI_stds"] = {"NIR": 1, "R": 2.5, "G": 1e-3}
        train["models"]["monotemp_model"]["pretrained"] = "weights/ä.pth"
    config = zonal_config_from_dict(zonal) if kind == "zonal" else train_config_from_dict(train)
    text = resolved_yaml(config)
    again = load_config(write(text))
    assert again == config
    assert resolved_yaml(again) == text
    assert config_hash(again) == config_hash(config)
    assert input_preparations(again) == input_preparations(config)


def shuffled(value, generator):
    if isinstance(value, dict):
        keys = list(value)
        generator.shuffle(keys)
        return {key: shuffled(value[key], generator) for key in keys}
    return [shuffled(entry, generator) for entry in value] if isinstance(value, list) else value


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_order_of_keys_does_not_matter(seed):
    generator = random.Random(seed)
    for values, build in ((train_values(), train_config_from_dict), (zonal_values(), zonal_config_from_dict)):
        config, other = build(values), build(shuffled(values, generator))
        assert config == other
        assert config_hash(config) == config_hash(other)
        assert list(input_preparations(config).items()) == list(input_preparations(other).items())


def test_hash_follows_results_not_execution(train, zonal):
    config = train_config_from_dict(train)
    quiet = ["hardware.num_workers=7", "hardware.threads=3", "saving.enable_progress_bar=false"]
    assert config_hash(train_config_from_dict(train, quiet)) == config_hash(config)
    for change in (
        "hyperparams.seed=8",
        "hardware.precision=16-mixed",
        "paths.out_folder=other",
        "labels=[ALL_LABEL-LPIS]",
    ):
        assert config_hash(train_config_from_dict(train, [change])) != config_hash(config), change
    mapped = zonal_config_from_dict(zonal)
    quiet = ["workers=3", "threads=2", "batch_size=1", "num_worker=9", "overwrite=true", "scheduler=tcp://a:1"]
    assert config_hash(zonal_config_from_dict(zonal, quiet)) == config_hash(mapped)
    for change in ("margin=16", "block_px=512", "output_type=argmax", "modalities.SPOT_RGBI.input_img_path=x.tif"):
        assert config_hash(zonal_config_from_dict(zonal, [change])) != config_hash(mapped), change
