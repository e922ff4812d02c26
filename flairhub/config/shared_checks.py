"""Checks that both configurations share: inputs, bands, normalisation, classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from flairhub.config.normalisation import resolve_statistics
from flairhub.config.problems import Problem
from flairhub.config.yaml_file import KeyPath
from flairhub.errors import UsageError
from flairhub.modalities import INPUTS, Modality
from flairhub.prepare import Elevation
from flairhub.tasks import level_sizes, name_problem, named_task

INPUTS_PATH: KeyPath = ("modalities", "inputs")


def check_inputs(active: Iterable[str]) -> Iterator[Problem]:
    """At least one input."""
    if not tuple(active):
        yield Problem(INPUTS_PATH, f"no input is enabled. Set at least one to true: {', '.join(INPUTS)}.")


def check_bands(row: Modality, channels: tuple[int, ...] | None, path: KeyPath) -> Iterator[Problem]:
    """Selected bands exist; heights are not selected."""
    if channels is None:
        return
    n_bands = len(row.bands)
    if row.is_elevation:
        if channels != tuple(range(1, n_bands + 1)):
            text = f"got {list(channels)}, expected {list(range(1, n_bands + 1))} or no list: "
            yield Problem(path, f"{text}the bands are always {' and '.join(row.bands)}; choose with calc_elevation.")
        return
    wrong = [channel for channel in channels if channel > n_bands]
    if wrong:
        bands = ", ".join(f"{i} {name}" for i, name in enumerate(row.bands, start=1))
        yield Problem(path, f"band {', '.join(map(str, wrong))} does not exist. Bands of {row.name}: {bands}.")


def check_statistics(
    row: Modality,
    channels: tuple[int, ...] | None,
    elevation: Elevation | None,
    statistics: dict[KeyPath, Any],
    related: tuple[KeyPath, ...],
) -> Iterator[Problem]:
    """Custom normalisation has finite means and positive stds that fit the channels.

    Args:
        row: The modality.
        channels: Selected bands.
        elevation: Heights derived for elevation modalities.
        statistics: Configured values by their key path; the path of standard deviations ends in `stds`.
        related: Key paths the expected number of values rests on.
    """
    if channels is not None and max(channels) > len(row.bands):
        return  # reported by `check_bands`
    for path, values in statistics.items():
        if values is None:
            text = "required, but missing: custom normalisation needs means and stds. Or choose scaling or without."
            yield Problem(path, text, related)
            continue
        try:
            numbers = resolve_statistics(values, row, None if elevation else channels, elevation)
        except UsageError as error:
            yield Problem(path, str(error).removeprefix("statistics: "), related)
            continue
        if str(path[-1]).endswith("stds") and min(numbers) <= 0:
            yield Problem(path, f"got {list(numbers)}, expected numbers above 0: the image is divided by them.")


def check_classes(label: str, level: int, names: dict[int, str], path: KeyPath) -> Iterator[Problem]:
    """Class indices are 0..N-1, N is not another level's number of classes, and names are different texts.

    Args:
        label: Name of the label set.
        level: Nomenclature level, 1-based; known to exist.
        names: Class names by index; empty = the published ones.
        path: Key path of the names.
    """
    try:
        named_task(label, level, names)
    except UsageError as error:
        yield Problem(path, str(error).removeprefix(f"{label}: "))
        return
    problem = name_problem(names)
    if problem:
        yield Problem(path, problem)
    sizes = level_sizes(label)
    if names and len(names) in sizes and len(names) != sizes[level - 1]:
        other = sizes.index(len(names)) + 1
        text = f"{len(names)} classes are nomenclature {other} of {label}, but nomenclature {level} is chosen"
        yield Problem(path, f"{text} ({sizes[level - 1]} classes).", ((*path[:-1], "label_channel_nomenclature"),))
