"""`flairhub check`: look at a zonal configuration before running it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flairhub.cli.options import area_options, config_option, set_option

if TYPE_CHECKING:
    from flairhub.inference import CheckReport


@click.command("check", short_help="Look at a zonal configuration before running it.")
@click.argument("files", metavar="[ZONAL_YAML]...", type=click.Path(path_type=Path), nargs=-1)
@config_option("Zonal YAML, as for `flairhub zonal`; comes after those without --config.")
@set_option()
@area_options()
@click.option("--dates", "show_dates", is_flag=True, help="List cloud statistics of every date.")
def command(
    files: tuple[Path, ...], config_paths: tuple[Path, ...], overrides: tuple[str, ...], show_dates: bool
) -> None:
    """Check rasters, dates, value ranges, sizes and cost in seconds; the model is not run.

    Exits with 1 when the run would fail or its map be wrong.

    \b
    Example:
      flairhub check zonal.yaml
      flairhub check zonal.yaml mine.yaml
      flairhub check zonal.yaml --set margin=64 --dates
    """
    from flairhub.cli.console import console
    from flairhub.config import load_zonal_config
    from flairhub.inference import check

    paths = (*files, *config_paths)
    if not paths:
        raise click.UsageError("Give a zonal YAML, or several of which later ones override earlier ones.")
    report = check(load_zonal_config(paths, overrides))
    _show(report, show_dates)
    if not report.ok:
        sys.exit(1)
    console.print("No trouble found.")


def _show(report: CheckReport, show_dates: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from flairhub.cli.console import console

    if report.facts:
        table = Table("what", "value")
        for what, value in report.facts:
            table.add_row(what, escape(value))
        console.print(table)
    for name, rows in report.dates.items() if show_dates else ():
        table = Table(name, "clear pixels", "windows that use it")
        for day, clear, used in rows:
            table.add_row(day, f"{clear:.0%}", f"{used:.0%}")
        console.print(table)
    for finding in report.findings:
        console.print(f"{finding.level}: {finding.text}", markup=False, highlight=False, soft_wrap=True)
