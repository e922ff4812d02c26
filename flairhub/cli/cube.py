"""`flairhub cube`: look at a cube, check it, export from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flairhub.errors import CubeError, UsageError

if TYPE_CHECKING:
    from flairhub.cube import Cube


_PIPED_WIDTH = 200


def _place(text: str) -> Path | str:
    """A path, or the URL of a store that zarr-python opens."""
    return text if "://" in text else Path(text)


@click.group()
def command() -> None:
    """Look at a cube, check it, and export from it.

    \b
    Examples:
      flairhub cube info hub.zarr
      flairhub cube verify hub.zarr
      flairhub cube export hub.zarr roi.tif --modality AERIAL_RGBI --roi AF-S1-27
    """


@command.command()
@click.argument("path", type=_place, metavar="PATH")
def info(path: Path | str) -> None:
    """Show what a cube, or a zone cube, holds.

    \b
    Example:
      flairhub cube info hub.zarr
    """
    from rich.console import Console
    from rich.table import Table

    from flairhub.cli.console import console
    from flairhub.cube import is_zone_cube, open_cube
    from flairhub.geo import crs_name, metres_per_unit

    if is_zone_cube(path):
        _show_zone(Path(path))
        return
    cube = open_cube(path)
    table = cube.patches
    width, height = table.footprint_m
    splits = ", ".join(f"{split or 'no split'} {int((table.split == split).sum())}" for split in _splits(cube))
    n_rois = len(set(zip(table.domain.tolist(), table.roi.tolist(), strict=True)))
    unit = metres_per_unit(table.crs_wkt) if table.crs_wkt else 1.0
    size = f"{width:g} x {height:g} degrees" if unit is None else f"{width * unit:g} x {height * unit:g} m"
    head = f"{path}: {cube.n_patches} patches of {size}, {crs_name(table.crs_wkt)}"
    places = f"{len(set(table.domain.tolist()))} domains, {n_rois} ROIs; {splits}"
    console.print(f"{head}\n{places}", soft_wrap=True, markup=False)
    shown = Table("modality", "patches", "patch shape", "dtype", "m/px", "codec", "shard", "MiB", "dates", "averages")
    for name in cube.modalities:
        shown.add_row(*_row(cube, name))
    # Piped output has no width of its own: wide enough for every column instead of cut to 80.
    (console if console.is_terminal else Console(width=_PIPED_WIDTH)).print(shown)


@command.command()
@click.argument("path", type=_place, metavar="PATH")
def verify(path: Path | str) -> None:
    """Read every chunk and check it against its checksum, and every file of the store against the journal.

    Lists damage as store, array, chunk and patch id (zone cubes have no patches), and exits with 1 when there is any.

    \b
    Example:
      flairhub cube verify hub.zarr
    """
    from flairhub.cli.console import console, progress_bar
    from flairhub.cube import is_zone_cube, open_cube, open_zone_cube, verify_zone
    from flairhub.cube import verify as verify_cube

    with progress_bar() as progress:
        if is_zone_cube(path):
            result = verify_zone(open_zone_cube(path), progress)
        else:
            result = verify_cube(open_cube(path), progress)
    for message in result.damage:
        console.print(message, soft_wrap=True, markup=False)
    for message in result.unchecked:
        console.print(message, soft_wrap=True, markup=False)
    if result.damage:
        raise CubeError(
            f"{path}: {len(result.damage)} problems in {result.n_chunks} chunks and {result.n_files} files."
        )
    console.print(
        f"{path}: {result.n_chunks} chunks and {result.n_files} files are whole.", soft_wrap=True, markup=False
    )


@command.command()
@click.argument("path", type=_place, metavar="PATH")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--modality", "name", required=True, help="What to export.")
@click.option("--roi", help="ROI, as AF-S1-27 or D012-2019_AF-S1-27: the mosaic of its patches.")
@click.option("--patch", "patch_id", help="Patch id: this patch alone.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def export(path: Path | str, target: Path, name: str, roi: str | None, patch_id: str | None, overwrite: bool) -> None:
    """Write an ROI or a patch as a Cloud Optimized GeoTIFF.

    \b
    Example:
      flairhub cube export hub.zarr label.tif --modality AERIAL_LABEL-COSIA --roi AF-S1-27
    """
    from flairhub.cli.console import console
    from flairhub.cube import export_patch, export_roi, open_cube

    if roi is not None and patch_id is None:
        export_roi(open_cube(path), name, roi, target, overwrite)
    elif patch_id is not None and roi is None:
        export_patch(open_cube(path), name, patch_id, target, overwrite)
    else:
        raise UsageError("pass either --roi or --patch.")
    console.print(f"{target}: {target.stat().st_size / 2**20:.2f} MiB.", soft_wrap=True, markup=False)


def _splits(cube: Cube) -> list[str]:
    present = set(cube.patches.split.tolist())
    return [split for split in ("train", "valid", "test", "") if split in present]


def _row(cube: Cube, name: str) -> tuple[str, ...]:
    import numpy as np

    from flairhub.cube import is_local
    from flairhub.jobs import folder_bytes

    reader, facts = cube.array(name), cube.info(name)
    size = ""
    if is_local(cube.path):
        size = f"{folder_bytes(Path(cube.path) / name) / 2**20:.2f}"
    dates = ""
    if "time" in reader.dims:
        series = cube.series(name)
        days = series.dates[~np.isnat(series.dates)]
        dates = f"{days.min()} .. {days.max()}" if len(days) else "none"
    shape = " x ".join(str(size) for size in reader.shape[1:])
    averages = ", ".join(_average_text(kind, stored.cloud_filter) for kind, stored in cube.averages(name).items())
    return (
        name,
        str(int(cube.present(name).sum())),
        shape,
        str(reader.dtype),
        f"{facts['gsd_m'][0]:g}",
        reader.codec,
        str(reader.shard_patches),
        size,
        dates,
        averages,
    )


def _show_zone(path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from flairhub.cli.console import console
    from flairhub.cube import open_zone_cube
    from flairhub.geo import crs_name
    from flairhub.jobs import folder_bytes

    cube = open_zone_cube(path)
    box = next(iter(cube.layers.values())).geobox
    width, height = (box.x_max - box.x_min) / 1e3, (box.y_max - box.y_min) / 1e3
    head = f"{path}: zone cube of {width:.3g} x {height:.3g} km, {crs_name(box.crs_wkt)}"
    console.print(head, soft_wrap=True, markup=False)
    shown = Table("modality", "shape", "dtype", "m/px", "chunk px", "shard px", "no data", "MiB", "dates")
    for name, layer in cube.layers.items():
        tiling = cube.arrays[f"{name}/data"].tiling
        nodata = ["mask"] if layer.has_mask else []
        shown.add_row(
            name,
            " x ".join(str(size) for size in layer.shape),
            layer.dtype,
            f"{layer.geobox.x_res:g}",
            str(tiling.chunk_px),
            str(tiling.shard_px),
            ", ".join([*nodata, *([] if layer.nodata is None else [f"{layer.nodata:g}"])]),
            f"{folder_bytes(path / name) / 2**20:.2f}",
            "" if layer.dates is None else f"{layer.dates.min()} .. {layer.dates.max()}",
        )
    (console if console.is_terminal else Console(width=_PIPED_WIDTH)).print(shown)


def _average_text(kind: str, rule: Any) -> str:
    return kind if rule is None else f"{kind}, filtered"
