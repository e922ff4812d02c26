"""What a network is, as data: inputs, tasks, architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from flairhub.baselines import RECIPE
from flairhub.errors import UsageError
from flairhub.modalities import INPUTS, LABELS, modality

AggMode = Literal["att_group", "att_mean", "mean"]
EncoderNorm = Literal["group", "batch", "instance"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
ChannelInit = Literal["copy_first", "copy_second", "copy_third", "random"]


@dataclass(frozen=True)
class SeriesOptions:
    """The published options of the time-series encoder (U-TAE).

    Attributes:
        encoder_widths: Channels of each stage going down.
        decoder_widths: Channels of each stage going up, finest first.
        out_conv: Widths of the last block; the total number of classes is appended where it differs from the last.
        str_conv_k: Kernel of the strided convolutions.
        str_conv_s: Their stride.
        str_conv_p: Their padding.
        agg_mode: How skip maps lose their time axis.
        encoder_norm: Normalisation inside the spatial encoder.
        n_head: Attention heads.
        d_model: Width of the temporal encoder.
        d_k: Width of a key.
        pad_value: Value that padded dates carry in published data. Masks say what is padding, so it has no effect.
        padding_mode: Spatial padding of the convolutions.
    """

    encoder_widths: tuple[int, ...] = (64, 64, 64, 128)
    decoder_widths: tuple[int, ...] = (32, 32, 64, 128)
    out_conv: tuple[int, ...] = (32, 19)
    str_conv_k: int = 3
    str_conv_s: int = 1
    str_conv_p: int = 1
    agg_mode: AggMode = "att_group"
    encoder_norm: EncoderNorm = "group"
    n_head: int = 16
    d_model: int = 256
    d_k: int = 4
    pad_value: float | None = 0
    padding_mode: PaddingMode = "reflect"

    def __post_init__(self) -> None:
        for name in ("encoder_widths", "decoder_widths", "out_conv"):
            object.__setattr__(self, name, tuple(int(width) for width in getattr(self, name)))
        if len(self.encoder_widths) != len(self.decoder_widths):
            raise UsageError(
                f"encoder_widths has {len(self.encoder_widths)} stages and decoder_widths "
                f"{len(self.decoder_widths)}: give both the same number."
            )
        if self.encoder_widths[-1] != self.decoder_widths[-1]:
            raise UsageError(
                f"the last of encoder_widths ({self.encoder_widths[-1]}) and of decoder_widths "
                f"({self.decoder_widths[-1]}) must be equal: both belong to the deepest stage."
            )
        for name, kind in (("agg_mode", AggMode), ("encoder_norm", EncoderNorm), ("padding_mode", PaddingMode)):
            _check_choice(name, getattr(self, name), get_args(kind))
        for name, width in (("d_model", self.d_model), ("last encoder width", self.encoder_widths[-1])):
            if width % self.n_head:
                raise UsageError(f"{name} {width} is not divisible by n_head {self.n_head}.")


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
        _check_choice("new_channels_init_mode", self.new_channels_init_mode, get_args(ChannelInit))

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
        return _plain(asdict(self))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NetworkSpec:
        """Build from the dictionary of `to_json`.

        Raises:
            UsageError: A key is unknown or a value does not fit.
        """
        unknown = set(values) - {item.name for item in fields(cls)}
        options = dict(values.get("series", {}))
        unknown |= {f"series.{name}" for name in set(options) - {item.name for item in fields(SeriesOptions)}}
        if unknown:
            raise UsageError(f"network: unknown {', '.join(sorted(unknown))}: written by a newer version?")
        return cls(**{**values, "aux": tuple(values.get("aux", ())), "series": SeriesOptions(**options)})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _label_rank(name: str) -> tuple[int, str]:
    return (LABELS.index(name) if name in LABELS else len(LABELS), name)


def _check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{key}: got {value!r}, expected one of {', '.join(choices)}.")
