"""Several files: later ones override earlier ones key by key."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from flairhub.cli import cli
from flairhub.config import (
    config_hash,
    load_config,
    load_train_config,
    load_zonal_config,
    resolved_yaml,
    train_config_from_dict,
    zonal_config_from_dict,
)
from flairhub.errors import ConfigError


def problems_of(paths, load=load_train_config, overrides=()):
    with pytest.raises(ConfigError) as error:
        load(paths, overrides)
    return list(error.value.problems)


def test_mappings_merge_and_the_rest_is_replaced(train, train_folder, write):
    second = write(
        "hyperparams: {num_epochs: 7, optim_betas: [0.5, 0.6]}\n"
        "models:\n  multitemp_model: {d_k: 8}\n"
        "labels_configs:\n  AERIAL_LABEL-COSIA:\n    value_weights:\n      default_exceptions: {3: 0.5}\n"
        "modalities:\n  normalization:\n    SPOT_RGBI_means: {R: 1, G: 2, B: 3, NIR: 4}\n",
        "second.yaml",
    )
    third = write("hyperparams: {num_epochs: 9}\nsaving:\n  progress_rate:\n", "third.yml")
    expected = copy.deepcopy(train)
    expected["hyperparams"] |= {"num_epochs": 9, "optim_betas": [0.5, 0.6]}
    expected["models"]["multitemp_model"]["d_k"] = 8
    expected["labels_configs"]["AERIAL_LABEL-COSIA"]["value_weights"]["default_exceptions"][3] = 0.5
    expected["modalities"]["normalization"]["SPOT_RGBI_means"] = {"R": 1, "G": 2, "B": 3, "NIR": 4}
    del expected["saving"]["progress_rate"]
    assert train["hyperparams"]["num_epochs"] not in (7, 9)
    assert len(train["labels_configs"]["AERIAL_LABEL-COSIA"]["value_weights"]["default_exceptions"]) > 0
    assert load_train_config([train_folder, second, third]) == train_config_from_dict(expected)
    assert load_train_config([train_folder, third, second]).hyperparams.num_epochs == 7


def test_the_hash_is_that_of_the_values(train, train_folder, write):
    """However they were layered, and in which order the keys came."""
    train["hyperparams"]["seed"] = 5
    train["models"]["multitemp_model"]["d_k"] = 8
    one = load_train_config(write(yaml.safe_dump(train), "one.yaml"))
    halves = [
        write("models: {multitemp_model: {d_k: 8}}\nhyperparams: {seed: 1}\n", "b.yaml"),
        write("hyperparams: {seed: 5}\n"),
    ]
    layered = load_train_config([train_folder, *halves])
    assert layered == one
    assert config_hash(layered) == config_hash(one) != config_hash(load_train_config(train_folder))
    assert config_hash(load_train_config(train_folder, ["hyperparams.seed=5", "models.multitemp_model.d_k=8"])) == (
        config_hash(one)
    )
    assert load_train_config(write(resolved_yaml(layered), "resolved.yaml")) == one


def test_one_path_in_a_sequence_is_that_path(train_folder):
    assert load_train_config((train_folder,)) == load_train_config(str(train_folder)) == load_config([train_folder])


def test_overrides_win_over_every_file(train_folder, write):
    second = write("hyperparams: {num_epochs: 7}\n")
    assert load_train_config([train_folder, second], ["hyperparams.num_epochs=3"]).hyperparams.num_epochs == 3


def test_a_zonal_file_over_another(zonal, write):
    first = write(yaml.safe_dump(zonal), "zonal.yaml")
    second = write("margin: 8\ntasks: [{name: ALL_LABEL-LPIS}]\nmodalities: {inputs: {SPOT_RGBI: no}}\n", "mine.yaml")
    config = load_zonal_config([first, second])
    changed = copy.deepcopy(zonal) | {"margin": 8, "tasks": [{"name": "ALL_LABEL-LPIS"}]}
    changed["modalities"]["inputs"]["SPOT_RGBI"] = False
    assert config == zonal_config_from_dict(changed) == load_config([first, second])
    assert [task.name for task in config.tasks] == ["ALL_LABEL-LPIS"]


def test_the_kind_is_that_of_all_layers_together(zonal, write):
    """The first layer alone says neither."""
    rest = {key: value for key, value in zonal.items() if key != "modalities"}
    layers = [write(yaml.safe_dump({"modalities": zonal["modalities"]}), "a.yaml"), write(yaml.safe_dump(rest))]
    assert load_config(layers) == zonal_config_from_dict(zonal)


def test_relative_paths_stay_relative_to_the_current_directory(train_folder, write, tmp_path):
    (tmp_path / "other").mkdir()
    second = write("paths: {train_csv: ./splits/train.csv}\n", "other/second.yaml")
    assert load_train_config([train_folder, second]).paths.train_csv == Path("splits/train.csv")


def test_problems_name_the_file_the_wrong_value_came_from(train_folder, write):
    second = write("hyperparams:\n  num_epochs: many\n  bach_size: 3\nhardware:\n  num_workers: 4\n", "second.yaml")
    third = write("saving:\n  progress_rate: -1\nhardware:\n  num_workers: few\n", "third.yaml")
    models = train_folder / "config_models.yaml"
    models.write_text(models.read_text().replace("d_k:", "d_kk:"))
    line = next(i for i, text in enumerate(models.read_text().splitlines(), 1) if "d_kk" in text)
    reported = problems_of([train_folder, second, third])
    assert sorted(reported) == sorted(
        [
            f"hyperparams.num_epochs: got 'many', expected a whole number. ({second}, line 2)",
            f"hyperparams.bach_size: unknown key. Did you mean batch_size? ({second}, line 3)",
            f"saving.progress_rate: got -1, expected at least 1. ({third}, line 2)",
            f"hardware.num_workers: got 'few', expected a whole number. ({third}, line 4)",
            f"models.multitemp_model.d_kk: unknown key. Did you mean d_k? ({models}, line {line})",
        ]
    )


def test_a_value_that_was_overridden_is_not_wrong(train_folder, write):
    second = write("hyperparams:\n  num_epochs: many\n  optim_betas: {a: 1}\n", "second.yaml")
    third = write("hyperparams: {num_epochs: 4, optim_betas: [0.1, 0.2]}\n", "third.yaml")
    assert load_train_config([train_folder, second, third]).hyperparams.optim_betas == (0.1, 0.2)


def test_places_below_a_replaced_list_are_forgotten(zonal, write):
    first = write(yaml.safe_dump(zonal), "first.yaml")
    second = write("tasks:\n  - name: AERIAL\n", "second.yaml")
    (problem,) = problems_of([first, second], load_zonal_config)
    assert problem.startswith("tasks.0.name: unknown label set 'AERIAL'.")
    assert problem.endswith(f"({second}, line 2)")
    (problem,) = problems_of([second, first], load_zonal_config, ["tasks.0.name=X"])
    assert problem.endswith("(--set)")


def test_nothing_over_a_mapping_is_refused(train_folder, write):
    second = write("hyperparams:\nmodels:\n  multitemp_model: {d_kk: 1}\n", "second.yaml")
    line = (train_folder / "config_task.yaml").read_text().splitlines().index("hyperparams:") + 1
    assert problems_of([train_folder, second]) == [
        f"hyperparams: nothing ({second}, line 1) over a mapping ({train_folder / 'config_task.yaml'}, line {line}). "
        "Remove the key to keep the mapping, or pass --set hyperparams= to empty it.",
        f"models.multitemp_model.d_kk: unknown key. Did you mean d_k? ({second}, line 3)",
    ]


def test_duplicates_within_a_layer_are_refused(train_folder, write):
    second = write("labels: [a]\nhardware: {}\nlabels: [b]\n", "second.yaml")
    assert problems_of([train_folder, second]) == [f"{second}: labels: given twice, in line 1 and line 3. Keep one."]


def test_unreadable_layers_all_at_once(train_folder, write, tmp_path):
    (train_folder / "config_task.yaml").write_text("a: [")
    broken = write("a: b: c\n", "broken.yaml")
    missing, empty, row = tmp_path / "none", tmp_path / "empty", tmp_path / "lc_x"
    empty.mkdir()
    row.with_suffix(".yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError) as error:
        load_train_config([train_folder, broken, missing, empty, row])
    assert str(error.value).startswith(f"{train_folder}, {broken}, {missing}, {empty}, {row}: 5 problems\n")
    first, second, *rest = error.value.problems
    assert first.startswith(f"{train_folder}: config_task.yaml: line 1, column 5: not valid YAML")
    assert second.startswith(f"{broken}: line 1, column 5: not valid YAML")
    assert rest == [
        f"{missing}: no such file or folder. Give a YAML file or a folder of YAML files.",
        f"{empty}: no .yaml or .yml file in this folder.",
        f"{row}: no such file or folder. Did you mean {row}.yaml?",
    ]


def test_no_path_at_all():
    assert problems_of([]) == ["no path. Give a YAML file or a folder of YAML files, or several."]


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "ingest --cube c.zarr",
        "evaluate --predictions .",
        "zonal",
        "check",
        "model info",
        "model convert w.safetensors -o b",
    ],
)
def test_every_command_takes_several(command, train_folder, write):
    """The wrong key of the second file is reported with its file, so both were read."""
    second = write("hyperparams:\n  bach_size: 3\nmargn: 3\n", "second.yaml")
    result = CliRunner().invoke(cli, [*command.split(), "--config", str(train_folder), "--config", str(second)])
    assert isinstance(result.exception, ConfigError)
    assert any(problem.endswith(f"({second}, line 3)") for problem in result.exception.problems)


def test_check_and_zone_cubes_take_several_without_the_option(zonal, write):
    first, second = write(yaml.safe_dump(zonal), "zonal.yaml"), write("margn: 3\n", "second.yaml")
    third = write("bach_size: 3\n", "third.yaml")
    wrong = [
        f"margn: unknown key. Did you mean margin? ({second}, line 1)",
        f"bach_size: unknown key. Did you mean batch_size? ({third}, line 1)",
    ]
    for arguments in (
        ["check", first, second, third],
        ["check", first, second, "--config", third],
        ["ingest", "--zone", first, "--zone", second, "--zone", third, "--cube", "c.zarr"],
    ):
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert isinstance(result.exception, ConfigError), arguments
        assert list(result.exception.problems) == wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing option '--config'"),
        (["check"], "Give a zonal YAML, or several of which later ones override earlier ones."),
        (["model", "info"], "Give a configuration, a bundle or a weights file, or --table."),
        (["model", "info", "a", "--config", "b"], "SOURCE and --config both name a network."),
    ],
)
def test_usage(arguments, message):
    result = CliRunner().invoke(cli, arguments)
    assert (result.exit_code, message in result.output) == (2, True)
