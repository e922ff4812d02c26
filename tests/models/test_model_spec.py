"""What a network is, as data; and the network of a configuration."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flairhub.config import train_config_from_dict, zonal_config_from_dict
from flairhub.errors import UsageError
from flairhub.modalities import INPUTS
from flairhub.models import NetworkSpec, SeriesOptions, network_spec
from tests.helpers.model_makers import CLASSES, LC, LPIS


def test_json_round_trip_is_exact() -> None:
    spec = NetworkSpec(
        {"SENTINEL2_TS": 10, "AERIAL_RGBI": 3},
        {LPIS: 31, LC: 19},
        "resnet18-unet",
        sizes={"AERIAL_RGBI": 128},
        series=SeriesOptions(agg_mode="mean", pad_value=None),
        aux=("SENTINEL2_TS",),
        modality_dropout={"SENTINEL2_TS": 0.5, "AERIAL_RGBI": 0},
        new_channels_init_mode="copy_third",
        other_classes=3,
    )
    text = json.dumps(spec.to_json())
    again = NetworkSpec.from_json(json.loads(text))
    assert again == spec
    assert json.dumps(again.to_json()) == text
    assert list(spec.inputs) == ["AERIAL_RGBI", "SENTINEL2_TS"]
    assert list(spec.tasks) == [LC, LPIS]
    assert spec.sizes == {"AERIAL_RGBI": 128, "SENTINEL2_TS": 10}
    assert spec.modality_dropout == {"SENTINEL2_TS": 0.5}
    assert spec.n_classes == 53


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"inputs": {}}, "at least one input"),
        ({"tasks": {}}, "at least one task"),
        ({"inputs": {"AERIAL": 3}}, "inputs: unknown 'AERIAL'. Known: AERIAL_RGBI"),
        ({"inputs": {"DEM_ELEV": 0}}, "inputs.DEM_ELEV: got 0, expected at least 1"),
        ({"aux": ("SPOT_RGBI",)}, "aux: unknown 'SPOT_RGBI'. Known: DEM_ELEV"),
        ({"modality_dropout": {"DEM_ELEV": 1.5}}, "modality_dropout.DEM_ELEV: got 1.5"),
        ({"new_channels_init_mode": "copy"}, "new_channels_init_mode: got 'copy', expected one of copy_first"),
    ],
)
def test_impossible_networks_are_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as error:
        NetworkSpec(**{"inputs": {"DEM_ELEV": 2}, "tasks": {LC: 19}, **change})
    assert text in str(error.value)


def test_unknown_keys_are_refused() -> None:
    values = NetworkSpec({"DEM_ELEV": 2}, {LC: 19}).to_json()
    with pytest.raises(UsageError, match=r"unknown depth, series\.width"):
        NetworkSpec.from_json({**values, "depth": 3, "series": {"width": 3}})


def train_values(inputs: tuple[str, ...], **modalities: Any) -> dict[str, Any]:
    return {
        "paths": {"out_folder": "out"},
        "tasks": {"train": False, "predict": False},
        "modalities": {
            "inputs": {name: name in inputs for name in INPUTS},
            "normalization": {"norm_type": "without"},
            **modalities,
        },
        "models": {
            "monotemp_model": {"arch": "resnet18-unet", "new_channels_init_mode": "copy_second", "pretrained": False},
            "multitemp_model": {
                "agg_mode": "att_mean",
                "encoder_widths": [64, 64, 128],
                "decoder_widths": [32, 64, 128],
            },
        },
        "labels": [LPIS, LC],
        "labels_configs": {LC: {}, LPIS: {"label_channel_nomenclature": 2}},
    }


def test_a_training_configuration_becomes_a_network() -> None:
    values = train_values(
        ("AERIAL_RGBI", "DEM_ELEV", "SENTINEL2_TS"),
        inputs_channels={"AERIAL_RGBI": [4, 1, 2], "SENTINEL2_TS": [1, 2, 3, 4]},
        aux_loss={"SENTINEL2_TS": True, "SPOT_RGBI": True},
        modality_dropout={"DEM_ELEV": 0.3},
        pre_processings={"calc_elevation": True},
    )
    spec = network_spec(train_config_from_dict(values), sizes={"AERIAL_RGBI": 64, "SPOT_RGBI": 8})
    assert dict(spec.inputs) == {"AERIAL_RGBI": 3, "DEM_ELEV": 1, "SENTINEL2_TS": 4}
    assert dict(spec.tasks) == {LC: 19, LPIS: 31}
    assert spec.arch == "resnet18-unet"
    assert dict(spec.sizes) == {"AERIAL_RGBI": 64, "DEM_ELEV": 512, "SENTINEL2_TS": 10}
    assert spec.aux == ("SENTINEL2_TS",)
    assert dict(spec.modality_dropout) == {"DEM_ELEV": 0.3}
    assert spec.new_channels_init_mode == "copy_second"
    assert spec.series == SeriesOptions(encoder_widths=(64, 64, 128), decoder_widths=(32, 64, 128), agg_mode="att_mean")


def test_a_single_input_has_no_auxiliary_head() -> None:
    values = train_values(("AERIAL_RGBI",), aux_loss={"AERIAL_RGBI": True})
    assert network_spec(train_config_from_dict(values)).aux == ()


def test_a_zonal_configuration_becomes_a_network() -> None:
    values = {
        "output_path": "out",
        "output_name": "map",
        "model_weights": "w.safetensors",
        "monotemp_arch": "resnet18-unet",
        "multitemp_model_ref_date": "05-15",
        "modalities": {
            "inputs": {name: name in ("SPOT_RGBI", "SENTINEL1-ASC_TS") for name in INPUTS},
            "SPOT_RGBI": {
                "input_img_path": "spot.tif",
                "channels": [3, 2, 1],
                "normalization": {"type": "custom", "means": [1, 2, 3], "stds": [1, 2, 3]},
            },
            "SENTINEL1-ASC_TS": {"input_img_path": "s1.tif", "channels": [1, 2], "dates_txt": "dates.txt"},
        },
        "tasks": [
            {"name": LC, "active": True, "class_names": {i: f"c{i}" for i in range(19)}},
            {"name": LPIS, "active": False, "class_names": {i: f"c{i}" for i in range(23)}},
        ],
    }
    spec = network_spec(zonal_config_from_dict(values))
    assert dict(spec.inputs) == {"SPOT_RGBI": 3, "SENTINEL1-ASC_TS": 2}
    assert dict(spec.tasks) == {LC: CLASSES[LC]}
    assert spec.arch == "resnet18-unet"
    assert spec.aux == ()
    assert spec.series == SeriesOptions()


def test_series_options_by_position_and_by_key() -> None:
    by_position = SeriesOptions((8, 8, 16), (8, 8, 16), (8, 19), n_head=4)
    assert by_position == SeriesOptions(
        encoder_widths=(8, 8, 16), decoder_widths=(8, 8, 16), out_conv=(8, 19), n_head=4
    )
    assert by_position.d_model == 256
    with pytest.raises(ValueError, match="zip"):
        SeriesOptions(*range(14))
