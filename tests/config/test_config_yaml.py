"""Reading YAML: merging, numbers, booleans, dates, and everything that is refused."""

from __future__ import annotations

import pytest
import yaml

from flairhub.config import TrainConfig, ZonalConfig, load_config, load_train_config, load_zonal_config
from flairhub.config.yaml_file import parse_yaml, read_yaml
from flairhub.errors import ConfigError


def parse(text):
    return parse_yaml(text, "source", "place").data


def test_folder_equals_one_file(train, train_folder, write):
    one = write(yaml.safe_dump(train))
    assert load_train_config(train_folder) == load_train_config(one)


def test_any_file_names_in_a_folder(train, train_folder):
    (train_folder / "config_models.yaml").rename(train_folder / "network.yml")
    (train_folder / "notes.txt").write_text("not: [yaml")
    assert load_train_config(train_folder).models.multitemp_model.n_head == 16


def test_a_section_in_two_files_is_refused(train_folder):
    (train_folder / "more.yaml").write_text("models:\n  multitemp_model: {}\n")
    with pytest.raises(ConfigError) as error:
        load_train_config(train_folder)
    assert error.value.problems == (
        "models: given twice, in config_models.yaml, line 1 and more.yaml, line 1. Keep one.",
    )


def test_kind_is_detected(train_folder, zonal, write):
    path = write(yaml.safe_dump(zonal))
    assert isinstance(load_config(path), ZonalConfig)
    assert isinstance(load_config(train_folder), TrainConfig)
    assert load_config(path) == load_zonal_config(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5E-5", 5e-5),
        ("1.e+3", 1000.0),
        (".5e1", 5.0),
        ("-2e3", -2000.0),
        ("0.02", 0.02),
        ("05-15", "05-15"),
        ("12-31", "12-31"),
        ("yes", True),
        ("Off", False),
        ("on", True),
        ("no", False),
        ("False", False),
        ("1e-4x", "1e-4x"),
        ("'1e-4'", "1e-4"),
        ("semi-monthly", "semi-monthly"),
        ("", None),
        ("[1, 2e0]", [1, 2.0]),
        ("données", "données"),
    ],
)
def test_values(text, value):
    value_read = parse(f"key: {text}")["key"]
    assert value_read == value
    assert type(value_read) is type(value)


def test_aliases_and_merges():
    text = "base: &b {x: 1, y: 2}\nother:\n  <<: *b\n  y: 3\nlist: [*b, *b]\n"
    assert parse(text)["other"] == {"x": 1, "y": 3}
    assert parse(text)["list"] == [{"x": 1, "y": 2}] * 2


def test_empty_file_is_an_empty_mapping():
    assert parse("# nothing\n") == {}


def test_bom_and_places(write):
    document = read_yaml(write("\ufeffa:\n  b: 1\n  c:\n    - d: 2\n"))
    assert document.data == {"a": {"b": 1, "c": [{"d": 2}]}}
    assert document.places["a", "b"] == "config.yaml, line 2"
    assert document.places["a", "c", 0, "d"] == "config.yaml, line 4"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(8)
)
MERGE_BOMB = "a: &a {k0: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{k{i + 1}: 1, <<: [{','.join([f'*{chr(97 + i)}'] * 10)}]}}\n" for i in range(10)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "a: given twice, in line 1 and line 3. Keep one."),
        ("a:\n  b: 1\n  b: 2\n", "a.b: given twice, in line 2 and line 3. Keep one."),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", "line 2: YAML tag"),
        ("a: !!str 5\n", "line 1: YAML tag 'tag:yaml.org,2002:str' is not allowed"),
        ("a: !custom 5\n", "line 1: YAML tag '!custom' is not allowed"),
        ("a: [1, 2\nb: 3\n", "not valid YAML"),
        ("a: b: c\n", "line 1, column 5: not valid YAML: mapping values are not allowed here"),
        ("\tx: 1\n", "not valid YAML"),
        ("a: *nowhere\n", "not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("- 1\n- 2\n", "expected a mapping of keys at the top, got a list"),
        ("just words\n", "expected a mapping of keys at the top, got text"),
        ("a: =\n", "line 1: '=' is not allowed here"),
        ("? [1, 2]\n: 3\n", "line 1: a key must be text or a number"),
        ("a: {<<: 3}\n", "<< expects an alias of a mapping"),
        ("a: &a [*a]\n", "too many or too deeply nested"),
        ("a: " + "[" * 30 + "]" * 30, "line 1: nested deeper than 20 levels"),
        (BOMB, "too many or too deeply nested values; check the aliases"),
        (MERGE_BOMB, "too many or too deeply nested values; check the aliases"),
        ("a: " + "x" * 1_000_001, "expected at most 1000000: this is no configuration"),
        (b"a: 1\nb: caf\xe9\n", "line 2: not UTF-8"),
        (b"a: \x00\n", "not valid YAML"),
    ],
)
def test_refused(write, content, message):
    path = write(content)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert error.value.exit_code == 2


def test_tags_execute_nothing(write, tmp_path):
    target = tmp_path / "made"
    with pytest.raises(ConfigError):
        read_yaml(
            write(f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{target}']]")
        )
    assert not target.exists()


def test_missing_paths(tmp_path):
    with pytest.raises(ConfigError, match="no such file or folder"):
        load_config(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"no \.yaml or \.yml file in this folder"):
        load_config(tmp_path)


def test_all_broken_files_of_a_folder_at_once(train_folder):
    (train_folder / "config_task.yaml").write_text("a: [")
    (train_folder / "config_models.yaml").write_text("b: 1\nb: 2\n")
    with pytest.raises(ConfigError) as error:
        load_train_config(train_folder)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["config_models.yaml", "config_task.yaml"]
