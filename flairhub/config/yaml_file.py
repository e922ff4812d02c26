"""Safe reading of YAML: numbers as people write them, the line of every key, and nothing that executes or explodes.

Content may come in layers, files and folders of which later ones override earlier ones key by key.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from flairhub.errors import ConfigError

KeyPath = tuple[Any, ...]
"""Keys and list positions from the top to a value."""

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_VALUES = 20_000
_MERGE = "tag:yaml.org,2002:merge"
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp")}


@dataclass(frozen=True)
class Document:
    """Content of YAML text.

    Attributes:
        data: Top-level mapping.
        places: Where each key stands, such as `config_task.yaml, line 12`, by key path.
        problems: What is wrong between layers, in sentences; `data` can be checked all the same.
    """

    data: dict[Any, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-4` as a number."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the text `1e-4`, because the loader reads a number there."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def yaml_text(data: dict[str, Any]) -> str:
    """Write plain values as YAML that is read back as the same values, keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def key_text(path: KeyPath) -> str:
    """Write a key path with dots."""
    return ".".join(str(part) for part in path)


def read_layers(paths: Sequence[Path]) -> Document:
    """Read files and folders of files as one document; later ones override earlier ones key by key.

    Mappings are merged at every depth; lists and scalars are replaced, also by a key without a value, which has its
    default. Over a mapping such a key is a problem, because it can mean to keep the mapping or to clear it.

    Args:
        paths: At least one YAML file, or folder whose YAML files together hold the sections.

    Raises:
        ConfigError: No path, or unreadable ones, all at once; the message names file and line.
    """
    if not paths:
        raise ConfigError("configuration", ["no path. Give a YAML file or a folder of YAML files, or several."])
    if len(paths) == 1:
        return _read_layer(paths[0])
    layers: list[Document] = []
    problems: list[str] = []
    for path in paths:
        try:
            layer = _read_layer(path)
        except ConfigError as error:
            problems += [f"{path}: {problem}" for problem in error.problems]
            continue
        # File names of different layers may be equal: say the folder too.
        folder = path if path.is_dir() else path.parent
        layers.append(replace(layer, places={key: str(folder / place) for key, place in layer.places.items()}))
    if problems:
        raise ConfigError(", ".join(map(str, paths)), list(dict.fromkeys(problems)))
    return reduce(_overlaid, layers)


def _read_layer(path: Path) -> Document:
    """Read a file, or the files of a folder, which may not repeat each other's top-level keys."""
    if path.is_file():
        return read_yaml(path)
    if not path.is_dir():
        # A file is easily named without its suffix, like the folder beside it.
        near = [str(file) for file in (Path(f"{path}{suffix}") for suffix in (".yaml", ".yml")) if file.is_file()]
        hint = f"Did you mean {near[0]}?" if near else "Give a YAML file or a folder of YAML files."
        raise ConfigError(str(path), [f"no such file or folder. {hint}"])
    files = sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml") and file.is_file())
    if not files:
        raise ConfigError(str(path), ["no .yaml or .yml file in this folder."])
    data: dict[Any, Any] = {}
    places: dict[KeyPath, str] = {}
    problems = []
    for file in files:
        try:
            document = read_yaml(file)
        except ConfigError as error:
            problems += [f"{file.name}: {problem}" for problem in error.problems]
            continue
        twice = [key for key in document.data if key in data]
        problems += [f"{key}: given twice, in {places[key,]} and {document.places[key,]}. Keep one." for key in twice]
        data |= document.data
        places |= document.places
    if problems:
        raise ConfigError(str(path), problems)
    return Document(data, places)


def _overlaid(lower: Document, upper: Document) -> Document:
    """Return both documents as one, in which `upper` overrides `lower`."""
    problems: list[str] = []
    replaced: set[KeyPath] = set()

    def merged(below: dict[Any, Any], above: dict[Any, Any], path: KeyPath) -> dict[Any, Any]:
        result = dict(below)
        for key, value in above.items():
            before, key_path = below.get(key), (*path, key)
            if isinstance(before, dict) and isinstance(value, dict):
                result[key] = merged(before, value, key_path)
            elif isinstance(before, dict) and before and value is None:
                name, ways = key_text(key_path), "Remove the key to keep the mapping"
                text = f"{name}: nothing ({upper.places[key_path]}) over a mapping ({lower.places[key_path]})."
                problems.append(f"{text} {ways}, or pass --set {name}= to empty it.")
            else:
                replaced.add(key_path)
                result[key] = value
        return result

    data = merged(lower.data, upper.data, ())
    kept = {
        path: place
        for path, place in lower.places.items()
        if not any(path[:depth] in replaced for depth in range(1, len(path) + 1))
    }
    return Document(data, kept | upper.places, (*lower.problems, *problems))


def read_yaml(path: Path) -> Document:
    """Read one YAML file whose top level is a mapping.

    Raises:
        ConfigError: Not readable as such a file; the message names the line.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}."]) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(str(path), [f"{len(raw)} bytes, expected at most {MAX_BYTES}: this is no configuration."])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(str(path), [f"line {line}: not UTF-8. Save the file with UTF-8 encoding."]) from error
    document = parse_yaml(text, str(path), path.name)
    if not isinstance(document.data, dict):
        raise ConfigError(str(path), [f"expected a mapping of keys at the top, got {_kind(document.data)}."])
    return document


def parse_yaml(text: str, source: str, place: str) -> Document:
    """Parse YAML text into plain Python values.

    Args:
        text: One YAML document; `data` may be any value.
        source: What a ConfigError names.
        place: Short name for `Document.places`.
    """
    try:
        _check_events(text, source)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            builder = _Builder(loader, source, place)
            data = {} if node is None else builder.build(node, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(source, [f"{where}not valid YAML: {error.problem}."]) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(source, [f"not valid YAML: {str(error).splitlines()[0]}."]) from error
    return Document(data, builder.places if node is not None else {})


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "text" if isinstance(value, str) else repr(value)


def _check_events(text: str, source: str) -> None:
    """Refuse tags and deep nesting before anything is built."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ConfigError(source, [f"line {line}: YAML tag {tag!r} is not allowed. Write the plain value."])
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ConfigError(source, [f"line {line}: nested deeper than {MAX_DEPTH} levels."])


class _Builder:
    """Turns composed nodes into values, counting them so that aliases cannot explode."""

    def __init__(self, loader: _Loader, source: str, place: str):
        self.loader = loader
        self.source = source
        self.place = place
        self.places: dict[KeyPath, str] = {}
        self.count = 0

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.count += 1
        if self.count > MAX_VALUES or len(path) > MAX_DEPTH:
            self.fail(node, "too many or too deeply nested values; check the aliases (*name)")
        if isinstance(node, yaml.ScalarNode):
            if node.tag not in _PLAIN_TAGS:
                self.fail(node, f"{node.value!r} is not allowed here. Quote it if text is meant")
            return self.loader.construct_object(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(entry, (*path, i)) for i, entry in enumerate(node.value)]
        return self.mapping(node, path)

    def mapping(self, node: yaml.Node, path: KeyPath) -> dict[Any, Any]:
        merged: dict[Any, Any] = {}
        direct: dict[Any, Any] = {}
        lines: dict[Any, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                    if not isinstance(source, yaml.MappingNode):
                        self.fail(key_node, "<< expects an alias of a mapping")
                    merged = {**self.mapping(source, path), **merged}
                    self.count += len(merged)
                continue
            key = self.build(key_node, path)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                self.fail(key_node, "a key must be text or a number")
            if key in lines:
                text = f"{key_text((*path, key))}: given twice, in line {lines[key]} and line {line}. Keep one."
                raise ConfigError(self.source, [text])
            lines[key] = line
            direct[key] = self.build(value_node, (*path, key))
            self.places[(*path, key)] = f"{self.place}, line {line}"
        return {**merged, **direct}

    def fail(self, node: yaml.Node, text: str) -> None:
        raise ConfigError(self.source, [f"line {node.start_mark.line + 1}: {text}."])
