"""Options that several commands have: the configuration in layers, and its overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import wraps
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


def area_options() -> Decorator:
    """Return the options `--aoi`, `--aoi-layer`, `--aoi-where` and `--aoi-crs`; they come as more `overrides`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option(
            "--aoi",
            metavar="PATH|BBOX",
            help="Area of interest: a vector file, or 'xmin,ymin,xmax,ymax'. Only this area is mapped.",
        )
        @click.option("--aoi-layer", metavar="NAME", help="Layer of the file; needed when it has several.")
        @click.option("--aoi-where", metavar="SQL", help="Features of the file, e.g. \"code = '31555'\".")
        @click.option("--aoi-crs", metavar="CRS", help="CRS of a BBOX, e.g. EPSG:4326; default: the zone's.")
        @wraps(command)
        def with_area(
            *args: Any,
            overrides: tuple[str, ...],
            aoi: str | None,
            aoi_layer: str | None,
            aoi_where: str | None,
            aoi_crs: str | None,
            **options: Any,
        ) -> Any:
            details = {"layer": aoi_layer, "where": aoi_where, "crs": aoi_crs}
            return command(*args, overrides=(*overrides, *_area_override(aoi, details)), **options)

        return with_area

    return decorate


def _area_override(aoi: str | None, details: dict[str, str | None]) -> list[str]:
    """The area as `--set` takes it."""
    given = {name: value for name, value in details.items() if value is not None}
    if aoi is None:
        if given:
            raise click.UsageError(f"--aoi-{next(iter(given))} goes with --aoi.")
        return []
    words = re.split(r"[\s,;]+", aoi.strip())
    try:
        area: dict[str, Any] = {"bbox": [float(word) for word in words]}
    except ValueError:
        area = {"path": aoi}
    # JSON is YAML, whatever the path is called.
    return [f"aoi={json.dumps({**area, **given}, ensure_ascii=False)}"]
