"""Options that several commands have: the configuration in layers, and its overrides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def config_option(what: str, *, required: bool = False) -> Decorator:
    """Return the option `--config`, given as `config_paths: tuple[Path, ...]`.

    Args:
        what: Start of its help: which configuration.
        required: Whether the command goes without one.
    """
    return click.option(
        "--config",
        "config_paths",
        type=click.Path(path_type=Path),
        multiple=True,
        required=required,
        metavar="PATH",
        help=f"{what} Repeat it to layer several: later ones override earlier ones key by key.",
    )


def set_option() -> Decorator:
    """Return the option `--set`, given as `overrides: tuple[str, ...]`."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the configuration; may be repeated, wins over all files.",
    )


def no_lock_option() -> Decorator:
    """Return the option `--no-lock`, given as `no_lock: bool`."""
    return click.option("--no-lock", is_flag=True, help="For file systems without locks: only a plain lock file.")
