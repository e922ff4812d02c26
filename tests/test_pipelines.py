"""Every pipeline loads, and each published row has the inputs and labels of the baseline table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from flairhub.baselines import BASELINES, CHANNELS, RECIPE
from flairhub.config import input_preparations, label_tasks, load_config, load_train_config, load_zonal_config
from flairhub.modalities import MODALITIES
from flairhub.models import network_spec
from flairhub.prepare import ImagePreparation
from tests.helpers.pipelines import PIPELINES, TRAININGS, ZONES, digest

BASE_FILES = ["config_modalities.yaml", "config_models.yaml", "config_supervision.yaml", "config_task.yaml"]
ROWS = {row.name.lower().replace("-", "_"): row for row in BASELINES}
OTHERS = {"smoke", "toy"}
DIGESTS = json.loads((Path(__file__).parent / "golden" / "pipelines.json").read_text(encoding="utf-8"))


def test_rows_lie_over_one_base():
    assert set(TRAININGS) == set(ROWS) | OTHERS
    assert {path.name for path in PIPELINES.iterdir() if path.is_dir()} == {"base", "zonal", "slurm"}
    assert sorted(path.name for path in (PIPELINES / "base").iterdir()) == BASE_FILES


@pytest.mark.parametrize("name", sorted(TRAININGS))
def test_trainings_are_what_their_own_folders_were(name):
    """The digests were taken when each training was a folder of four files that stood alone."""
    assert digest(load_train_config(TRAININGS[name])) == DIGESTS[name]


@pytest.mark.parametrize("name", sorted(ZONES))
def test_maps_are_what_their_own_files_were(name):
    assert digest(load_zonal_config(ZONES[name])) == DIGESTS[f"zonal/{name}"]


def test_every_digest_has_its_pipeline():
    assert set(DIGESTS) == set(TRAININGS) | {f"zonal/{name}" for name in ZONES}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_is_its_choices(name):
    """A name, inputs and a label set; everything else is the base's."""
    values = yaml.safe_load(TRAININGS[name][1].read_text(encoding="utf-8"))
    assert {key: list(section) for key, section in values.items() if key != "labels"} == {
        "paths": ["out_model_name"],
        "modalities": ["inputs"],
    }


@pytest.mark.parametrize("name", sorted(ROWS))
def test_published_row(name):
    config = load_train_config(TRAININGS[name])
    row = ROWS[name]
    n_classes = {"AERIAL_LABEL-COSIA": 19, "ALL_LABEL-LPIS": 23}[row.label]
    assert config.modalities.active == row.inputs
    assert [(task.label, task.level, task.n_classes) for task in label_tasks(config)] == [(row.label, 1, n_classes)]
    assert network_spec(config).aux == row.aux
    assert config.models.monotemp_model.arch == RECIPE.arch
    assert config.models.monotemp_model.pretrained is True
    assert config.paths.out_model_name == name
    options = config.hyperparams
    assert (options.batch_size, options.learning_rate, options.num_epochs) == (
        RECIPE.batch_size,
        RECIPE.learning_rate,
        RECIPE.epochs,
    )


@pytest.mark.parametrize("name", sorted(ROWS))
def test_channels_of_the_published_weights(name):
    """The channel numbers of the golden networks; statistics follow their bands."""
    for modality, preparation in input_preparations(load_train_config(TRAININGS[name])).items():
        assert preparation.n_channels(len(MODALITIES[modality].bands)) == CHANNELS[modality]
        if isinstance(preparation, ImagePreparation):
            assert len(preparation.means) == len(preparation.stds) == CHANNELS[modality]


def test_infrared_comes_first_with_its_own_statistics():
    preparation = input_preparations(load_train_config(TRAININGS["lc_a"]))["AERIAL_RGBI"]
    assert preparation.channels == (4, 1, 2)
    assert preparation.means == (106.59, 105.66, 111.35)
    assert preparation.stds == (39.78, 52.23, 45.62)


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_other_trainings(name):
    config = load_train_config(TRAININGS[name])
    assert {task.label for task in label_tasks(config)} == {"AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS"}
    assert config.modalities.active == ("AERIAL_RGBI", "SENTINEL2_TS")


def test_smoke_is_small_and_offline():
    config = load_train_config(TRAININGS["smoke"])
    assert config.models.monotemp_model.pretrained is False
    assert config.hardware.accelerator == "cpu"
    assert config.hyperparams.num_epochs == 1


@pytest.mark.parametrize("name", sorted(ZONES))
def test_zonal(name):
    config = load_zonal_config(ZONES[name])
    assert config == load_config(ZONES[name])
    assert config.is_bundle == (name in {"bundle", "roi"})
    assert (config.cube is not None) == (name == "roi")


def test_an_input_is_enabled_by_its_flag_alone():
    """The base says how every sensor is prepared."""
    config = load_train_config(TRAININGS["lc_d"], ["modalities.inputs.SPOT_RGBI=true"])
    assert input_preparations(config)["SPOT_RGBI"].means == (1137.03, 433.26, 508.75)


@pytest.mark.parametrize("name", ["lc_a", "lc_l"])
def test_zonal_prepares_like_training(name):
    """The same bands, heights, statistics and averages; only the fill is the published one."""
    published_fill = ["modalities.pre_processings.temporal_average_fill=published"]
    trained = load_train_config(TRAININGS[name], published_fill)
    mapped = load_zonal_config(ZONES[name])
    assert input_preparations(mapped) == input_preparations(trained)


def test_scripts_name_pipelines_and_keys_that_exist():
    for script in (PIPELINES / "slurm").iterdir():
        named = re.findall(r"pipelines/[\w./]*\w", script.read_text(encoding="utf-8"))
        assert len(named) >= 2
        for path in named:
            assert (PIPELINES.parent / path).exists(), (script.name, path)
    settings = {"num_nodes": "2", "gpus_per_node": "4", "strategy": "ddp", "num_workers": "8"}
    overrides = [f"hardware.{key}={value}" for key, value in settings.items()] + ["saving.enable_progress_bar=false"]
    assert load_train_config(TRAININGS["lc_l"], overrides).hardware.num_nodes == 2
    assert load_zonal_config(ZONES["bundle"], ["threads=8"]).threads == 8
