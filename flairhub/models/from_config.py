"""The network that a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flairhub.baselines import RECIPE
from flairhub.config.derive import input_preparations, label_tasks
from flairhub.config.train_schema import TrainConfig
from flairhub.errors import UsageError
from flairhub.modalities import modality
from flairhub.models.spec import NetworkSpec, SeriesOptions

if TYPE_CHECKING:
    from flairhub.config.zonal_schema import ZonalConfig


def network_spec(config: TrainConfig | ZonalConfig, *, sizes: Mapping[str, int] | None = None) -> NetworkSpec:
    """Return the network of a training or zonal configuration.

    A zonal configuration knows neither auxiliary heads nor the options of the time-series encoder: there are none
    of the former, and the latter are the published ones.

    Args:
        config: The configuration.
        sizes: Pixels of one sample by modality, as the data have them; default: the published sizes.

    Raises:
        UsageError: Images are enabled and no architecture is named.
    """
    inputs = {
        name: preparation.n_channels(len(modality(name).bands))
        for name, preparation in input_preparations(config).items()
    }
    tasks = {task.label: task.n_classes for task in label_tasks(config)}
    has_images = any(not modality(name).is_series for name in inputs)
    training = isinstance(config, TrainConfig)
    arch = config.models.monotemp_model.arch if isinstance(config, TrainConfig) else config.monotemp_arch
    if has_images and not arch:
        key = "models.monotemp_model.arch" if training else "monotemp_arch"
        raise UsageError(f"{key}: missing; image inputs need <encoder>-<decoder>, for example {RECIPE.arch}.")
    arch = arch or RECIPE.arch
    sizes = {name: size for name, size in (sizes or {}).items() if name in inputs}
    if not isinstance(config, TrainConfig):
        return NetworkSpec(inputs, tasks, arch, sizes)
    aux = config.modalities.aux_loss
    options = config.models.multitemp_model
    names = SeriesOptions.__dataclass_fields__
    return NetworkSpec(
        inputs,
        tasks,
        arch,
        sizes,
        series=SeriesOptions(**{name: getattr(options, name) for name in names}),
        aux=tuple(name for name in inputs if aux.get(name)) if len(inputs) > 1 else (),
        modality_dropout={name: config.modalities.modality_dropout.get(name, 0.0) for name in inputs},
        new_channels_init_mode=config.models.monotemp_model.new_channels_init_mode,
    )
