"""From validation errors to sentences: full key path, the value, what is expected, what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from flairhub.config.yaml_file import KeyPath, key_text


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: Key path it is about.
        text: Sentence without the path.
        related: Other key paths the finding rests on; when one of them is itself wrong, this finding is dropped.
    """

    path: KeyPath
    text: str
    related: tuple[KeyPath, ...] = ()

    def sentence(self, places: Mapping[KeyPath, str]) -> str:
        """Full sentence with the place in the file where it is known."""
        for length in range(len(self.path), 0, -1):
            if self.path[:length] in places:
                return f"{key_text(self.path)}: {self.text} ({places[self.path[:length]]})"
        return f"{key_text(self.path)}: {self.text}"


RENAMED = {
    "warmup": "warmup_fraction",
    "num_workers": "num_worker",
    "num_worker": "num_workers",
    "norm_type": "type",
    "type": "norm_type",
    "value_names": "value_name",
}
"""Keys of older files and of the other configuration, by what they are called now."""

_EXPECTATIONS = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text (quote it when it looks like a number)",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping (indented keys)",
    "model_type": "a mapping (indented keys)",
    "model_attributes_type": "a mapping (indented keys)",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("a number above {}", "gt"),
    "greater_than_equal": ("at least {}", "ge"),
    "less_than": ("a number below {}", "lt"),
    "less_than_equal": ("at most {}", "le"),
}


def problems_of(error: ValidationError, schema: type[BaseModel]) -> list[Problem]:
    """Turn every error of a validation into a problem."""
    return [_problem(entry, schema) for entry in error.errors(include_url=False)]


def _problem(entry: Any, schema: type[BaseModel]) -> Problem:
    path: KeyPath = tuple(part for part in entry["loc"] if part != "[key]")
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "extra_forbidden":
        return Problem(path, f"unknown key.{_key_hint(path, schema)}")
    if kind == "unknown_name":
        value = entry["input"]
        hint = suggest(value, context["known"])
        return Problem(path, f"unknown {context['what']} {value!r}.{hint} Known: {', '.join(context['known'])}.")
    if kind == "missing":
        return Problem(path, "required, but missing.")
    return Problem(path, f"got {shown(entry['input'])}, expected {_expectation(kind, context, entry['msg'])}.")


def _expectation(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind == "expected":
        return str(context["what"])
    if kind == "literal_error":
        return f"one of {context['expected'].replace(' or ', ', ')}"
    if kind in _BOUNDS:
        text, name = _BOUNDS[kind]
        return text.format(f"{context[name]:g}")
    if kind in ("too_short", "too_long"):
        bound = "at least" if kind == "too_short" else "at most"
        return f"{bound} {context.get('min_length', context.get('max_length'))} values"
    return _EXPECTATIONS.get(kind, message)


def shown(value: Any) -> str:
    """Show a value as YAML would, cut to a readable length."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    text = "a mapping" if isinstance(value, Mapping) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def suggest(name: Any, known: Iterable[str]) -> str:
    """Return ` Did you mean X?` for the closest known name, or nothing."""
    names = {name.casefold(): name for name in known}
    text = str(name).casefold()
    close = get_close_matches(text, names, n=1, cutoff=0.7)
    if not close and len(text) >= 4:
        close = [name for name in names if text in name or (len(name) >= 4 and name in text)][:1]
    return f" Did you mean {names[close[0]]}?" if close else ""


def _key_hint(path: KeyPath, schema: type[BaseModel]) -> str:
    known = known_keys(schema, path[:-1])
    name = str(path[-1])
    if RENAMED.get(name) in known:
        return f" It is called {RENAMED[name]} here."
    homes = [key_text(home) for home in _homes(schema, name)]
    if homes:
        return f" Did you mean {' or '.join(homes[:2])}?"
    hint = suggest(name, known)
    if hint:
        return hint
    return f" Known: {', '.join(known)}." if known else ""


def known_keys(schema: type[BaseModel], path: KeyPath) -> list[str]:
    """Keys of the section at a path; empty when the path leads to no section with known keys."""
    section, inside_container = schema, False
    for part in path:
        if inside_container:
            inside_container = False
            continue
        info = section.model_fields.get(str(part))
        models = list(models_in(info.annotation)) if info else []
        if not info or not models:
            return []
        section, inside_container = models[0], _is_container(info.annotation)
    return [] if inside_container else list(section.model_fields)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Sections named in an annotation, inside containers and options too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def _is_container(annotation: Any) -> bool:
    return get_origin(annotation) in (dict, tuple, list)


def _homes(schema: type[BaseModel], name: str) -> Iterator[KeyPath]:
    """Paths of sections below `schema` that do have a key of that name."""
    for key, info in schema.model_fields.items():
        if key == name:
            yield (key,)
        for model in models_in(info.annotation):
            yield from ((key, *rest) for rest in _homes(model, name))
