"""`flairhub demo`: the whole chain on a small made data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from flairhub.demo import DemoResult


@click.command("demo", short_help="Run the whole chain on a small made data set.")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("flairhub-demo"))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the data and the training.")
@click.option("--data-only", is_flag=True, help="Make the data set and the configurations, then stop.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo in FOLDER.")
def command(folder: Path, seed: int, data_only: bool, overwrite: bool) -> None:
    """Make a small data set and take it through every step: ingest, train, score, map.

    Everything goes to FOLDER (default ./flairhub-demo). Two to three minutes on two cores, no GPU, no network. After an
    interruption the same command goes on.

    \b
    Examples:
      flairhub demo
      flairhub demo /tmp/try --seed 7 --overwrite
      flairhub demo /tmp/data --data-only
    """
    from flairhub.cli.console import console, error_console, progress_bar
    from flairhub.demo import make_demo_data

    if data_only:
        with progress_bar() as progress:
            data = make_demo_data(folder, seed, overwrite=overwrite, progress=progress)
        console.print(f"{len(data.patch_ids)} patches and a zone, made from seed {seed}.")
        _print_paths({"data": data.data, "zone": data.zone, "configs": data.configs, "zonal": data.zonal_config})
        return
    from flairhub.demo import run_demo

    error_console.print("Making data, training and mapping: two to three minutes on two cores.")
    with progress_bar() as progress:
        result = run_demo(folder, seed=seed, overwrite=overwrite, progress=progress)
    console.print(_scores(result))
    console.print(_times(result))
    _print_paths(
        {
            "data": result.data.data,
            "cube": result.cube,
            "configs": result.data.configs,
            "zonal": result.data.zonal_config,
            "model": result.bundle,
            "metrics": result.metrics,
            **{f"map {name}": path for name, path in result.maps.items()},
        }
    )
    console.print("\nPictures to look at:")
    _print_paths(dict(result.pictures))


def _scores(result: DemoResult) -> Table:
    from rich.table import Table

    from flairhub.demo import TITLES

    table = Table("task", "classes", "mIoU", "chance", "accuracy", "most frequent class", title="Scores")
    for where, scores in (("test patches", result.test), ("zone", result.zone)):
        for task, row in scores.items():
            table.add_row(
                f"{TITLES[task]}, {where}",
                str(row.n_classes),
                f"{row.miou:.1%}",
                f"{row.chance_miou:.1%}",
                f"{row.accuracy:.1%}",
                f"{row.chance_accuracy:.1%}",
            )
    return table


def _times(result: DemoResult) -> Table:
    from rich.table import Table

    table = Table("step", "time", "made", title="Times and sizes")
    content = {
        "make data": f"{result.n_patches} patches, {_megabytes(result.sizes['files'])} of GeoTIFFs",
        "ingest": f"cube, {_megabytes(result.sizes['cube'])}",
        "pictures": f"{len(result.pictures)} files",
    }
    for phase, seconds in result.seconds.items():
        table.add_row(phase, f"{seconds:.1f} s", content.get(phase, ""))
    table.add_row("all", f"{sum(result.seconds.values()):.1f} s", _megabytes(result.sizes["all"]))
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _print_paths(paths: dict[str, Path]) -> None:
    from flairhub.cli.console import console

    width = max(map(len, paths))
    for name, path in paths.items():
        console.print(f"  {name:<{width}}  {path}", soft_wrap=True, markup=False, highlight=False)
