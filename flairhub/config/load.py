"""From files, dictionaries and overrides to a checked, frozen configuration."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from flairhub.config.problems import Problem, problems_of
from flairhub.config.train_checks import check_train
from flairhub.config.train_schema import TrainConfig
from flairhub.config.yaml_file import Document, KeyPath, parse_yaml, read_layers
from flairhub.config.zonal_checks import check_zonal
from flairhub.config.zonal_schema import ZonalConfig
from flairhub.errors import ConfigError
from flairhub.modalities import INPUTS, LABELS

Config = TypeVar("Config", bound=BaseModel)
Paths = str | Path | Sequence[str | Path]
"""One file or folder, or several of which later ones override earlier ones."""

_PRUNING_ROUNDS = 3  # leaving out a list's entry may make the list wrong, and that its section

_SKELETONS: dict[type[BaseModel], dict[str, Any]] = {
    TrainConfig: {
        "paths": {"out_folder": "."},
        "modalities": {"inputs": {INPUTS[0]: True}},
        "labels": [LABELS[0]],
        "labels_configs": {LABELS[0]: {}},
    },
    ZonalConfig: {
        "output_path": ".",
        "output_name": "map",
        "model_weights": "bundle",
        "modalities": {"inputs": {INPUTS[0]: True}},
    },
}
"""The required keys with harmless values, see `_without`."""

_FILLED_SECTIONS = ("paths", "modalities")
"""Sections of the skeletons whose single keys are required."""


def load_train_config(path: Paths | TrainConfig, overrides: Sequence[str] = ()) -> TrainConfig:
    """Load a training configuration.

    Args:
        path: Folder whose YAML files together hold the sections, or one YAML file with all of them; or several of
            both, of which later ones override earlier ones key by key: mappings are merged, lists and scalars replaced.
            A loaded configuration is returned as it is.
        overrides: `key.path=value` texts, which override all files; the value is read as YAML.

    Raises:
        ConfigError: Anything wrong, all problems at once; no path named in the configuration is opened.
    """
    if isinstance(path, TrainConfig):
        return _loaded(path, overrides)
    return _build(TrainConfig, check_train, *_read(path), overrides)


def load_zonal_config(path: Paths | ZonalConfig, overrides: Sequence[str] = ()) -> ZonalConfig:
    """Load a zonal configuration; arguments and errors as for `load_train_config`."""
    if isinstance(path, ZonalConfig):
        return _loaded(path, overrides)
    return _build(ZonalConfig, check_zonal, *_read(path), overrides)


def load_config(path: Paths | TrainConfig | ZonalConfig, overrides: Sequence[str] = ()) -> TrainConfig | ZonalConfig:
    """Load a configuration of either kind, decided by its top-level keys; else as `load_train_config`."""
    if isinstance(path, (TrainConfig, ZonalConfig)):
        return _loaded(path, overrides)
    document, source = _read(path)
    if _is_zonal(document.data):
        return _build(ZonalConfig, check_zonal, document, source, overrides)
    return _build(TrainConfig, check_train, document, source, overrides)


def train_config_from_dict(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainConfig:
    """Check a training configuration given as nested dictionaries with the published keys; they are not changed."""
    return _build(TrainConfig, check_train, Document(dict(values)), "training configuration", overrides)


def zonal_config_from_dict(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> ZonalConfig:
    """Check a zonal configuration given as nested dictionaries with the published keys; they are not changed."""
    return _build(ZonalConfig, check_zonal, Document(dict(values)), "zonal configuration", overrides)


def _loaded(config: Config, overrides: Sequence[str]) -> Config:
    if overrides:
        raise ConfigError("--set", [f"{overrides[0]}: overrides apply to files, got a loaded configuration."])
    return config


def _is_zonal(data: Mapping[str, Any]) -> bool:
    def known(schema: type[BaseModel], other: type[BaseModel]) -> int:
        return len(set(data) & (set(schema.model_fields) - set(other.model_fields)))

    return known(ZonalConfig, TrainConfig) > known(TrainConfig, ZonalConfig)


def _read(path: Paths) -> tuple[Document, str]:
    """Read one path or several; return the content and what errors call it."""
    paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(layer) for layer in path]
    return read_layers(paths), ", ".join(map(str, paths))


def _build(
    schema: type[Config],
    check: Callable[[Config], Iterator[Problem]],
    document: Document,
    source: str,
    overrides: Sequence[str],
) -> Config:
    data, places = _override(document, overrides)
    problems: list[Problem] = []
    config: Config | None = None
    try:
        config = schema.model_validate(data)
    except ValidationError as error:
        problems = problems_of(error, schema)
        config = _without(schema, data, problems)
    if config is not None:
        wrong = [problem.path for problem in problems]
        for problem in check(config):
            if not any(_overlap(path, bad) for path in (problem.path, *problem.related) for bad in wrong):
                problems.append(problem)
    sentences = [*document.problems, *(problem.sentence(places) for problem in problems)]
    if sentences or config is None:
        raise ConfigError(source, list(dict.fromkeys(sentences)))
    return config


def _overlap(path: KeyPath, other: KeyPath) -> bool:
    length = min(len(path), len(other))
    return path[:length] == other[:length]


def _without(schema: type[Config], data: dict[Any, Any], problems: Iterable[Problem]) -> Config | None:
    """Validate again with the wrong values left out, so that the other checks still find what they can."""
    paths = [problem.path for problem in problems]
    for _ in range(_PRUNING_ROUNDS):
        data = _completed(_pruned(data, paths, ()), _SKELETONS[schema])
        try:
            return schema.model_validate(data)
        except ValidationError as error:
            paths = [_present(data, problem.path) for problem in problems_of(error, schema)]
    return None


def _present(data: Any, path: KeyPath) -> KeyPath:
    """Cut a path to what exists, so that a missing key without skeleton takes its section with it."""
    for depth, part in enumerate(path):
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return path[: max(depth, 1)]
    return path


def _pruned(value: Any, paths: Sequence[KeyPath], at: KeyPath) -> Any:
    if isinstance(value, Mapping):
        kept = {key: entry for key, entry in value.items() if (*at, key) not in paths}
        return {key: _pruned(entry, paths, (*at, key)) for key, entry in kept.items()}
    if isinstance(value, (list, tuple)):
        return [_pruned(entry, paths, (*at, i)) for i, entry in enumerate(value) if (*at, i) not in paths]
    return value


def _completed(data: Any, skeleton: Mapping[str, Any]) -> Any:
    """Fill in required keys that are missing; the findings that rest on them are dropped.

    A value that is given stays, `false` and a list of inputs without the skeleton's one too: problems about what
    nobody asked for would be invented.
    """
    result = dict(data) if isinstance(data, Mapping) else {}
    for key, entry in skeleton.items():
        given = result.get(key)
        if given is None:
            result[key] = entry
        elif key in _FILLED_SECTIONS and isinstance(given, Mapping):
            result[key] = _completed(given, entry)
    return result


def _override(document: Document, overrides: Sequence[str]) -> tuple[dict[Any, Any], dict[KeyPath, str]]:
    data, places = copy.deepcopy(document.data), dict(document.places)
    problems = []
    for text in overrides:
        key, equals, value = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            problems.append(f"{text}: expected key.path=value, such as hyperparams.num_epochs=3.")
            continue
        parsed = parse_yaml(value, f"--set {key.strip()}", "--set").data if value.strip() else None
        path = _place_value(data, parts, parsed)
        if path is None:
            problems.append(f"{key.strip()}: leads through a value that has no keys.")
            continue
        places = {known: place for known, place in places.items() if known[: len(path)] != path}
        places[path] = "--set"
    if problems:
        raise ConfigError("--set", problems)
    return data, places


def _place_value(data: dict[Any, Any], parts: list[str], value: Any) -> KeyPath | None:
    """Set a value inside nested dictionaries and lists; return its key path, None where there is no way."""
    holder: Any = data
    path: list[Any] = []
    for depth, part in enumerate(parts):
        is_number = part.isascii() and part.isdigit()
        key: Any = int(part) if is_number and (isinstance(holder, list) or part not in holder) else part
        if isinstance(holder, list) and not (is_number and key < len(holder)):
            return None
        path.append(key)
        if depth == len(parts) - 1:
            holder[key] = value
            return tuple(path)
        following = holder[key] if isinstance(holder, list) else holder.get(key)
        if following is None:
            following = holder[key] = {}
        if not isinstance(following, (dict, list)):
            return None
        holder = following
    return None
