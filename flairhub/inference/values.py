"""What sampled pixels of a zone say about whether a model can read it: values, clouds, pixels without data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import FlairhubError, ZoneError
from flairhub.inference.model_ref import ModelRef
from flairhub.modalities import MODALITIES
from flairhub.prepare import ImagePreparation, prepare_image
from flairhub.timeseries import CLOUD_BAND, SNOW_BAND, CloudFilter, SeriesPreparation, keep_dates
from flairhub.zones import Pixels, Raster, Zone

SAMPLES_PER_AXIS = 4
SAMPLE_PX = 64
"""A raster is judged by so many squares of so many pixels, spread evenly."""

_FAR = 4.0
"""Means farther off than so many standard deviations are no other landscape."""

_SWAPPED = 0.5
"""Channels count as swapped when another order brings the mean distance from above this to below half of itself."""

_HIGHEST = 1e30
"""No measured number is larger; -3.4e38 and 1e38 stand for no data."""

_HEIGHTS_M = -1000.0, 10_000.0
"""Where heights on Earth lie."""

_MAX_CHANNELS = 6
_SCALE = 8.0

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


def look_at_values(report: CheckReport, zone: Zone, ref: ModelRef) -> None:
    """Read a few squares of every input and compare them with what the model was trained on.

    Args:
        report: Gets what is noticed.
        zone: The rasters.
        ref: The model, fitted to the zone.
    """
    for name, preparation in ref.preparations.items():
        try:
            _check_values(report, zone, name, preparation)
        except FlairhubError as error:
            report.trouble(str(error))


def compare_with_published(report: CheckReport, raster: Raster) -> None:
    """Compare type and size of the pixels of a raster with those of the published data."""
    row, size = MODALITIES[raster.name], raster.geobox.x_res_m
    dtype, expected = np.dtype(raster.dtype), np.dtype(row.dtype)
    if dtype.kind in "iu" and expected.kind in "iu" and dtype.itemsize < expected.itemsize and row.is_input:
        report.trouble(
            f"{raster.name}: {raster.where} has {dtype.itemsize * 8}-bit pixels ({dtype}), published are "
            f"{expected.itemsize * 8}-bit ({row.dtype}). A stretched picture for viewing? Give the original values."
        )
    elif dtype != expected and row.is_input:
        report.note(f"{raster.name}: pixels are {dtype}, published are {row.dtype}.")
    if not 0.8 < size / row.gsd_m < 1.25:
        report.note(
            f"{raster.name}: pixels of {size:g} m, published are {row.gsd_m:g} m. "
            f"A network knows only the resolution it was trained at."
        )


def refuse_trouble(zone: Zone, ref: ModelRef) -> None:
    """Look at pixel types and sampled values before a run.

    Raises:
        ZoneError: What the check calls trouble.
        FlairhubError: Pixels cannot be read.
    """
    report = CheckReport()
    for raster in zone.everything:
        compare_with_published(report, raster)
    for name, preparation in ref.preparations.items():
        _check_values(report, zone, name, preparation)
    troubles = [finding.text for finding in report.findings if finding.level == "trouble"]
    if troubles:
        listed = "\n".join(f"  - {text}" for text in troubles)
        raise ZoneError(
            f"the rasters are not what the model reads, so the map would be wrong:\n{listed}\n"
            f"Nothing was computed. Pass --no-check (check=False) to go on all the same."
        )


def _samples(zone: Zone, raster: Raster, channels: tuple[int, ...] | None) -> Iterator[Pixels]:
    for row, col in _spots(zone, raster):
        yield raster.read(row, col, channels)


def _spots(zone: Zone, raster: Raster) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Rows and columns of squares spread over a raster, or over the bounds of the zone's area of interest."""
    height, width = raster.geobox.height, raster.geobox.width
    spans = (0, height), (0, width)
    if zone.aoi is not None:
        left, top, right, bottom = zone.aoi.bounds
        down, across = height / zone.geobox.height, width / zone.geobox.width
        spans = (int(top * down), math.ceil(bottom * down)), (int(left * across), math.ceil(right * across))
    return list(product(_along(*spans[0], height), _along(*spans[1], width)))


def _along(first: int, last: int, length: int) -> list[tuple[int, int]]:
    size = min(SAMPLE_PX, length)
    first, last = min(first, length - size), min(max(last, first + size), length)
    starts = np.unique(np.linspace(first, last - size, SAMPLES_PER_AXIS).astype(int))
    return [(int(start), int(start) + size) for start in starts]


def _check_values(
    report: CheckReport, zone: Zone, name: str, preparation: ImagePreparation | SeriesPreparation
) -> None:
    raster = zone.rasters[name]
    samples = list(_samples(zone, raster, preparation.channels))
    share = float(np.mean([1.0 if one.anywhere is None else one.anywhere.mean() for one in samples]))
    if share < 1:
        report.facts.append((f"{name}: sampled pixels with data", f"{share:.1%}"))
    if share == 0:
        report.trouble(f"{name}: {raster.where} has no data in any of {len(samples)} sampled squares.")
        return
    strange = _strange_numbers(samples, raster)
    if strange is not None:
        report.trouble(f"{name}: {raster.where} {strange}")
        return
    if isinstance(preparation, SeriesPreparation):
        if preparation.cloud_filter is not None:
            _check_clouds(report, zone, name, preparation.cloud_filter)
        return
    pixels = np.concatenate(
        [one.values.reshape(len(one.values), -1) if one.valid is None else one.values[:, one.valid] for one in samples],
        axis=1,
    )
    for level, text in compare_values(pixels, preparation, f"{name}: {raster.where}"):
        report.findings.append(Finding(level, text))


def _strange_numbers(samples: Sequence[Pixels], raster: Raster) -> str | None:
    """What is wrong with the largest and the smallest number among those that count; None = nothing."""
    if np.dtype(raster.dtype).kind != "f" and not MODALITIES[raster.name].is_elevation:
        return None
    low, high = _HIGHEST, -_HIGHEST
    for one in samples:
        values = one.values if one.valid is None else np.moveaxis(one.values, -3, -1)[one.valid]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    lowest, highest = _HEIGHTS_M if MODALITIES[raster.name].is_elevation else (-_HIGHEST, _HIGHEST)
    if lowest < low and high < highest:
        return None
    what = "heights" if MODALITIES[raster.name].is_elevation else "numbers"
    return (
        f"has {what} from {low:g} to {high:g} where it says that there is data. If one of them stands for no data, "
        f"declare it: gdal_edit.py -a_nodata {low if not lowest < low else high:.9g} FILE."
    )


def _check_clouds(report: CheckReport, zone: Zone, name: str, rule: CloudFilter) -> None:
    series, mask = zone.rasters[name], zone.quality[name]
    assert series.dates is not None
    clear, usable = [], []
    for row, col in _spots(zone, mask):
        source, quality = series.read(row, col), mask.read(row, col)
        highest = int(np.where(_valid_of(quality)[:, None], quality.values, 0).max())
        if highest > 100:
            report.trouble(
                f"{mask.name}: {mask.where} has values up to {highest}, expected "
                f"probabilities of 0-100 percent. Is it the right raster?"
            )
            return
        values = quality.values
        fine = (values[:, SNOW_BAND] <= rule.max_snow) & (values[:, CLOUD_BAND] <= rule.max_cloud)
        clear.append((fine & _valid_of(quality) & _valid_of(source)).mean(axis=(1, 2)))
        keep = keep_dates(values, rule, source.valid, quality.valid)
        usable.append(keep & _valid_of(source).any(axis=(1, 2)))
    shares, used = np.mean(clear, axis=0), np.mean(usable, axis=0)
    days = [str(day) for day in series.dates]
    report.dates[name] = [(day, float(a), float(b)) for day, a, b in zip(days, shares, used, strict=True)]
    counts = np.sum(usable, axis=1)
    report.facts.append((f"{name}: dates used per sampled window", f"{counts.min()} to {counts.max()} of {len(days)}"))
    if (counts == 0).any():
        report.note(f"{name}: the filter keeps no date in {int((counts == 0).sum())} of {len(counts)} sampled windows.")


def _valid_of(pixels: Pixels) -> NDArray[np.bool_]:
    """(time, y, x) validity of a series."""
    values = pixels.values
    return np.ones((len(values), *values.shape[-2:]), dtype=bool) if pixels.valid is None else pixels.valid


def compare_values(
    pixels: NDArray[Any], preparation: ImagePreparation, where: str
) -> list[tuple[Literal["trouble", "note"], str]]:
    """Compare sampled pixels with the means and standard deviations that the model normalises by.

    Args:
        pixels: (band, sample) native values.
        preparation: Of the model; without statistics there is nothing to compare.
        where: Modality and file, for messages.

    Returns:
        (level, message) rows.
    """
    if preparation.normalisation != "custom":
        return []
    # Sums of single precision would lose the mean of large numbers, or all of it.
    raw = prepare_image(pixels[:, None, :], preparation)[:, 0].astype(np.float64)
    stds = np.asarray(preparation.stds)
    measured = raw.mean(axis=1) * stds + np.asarray(preparation.means)
    spread = np.ptp(raw, axis=1)
    shown = f"means {_listed(measured)}, the model's {_listed(preparation.means)}"
    if not spread.any():
        return [("trouble", f"{where}: all sampled pixels have one value per channel ({shown}). Is the raster empty?")]
    factor = _common_factor(measured, preparation)
    if factor is not None:
        return [
            (
                "trouble",
                f"{where}: values are about {factor} of the model's ({shown}). "
                f"8-bit instead of 16-bit, or another unit? Give the original values.",
            )
        ]
    distance = np.abs(raw.mean(axis=1))
    order = _better_order(measured, preparation)
    if order is not None:
        return [
            (
                "trouble",
                f"{where}: the channels fit the model's statistics far better in the order {list(order)} ({shown}). "
                f"Are the bands permuted? Reorder the bands of the raster.",
            )
        ]
    if distance.max() > _FAR:
        worst = int(distance.argmax())
        return [
            (
                "trouble",
                f"{where}: channel {worst + 1} lies {distance[worst]:.1f} standard deviations from what the model was "
                f"trained on ({shown}). Wrong bands, units or raster?",
            )
        ]
    if distance.max() > _FAR / 2:
        return [("note", f"{where}: values differ from what the model was trained on ({shown}).")]
    return []


def _common_factor(measured: NDArray[np.float64], preparation: ImagePreparation) -> str | None:
    means = np.asarray(preparation.means)
    # Heights may be anything; derived or single channels tell no factor.
    if preparation.elevation is not None or (means <= 0).any() or (measured <= 0).any():
        return None
    factors = measured / means
    if factors.min() > _SCALE:
        return f"{np.median(factors):.0f}x"
    return f"1/{1 / np.median(factors):.0f}" if factors.max() < 1 / _SCALE else None


def _better_order(measured: NDArray[np.float64], preparation: ImagePreparation) -> tuple[int, ...] | None:
    n_channels = len(measured)
    if preparation.elevation is not None or not 2 <= n_channels <= _MAX_CHANNELS:
        return None
    means, stds = np.asarray(preparation.means), np.asarray(preparation.stds)

    def cost(order: tuple[int, ...]) -> float:
        return float(np.abs((measured[list(order)] - means) / stds).mean())

    as_is = cost(tuple(range(n_channels)))
    best = min(permutations(range(n_channels)), key=cost)
    if as_is < _SWAPPED or cost(best) > as_is / 2:
        return None
    return tuple(position + 1 for position in best)


def _listed(values: Any) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
