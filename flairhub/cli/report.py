"""`flairhub report`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--cube", type=click.Path(path_type=Path), help="Cube for the pictures of patches; else paths.cube.")
@click.option("--output", type=click.Path(path_type=Path), help="The file  [default: RUN/report.html]")
def command(run: Path, cube: Path | None, output: Path | None) -> None:
    """Show the scores of RUN, a folder made by train or evaluate, as one self-contained HTML file.

    \b
    Example:
      flairhub report runs/lc_d
    """
    from flairhub.cli.console import console
    from flairhub.report import write_html

    path = write_html(run, cube=cube, output=output)
    console.print(f"report: {path}", soft_wrap=True, markup=False, highlight=False)
