"""Looking at a zonal configuration before running it: headers, sizes and a few sampled pixels, no model run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from flairhub.config import Paths, ZonalConfig, load_zonal_config
from flairhub.errors import ConfigError, FlairhubError
from flairhub.geo import area_note
from flairhub.inference.configured import extras_of, open_zone, style_of, try_output, zone_model
from flairhub.inference.map_plan import MapPlan, fitted, map_sizes, plan_map, source_bytes_per_px
from flairhub.inference.model_ref import ModelRef
from flairhub.inference.outputs import stored_bands
from flairhub.inference.values import CheckReport, compare_with_published, look_at_values
from flairhub.zones import Zone


def check(config: ZonalConfig | Paths) -> CheckReport:
    """Check a zonal configuration without running its model.

    Args:
        config: The configuration, or its path or paths.

    Returns:
        Troubles, notes and facts; problems of rasters, weights and sizes are collected, not raised.
    """
    config = load_zonal_config(config)
    report = CheckReport()
    _collect(report, lambda: try_output(config))
    zone = _collect(report, lambda: open_zone(config))
    if zone is None:
        _collect(report, lambda: _weights_exist(config))
        return report
    _grid_facts(report, zone)
    if config.aoi is not None:
        _area_facts(report, zone)
    ref = _collect(report, lambda: fitted(zone, zone_model(config, zone)))
    if ref is None:
        return report
    plan = _collect(report, lambda: plan_map(zone, ref, map_sizes(zone), config.block_px, style_of(config)))
    if plan is None:
        return report
    _collect(report, lambda: extras_of(config))
    look_at_values(report, zone, ref)
    _size_facts(report, plan, ref, config)
    return report


def _collect(report: CheckReport, step: Any) -> Any:
    try:
        return step()
    except ConfigError as error:
        for problem in error.problems:
            report.trouble(problem)
    except FlairhubError as error:
        report.trouble(str(error))
    return None


def _weights_exist(config: ZonalConfig) -> None:
    from flairhub.errors import WeightsError

    if not config.model_weights.exists():
        raise WeightsError(f"model_weights: no file or folder {config.model_weights}.")


def _grid_facts(report: CheckReport, zone: Zone) -> None:
    box = zone.geobox
    size = f"{box.height} x {box.width} px of {box.x_res_m:g} m"
    report.facts.append(("zone", f"{size}, {_km2(zone, box.height * box.width)}"))
    if note := area_note(box):
        report.note(note)
    for raster in zone.everything:
        dates = "" if raster.dates is None else f"{len(raster.dates)} dates x "
        grid = raster.geobox
        bands = f"{len(raster.bands)} bands {raster.dtype}"
        report.facts.append((raster.name, f"{grid.height} x {grid.width} px of {grid.x_res_m:g} m, {dates}{bands}"))
        compare_with_published(report, raster)


def _area_facts(report: CheckReport, zone: Zone) -> None:
    area, box = zone.aoi, zone.geobox
    if area is None:
        report.facts.append(("area of interest", "all of the zone"))
        return
    share = area.n_px / (box.height * box.width)
    report.facts.append(("area of interest", f"{share:.1%} of the zone, {_km2(zone, area.n_px)}: {area.name}"))
    if area.n_repaired:
        report.note(f"aoi: {area.name}: {area.n_repaired} invalid geometries are repaired. Look at the map's border.")
    if area.reaches_beyond:
        report.note(f"aoi: {area.name} reaches beyond the zone, where there is nothing to map.")


def _km2(zone: Zone, n_px: float) -> str:
    return f"{n_px * zone.geobox.pixel_m2 / 1e6:.3g} km2"


def _size_facts(report: CheckReport, plan: MapPlan, ref: ModelRef, config: ZonalConfig) -> None:
    report.facts.append(("windows", f"{plan.n_windows} of {plan.rows.window} px, {plan.cols.step} px apart"))
    inside = "" if plan.zone.aoi is None else f", {len(plan.blocks_inside())} of them in the area of interest"
    report.facts.append(("blocks", f"{plan.n_blocks[0]} x {plan.n_blocks[1]}{inside}"))
    report.facts.append(("pixels computed per pixel", f"{plan.recompute_factor:.2f}"))
    per_px = source_bytes_per_px(plan.zone, list(plan.zone.rasters))
    block = max(np.diff(plan.row_edges)) * max(np.diff(plan.col_edges)) * float(plan.ratio) ** 2
    workers = config.workers or config.num_worker or 2
    report.facts.append(("memory for source pixels", f"about {workers * 2 * block * per_px / 1e6:.0f} MB"))
    box = plan.geobox
    stored = sum(stored_bands(task, config.output_type) for task in ref.tasks)
    need = 2 * box.height * box.width * stored
    report.facts.append(("disk, at most", f"{need / 1e6:.1f} MB"))
    free = shutil.disk_usage(_existing(config.output_path)).free
    if need > free:
        report.trouble(f"output_path: {free / 1e9:.1f} GB are free, the run may take {need / 1e9:.1f} GB.")
    if plan.recompute_factor > 6:
        report.note(
            f"margin: {plan.recompute_factor:.1f} pixels are computed per pixel. A larger window would be cheaper."
        )


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
