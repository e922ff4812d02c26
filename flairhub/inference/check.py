"""Looking at a zonal configuration before running it: headers, sizes and a few sampled pixels, no model run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flairhub.config import ZonalConfig
from flairhub.errors import ConfigError, FlairhubError
from flairhub.inference.block import MapPlan, plan_map
from flairhub.inference.configured import extras_of, open_zone, style_of, zone_model
from flairhub.inference.network import ModelRef
from flairhub.inference.outputs import stored_bands
from flairhub.inference.rasters import RasterSource, read_dated, read_region, valid_pixels
from flairhub.inference.values import compare_values
from flairhub.inference.zone import Zone
from flairhub.modalities import MODALITIES
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import CLOUD_BAND, SNOW_BAND, CloudFilter, SeriesPreparation, keep_dates

SAMPLES_PER_AXIS = 4
SAMPLE_PX = 64
"""A raster is judged by so many squares of so many pixels, spread evenly."""

Level = Literal["trouble", "note"]


@dataclass(frozen=True)
class Finding:
    """Something to know before the run.

    Attributes:
        level: `trouble` = the run would fail or the map would be wrong; `note` = worth a look.
        text: What, got, expected, what to do.
    """

    level: Level
    text: str


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        findings: Troubles and notes.
        facts: (what, value) rows to show.
        dates: By filtered series, one (date, clear share, used share) per image: share of sampled pixels clear of
            cloud and snow, share of sampled windows that keep the date.
    """

    findings: list[Finding] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    dates: dict[str, list[tuple[str, float, float]]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True when there is no trouble."""
        return not any(finding.level == "trouble" for finding in self.findings)

    def trouble(self, text: str) -> None:
        """Add a trouble."""
        self.findings.append(Finding("trouble", text))

    def note(self, text: str) -> None:
        """Add a note."""
        self.findings.append(Finding("note", text))


def check_zonal(config: ZonalConfig) -> CheckReport:
    """Check a zonal configuration without running its model.

    Args:
        config: The configuration.

    Returns:
        Troubles, notes and facts; problems of rasters, weights and sizes are collected, not raised.
    """
    report = CheckReport()
    zone = _collect(report, lambda: open_zone(config))
    if zone is None:
        _collect(report, lambda: _weights_exist(config))
        return report
    _grid_facts(report, zone)
    ref = _collect(report, lambda: zone_model(config, zone))
    if ref is None:
        return report
    plan = _collect(report, lambda: plan_map(zone, ref, config.block_px, config.batch_size, style_of(config)))
    if plan is None:
        return report
    _collect(report, lambda: extras_of(config))
    for name, preparation in ref.preparations.items():
        _look_at(report, zone, name, preparation)
    _cost_facts(report, plan, ref, config)
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
    area_km2 = box.height * box.x_res * box.width * box.y_res / 1e6
    report.facts.append(("zone", f"{box.height} x {box.width} px of {box.x_res:g} m, {area_km2:.3g} km2"))
    for source in [*zone.sources.values(), *zone.quality.values()]:
        dates = f"{source.n_dates} dates x " if source.n_dates else ""
        own = source.geobox
        report.facts.append(
            (
                source.name,
                f"{own.height} x {own.width} px of {own.x_res:g} m, {dates}{source.n_bands} bands {source.dtype}",
            )
        )
        _compare_with_published(report, source)


def _compare_with_published(report: CheckReport, source: RasterSource) -> None:
    row, size = MODALITIES[source.name], source.geobox.x_res
    found, expected = np.dtype(source.dtype), np.dtype(row.dtype)
    if found.kind in "iu" and expected.kind in "iu" and found.itemsize < expected.itemsize and row.is_input:
        report.trouble(
            f"{source.name}: {source.path} has {found.itemsize * 8}-bit pixels ({source.dtype}), published are "
            f"{expected.itemsize * 8}-bit ({row.dtype}). A stretched picture for viewing? Give the original values."
        )
    elif found != expected and row.is_input:
        report.note(f"{source.name}: pixels are {source.dtype}, published are {row.dtype}.")
    if not 0.8 < size / row.gsd_m < 1.25:
        report.note(
            f"{source.name}: pixels of {size:g} m, published are {row.gsd_m:g} m. "
            f"A network knows only the resolution it was trained at."
        )


def _samples(source: RasterSource) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_] | None]]:
    box = source.geobox
    for row, col in product(_spots(box.height), _spots(box.width)):
        yield read_region(source, row, col)


def _spots(length: int) -> list[tuple[int, int]]:
    size = min(SAMPLE_PX, length)
    firsts = np.unique(np.linspace(0, length - size, SAMPLES_PER_AXIS).astype(int))
    return [(int(first), int(first) + size) for first in firsts]


def _look_at(report: CheckReport, zone: Zone, name: str, preparation: ImagePreparation | SeriesPreparation) -> None:
    source = zone.sources[name]
    try:
        if isinstance(preparation, SeriesPreparation):
            if preparation.cloud_filter is not None:
                _look_at_clouds(report, zone, name, preparation.cloud_filter)
            return
        samples = list(_samples(source))
    except FlairhubError as error:
        report.trouble(str(error))
        return
    good = [valid_pixels(source, values, mask, preparation.channels) for values, mask in samples]
    share = float(np.mean([mask.mean() for mask in good]))
    if share < 1:
        report.facts.append((f"{name}: sampled pixels with data", f"{share:.1%}"))
    if share == 0:
        report.trouble(f"{name}: {source.path} has no data in any of {len(samples)} sampled squares.")
        return
    pixels = np.concatenate([values[:, mask] for (values, _), mask in zip(samples, good, strict=True)], axis=1)
    for level, text in compare_values(pixels, preparation, f"{name}: {source.path}"):
        report.findings.append(Finding(level, text))


def _look_at_clouds(report: CheckReport, zone: Zone, name: str, rule: CloudFilter) -> None:
    clear, kept = [], []
    mask = zone.quality[name]
    for row, col in product(_spots(mask.geobox.height), _spots(mask.geobox.width)):
        quality, having = read_region(mask, row, col)[0], read_dated(mask, row, col)
        fine = (quality[:, SNOW_BAND] <= rule.max_snow) & (quality[:, CLOUD_BAND] <= rule.max_cloud)
        clear.append(fine.mean(axis=(1, 2)))
        # Patches of a region of interest may lack a date: where one does, the window does not use it.
        whole = np.ones(len(quality), dtype=bool) if having is None else having.all(axis=(1, 2))
        kept.append(keep_dates(quality, rule) & whole)
        if quality.max() > 100:
            report.trouble(
                f"{mask.name}: {mask.path} has values up to {quality.max()}, expected "
                f"probabilities of 0-100 percent. Is it the right raster?"
            )
            return
    shares, used = np.mean(clear, axis=0), np.mean(kept, axis=0)
    days = [str(day) for day in zone.dates[name]]
    report.dates[name] = [(day, float(a), float(b)) for day, a, b in zip(days, shares, used, strict=True)]
    counts = np.sum(kept, axis=1)
    report.facts.append((f"{name}: dates used per sampled window", f"{counts.min()} to {counts.max()} of {len(days)}"))
    if (counts == 0).any():
        report.note(f"{name}: the filter keeps no date in {int((counts == 0).sum())} of {len(counts)} sampled windows.")


def _cost_facts(report: CheckReport, plan: MapPlan, ref: ModelRef, config: ZonalConfig) -> None:
    from flairhub.inference.cost import forward_flops, machine_flops

    report.facts.append(("windows", f"{plan.n_windows} of {plan.rows.window} px, {plan.cols.step} px apart"))
    report.facts.append(("blocks", f"{plan.n_blocks[0]} x {plan.n_blocks[1]}"))
    report.facts.append(("pixels computed per pixel", f"{plan.recompute_factor:.2f}"))
    per_px = sum(
        source.n_bands * max(source.n_dates, 1) * np.dtype(source.dtype).itemsize / float(source.ratio) ** 2
        for source in plan.zone.sources.values()
    )
    block = max(np.diff(plan.row_edges)) * max(np.diff(plan.col_edges)) * float(plan.ratio) ** 2
    workers = config.workers or config.num_worker or 2
    report.facts.append(("memory for source pixels", f"about {workers * 2 * block * per_px / 1e6:.0f} MB"))
    box = plan.zone.output_geobox
    stored = sum(stored_bands(task, config.output_type) for task in ref.tasks)
    need = 2 * box.height * box.width * stored
    report.facts.append(("disk, at most", f"{need / 1e6:.1f} MB"))
    free = shutil.disk_usage(_existing(config.output_path)).free
    if need > free:
        report.trouble(f"output_path: {free / 1e9:.1f} GB are free, the run may take {need / 1e9:.1f} GB.")
    flops = forward_flops(plan, ref)
    if flops is not None:
        seconds = flops * plan.n_windows / machine_flops(ref.device)
        report.facts.append(("time, roughly", f"{seconds / 60:.1f} min on {ref.device}"))
    if plan.recompute_factor > 6:
        report.note(
            f"margin: {plan.recompute_factor:.1f} pixels are computed per pixel. A larger window would be cheaper."
        )


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
