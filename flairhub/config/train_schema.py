"""Schema of the training configuration: the four published YAML files, key by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict, create_model

from flairhub.config.base import (
    AverageChoice,
    BatchSize,
    Channels,
    ClassNames,
    ClassWeights,
    Count,
    CountOrZero,
    FilePath,
    FillChoice,
    Flag,
    Fraction,
    FrozenDict,
    FrozenMapping,
    InputFlags,
    InputFractions,
    InputName,
    LabelName,
    NonNegative,
    NormChoice,
    Number,
    OptionalPath,
    OptionalText,
    Percent,
    PlainName,
    Positive,
    Processes,
    ProcessesOrZero,
    RefDate,
    Section,
    Statistics,
    Text,
    expected,
)
from flairhub.modalities import INPUTS, MODALITIES, Kind
from flairhub.shown import facts_html

Beta = Annotated[float, Strict(), Field(ge=0, lt=1)]
OptimizerName = Literal["adamw", "adam", "sgd"]
ScheduleName = Literal["one_cycle_lr", "reduce_on_plateau", "cycle_then_plateau"]
ChannelInit = Literal["copy_first", "copy_second", "copy_third", "random"]
PaddingMode = Literal["reflect", "zeros", "replicate", "circular"]
NORM_GROUPS = 4
"""Groups of the group norm in the time-series encoder."""
IMAGES = tuple(name for name in INPUTS if MODALITIES[name].kind is Kind.IMAGE)


class Paths(Section):
    """Files and folders; relative paths count from the current directory."""

    out_folder: FilePath
    out_model_name: PlainName = "model"
    train_csv: OptionalPath = None
    val_csv: OptionalPath = None
    test_csv: OptionalPath = None
    global_mtd_folder: OptionalPath = None
    ckpt_model_path: OptionalPath = None
    cube: OptionalText = None
    data_root: OptionalPath = None

    @property
    def split_csvs(self) -> dict[str, Path | None]:
        """The CSV of each split, by the name that cubes give it."""
        return {"train": self.train_csv, "valid": self.val_csv, "test": self.test_csv}


class TrainTasks(Section):
    """What training starts from."""

    init_weights_only_from_ckpt: Flag = False
    resume_training_from_ckpt: Flag = False


class Tasks(Section):
    """Which phases run. `metrics_only` wins over `train` and `predict`."""

    train: Flag = True
    train_tasks: TrainTasks = TrainTasks()
    predict: Flag = True
    write_files: Flag = True
    georeferencing_output: Flag = True
    metrics_only: Flag = False
    test_time_augmentation: Flag = False

    @property
    def trains(self) -> bool:
        """True when the network is trained."""
        return self.train and not self.metrics_only

    @property
    def predicts(self) -> bool:
        """True when the test patches go through the network."""
        return self.predict and not self.metrics_only


class Losses(Section):
    """Weight of each loss on the class logits of a task; 0 = left out."""

    cross_entropy: NonNegative = 1.0
    dice: NonNegative = 0.0
    lovasz: NonNegative = 0.0
    focal: NonNegative = 0.0


class Hyperparams(Section):
    """The optimisation."""

    num_epochs: Count = 150
    batch_size: BatchSize = 5
    seed: Annotated[int, Strict(), Field(ge=0, lt=2**32)] = 2025
    learning_rate: Positive = 5e-5
    optimizer: OptimizerName = "adamw"
    optim_weight_decay: NonNegative = 0.01
    optim_betas: tuple[Beta, Beta] = (0.9, 0.999)
    scheduler: ScheduleName = "one_cycle_lr"
    warmup_fraction: Fraction = 0.2
    plateau_patience: CountOrZero = 10
    accumulate: Count = 1
    gradient_clip: NonNegative = 0.0
    ema: Beta = 0.0
    losses: Losses = Losses()


class Hardware(Section):
    """Where and how fast it runs; no key changes what is computed, `precision` and `compile` apart."""

    accelerator: Literal["auto", "gpu", "cpu"] = "auto"
    num_nodes: Processes = 1
    gpus_per_node: Processes = 1
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"] = "auto"
    num_workers: ProcessesOrZero = 0
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    threads: ProcessesOrZero | None = None
    compile: Flag = False
    scheduler: OptionalText = None


class Saving(Section):
    """Checkpoints and what is shown."""

    ckpt_save_also_last: Flag = True
    ckpt_weights_only: Flag = False
    ckpt_monitor: Text = "val_miou"
    ckpt_monitor_mode: Literal["max", "min"] = "max"
    ckpt_earlystopping_patience: CountOrZero = 30
    ckpt_every_n_steps: CountOrZero = 0
    cp_csv_and_conf_to_output: Flag = True
    enable_progress_bar: Flag = True
    progress_rate: Count = 10
    ckpt_verbose: Flag = False
    verbose_config: Flag = False
    log_images: CountOrZero = 4


class PreProcessings(Section):
    """Series filter and averages, elevation, augmentation."""

    filter_sentinel2: Flag = False
    filter_sentinel2_max_cloud: Percent = 1.0
    filter_sentinel2_max_snow: Percent = 1.0
    filter_sentinel2_max_frac_cover: Fraction = 0.05
    temporal_average_sentinel2: AverageChoice = False
    temporal_average_sentinel1: AverageChoice = False
    temporal_average_fill: FillChoice = "masked"
    calc_elevation: Flag = False
    calc_elevation_stack_dsm: Flag = False
    use_augmentation: Flag = False
    augmentation_brightness: Fraction = 0.0
    augmentation_contrast: Fraction = 0.0


class NormalizationBase(Section):
    """Normalisation of images; the keys `<modality>_means` and `<modality>_stds` come from the modality table."""

    norm_type: NormChoice = "custom"

    def means(self, name: str) -> Any:
        """Configured means of a modality: tuple, mapping by band name, or None."""
        return getattr(self, f"{name}_means", None)

    def stds(self, name: str) -> Any:
        """Configured standard deviations of a modality: tuple, mapping by band name, or None."""
        return getattr(self, f"{name}_stds", None)


if TYPE_CHECKING:
    Normalization = NormalizationBase
else:
    Normalization = create_model(
        "Normalization",
        __base__=NormalizationBase,
        __module__=__name__,
        **{f"{name}_{kind}": (Statistics, None) for name in IMAGES for kind in ("means", "stds")},
    )


class Modalities(Section):
    """Inputs and their preparation."""

    inputs: InputFlags
    inputs_channels: FrozenMapping[InputName, Channels] = FrozenDict()
    aux_loss: InputFlags = FrozenDict(dict.fromkeys(INPUTS, False))
    aux_loss_weight: NonNegative = 1.0
    modality_dropout: InputFractions = FrozenDict(dict.fromkeys(INPUTS, 0.0))
    pre_processings: PreProcessings = PreProcessings()
    normalization: Normalization = Normalization()
    missing: Literal["error", "drop"] = "error"

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the enabled inputs, in network order."""
        return tuple(name for name, enabled in self.inputs.items() if enabled)


def _as_pretrained(value: Any) -> Any:
    if isinstance(value, (bool, Path)):
        return value
    if isinstance(value, str) and value.strip() and "\0" not in value:
        return Path(value)
    raise expected("true, false, or the path of a local weights file")


class MonotempModel(Section):
    """Encoder and decoder of single-date inputs, and the decoder of every task."""

    arch: OptionalText = None
    new_channels_init_mode: ChannelInit = "random"
    pretrained: Annotated[bool | Path, BeforeValidator(_as_pretrained)] = True


class SeriesOptions(Section):
    """The published options of the time-series encoder, U-TAE (Garnot & Landrieu 2021).

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

    encoder_widths: Annotated[tuple[Count, ...], Field(min_length=2)] = (64, 64, 64, 128)
    decoder_widths: Annotated[tuple[Count, ...], Field(min_length=2)] = (32, 32, 64, 128)
    out_conv: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 19)
    str_conv_k: Count = 3
    str_conv_s: Count = 1
    str_conv_p: CountOrZero = 1
    agg_mode: Literal["att_group", "att_mean", "mean"] = "att_group"
    encoder_norm: Literal["group", "batch", "instance"] = "group"
    n_head: Count = 16
    d_model: Count = 256
    d_k: Count = 4
    pad_value: Number = 0.0
    padding_mode: PaddingMode = "reflect"

    def __init__(self, *values: Any, **named: Any) -> None:
        """Take values by key or, from Python, by position: `SeriesOptions((64, 64), (32, 64))`."""
        super().__init__(**dict(zip(list(type(self).model_fields)[: len(values)], values, strict=True)), **named)

    def contradictions(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Yield what does not fit together: the key it is about, a sentence, and the keys that it rests on."""
        encoder, decoder = self.encoder_widths, self.decoder_widths
        both = ("encoder_widths", "decoder_widths")
        if len(encoder) != len(decoder):
            text = f"{len(decoder)} widths, but encoder_widths has {len(encoder)}: one per stage in both."
            yield "decoder_widths", text, both
        elif encoder[-1] != decoder[-1]:
            text = f"the last width is {decoder[-1]}, but encoder_widths ends with {encoder[-1]}: both must be equal."
            yield "decoder_widths", text, both
        odd = [width for width in encoder if width % NORM_GROUPS]
        if odd and self.encoder_norm == "group":
            text = f"got {odd}, expected multiples of {NORM_GROUPS} (groups of the normalisation)."
            yield "encoder_widths", text, ()
        if self.d_model % self.n_head:
            yield "d_model", f"got {self.d_model}, expected a multiple of n_head = {self.n_head}.", ("n_head",)
        split = encoder if self.agg_mode == "att_group" else encoder[-1:]
        uneven = [width for width in split if width % self.n_head]
        if uneven:
            text = f"{self.n_head} does not divide the encoder widths {uneven} into equal groups, one per head."
            yield "n_head", text, ("encoder_widths", "agg_mode")


class MultitempModel(SeriesOptions):
    """The time-series encoder, and the day that the offsets of its dates count from."""

    ref_date: RefDate = "05-15"

    @property
    def series(self) -> SeriesOptions:
        """What builds the encoder."""
        return SeriesOptions(**{name: getattr(self, name) for name in SeriesOptions.model_fields})


def _texts_as_keys(values: Any) -> Any:
    """Have a key that YAML reads as a number or a date reported as unknown; `__init__` could not even take it."""
    return {str(key): value for key, value in values.items()} if isinstance(values, Mapping) else values


class Models(Section):
    """The network."""

    monotemp_model: MonotempModel = MonotempModel()
    multitemp_model: Annotated[MultitempModel, BeforeValidator(_texts_as_keys)] = MultitempModel()


class ValueWeights(Section):
    """Class weights of the loss; weight 0 = ignored class."""

    default: NonNegative = 1.0
    default_exceptions: ClassWeights = FrozenDict()
    per_modality_exceptions: FrozenMapping[InputName, ClassWeights] = FrozenDict()


class LabelConfig(Section):
    """One task: weight, nomenclature, classes."""

    task_weight: NonNegative = 1.0
    label_channel_nomenclature: Count = 1
    value_name: ClassNames = FrozenDict()
    value_weights: ValueWeights = ValueWeights()


def _check_labels(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or len(set(value)) != len(value):
        raise expected("a list of at least one label set, each once")
    return value


def _empty_label_is_default(value: Any) -> Any:
    return {name: {} if entry is None else entry for name, entry in value.items()} if isinstance(value, dict) else value


class TrainConfig(Section):
    """The whole training configuration; attributes are the published keys."""

    paths: Paths
    tasks: Tasks = Tasks()
    hyperparams: Hyperparams = Hyperparams()
    hardware: Hardware = Hardware()
    saving: Saving = Saving()
    modalities: Modalities
    models: Models = Models()
    labels: Annotated[tuple[LabelName, ...], AfterValidator(_check_labels)]
    labels_configs: Annotated[
        dict[LabelName, LabelConfig], BeforeValidator(_empty_label_is_default), AfterValidator(FrozenDict)
    ]

    def __repr__(self) -> str:
        facts = self._facts()
        return f"<TrainConfig {facts['model']}: {facts['inputs']} -> {facts['labels']}, {facts['epochs']} epochs>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return facts_html("TrainConfig", self._facts())

    def _facts(self) -> dict[str, Any]:
        hyperparams, active = self.hyperparams, self.modalities.active
        return {
            "model": self.paths.out_model_name,
            "inputs": ", ".join(active),
            "labels": ", ".join(self.labels),
            "epochs": hyperparams.num_epochs,
            "batch size": hyperparams.batch_size,
            "learning rate": hyperparams.learning_rate,
        }
