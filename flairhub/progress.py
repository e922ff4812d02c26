"""The one way in which long work reports how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`; `done` counts finished units of `stage`."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing: the default wherever a `Progress` is accepted."""
