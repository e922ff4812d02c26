"""Published options that do not work yet: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flairhub.config.problems import Problem


@dataclass(frozen=True)
class NotYet:
    """An option that is accepted by the schema but not implemented.

    Attributes:
        refuse: True for the values that would need it.
        reason: What is missing, and what to write instead.
    """

    refuse: Callable[[Any], bool]
    reason: str


NOT_YET: dict[str, NotYet] = {}
"""Refused options by key path; an entry goes when its option works."""


def unsupported(config: Any) -> Iterator[Problem]:
    """Find options of a configuration that do not work yet."""
    for key, entry in NOT_YET.items():
        path = tuple(key.split("."))
        value = config
        for part in path:
            value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
        if value is not None and entry.refuse(value):
            yield Problem(path, f"{value!r} is not implemented yet: {entry.reason}")
