"""A zonal configuration beside a bundle, which describes itself: fill in what is not given, refuse contradictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flairhub.config.derive import Preparation, input_preparations
from flairhub.config.problems import Problem
from flairhub.config.zonal_schema import ZonalConfig
from flairhub.errors import ConfigError
from flairhub.modalities import MODALITIES
from flairhub.prepare import ImagePreparation
from flairhub.tasks import Task
from flairhub.timeseries import SeriesPreparation


def with_bundle(
    config: ZonalConfig,
    *,
    preparations: Mapping[str, Preparation],
    tasks: Sequence[Task],
    ref_date: str,
    arch: str | None = None,
) -> tuple[dict[str, Preparation], tuple[Task, ...]]:
    """Return the preparations and tasks of a map made with a bundle.

    They are the bundle's. The configuration may repeat them, choose among the tasks, and choose whether to filter
    clouds, which depends on the zone; anything else that differs is an error.

    Args:
        config: The zonal configuration.
        preparations: How the bundle's network wants each of its inputs, by modality.
        tasks: What it predicts.
        ref_date: Its reference date, MM-DD.
        arch: Its architecture, None for series only.

    Raises:
        ConfigError: Contradictions, all at once, each with both values.
    """
    problems = [
        *_check_inputs(config, preparations),
        *_check_blocks(config, preparations),
        *_check_network(config, ref_date, arch),
        *_check_tasks(config, tasks),
    ]
    if problems:
        raise ConfigError(str(config.model_weights), [problem.sentence({}) for problem in problems])
    chosen = {task.name for task in config.active_tasks} or {task.label for task in tasks}
    given = input_preparations(config)
    merged = {name: _with_filter(config, name, given[name], preparations[name]) for name in given}
    return merged, tuple(task for task in tasks if task.label in chosen)


def _with_filter(config: ZonalConfig, name: str, given: Preparation, bundle: Preparation) -> Preparation:
    if not isinstance(bundle, SeriesPreparation) or not isinstance(given, SeriesPreparation):
        return bundle
    wanted = getattr(config.modalities.block(name), "filter_clouds", None)
    return bundle if wanted is None else replace(bundle, cloud_filter=given.cloud_filter)


def _differs(path: tuple[Any, ...], given: Any, bundle: Any) -> Problem:
    return Problem(path, f"got {given}, but the bundle was made with {bundle}. Remove the key to use the bundle's.")


def _check_inputs(config: ZonalConfig, preparations: Mapping[str, Preparation]) -> Iterator[Problem]:
    active = config.modalities.active
    for name in active:
        if name not in preparations:
            text = f"the bundle has no such input. It has {', '.join(preparations)}. Set it to false."
            yield Problem(("modalities", "inputs", name), text)
    for name in preparations:
        if name not in active:
            text = "the bundle needs this input. Set it to true and give its raster."
            yield Problem(("modalities", "inputs", name), text)


def _check_blocks(config: ZonalConfig, preparations: Mapping[str, Preparation]) -> Iterator[Problem]:
    given = input_preparations(config)
    for name, block in config.modalities.blocks():
        bundle = preparations.get(name)
        if bundle is None:
            continue
        base = ("modalities", name)
        bands = tuple(range(1, len(MODALITIES[name].bands) + 1))
        if block.channels is not None and block.channels != (bundle.channels or bands):
            yield _differs((*base, "channels"), list(block.channels), list(bundle.channels or bands))
        configured = given[name]
        if isinstance(bundle, ImagePreparation) and isinstance(configured, ImagePreparation):
            yield from _check_image(base, block, configured, bundle)
        elif isinstance(bundle, SeriesPreparation):
            yield from _check_series(base, block, bundle)


def _check_image(
    base: tuple[str, ...], block: Any, configured: ImagePreparation, bundle: ImagePreparation
) -> Iterator[Problem]:
    wanted = getattr(block, "calc_elevation", None) is not None or getattr(block, "calc_elevation_stack_dsm", None)
    if wanted and configured.elevation != bundle.elevation:
        yield _differs((*base, "calc_elevation"), configured.elevation, bundle.elevation)
        return
    if block.normalization is None:
        return
    path = (*base, "normalization")
    if configured.normalisation != bundle.normalisation:
        yield _differs((*path, "type"), configured.normalisation, bundle.normalisation)
        return
    for key, numbers, expected in (("means", configured.means, bundle.means), ("stds", configured.stds, bundle.stds)):
        if len(numbers) != len(expected) or not np.allclose(numbers, expected, rtol=1e-5, atol=0):
            yield _differs((*path, key), list(numbers), list(expected))


def _check_series(base: tuple[str, ...], block: Any, bundle: SeriesPreparation) -> Iterator[Problem]:
    average = bundle.average or False
    if block.temporal_average is not None and block.temporal_average != average:
        yield _differs((*base, "temporal_average"), block.temporal_average, average)
    if average and block.temporal_average_fill not in (None, bundle.fill):
        yield _differs((*base, "temporal_average_fill"), block.temporal_average_fill, bundle.fill)


def _check_network(config: ZonalConfig, ref_date: str, arch: str | None) -> Iterator[Problem]:
    if config.multitemp_model_ref_date not in (None, ref_date):
        yield _differs(("multitemp_model_ref_date",), config.multitemp_model_ref_date, ref_date)
    if arch is not None and config.monotemp_arch not in (None, arch):
        yield _differs(("monotemp_arch",), config.monotemp_arch, arch)


def _check_tasks(config: ZonalConfig, tasks: Sequence[Task]) -> Iterator[Problem]:
    known = {task.label: task for task in tasks}
    for position, task in enumerate(config.tasks):
        if not task.active:
            continue
        if task.name not in known:
            text = f"the bundle does not predict {task.name}, only {', '.join(known)}. Set active: false."
            yield Problem(("tasks", position, "name"), text)
            continue
        names = [name.casefold() for _, name in sorted(task.class_names.items())]
        expected = [name.casefold() for name in known[task.name].names]
        if names and names != expected:
            rows = [i for i, (a, b) in enumerate(zip(names, expected, strict=False)) if a != b]
            where = f"class {rows[0]} differs" if rows else f"{len(names)} classes instead of {len(expected)}"
            text = f"{where} from the bundle's. Remove the key to use the bundle's."
            yield Problem(("tasks", position, "class_names"), text)
