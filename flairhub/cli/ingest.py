"""`flairhub ingest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from flairhub.cli.options import config_option, set_option
from flairhub.errors import FlairhubError, UsageError

if TYPE_CHECKING:
    from flairhub.ingest import IngestReport, ZoneIngestReport


@click.command()
@config_option("Training configuration: folder or file.")
@click.option(
    "--zone",
    "zone_paths",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="ZONAL_YAML",
    help="Convert the rasters that a zonal YAML names to a zone cube, instead of patches. Repeat it like --config.",
)
@set_option()
@click.option(
    "--cube", type=click.Path(path_type=Path), help="Store to write; default: paths.cube of the configuration."
)
@click.option("--root", type=click.Path(path_type=Path), help="Folder in the published layout, instead of the CSVs.")
@click.option("--modality", "modalities", multiple=True, help="Only this modality (repeatable).")
@click.option("--domain", "domains", multiple=True, help="Only this domain, e.g. D012-2019 (repeatable).")
@click.option("--overwrite", is_flag=True, help="Replace an existing cube.")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    show_default="one per core; for few files 0",
    help="Local worker processes; 0 = this process alone. With --zone: threads, or processes with --scheduler "
    "processes; default 2.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="A running dask scheduler such as tcp://host:8786; with --zone also threads (default), processes.",
)
@click.option("--no-lock", is_flag=True, help="For file systems without locks: only a plain lock file.")
@click.option(
    "--codec",
    type=click.Choice(["balanced", "fast", "dense", "none"]),
    default="balanced",
    show_default=True,
    help="How chunks are compressed.",
)
@click.option("--shard", type=click.IntRange(min=1), help="Patches per shard; default: by size.")
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="Stop at a bad file, or record its patch as missing.",
)
@click.option(
    "--max-skipped",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="With skip: the share of the files that may be bad before the exit code is 1.",
)
def command(
    config_paths: tuple[Path, ...],
    zone_paths: tuple[Path, ...],
    overrides: tuple[str, ...],
    cube: Path | None,
    root: Path | None,
    modalities: tuple[str, ...],
    domains: tuple[str, ...],
    overwrite: bool,
    workers: int | None,
    scheduler: str | None,
    no_lock: bool,
    codec: str,
    shard: int | None,
    on_error: str,
    max_skipped: float,
) -> None:
    """Convert FLAIR-HUB files to a Zarr cube, or the rasters of one area to a zone cube.

    A run that was stopped continues when it is called again.

    \b
    Examples:
      flairhub ingest --config configs/ --cube hub.zarr
      flairhub ingest --root FLAIR-HUB/ --cube toy.zarr --modality AERIAL_RGBI --modality AERIAL_LABEL-COSIA
      flairhub ingest --zone zonal.yaml --cube zone.zarr
      flairhub ingest --zone zonal.yaml --cube zone.zarr --scheduler tcp://10.0.0.1:8786
    """
    from flairhub.cli.console import console, progress_bar
    from flairhub.ingest import ingest

    if zone_paths:
        names = ("config_paths", "root", "modalities", "domains", "shard", "on_error", "max_skipped")
        _refuse_patch_options(names)
        options = {"workers": workers or 2, "scheduler": scheduler, "lock": not no_lock, "codec": codec}
        _ingest_zone(zone_paths, overrides, cube, overwrite=overwrite, **options)
        return
    config = None
    if config_paths:
        from flairhub.config import load_train_config

        config = load_train_config(config_paths, overrides)
    elif overrides:
        raise UsageError("--set changes keys of a configuration; pass --config too.")
    target = cube or (Path(config.paths.cube) if config is not None and config.paths.cube else None)
    if target is None:
        raise UsageError("no cube to write: pass --cube PATH, or set paths.cube in the configuration.")
    with progress_bar() as progress:
        report = ingest(
            config,
            cube=target,
            root=root,
            modalities=modalities or None,
            domains=domains or None,
            overwrite=overwrite,
            workers=workers,
            scheduler=scheduler,
            lock=not no_lock,
            on_error=on_error,
            max_skipped=max_skipped,
            codec=codec,
            shard=shard,
            progress=progress,
        )
    _show(report, f"{report.n_patches} patches, {len(report.modalities)} modalities, ")
    for name, count in report.invalid.items():
        if count:
            console.print(f"{name}: {count} pixels without data, left out of training.", soft_wrap=True, markup=False)
    for name, patch_id, reason in report.skipped:
        console.print(f"skipped {name} {patch_id}: {reason}", soft_wrap=True, markup=False)
    if report.skipped:
        listed = f"{len(report.skipped)} of {report.n_files} files were bad; their patches are recorded as missing"
        if report.too_many_skipped:
            raise FlairhubError(f"{listed}. More than --max-skipped {report.max_skipped:g} of all.")
        console.print(
            f"{listed} ({report.skipped_share:.2%}; --max-skipped {report.max_skipped:.2%}).",
            soft_wrap=True,
            markup=False,
        )


def _refuse_patch_options(names: tuple[str, ...]) -> None:
    """Raise UsageError when an option was given that only patches have."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = (
            parameter.name in names and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        )
        if given:
            raise UsageError(f"{parameter.opts[0]} is for patches, --zone takes whole rasters. Leave one of them out.")


def _ingest_zone(zone_paths: tuple[Path, ...], overrides: tuple[str, ...], cube: Path | None, **options: Any) -> None:
    from flairhub.cli.console import progress_bar
    from flairhub.config import load_zonal_config
    from flairhub.inference import open_zone
    from flairhub.ingest import ingest_zone

    config = load_zonal_config(zone_paths, overrides)
    if cube is None:
        raise UsageError("no zone cube to write: pass --cube PATH.")
    if config.cube is not None and config.roi is None:
        names = ", ".join(map(str, zone_paths))
        raise UsageError(f"{names}: cube is set already: its rasters are in a zone cube. Pass --set cube=null.")
    zone = open_zone(config, all_masks=True)
    with progress_bar() as progress:
        report = ingest_zone(zone, cube=cube, progress=progress, **options)
    _show(report, f"{', '.join(layer.name for layer in report.layers)}; ", f" Map it with `--set cube={cube}`.")


def _show(report: IngestReport | ZoneIngestReport, content: str, hint: str = "") -> None:
    """Say what was written, or that there was nothing to do."""
    from flairhub.cli.console import console

    text = "complete already, nothing to do."
    if not report.already_complete:
        reused = f", {report.n_reused} from an earlier run" if report.n_reused else ""
        size = f"{report.n_bytes / 2**20:.1f} MiB in {report.seconds:.1f} s."
        text = f"{content}{report.n_jobs} shards{reused}, {size}{hint}"
    console.print(f"{report.cube}: {text}", soft_wrap=True, markup=False)
