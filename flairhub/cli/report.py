"""`flairhub report`."""

from __future__ import annotations

from pathlib import Path

import click

from flairhub.cli.options import no_lock_option


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--cube", type=click.Path(path_type=Path), help="Cube for the pictures of patches; else paths.cube.")
@click.option("--output", type=click.Path(path_type=Path), help="The file  [default: RUN/report.html]")
@no_lock_option()
def command(run: Path, cube: Path | None, output: Path | None, no_lock: bool) -> None:
    """Show the scores of RUN, a folder made by train or evaluate, as one self-contained HTML file.

    \b
    Example:
      flairhub report runs/lc_d
    """
    from flairhub.cli.console import console
    from flairhub.report import write_html

    path = write_html(run, cube=cube, output=output, lock=not no_lock)
    console.print(f"report: {path}", soft_wrap=True, markup=False, highlight=False)
