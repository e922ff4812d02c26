"""Whatever stands where, the answer is a configuration or a ConfigError, never another exception."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flairhub.config import (
    class_weights,
    config_hash,
    input_preparations,
    label_tasks,
    resolved_yaml,
    train_config_from_dict,
    zonal_config_from_dict,
)
from flairhub.config.yaml_file import parse_yaml
from flairhub.errors import ConfigError
from tests.helpers.config_values import COSIA, train_values, zonal_values

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from(
        [10**400, float("inf"), float("nan"), "05-15", "monthly", "a-b", "", " ", "\0", "é/é", "AERIAL_RGBI"]
    ),
)
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(scalars, inner, max_size=3)),
    max_leaves=6,
)


def paths_of(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if here:
        yield here
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from paths_of(entry, (*here, key))


def replaced(values: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    holder: Any = values
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    return values


TRAIN_PATHS, ZONAL_PATHS = list(paths_of(train_values())), list(paths_of(zonal_values()))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.data())
def test_train(data):
    with contextlib.suppress(ConfigError):
        values = replaced(train_values(), data.draw(st.sampled_from(TRAIN_PATHS)), data.draw(junk))
        config = train_config_from_dict(values)
        input_preparations(config)
        for task in label_tasks(config):
            assert len(class_weights(config, task.label)) == task.n_classes
        assert train_config_from_dict(parse_yaml(resolved_yaml(config), "", "").data) == config
        config_hash(config)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.data())
def test_zonal(data):
    with contextlib.suppress(ConfigError):
        values = replaced(zonal_values(), data.draw(st.sampled_from(ZONAL_PATHS)), data.draw(junk))
        config = zonal_config_from_dict(values)
        input_preparations(config)
        label_tasks(config)
        assert zonal_config_from_dict(parse_yaml(resolved_yaml(config), "", "").data) == config
        config_hash(config)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!<>|?%@`'\",#\n\t 01.e=~\x07\u2028é", max_size=40))
def test_yaml_text(text):
    with contextlib.suppress(ConfigError):
        parse_yaml(text, "here", "here")


@settings(derandomize=True, max_examples=100, deadline=None)
@given(junk)
def test_plain_values_survive_yaml(value):
    """What PyYAML writes is read back as the same value."""
    text = yaml.safe_dump({"key": value}, allow_unicode=True, sort_keys=False)
    try:
        result = parse_yaml(text, "here", "here").data["key"]
    except ConfigError:
        return  # deeper or of other keys than a configuration has
    assert repr(result) == repr(value)


@pytest.mark.parametrize("build", [train_config_from_dict, zonal_config_from_dict])
@pytest.mark.parametrize("values", [{}, {"a": 1}, {1: 2}, {None: None}, {"modalities": 3, "tasks": 4}])
def test_nothing_usable(build, values):
    with pytest.raises(ConfigError):
        build(values)


@pytest.mark.parametrize("text", ["1e5", "1E-4", ".5e3", "-1_0.e+2"])
def test_texts_that_look_like_numbers_are_written_in_quotes(text: str) -> None:
    """A class called `1e5` is not the number when the resolved configuration is read again."""
    values = train_values()
    values["labels_configs"][COSIA]["value_name"][13] = text
    config = train_config_from_dict(values)
    again = train_config_from_dict(parse_yaml(resolved_yaml(config), "", "").data)
    assert again == config
    assert next(task for task in label_tasks(again) if task.label == COSIA).classes[13].name == text


@pytest.mark.parametrize("key", [7, 2.5, True, None])
@pytest.mark.parametrize("path", ["models.multitemp_model", "hyperparams"])
def test_keys_that_are_no_text_are_unknown(path: str, key: object) -> None:
    values = train_values()
    holder: Any = values
    for part in path.split("."):
        holder = holder[part]
    holder[key] = 1
    with pytest.raises(ConfigError) as error:
        train_config_from_dict(values)
    (problem,) = error.value.problems
    assert problem.startswith(f"{path}.{key}: unknown key. Known: ")
