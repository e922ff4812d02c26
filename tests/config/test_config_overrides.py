"""`--set key.path=value`."""

from __future__ import annotations

import pytest

from flairhub.config import load_train_config, train_config_from_dict, zonal_config_from_dict
from flairhub.errors import ConfigError


def test_values_are_yaml(train, train_folder):
    overrides = [
        "hyperparams.num_epochs=3",
        "hyperparams.learning_rate=1e-4",
        "hyperparams.optim_betas=[0.5, 0.6]",
        "modalities.inputs.AERIAL-RLT_PAN=no",
        "modalities.inputs_channels.SPOT_RGBI=[2]",
        "modalities.normalization.SPOT_RGBI_means={G: 1}",
        "modalities.normalization.SPOT_RGBI_stds={G: 2}",
        "paths.out_folder=a=b",
        "models.multitemp_model.ref_date=01-31",
        "labels_configs.AERIAL_LABEL-COSIA.value_weights.default_exceptions.3=0.5",
        "labels.1=ALL_LABEL-LPIS",
        "hardware.threads=2",
        "saving.progress_rate=",
    ]
    config = load_train_config(train_folder, overrides)
    assert config == train_config_from_dict(train, overrides)
    assert config.hyperparams.num_epochs == 3
    assert config.hyperparams.learning_rate == 1e-4
    assert config.hyperparams.optim_betas == (0.5, 0.6)
    assert config.modalities.inputs["AERIAL-RLT_PAN"] is False
    assert config.modalities.inputs_channels["SPOT_RGBI"] == (2,)
    assert str(config.paths.out_folder) == "a=b"
    assert config.models.multitemp_model.ref_date == "01-31"
    assert config.labels_configs["AERIAL_LABEL-COSIA"].value_weights.default_exceptions[3] == 0.5
    assert config.labels == ("AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS")
    assert config.hardware.threads == 2
    assert config.saving.progress_rate == 10


def test_the_last_one_wins(train):
    assert train_config_from_dict(train, ["hyperparams.seed=1", "hyperparams.seed=2"]).hyperparams.seed == 2


def test_sections_that_were_not_written_are_made(train):
    del train["hyperparams"]
    assert train_config_from_dict(train, ["hyperparams.num_epochs=4"]).hyperparams.num_epochs == 4


def test_list_entries(zonal):
    config = zonal_config_from_dict(zonal, ["tasks.1.active=true", "margin=0"])
    assert [task.active for task in config.tasks] == [True, True]
    assert config.margin == 0


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("hyperparams.num_epoch=3", "hyperparams.num_epoch: unknown key. Did you mean num_epochs? (--set)"),
        ("num_epochs=3", "num_epochs: unknown key. Did you mean hyperparams.num_epochs? (--set)"),
        ("hyperparams.num_epochs=x", "hyperparams.num_epochs: got 'x', expected a whole number. (--set)"),
        ("modalities.inputs.SPOT=yes", "modalities.inputs.SPOT: unknown modality 'SPOT'. Did you mean SPOT_RGBI?"),
        ("hyperparams.num_epochs", "hyperparams.num_epochs: expected key.path=value, such as hyperparams.num_"),
        ("=3", "=3: expected key.path=value"),
        ("hyperparams..seed=3", "hyperparams..seed=3: expected key.path=value"),
        ("hyperparams.seed.x=3", "hyperparams.seed.x: leads through a value that has no keys."),
        ("labels.7=ALL_LABEL-LPIS", "labels.7: leads through a value that has no keys."),
        ("hyperparams.seed=[", "line 1, column 2: not valid YAML"),
        ("hyperparams.seed=!!int 3", "line 1: YAML tag 'tag:yaml.org,2002:int' is not allowed."),
    ],
)
def test_wrong_overrides(train, override, expected):
    with pytest.raises(ConfigError) as error:
        train_config_from_dict(train, [override])
    (problem,) = error.value.problems
    assert problem.startswith(expected)
