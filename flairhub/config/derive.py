"""From a configuration to the objects the rest works with: preparations, tasks, weights, its text and its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from flairhub.config.normalisation import elevation_mode, resolve_statistics
from flairhub.config.train_schema import MultitempModel, TrainConfig
from flairhub.config.yaml_file import yaml_text
from flairhub.config.zonal_schema import ZonalConfig
from flairhub.modalities import MODALITIES, Modality
from flairhub.prepare import ImagePreparation, Normalisation
from flairhub.tasks import Task, level_sizes, named_task
from flairhub.timeseries import CloudFilter, Fill, SeriesPreparation

Preparation = ImagePreparation | SeriesPreparation

EXECUTION_KEYS = frozenset(
    {
        "hardware.num_workers",
        "hardware.threads",
        "hardware.scheduler",
        "saving.cp_csv_and_conf_to_output",
        "saving.enable_progress_bar",
        "saving.progress_rate",
        "saving.ckpt_verbose",
        "saving.verbose_config",
        "saving.log_images",
        "saving.ckpt_every_n_steps",
        "batch_size",
        "num_worker",
        "workers",
        "threads",
        "scheduler",
        "overwrite",
    }
)
"""Keys that change how fast a result comes or what is shown, never the result: not part of `config_hash`."""


def input_preparations(config: TrainConfig | ZonalConfig) -> dict[str, Preparation]:
    """Return how each enabled input is prepared, in network order."""
    rows = [MODALITIES[name] for name in config.modalities.active]
    if isinstance(config, TrainConfig):
        return {row.name: _train_preparation(config, row) for row in rows}
    return {row.name: _zonal_preparation(config, row) for row in rows}


def _train_preparation(config: TrainConfig, row: Modality) -> Preparation:
    modalities = config.modalities
    options, normalization = modalities.pre_processings, modalities.normalization
    channels = modalities.inputs_channels.get(row.name)
    if row.is_series:
        cloud_filter = None
        if row.quality_mask and options.filter_sentinel2:
            cloud_filter = CloudFilter(
                options.filter_sentinel2_max_cloud,
                options.filter_sentinel2_max_snow,
                options.filter_sentinel2_max_frac_cover,
            )
        average = getattr(options, f"temporal_average_{row.family}") or None
        ref_date = config.models.multitemp_model.ref_date
        return SeriesPreparation(channels, cloud_filter, average, options.temporal_average_fill, ref_date)
    return _image_preparation(
        row,
        channels,
        (options.calc_elevation, options.calc_elevation_stack_dsm),
        normalization.norm_type,
        (normalization.means(row.name), normalization.stds(row.name)),
    )


def _zonal_preparation(config: ZonalConfig, row: Modality) -> Preparation:
    block = config.modalities.block(row.name)
    if row.is_series:
        cloud_filter = None
        if row.quality_mask and block.filter_clouds:
            limits = (block.filter_clouds_max_cloud, block.filter_clouds_max_snow, block.filter_clouds_max_frac_cover)
            default = CloudFilter()
            fallback = (default.max_cloud, default.max_snow, default.max_frac)
            chosen = (given if given is not None else other for given, other in zip(limits, fallback, strict=True))
            cloud_filter = CloudFilter(*chosen)
        fill: Fill = block.temporal_average_fill or "masked"
        ref_date = config.multitemp_model_ref_date or MultitempModel().ref_date
        return SeriesPreparation(block.channels, cloud_filter, block.temporal_average or None, fill, ref_date)
    given = block.normalization
    elevation = (False, False)
    if row.is_elevation:
        elevation = (bool(block.calc_elevation), bool(block.calc_elevation_stack_dsm))
    norm_type: Normalisation = given.type if given else "without"
    return _image_preparation(row, block.channels, elevation, norm_type, (given.means, given.stds) if given else ())


def _image_preparation(
    row: Modality,
    channels: tuple[int, ...] | None,
    elevation_options: tuple[bool, bool],
    norm_type: Normalisation,
    statistics: tuple[Any, ...],
) -> ImagePreparation:
    elevation = elevation_mode(*elevation_options) if row.is_elevation else None
    channels = None if row.is_elevation else channels
    if norm_type != "custom":
        return ImagePreparation(channels, elevation, norm_type)
    means, stds = (resolve_statistics(values, row, channels, elevation) for values in statistics)
    return ImagePreparation(channels, elevation, norm_type, means, stds)


def label_tasks(config: TrainConfig | ZonalConfig) -> tuple[Task, ...]:
    """Return what is predicted, in the configured order; `Task.label` is the task's name.

    A zonal configuration has no nomenclature level: the published level with as many classes is taken, else the first.
    """
    if isinstance(config, TrainConfig):
        tasks = []
        for label in config.labels:
            options = config.labels_configs[label]
            tasks.append(named_task(label, options.label_channel_nomenclature, options.value_name))
        return tuple(tasks)
    return tuple(
        named_task(task.name, _level_of(task.name, len(task.class_names)), task.class_names)
        for task in config.active_tasks
    )


def _level_of(label: str, n_classes: int) -> int:
    sizes = level_sizes(label)
    return sizes.index(n_classes) + 1 if n_classes in sizes else 1


def class_weights(config: TrainConfig, label: str, modality: str | None = None) -> NDArray[np.float32]:
    """Return the loss weight of every class of a task.

    Args:
        config: The configuration.
        label: Name of the label set.
        modality: For the auxiliary loss of this input, whose exceptions come on top.

    Returns:
        (class,) float32; 0 = ignored.
    """
    n_classes = next(task.n_classes for task in label_tasks(config) if task.label == label)
    options = config.labels_configs[label].value_weights
    weights = np.full(n_classes, options.default, dtype=np.float32)
    layers = [options.default_exceptions, options.per_modality_exceptions.get(modality or "", {})]
    for exceptions in layers:
        for index, weight in exceptions.items():
            weights[index] = weight
    return weights


def plain(config: BaseModel) -> dict[str, Any]:
    """Return a configuration as plain dictionaries, lists and values under its published keys."""
    return {key: _plain(value) for key, value in config}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return plain(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def resolved_yaml(config: TrainConfig | ZonalConfig) -> str:
    """Return the whole configuration, defaults included, as one YAML file that loads to an equal one."""
    return yaml_text(plain(config))


def config_hash(config: TrainConfig | ZonalConfig) -> str:
    """Return the sha256 of what determines results; `EXECUTION_KEYS` and the order of keys do not count."""
    content = _without_execution(plain(config), "")
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _without_execution(content: Any, path: str) -> Any:
    if not isinstance(content, dict):
        return content
    result: dict[str, Any] = {}
    for key, value in content.items():
        key_path = f"{path}.{key}" if path else str(key)
        if key_path not in EXECUTION_KEYS:
            result[str(key)] = _without_execution(value, key_path)
    return result
