"""What a network is, as data: inputs, tasks, architecture; and the one that a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import log2
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from flairhub.baselines import RECIPE
from flairhub.config import ChannelInit, SeriesOptions, TrainConfig, ZonalConfig, input_preparations, label_tasks
from flairhub.errors import UsageError
from flairhub.modalities import INPUTS, LABELS, modality


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build a network: no weights, no paths.

    The mappings are stored in canonical order (`INPUTS`, `LABELS`), so that the order of keys in a configuration
    never matters.

    Attributes:
        inputs: Number of channels the network sees, by modality.
        tasks: Number of classes, by task (name of the label set).
        arch: `<encoder>-<decoder>` of the images' network, for example `swin_base_patch4_window12_384-upernet`.
        sizes: Pixels (height = width) of one sample by modality. Encoders with position tables are built for them;
            the ratios place a missing modality. Default: the published sizes.
        series: Options of the time-series encoder.
        aux: Modalities with an auxiliary head per task.
        modality_dropout: Probability that a modality of a sample is dropped in training.
        new_channels_init_mode: Where the weights of channels beyond the third come from in pretrained encoders.
        other_classes: Classes of tasks that the weights were trained for but this network does not predict; the
            logits of series carry them.
    """

    inputs: Mapping[str, int]
    tasks: Mapping[str, int]
    arch: str = RECIPE.arch
    sizes: Mapping[str, int] = field(default_factory=dict)
    series: SeriesOptions = field(default_factory=SeriesOptions)
    aux: tuple[str, ...] = ()
    modality_dropout: Mapping[str, float] = field(default_factory=dict)
    new_channels_init_mode: ChannelInit = "random"
    other_classes: int = 0

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UsageError("a network needs at least one input.")
        if not self.tasks:
            raise UsageError("a network needs at least one task.")
        self._check_known("inputs", self.inputs, INPUTS)
        for name in ("sizes", "modality_dropout", "aux"):
            self._check_known(name, getattr(self, name), tuple(self.inputs))
        sizes = {name: self.sizes.get(name, modality(name).size_px) for name in self.inputs}
        self._set("inputs", {name: int(self.inputs[name]) for name in INPUTS if name in self.inputs})
        self._set("sizes", {name: int(sizes[name]) for name in self.inputs})
        self._set("tasks", {name: int(self.tasks[name]) for name in sorted(self.tasks, key=_label_rank)})
        self._set("aux", tuple(name for name in self.inputs if name in self.aux))
        rates = {name: float(self.modality_dropout.get(name, 0.0)) for name in self.inputs}
        self._set("modality_dropout", {name: rate for name, rate in rates.items() if rate})
        for name, rate in rates.items():
            if not 0 <= rate <= 1:
                raise UsageError(f"modality_dropout.{name}: got {rate}, expected a probability between 0 and 1.")
        for key, counts in (("inputs", self.inputs), ("sizes", self.sizes), ("tasks", self.tasks)):
            for name, count in counts.items():
                if count < 1:
                    raise UsageError(f"{key}.{name}: got {count}, expected at least 1.")
        check_series_options(self.series)
        choices = get_args(ChannelInit)
        if self.new_channels_init_mode not in choices:
            raise UsageError(
                f"new_channels_init_mode: got {self.new_channels_init_mode!r}, expected one of {', '.join(choices)}."
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @staticmethod
    def _check_known(key: str, names: Any, known: tuple[str, ...]) -> None:
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UsageError(f"{key}: unknown {', '.join(map(repr, unknown))}. Known: {', '.join(known)}.")

    @property
    def images(self) -> tuple[str, ...]:
        """Mono-temporal inputs."""
        return tuple(name for name in self.inputs if not modality(name).is_series)

    @property
    def time_series(self) -> tuple[str, ...]:
        """Inputs with a time axis."""
        return tuple(name for name in self.inputs if modality(name).is_series)

    @property
    def n_classes(self) -> int:
        """Classes of all tasks together, width of the logits of a series."""
        return sum(self.tasks.values()) + self.other_classes

    @property
    def series_heads(self) -> bool:
        """Whether a network of series only has a 1x1 convolution per task."""
        return not self.images and (len(self.tasks) > 1 or self.other_classes > 0)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, the inverse of `from_json`."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return _plain({**values, "series": self.series.model_dump()})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NetworkSpec:
        """Build from the dictionary of `to_json`.

        Raises:
            UsageError: A key is unknown or a value does not fit.
        """
        unknown = set(values) - {item.name for item in fields(cls)}
        options = dict(values.get("series", {}))
        unknown |= {f"series.{name}" for name in set(options) - set(SeriesOptions.model_fields)}
        if unknown:
            raise UsageError(f"network: unknown {', '.join(sorted(unknown))}: written by a newer version?")
        try:
            series = SeriesOptions(**options)
        except ValidationError as error:
            raise UsageError(f"network: series: {error}") from error
        return cls(**{**values, "aux": tuple(values.get("aux", ())), "series": series})


def check_series_options(options: SeriesOptions) -> None:
    """Check that the options of a time-series encoder fit together.

    Raises:
        UsageError: They do not; names the key.
    """
    for key, text, _ in options.contradictions():
        raise UsageError(f"{key}: {text}")


def beside_images(options: SeriesOptions, levels: int) -> SeriesOptions:
    """Return the options of a series next to images of so many feature levels: both lists of widths change.

    The widths are powers of two next to evenly spaced numbers around the configured encoder widths.
    """
    low, high = min(options.encoder_widths) - 1, max(options.encoder_widths) + 1
    widths = tuple(2 ** round(log2(int(width))) for width in np.linspace(low, high, levels))
    return options.model_copy(update={"encoder_widths": widths, "decoder_widths": widths})


def series_out_widths(spec: NetworkSpec) -> tuple[int, ...]:
    """Widths of the last block of a series: the configured ones, ending with the classes of all tasks."""
    widths = spec.series.out_conv
    return widths if widths and widths[-1] == spec.n_classes else (*widths, spec.n_classes)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _label_rank(name: str) -> tuple[int, str]:
    return (LABELS.index(name) if name in LABELS else len(LABELS), name)


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
    return NetworkSpec(
        inputs,
        tasks,
        arch,
        sizes,
        series=config.models.multitemp_model.series,
        aux=tuple(name for name in inputs if aux.get(name)) if len(inputs) > 1 else (),
        modality_dropout={name: config.modalities.modality_dropout.get(name, 0.0) for name in inputs},
        new_channels_init_mode=config.models.monotemp_model.new_channels_init_mode,
    )
