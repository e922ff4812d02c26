"""`flairhub model`: look at networks, convert published weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flairhub.cli.console import console
from flairhub.cli.options import config_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from flairhub.models import Accounting, NetworkSpec, Part

_PIPED_WIDTH = 200


@click.group()
def command() -> None:
    """Look at networks and convert published weights.

    \b
    Examples:
      flairhub model info configs/
      flairhub model convert FLAIR-HUB_LC-A.safetensors --config configs/ -o lc-a.model
    """


@command.command()
@click.argument("source", type=click.Path(path_type=Path), required=False, metavar="[CONFIG|BUNDLE|WEIGHTS]")
@config_option("A configuration, training or zonal, instead of SOURCE.")
@click.option("--table", is_flag=True, help="Print all published rows beside the published size column.")
def info(source: Path | None, config_paths: tuple[Path, ...], table: bool) -> None:
    """Show a network's parts and their parameters.

    SOURCE is a configuration (folder or YAML file, training or zonal), a bundle, or a weights file.

    \b
    Examples:
      flairhub model info configs/
      flairhub model info --config pipelines/base --config pipelines/lc_d.yaml
      flairhub model info runs/lc-a/model
      flairhub model info --table
    """
    if source is None and not config_paths and not table:
        raise click.UsageError("Give a configuration, a bundle or a weights file, or --table.")
    if source is not None and config_paths:
        raise click.UsageError("SOURCE and --config both name a network. Leave one of them out.")
    if source is not None:
        _show(_describe(source))
    elif config_paths:
        _show(_configured_table(config_paths))
    if table:
        _show(_published_table())


@command.command()
@click.argument("weights", type=click.Path(path_type=Path))
@config_option("Training or zonal configuration.", required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Bundle folder to make.")
@click.option("--reinit-heads", is_flag=True, help="Start heads (and inputs) of another size from random weights.")
@click.option("--partial", is_flag=True, help="Accept missing and unexpected tensors.")
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
def convert(
    weights: Path, config_paths: tuple[Path, ...], output: Path, reinit_heads: bool, partial: bool, overwrite: bool
) -> None:
    """Make a bundle of published weights (.safetensors, Lightning .ckpt, .pth, .pt, .bin).

    Every tensor is accounted for; weights that do not fit the configuration are refused.

    \b
    Example:
      flairhub model convert FLAIR-HUB_LC-A.safetensors --config configs/ -o lc-a.model
    """
    from flairhub.config import load_config
    from flairhub.models import convert as convert_weights

    accounting = convert_weights(
        weights, load_config(config_paths), output, reinit_heads=reinit_heads, partial=partial, overwrite=overwrite
    )
    _show(_accounting_table(accounting))
    console.print(f"Bundle: {output}", soft_wrap=True)


def _show(table: Table) -> None:
    from rich.console import Console

    # Piped output has no width of its own: wide enough for every column instead of cut to 80.
    (console if console.is_terminal else Console(width=_PIPED_WIDTH)).print(table)


def _describe(source: Path) -> Table:
    from flairhub.config import is_weights_file
    from flairhub.models import MANIFEST, bundle_spec, network_parts

    if is_weights_file(source):
        return _weights_table(source)
    if not (source / MANIFEST).is_file():
        return _configured_table((source,))
    spec = bundle_spec(source)
    return _parts_table(str(source), network_parts(spec), spec)


def _configured_table(paths: Sequence[Path]) -> Table:
    from flairhub.config import load_config
    from flairhub.models import network_parts, network_spec

    spec = network_spec(load_config(paths))
    return _parts_table(", ".join(map(str, paths)), network_parts(spec), spec)


def _parts_table(title: str, parts: Sequence[Part], spec: NetworkSpec) -> Table:
    from flairhub.modalities import modality
    from flairhub.models import matching_row, published_total

    table = _new_table(title, ("Modality", "Part", "Architecture", "Type", "Parameters"))
    for part in parts:
        kind = ("time series" if modality(part.modality).is_series else "image") if part.modality else part.task
        role = f"{part.role} {part.task}" if part.modality and part.task else part.role
        table.add_row(part.modality or "-", role, part.architecture, kind or "-", f"{part.parameters:,}")
    table.add_section()
    table.add_row("all", "", "", "", f"{sum(part.parameters for part in parts):,}")
    total = f"{published_total(parts) / 1e6:.2f} M"
    row = matching_row(spec)
    note = f"published {row.name}: {row.millions} M" if row else "without the fusion"
    table.add_row("as the published size column counts", "", note, "", total)
    return table


def _weights_table(path: Path) -> Table:
    from flairhub.models import weights_parts

    parts = weights_parts(path)
    table = _new_table(str(path), ("Part", "Tensors", "Parameters"))
    for name, tensors, parameters in parts:
        table.add_row(name, f"{tensors:,}", f"{parameters:,}")
    table.add_section()
    counted = sum(parameters for name, _, parameters in parts if not name.startswith("fusion"))
    table.add_row("all", f"{sum(part[1] for part in parts):,}", f"{sum(part[2] for part in parts):,}")
    table.add_row("as the published size column counts", "", f"{counted / 1e6:.2f} M")
    return table


def _published_table() -> Table:
    from flairhub.baselines import BASELINES
    from flairhub.models import network_parts, published_spec, published_total

    table = _new_table("Published networks, millions of parameters", ("Model", "Inputs", "Here", "Published"))
    for row in BASELINES:
        millions = published_total(network_parts(published_spec(row))) / 1e6
        table.add_row(row.name, ", ".join(row.inputs), f"{millions:.2f}", f"{row.millions:.1f}")
    return table


def _accounting_table(accounting: Accounting) -> Table:
    table = _new_table("Tensors", ("What", "Count", "For example"))
    for name, count in accounting.counts().items():
        if count:
            first = next(iter(getattr(accounting, name)))
            example = first[0] if isinstance(first, tuple) else first
            if name == "unused":
                example = f"{example} ({accounting.unused[example]})"
            table.add_row(name, str(count), example)
    return table


def _new_table(title: str, columns: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in _NUMBERS else "left")
    return table


_NUMBERS = ("Parameters", "Tensors", "Here", "Published", "Count")
