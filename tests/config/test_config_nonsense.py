"""Configurations that make no sense are refused, and one wrong key brings no problems that are not there."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from flairhub.class_raster import category_xml, qgis_style
from flairhub.config import load_zonal_config, train_config_from_dict, zonal_config_from_dict
from flairhub.errors import ConfigError, UsageError
from flairhub.tasks import name_problem, named_task

LAND, CROP = "AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS"


def values(**changes: Any) -> dict[str, Any]:
    """A configuration of a series, without the aerial image."""
    base: dict[str, Any] = {
        "paths": {"out_folder": "out", "cube": "cube.zarr"},
        "modalities": {"inputs": {"AERIAL_RGBI": False, "SENTINEL2_TS": True}},
        "labels": [CROP],
        "labels_configs": {CROP: {}},
    }
    for key, entry in changes.items():
        base[key] = {**base.get(key, {}), **entry} if isinstance(entry, dict) else entry
    return base


def problems(config: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        train_config_from_dict(config)
    return refused.value.problems


def test_the_base_is_right() -> None:
    assert train_config_from_dict(values()).modalities.active == ("SENTINEL2_TS",)


@pytest.mark.parametrize("inputs", [{"AERIAL_RGBI": False, "SENTINEL2_TS": True}, {"SENTINEL2_TS": True}])
@pytest.mark.parametrize(
    "changes",
    [
        {"hyperparams": {"num_epochs": "many"}},
        {"hyperparams": {"epochs": 3}},
        {"hardware": {"precision": "double"}},
        {"modalities": {"pre_processings": {"use_augmentation": "yes"}}},
        {"labels_configs": {CROP: {"task_weight": "heavy"}}},
        {"nonsense": 1},
    ],
)
def test_one_wrong_key_is_one_problem(inputs: dict[str, bool], changes: dict[str, Any]) -> None:
    config = values(**changes)
    config["modalities"] = {**config["modalities"], "inputs": inputs}
    (problem,) = problems(config)
    assert "AERIAL" not in problem


def test_a_wrong_label_set_invents_no_other() -> None:
    (problem,) = problems(values(labels=["LPIS"]))
    assert "unknown label set 'LPIS'" in problem


def test_one_wrong_key_of_a_zonal_configuration_is_one_problem() -> None:
    config = {
        "output_path": "out",
        "output_name": "map",
        "model_weights": "a.bundle",
        "batch_size": "all",
        "modalities": {
            "inputs": {"SENTINEL2_TS": True},
            "SENTINEL2_TS": {"input_img_path": "s2.tif", "dates_txt": "dates.txt"},
        },
    }
    with pytest.raises(ConfigError) as refused:
        zonal_config_from_dict(config)
    (problem,) = refused.value.problems
    assert problem.startswith("batch_size: got 'all'")


def test_some_task_has_weight() -> None:
    none = {CROP: {"task_weight": 0}, LAND: {"task_weight": 0.0}}
    (problem,) = problems(values(labels=[CROP, LAND], labels_configs=none))
    assert problem == f"labels_configs: {CROP}, {LAND}: every task has weight 0: nothing would be learned."
    train_config_from_dict(values(labels=[CROP, LAND], labels_configs={**none, LAND: {"task_weight": 0.1}}))
    # The weight of a label set that is not trained does not count.
    assert len(problems(values(labels_configs={CROP: {"task_weight": 0}, LAND: {}}))) == 1


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({0: "a", 1: "b", 2: "a"}, "classes 0 and 2 are both called 'a'"),
        ({0: "Vine yard", 1: "b", 2: " vine  YARD "}, "classes 0 and 2 are both called"),
        ({0: "caf\u00e9", 1: "cafe\u0301"}, "classes 0 and 1 are both called"),
        ({0: "a", 1: ""}, "class 1: got '', expected a name"),
        ({0: " \t", 1: "b"}, "class 0: got ' \\\\t', expected a name"),
        ({0: "a\x1b[31m", 1: "b"}, "class 0: 'a\\\\x1b\\[31m' holds the control character"),
        ({0: "a\nb", 1: "b"}, "holds the control character"),
        ({0: "a\x9f", 1: "b"}, "holds the control character"),
        ({0: "a\u2028b", 1: "b"}, "holds the control character"),
        ({0: "\ud800", 1: "b"}, "holds the control character"),
    ],
)
def test_class_names_are_different_texts(names: dict[int, str], text: str) -> None:
    with pytest.raises(ConfigError, match=rf"labels_configs\.{CROP}\.value_name: .*{text}"):
        train_config_from_dict(values(labels_configs={CROP: {"value_name": names}}))
    zonal = {
        "output_path": "out",
        "output_name": "map",
        "model_weights": "a.bundle",
        "modalities": {"inputs": {"AERIAL_RGBI": True}, "AERIAL_RGBI": {"input_img_path": "a.tif"}},
        "tasks": [{"name": CROP, "class_names": names}],
    }
    with pytest.raises(ConfigError, match=text):
        zonal_config_from_dict(zonal)


def test_published_and_accented_names_are_right() -> None:
    assert name_problem({0: "Blé d'été", 1: "小麦", 2: "CO2", 3: "CO₂", 4: "a&b <c>"}) == ""


def test_styles_are_well_formed_whatever_a_name_holds() -> None:
    task = named_task(LAND, 1, {0: "a\x1b[31m & <b>", 1: 'q"uote\x00\ufffe', 2: "é"})
    labels = [entry.attrib["label"] for entry in ElementTree.fromstring(qgis_style(task)).iter("paletteEntry")]
    assert labels == ["a\ufffd[31m & <b>", 'q"uote\ufffd\ufffd', "é"]
    assert [entry.text for entry in ElementTree.fromstring(category_xml(task)).iter("Category")] == labels


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("hyperparams", "batch_size", 10**30),
        ("hyperparams", "batch_size", 65_537),
        ("hyperparams", "num_epochs", 10**7),
        ("hardware", "threads", 5_000),
        ("hardware", "num_workers", 10**9),
        ("hardware", "gpus_per_node", 10**5),
    ],
)
def test_absurd_sizes(section: str, key: str, value: int) -> None:
    (problem,) = problems(values(**{section: {key: value}}))
    assert problem.startswith(f"{section}.{key}: got {value}, expected at most ")


def test_classes_fit_a_byte() -> None:
    with pytest.raises(UsageError, match="got 256 classes, expected 1 to 255"):
        named_task("OWN", 1, {i: f"c{i}" for i in range(256)})


def test_absurd_windows(tmp_path: Path) -> None:
    path = tmp_path / "zonal.yaml"
    path.write_text(
        "output_path: out\noutput_name: map\nmodel_weights: a.bundle\nimg_pixels_detection: 51200000\n"
        "modalities:\n  inputs: {AERIAL_RGBI: true}\n  AERIAL_RGBI: {input_img_path: a.tif}\n"
    )
    with pytest.raises(ConfigError, match="img_pixels_detection: got 51200000, expected at most 1e\\+06"):
        load_zonal_config(path)
