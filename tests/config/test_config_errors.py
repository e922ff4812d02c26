"""Every way a training configuration can be wrong: exact key path, what was given, what is expected."""

from __future__ import annotations

from typing import Any

import pytest

from flairhub.config import load_train_config, train_config_from_dict
from flairhub.errors import ConfigError
from tests.helpers.config_values import train_values

KNOWN = "AERIAL_RGBI, AERIAL-RLT_PAN, DEM_ELEV, SPOT_RGBI, SENTINEL2_TS, SENTINEL1-ASC_TS, SENTINEL1-DESC_TS"
NEEDS_CSV = "required because tasks.{} is true (or give paths.cube, a cube that knows its splits)."
MOD, NORM = "modalities", "modalities.normalization"
UTAE, COSIA, LPIS = (
    "models.multitemp_model",
    "labels_configs.AERIAL_LABEL-COSIA",
    "labels_configs.ALL_LABEL-LPIS",
)
GONE = object()


def problems(changes: dict[str, Any]) -> tuple[str, ...]:
    """Problems of the complete configuration after changes by key path; GONE removes the key."""
    values = train_values()
    for key, value in changes.items():
        *parents, last = key.split(".")
        holder = values
        for part in parents:
            holder = holder[part]
        if value is GONE:
            del holder[last]
        else:
            holder[last] = value
    with pytest.raises(ConfigError) as error:
        train_config_from_dict(values)
    return error.value.problems


UNKNOWN_KEYS = {
    f"{MOD}.pre_processings.filter_sentinel2_max_clouds": "Did you mean filter_sentinel2_max_cloud?",
    "hyperparams.bach_size": "Did you mean batch_size?",
    "hyperparams.warmup": "It is called warmup_fraction here.",
    "hyperparams.NUM_EPOCHS": "Did you mean num_epochs?",
    "batch_size": "Did you mean hyperparams.batch_size?",
    "hyperparam": "Did you mean hyperparams?",
    "tasks.resume_training_from_ckpt": "Did you mean tasks.train_tasks.resume_training_from_ckpt?",
    f"{NORM}.AERIAL_RGBI_mean": "Did you mean AERIAL_RGBI_means?",
    f"{NORM}.type": "It is called norm_type here.",
    f"{COSIA}.value_names": "It is called value_name here.",
    f"{COSIA}.value_weights.defaults": "Did you mean default?",
    f"{UTAE}.padding": "Did you mean padding_mode?",
    "saving.codecarbon": "Known: ckpt_save_also_last, ",
}


@pytest.mark.parametrize(("key", "hint"), UNKNOWN_KEYS.items())
@pytest.mark.parametrize("value", [1, None, {"a": 1}], ids=["number", "empty", "mapping"])
def test_unknown_key(key, hint, value):
    (problem,) = problems({key: value})
    assert problem.startswith(f"{key}: unknown key. {hint}")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # types
        ({"hyperparams.num_epochs": "ten"}, "hyperparams.num_epochs: got 'ten', expected a whole number."),
        ({"hyperparams.num_epochs": 2.5}, "hyperparams.num_epochs: got 2.5, expected a whole number."),
        ({"hyperparams.num_epochs": True}, "hyperparams.num_epochs: got true, expected a whole number."),
        ({"hyperparams.learning_rate": "1e"}, "hyperparams.learning_rate: got '1e', expected a number."),
        ({f"{MOD}.inputs.DEM_ELEV": 1}, f"{MOD}.inputs.DEM_ELEV: got 1, expected true or false."),
        ({"tasks.train": "maybe"}, "tasks.train: got 'maybe', expected true or false."),
        ({"hyperparams": [1]}, "hyperparams: got [1], expected a mapping (indented keys)."),
        ({f"{MOD}.inputs": [1]}, f"{MOD}.inputs: got [1], expected a mapping (indented keys)."),
        ({"labels": "AERIAL_LABEL-COSIA"}, "labels: got 'AERIAL_LABEL-COSIA', expected a list."),
        (
            {"paths.train_csv": 5},
            "paths.train_csv: got 5, expected a path (quote it when it looks like a number).",
        ),
        (
            {"paths.out_model_name": 2025},
            "paths.out_model_name: got 2025, expected text (quote it when it looks like a number).",
        ),
        (
            {"paths.out_model_name": "../x"},
            "paths.out_model_name: got '../x', expected a plain name for files: no slashes, colons or wildcards.",
        ),
        (
            {"models.monotemp_model.pretrained": 3},
            "models.monotemp_model.pretrained: got 3, expected true, false, or the path of a local weights file.",
        ),
        ({f"{UTAE}.ref_date": "05/15"}, f"{UTAE}.ref_date: got '05/15', expected a day of every year as MM-DD, "),
        ({f"{UTAE}.ref_date": "02-29"}, f"{UTAE}.ref_date: got '02-29', expected a day of every year as MM-DD, "),
        ({f"{UTAE}.ref_date": 515}, f"{UTAE}.ref_date: got 515, expected text (quote it"),
        # bounds and choices
        ({"hyperparams.num_epochs": 0}, "hyperparams.num_epochs: got 0, expected at least 1."),
        ({"hyperparams.learning_rate": 0}, "hyperparams.learning_rate: got 0, expected a number above 0."),
        ({"hyperparams.learning_rate": float("nan")}, "hyperparams.learning_rate: got nan, expected a finite number."),
        ({"hyperparams.warmup_fraction": 2}, "hyperparams.warmup_fraction: got 2, expected at most 1."),
        ({"hyperparams.optim_betas": [0.9]}, "hyperparams.optim_betas.1: required, but missing."),
        ({"hyperparams.optim_betas": [0.9, 1]}, "hyperparams.optim_betas.1: got 1, expected a number below 1."),
        (
            {"hyperparams.optimizer": "lion"},
            "hyperparams.optimizer: got 'lion', expected one of 'adamw', 'adam', 'sgd'.",
        ),
        (
            {"hyperparams.scheduler": "cosine"},
            "hyperparams.scheduler: got 'cosine', expected one of 'one_cycle_lr', 'reduce_on_plateau', "
            "'cycle_then_plateau'.",
        ),
        ({"saving.ckpt_monitor_mode": "maximum"}, "saving.ckpt_monitor_mode: got 'maximum', expected one of 'max', "),
        (
            {f"{MOD}.pre_processings.temporal_average_sentinel2": True},
            f"{MOD}.pre_processings.temporal_average_sentinel2: got true, expected one of False, 'monthly', "
            "'semi-monthly'.",
        ),
        (
            {f"{MOD}.pre_processings.filter_sentinel2_max_cloud": 101},
            f"{MOD}.pre_processings.filter_sentinel2_max_cloud: got 101, expected at most 100.",
        ),
        (
            {f"{MOD}.modality_dropout.AERIAL_RGBI": 1.5},
            f"{MOD}.modality_dropout.AERIAL_RGBI: got 1.5, expected at most 1.",
        ),
        ({f"{NORM}.norm_type": "z"}, f"{NORM}.norm_type: got 'z', expected one of 'custom', 'scaling', 'without'."),
        # names
        (
            {f"{MOD}.inputs.AERIAL_RGB": True},
            f"{MOD}.inputs.AERIAL_RGB: unknown modality 'AERIAL_RGB'. Did you mean AERIAL_RGBI? Known: {KNOWN}.",
        ),
        (
            {f"{MOD}.inputs.SENTINEL1_ASC_TS": True},
            f"{MOD}.inputs.SENTINEL1_ASC_TS: unknown modality 'SENTINEL1_ASC_TS'. Did you mean SENTINEL1-ASC_TS?",
        ),
        (
            {"labels": ["AERIAL_LABEL-COSIA", "LPIS"]},
            "labels.1: unknown label set 'LPIS'. Did you mean ALL_LABEL-LPIS? "
            "Known: AERIAL_LABEL-COSIA, ALL_LABEL-LPIS.",
        ),
        # required
        ({"paths.out_folder": GONE}, "paths.out_folder: required, but missing."),
        ({"paths.out_folder": None}, "paths.out_folder: required, but missing."),
        ({"paths": GONE}, "paths: required, but missing."),
        ({"labels": GONE}, "labels: required, but missing."),
        ({"labels": []}, "labels: got [], expected a list of at least one label set, each once."),
        ({"labels": ["AERIAL_LABEL-COSIA"] * 2}, "labels: got ['AERIAL_LABEL-COSIA', 'AERIAL_LABEL-COSIA'], expected"),
        ({LPIS: GONE}, f"{LPIS}: required for this label set, but missing."),
        (
            {f"{MOD}.inputs": {"DEM_ELEV": False}},
            f"{MOD}.inputs: no input is enabled. Set at least one to true: {KNOWN}.",
        ),
        ({"paths.train_csv": ""}, "paths.train_csv: " + NEEDS_CSV.format("train")),
        ({"paths.val_csv": GONE}, "paths.val_csv: " + NEEDS_CSV.format("train")),
        ({"paths.test_csv": None}, "paths.test_csv: " + NEEDS_CSV.format("predict")),
        (
            {"paths.test_csv": None, "tasks.metrics_only": True},
            "paths.test_csv: " + NEEDS_CSV.format("metrics_only"),
        ),
        (
            {"models.monotemp_model.arch": ""},
            "models.monotemp_model.arch: required for AERIAL_RGBI, AERIAL-RLT_PAN, DEM_ELEV, SPOT_RGBI, but missing: ",
        ),
        (
            {"models.monotemp_model.arch": "resnet34"},
            "models.monotemp_model.arch: got 'resnet34', expected <encoder>-<decoder>, such as resnet34-unet.",
        ),
        (
            {"tasks.train_tasks.resume_training_from_ckpt": True},
            "paths.ckpt_model_path: required because tasks.train_tasks.resume_training_from_ckpt is true.",
        ),
        (
            {"tasks.train": False},
            "paths.ckpt_model_path: required because tasks.predict is true without training.",
        ),
        (
            {
                "paths.ckpt_model_path": "a.ckpt",
                "tasks.train_tasks": {"init_weights_only_from_ckpt": True, "resume_training_from_ckpt": True},
            },
            "tasks.train_tasks.resume_training_from_ckpt: contradicts init_weights_only_from_ckpt: true.",
        ),
    ],
)
def test_single_problem(changes, expected):
    (problem,) = problems(changes)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {f"{MOD}.inputs_channels.AERIAL_RGBI": [0, 1, 2]},
            f"{MOD}.inputs_channels.AERIAL_RGBI: got [0, 1, 2], expected a list of different band numbers, ",
        ),
        (
            {f"{MOD}.inputs_channels.AERIAL_RGBI": [1, 1, 2]},
            f"{MOD}.inputs_channels.AERIAL_RGBI: got [1, 1, 2], expected a list of different band numbers, ",
        ),
        (
            {f"{MOD}.inputs_channels.SENTINEL2_TS": [1, 11]},
            f"{MOD}.inputs_channels.SENTINEL2_TS: band 11 does not exist. Bands of SENTINEL2_TS: 1 B02, 2 B03, ",
        ),
        (
            {f"{MOD}.inputs_channels.DEM_ELEV": [1]},
            f"{MOD}.inputs_channels.DEM_ELEV: got [1], expected [1, 2] or no list: the bands are always DSM and DTM; ",
        ),
        (
            {f"{NORM}.AERIAL_RGBI_means": [1, 2]},
            f"{NORM}.AERIAL_RGBI_means: got 2 values, expected 3 (one per selected channel) or 4 (one per band of the",
        ),
        (
            {f"{NORM}.AERIAL_RGBI_means": ["a"]},
            f"{NORM}.AERIAL_RGBI_means: got ['a'], expected a list of finite numbers, or a mapping of band name to ",
        ),
        (
            {f"{NORM}.AERIAL_RGBI_stds": GONE},
            f"{NORM}.AERIAL_RGBI_stds: required, but missing: custom normalisation needs means and stds.",
        ),
        (
            {f"{NORM}.AERIAL_RGBI_stds": [1, 0, 2]},
            f"{NORM}.AERIAL_RGBI_stds: got [1.0, 0.0, 2.0], expected numbers above 0: the image is divided by them.",
        ),
        (
            {f"{NORM}.AERIAL_RGBI_stds": {"R": 1, "G": 2, "X": 3}},
            f"{NORM}.AERIAL_RGBI_stds: unknown bands X, expected names among R, G, B, NIR.",
        ),
        (
            {f"{NORM}.AERIAL_RGBI_stds": {"R": 1, "G": 2, "B": 3}},
            f"{NORM}.AERIAL_RGBI_stds: no value for the selected bands NIR.",
        ),
        (
            {f"{NORM}.DEM_ELEV_means": [1, 2, 3]},
            f"{NORM}.DEM_ELEV_means: got 3 values, expected 2 (one per derived channel).",
        ),
        (
            {f"{NORM}.DEM_ELEV_means": {"DSM": 1, "DTM": 2}},
            f"{NORM}.DEM_ELEV_means: got a mapping, expected a list: heights take their statistics by position.",
        ),
        (
            {f"{MOD}.modality_dropout": dict.fromkeys(KNOWN.split(", "), 1)},
            f"{MOD}.modality_dropout: every enabled input is always dropped. Keep one below 1.",
        ),
        (
            {f"{UTAE}.encoder_widths": [64, 64, 128]},
            f"{UTAE}.decoder_widths: 4 widths, but encoder_widths has 3: one per stage in both.",
        ),
        (
            {f"{UTAE}.encoder_widths": [64, 64, 64, 64]},
            f"{UTAE}.decoder_widths: the last width is 128, but encoder_widths ends with 64: both must be equal.",
        ),
        ({f"{UTAE}.encoder_widths": [64]}, f"{UTAE}.encoder_widths: got [64], expected at least 2 values."),
        ({f"{UTAE}.d_model": 250}, f"{UTAE}.d_model: got 250, expected a multiple of n_head = 16."),
        (
            {f"{UTAE}.encoder_widths": [32, 40, 64, 128]},
            f"{UTAE}.n_head: 16 does not divide the encoder widths [40] into equal groups, one per head.",
        ),
        (
            {f"{UTAE}.encoder_widths": [30, 64, 64, 128], f"{UTAE}.agg_mode": "mean"},
            f"{UTAE}.encoder_widths: got [30], expected multiples of 4 (groups of the normalisation).",
        ),
        ({f"{UTAE}.agg_mode": "sum"}, f"{UTAE}.agg_mode: got 'sum', expected one of 'att_group', 'att_mean', 'mean'."),
        (
            {"saving.ckpt_monitor": "miou"},
            "saving.ckpt_monitor: got 'miou', expected one of val_miou, val_loss, train_loss, val_miou/",
        ),
        (
            {"saving.ckpt_monitor_mode": "max"},
            "saving.ckpt_monitor_mode: got 'max', but the smallest val_loss is the best. Write min.",
        ),
        (
            {"saving.ckpt_monitor": "val_miou"},
            "saving.ckpt_monitor_mode: got 'min', but the largest val_miou is the best. Write max.",
        ),
        (
            {f"{LPIS}.label_channel_nomenclature": 4},
            f"{LPIS}.label_channel_nomenclature: got 4, expected 1..3 for ALL_LABEL-LPIS.",
        ),
        (
            {f"{COSIA}.label_channel_nomenclature": 2},
            f"{COSIA}.label_channel_nomenclature: got 2, expected 1..1 for AERIAL_LABEL-COSIA.",
        ),
        (
            {f"{LPIS}.label_channel_nomenclature": 3},
            f"{LPIS}.value_name: 23 classes are nomenclature 1 of ALL_LABEL-LPIS, but nomenclature 3 is chosen (46 cl",
        ),
        (
            {f"{LPIS}.value_name": {0: "a", 2: "b"}},
            f"{LPIS}.value_name: class indices must be 0..1, got [0, 2].",
        ),
        ({f"{LPIS}.value_name": {"a": "b"}}, f"{LPIS}.value_name.a: got 'a', expected a whole number."),
        (
            {f"{COSIA}.value_weights.default_exceptions": {19: 0}},
            f"{COSIA}.value_weights.default_exceptions.19: no such class, expected 0..18.",
        ),
        (
            {f"{COSIA}.value_weights.per_modality_exceptions": {"AERIAL_RGBI": {30: 0}}},
            f"{COSIA}.value_weights.per_modality_exceptions.AERIAL_RGBI.30: no such class, expected 0..18.",
        ),
        (
            {f"{COSIA}.value_weights.default_exceptions": {3: -1}},
            f"{COSIA}.value_weights.default_exceptions.3: got -1, expected at least 0.",
        ),
        (
            {f"{LPIS}.value_weights.default": 0},
            f"{LPIS}.value_weights: every class has weight 0: nothing would be learned.",
        ),
    ],
)
def test_single_cross_problem(changes, expected):
    (problem,) = problems(changes)
    assert problem.startswith(expected)


def test_all_problems_at_once_and_no_follow_ups():
    result = problems(
        {
            "paths.out_folder": GONE,
            "paths.train_csv": 5,  # wrong, so not also reported as missing
            "hyperparams.bach_size": 3,
            f"{MOD}.inputs_channels.AERIAL_RGBI": ["R"],  # wrong, so its statistics are not judged
            "labels": ["AERIAL_LABEL-COSIA", "LPIS"],
            f"{UTAE}.d_model": 250,
            "saving.ckpt_monitor_mode": "max",
        }
    )
    assert [problem.split(":")[0] for problem in result] == [
        "paths.out_folder",
        "paths.train_csv",
        "hyperparams.bach_size",
        f"{MOD}.inputs_channels.AERIAL_RGBI.0",
        "labels.1",
        f"{UTAE}.d_model",
        "saving.ckpt_monitor_mode",
    ]


def test_message_names_file_line_and_count(train_folder):
    path = train_folder / "config_task.yaml"
    path.write_text(path.read_text().replace("batch_size", "bach_size"))
    line = path.read_text().split("bach_size")[0].count("\n") + 1
    with pytest.raises(ConfigError) as error:
        load_train_config(train_folder)
    expected = f"hyperparams.bach_size: unknown key. Did you mean batch_size? (config_task.yaml, line {line})"
    assert str(error.value) == f"{train_folder}: 1 problem\n  - {expected}"
    assert error.value.exit_code == 2


def test_disabled_inputs_need_nothing(train):
    train["modalities"]["inputs"] = {"SENTINEL2_TS": True}
    train["modalities"]["normalization"] = {}
    train["models"]["monotemp_model"] = None
    assert train_config_from_dict(train).modalities.active == ("SENTINEL2_TS",)


@pytest.mark.parametrize("norm_type", ["scaling", "without"])
def test_other_normalisations_need_no_statistics(train, norm_type):
    train["modalities"]["normalization"] = {"norm_type": norm_type}
    assert train_config_from_dict(train).modalities.normalization.norm_type == norm_type


def test_a_cube_replaces_the_csvs(train):
    for key in ("train_csv", "val_csv", "test_csv"):
        del train["paths"][key]
    train["paths"]["cube"] = "s3://bucket/hub.zarr"
    assert train_config_from_dict(train).paths.cube == "s3://bucket/hub.zarr"


def test_no_path_is_opened(train, tmp_path):
    folder = tmp_path / "absent"
    train["paths"] |= {"train_csv": str(folder / "a.csv"), "out_folder": str(folder)}
    train_config_from_dict(train)
    assert not folder.exists()
