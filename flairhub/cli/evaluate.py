"""`flairhub evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from flairhub.cli.options import config_option, no_lock_option, set_option


@click.command()
@config_option("Training configuration: says which labels, classes and test patches.", required=True)
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of PRED_<label file name>.tif, or of one folder of them per label set.",
)
@click.option("--cube", type=click.Path(path_type=Path), help="Cube with the labels; without it paths.cube.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the scores  [default: PREDICTIONS/scores]")
@set_option()
@click.option("--overwrite", is_flag=True, help="Replace scores that are there.")
@no_lock_option()
def command(
    config_paths: tuple[Path, ...],
    predictions: Path,
    cube: Path | None,
    output: Path | None,
    overrides: tuple[str, ...],
    overwrite: bool,
    no_lock: bool,
) -> None:
    """Score prediction rasters against the labels of the test patches.

    Every test patch needs a prediction: missing or unreadable ones are listed, no score is given, the exit code is 1.

    \b
    Example:
      flairhub evaluate --config configs/ --cube hub.zarr --predictions runs/lc_d/predictions
    """
    from flairhub.cli.console import console, progress_bar
    from flairhub.cli.scores import scores_table
    from flairhub.config import load_train_config

    config = load_train_config(config_paths, overrides)
    from flairhub.training import evaluate

    with progress_bar() as progress:
        options = {"overwrite": overwrite, "lock": not no_lock}
        result = evaluate(config, predictions, cube=cube, output=output, progress=progress, **options)
    console.print(scores_table(result.metrics))
    console.print(f"metrics: {result.metrics_path}", soft_wrap=True, markup=False, highlight=False)
