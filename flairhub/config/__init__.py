"""Configuration: YAML becomes one checked, frozen object before anything is opened."""

from flairhub.config.base import WEIGHTS_KINDS, WEIGHTS_SUFFIXES, is_weights_file
from flairhub.config.bundle_checks import with_bundle
from flairhub.config.derive import (
    class_weights,
    config_hash,
    input_preparations,
    label_tasks,
    resolved_yaml,
)
from flairhub.config.load import (
    Paths,
    load_config,
    load_train_config,
    load_zonal_config,
    train_config_from_dict,
    zonal_config_from_dict,
)
from flairhub.config.train_schema import (
    NORM_GROUPS,
    ChannelInit,
    Hyperparams,
    MultitempModel,
    OptimizerName,
    PaddingMode,
    PreProcessings,
    Saving,
    ScheduleName,
    SeriesOptions,
    TrainConfig,
)
from flairhub.config.zonal_schema import ZonalConfig

__all__ = [
    "NORM_GROUPS",
    "WEIGHTS_KINDS",
    "WEIGHTS_SUFFIXES",
    "ChannelInit",
    "Hyperparams",
    "MultitempModel",
    "OptimizerName",
    "PaddingMode",
    "Paths",
    "PreProcessings",
    "Saving",
    "ScheduleName",
    "SeriesOptions",
    "TrainConfig",
    "ZonalConfig",
    "class_weights",
    "config_hash",
    "input_preparations",
    "is_weights_file",
    "label_tasks",
    "load_config",
    "load_train_config",
    "load_zonal_config",
    "resolved_yaml",
    "train_config_from_dict",
    "with_bundle",
    "zonal_config_from_dict",
]
