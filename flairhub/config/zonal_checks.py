"""What the zonal schema cannot say key by key: keys that must fit each other and the kind of weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flairhub.config.normalisation import elevation_mode
from flairhub.config.problems import Problem
from flairhub.config.shared_checks import check_bands, check_classes, check_inputs, check_statistics
from flairhub.config.yaml_file import KeyPath
from flairhub.config.zonal_schema import ZonalArea, ZonalConfig
from flairhub.modalities import MODALITIES, Modality
from flairhub.tasks import level_sizes

_WEIGHTS: KeyPath = ("model_weights",)


def check_zonal(config: ZonalConfig) -> Iterator[Problem]:
    """Yield every contradiction in a zonal configuration, without opening any path."""
    if 2 * config.margin >= config.img_pixels_detection:
        text = f"got {config.margin}, expected less than half of img_pixels_detection = {config.img_pixels_detection}."
        yield Problem(("margin",), text, (("img_pixels_detection",),))
    if config.roi is not None and config.cube is None:
        yield Problem(("roi",), "a region of interest of which cube? Give cube: PATH, a cube of patches.", (("cube",),))
    if config.aoi is not None:
        yield from _check_area(config.aoi)
    yield from check_inputs(config.modalities.active)
    for name, block in config.modalities.blocks():
        yield from _check_block(config, MODALITIES[name], block)
    if not config.is_bundle:
        yield from _check_described(config)
    yield from _check_tasks(config)


def _check_area(area: ZonalArea) -> Iterator[Problem]:
    choices = {"path": area.path, "bbox": area.bbox, "geometry": area.geometry}
    given = [name for name, value in choices.items() if value is not None]
    if len(given) != 1:
        text = f"got {' and '.join(given) or 'none of them'}, expected one of path, bbox and geometry."
        yield Problem(("aoi",), text, tuple(("aoi", name) for name in choices))
    for name in ("layer", "where"):
        if getattr(area, name) is not None and area.path is None:
            yield Problem(("aoi", name), "chooses from a file, but aoi.path is not given.", (("aoi", "path"),))


def _check_block(config: ZonalConfig, row: Modality, block: Any) -> Iterator[Problem]:
    base: KeyPath = ("modalities", row.name)
    related: tuple[KeyPath, ...] = (("modalities", "inputs"),)
    if config.cube is None and getattr(config.modalities, row.name) is None:
        yield Problem(base, "required because this input is enabled, but missing.", related)
        return
    if config.cube is None and block.input_img_path is None:
        yield Problem((*base, "input_img_path"), "required because this input is enabled, but missing.", related)
    yield from check_bands(row, block.channels, (*base, "channels"))
    if row.is_series:
        if config.cube is None:
            yield from _check_series(row, block, base)
    elif block.normalization is None:
        if not config.is_bundle:
            text = "required with a weights file, but missing: give the normalisation the network was trained with."
            yield Problem((*base, "normalization"), text, (*related, _WEIGHTS))
    elif block.normalization.type == "custom":
        elevation = None
        if row.is_elevation:
            elevation = elevation_mode(bool(block.calc_elevation), bool(block.calc_elevation_stack_dsm))
        path = (*base, "normalization")
        statistics = {(*path, "means"): block.normalization.means, (*path, "stds"): block.normalization.stds}
        depends = ((*base, "channels"), (*base, "calc_elevation"), (*path, "type"), *related)
        yield from check_statistics(row, block.channels, elevation, statistics, depends)


def _check_series(row: Modality, block: Any, base: KeyPath) -> Iterator[Problem]:
    if block.dates_txt is None and (row.quality_mask or block.temporal_average):
        reason = "this input is enabled" if row.quality_mask else "temporal_average needs the dates"
        yield Problem((*base, "dates_txt"), f"required because {reason}, but missing.", (("modalities", "inputs"),))
    if row.quality_mask and block.filter_clouds and block.filter_clouds_img_path is None:
        text = "required because filter_clouds is true, but missing."
        yield Problem((*base, "filter_clouds_img_path"), text, ((*base, "filter_clouds"),))


def _check_described(config: ZonalConfig) -> Iterator[Problem]:
    """A weights file does not describe its network, so the configuration must."""
    active = config.modalities.active
    images = [name for name in active if not MODALITIES[name].is_series]
    series = [name for name in active if MODALITIES[name].is_series]
    related: tuple[KeyPath, ...] = (_WEIGHTS, ("modalities", "inputs"))
    hint = "(a bundle folder as model_weights would know it)."
    if images and config.monotemp_arch is None:
        yield Problem(("monotemp_arch",), f"required for {', '.join(images)} with a weights file {hint}", related)
    if series and config.multitemp_model_ref_date is None:
        text = f"required for {', '.join(series)} with a weights file {hint}"
        yield Problem(("multitemp_model_ref_date",), text, related)
    if not config.active_tasks:
        yield Problem(("tasks",), f"no task is active: one is required with a weights file {hint}", (_WEIGHTS,))


def _check_tasks(config: ZonalConfig) -> Iterator[Problem]:
    names = [task.name for task in config.tasks]
    if config.monotemp_arch is not None:
        encoder, dash, decoder = config.monotemp_arch.rpartition("-")
        if not (encoder and dash and decoder):
            text = f"got {config.monotemp_arch!r}, expected <encoder>-<decoder>, such as resnet34-unet."
            yield Problem(("monotemp_arch",), text)
    if config.is_bundle and config.tasks and not config.active_tasks:
        yield Problem(("tasks",), "no task is active. Set active: true, or remove tasks to map all of the bundle's.")
    for position, task in enumerate(config.tasks):
        path: KeyPath = ("tasks", position)
        if names.index(task.name) < position:
            yield Problem((*path, "name"), f"{task.name} is given twice. Keep one.")
        sizes = level_sizes(task.name)
        level = sizes.index(len(task.class_names)) + 1 if len(task.class_names) in sizes else 1
        yield from check_classes(task.name, level, task.class_names, (*path, "class_names"))
