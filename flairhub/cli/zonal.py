"""`flairhub zonal`: map a zone with a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flairhub.cli.options import area_options, config_option, set_option

if TYPE_CHECKING:
    from pathlib import Path

    from flairhub.inference import ZonalResult


@click.command("zonal", short_help="Map a zone (whole rasters) with a model.")
@config_option("Zonal YAML.", required=True)
@set_option()
@area_options()
@click.option("--overwrite", is_flag=True, help="Replace existing maps and other unfinished work.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Continue a killed run.")
@click.option("--workers", type=click.IntRange(min=1), help="Blocks at a time: threads, or worker processes.")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="threads (default), processes (local dask workers), or a dask scheduler such as tcp://host:8786.",
)
@click.option("--no-lock", is_flag=True, help="For file systems without locks: only a plain lock file.")
@click.option("--no-check", is_flag=True, help="Go on although sampled pixels are not what the model reads.")
def command(
    config_paths: tuple[Path, ...],
    overrides: tuple[str, ...],
    overwrite: bool,
    resume: bool,
    workers: int | None,
    scheduler: str | None,
    no_lock: bool,
    no_check: bool,
) -> None:
    """Map a zone: whole rasters in, one GeoTIFF or COG per task out.

    Windows overlap by the configured margin, every pixel is computed once. A killed run continues where it stopped;
    the maps appear under their names only complete and read back. Ctrl-C ends it after the windows that are being
    computed (exit code 130).

    \b
    Example:
      flairhub zonal --config zonal.yaml
      flairhub zonal --config zonal.yaml --config mine.yaml
      flairhub zonal --config zonal.yaml --set output_type=class_prob --workers 4
      flairhub zonal --config zonal.yaml --aoi communes.gpkg --aoi-where "insee = '31555'"
      flairhub zonal --config zonal.yaml --scheduler processes --workers 4
      flairhub zonal --config zonal.yaml --scheduler tcp://10.0.0.1:8786
    """
    from flairhub.cli.console import console, progress_bar
    from flairhub.config import load_zonal_config
    from flairhub.inference import run_zonal

    config = load_zonal_config(config_paths, overrides)
    with progress_bar() as progress:
        result = run_zonal(
            config,
            overwrite=overwrite,
            resume=resume,
            workers=workers,
            scheduler=scheduler,
            lock=not no_lock,
            check=not no_check,
            progress=progress,
        )
    if result.already_complete:
        for file in result.maps:
            console.print(f"{file.path}: complete already, nothing to do.", soft_wrap=True, highlight=False)
        return
    pictures = _draw(result) if config.write_quicklook and config.output_type == "argmax" else []
    _show(result, pictures)


def _draw(result: ZonalResult) -> list[Path]:
    """Draw a picture beside every map."""
    import rasterio

    from flairhub.geo import metres_per_unit
    from flairhub.report import save_quicklook

    pictures = []
    for file in result.maps:
        with rasterio.open(file.path, driver="GTiff") as dataset:
            # The overviews are majorities: a thinned map keeps its classes' shares.
            step = max(1, -(-max(dataset.shape) // 1600))
            shape = tuple(-(-length // step) for length in dataset.shape)
            classes = dataset.read(1, out_shape=shape)
            unit_m = metres_per_unit(dataset.crs.to_wkt()) or 1.0
            gsd_m = dataset.transform.a * unit_m * dataset.width / shape[1]
        path = file.path.with_suffix(".png")
        pictures.append(save_quicklook(path, classes, file.classes, gsd_m=gsd_m, title=file.path.stem))
    return pictures


def _show(result: ZonalResult, pictures: list[Path]) -> None:
    from rich.table import Table

    from flairhub.cli.console import console

    table = Table("task", "size", "classes (share of the mapped pixels)")
    for file in result.maps:
        ranked = sorted(file.shares.items(), key=lambda row: -row[1])
        shown = [f"{name} {share:.1%}" for name, share in ranked[:6]]
        if len(ranked) > 6:
            shown.append(f"{len(ranked) - 6} more {sum(share for _, share in ranked[6:]):.1%}")
        table.add_row(file.task, f"{file.size_bytes / 1e6:.2f} MB", ", ".join(shown) or "no data")
    console.print(table)
    resumed = result.n_blocks - result.n_computed
    console.print(
        f"{result.n_windows} windows in {result.n_blocks} blocks"
        + (f" ({resumed} from the run before)" if resumed else "")
        + f", {result.recompute_factor:.2f} pixels computed per pixel, no data {result.nodata_share:.1%}, "
        f"{result.seconds:.1f} s"
    )
    for task, count in result.not_finite.items():
        if count:
            console.print(
                f"{task}: {count} pixels with data have no class: the network gave no finite numbers for them.",
                soft_wrap=True,
                markup=False,
            )
    paths = [file.path for file in result.maps] + ([result.tiles] if result.tiles else []) + [*result.extras, *pictures]
    for path in paths:
        console.print(str(path), soft_wrap=True, highlight=False)
