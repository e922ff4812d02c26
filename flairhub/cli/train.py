"""`flairhub train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flairhub.cli.options import config_option, no_lock_option, set_option

if TYPE_CHECKING:
    from flairhub.training import TrainResult


@click.command()
@config_option("Training configuration: folder of the four YAML files, or one file.", required=True)
@click.option(
    "--cube", type=click.Path(path_type=Path), help="Cube to train from; without it paths.cube, else ingest first."
)
@set_option()
@click.option("--overwrite", is_flag=True, help="Replace the results of an earlier run of the same name, begin anew.")
@no_lock_option()
def command(
    config_paths: tuple[Path, ...], cube: Path | None, overrides: tuple[str, ...], overwrite: bool, no_lock: bool
) -> None:
    """Train, predict and score as the configuration's tasks say.

    Results go to <paths.out_folder>/<paths.out_model_name>. A run that was stopped continues when the same command is
    given again.

    \b
    Examples:
      flairhub train --config configs/ --cube hub.zarr
      flairhub train --config pipelines/base --config pipelines/lc_d.yaml --cube hub.zarr
      flairhub train --config configs/ --cube hub.zarr --set hyperparams.num_epochs=3 --overwrite
      flairhub train --config configs/ --cube hub.zarr --set tasks.metrics_only=true
    """
    from flairhub.cli.console import console, progress_bar
    from flairhub.cli.scores import scores_table
    from flairhub.config import load_train_config, resolved_yaml

    if cube is not None:
        overrides = (*overrides, f"paths.cube={json.dumps(str(cube))}")
    config = load_train_config(config_paths, overrides)
    if config.saving.verbose_config:
        console.print(resolved_yaml(config), markup=False, highlight=False)
    from flairhub.training import train

    with progress_bar() as progress:
        result = train(config, cube=cube, overwrite=overwrite, lock=not no_lock, progress=progress)
    if result.rank:
        return
    if result.already_complete:
        console.print(f"{result.folder}: complete already, nothing to do.", soft_wrap=True, markup=False)
    if result.metrics:
        console.print(scores_table(result.metrics))
    for name, value in _paths(result):
        console.print(f"{name}: {value}", soft_wrap=True, markup=False, highlight=False)


def _paths(result: TrainResult) -> list[tuple[str, str]]:
    rows = [("run", str(result.folder)), ("cube", str(result.cube))]
    if result.bundle is not None:
        rows.append(("model", str(result.bundle)))
    if result.metrics_path is not None:
        rows.append(("metrics", str(result.metrics_path)))
    rows += [(f"predictions {task}", str(folder)) for task, folder in result.predictions.items()]
    if result.skipped_batches:
        rows.append(("skipped batches without a labelled pixel", str(result.skipped_batches)))
    if not result.already_complete:
        rows.append(("seconds", ", ".join(f"{phase} {value:.1f}" for phase, value in result.seconds.items())))
    return rows
