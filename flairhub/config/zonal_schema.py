"""Schema of the zonal configuration: the published YAML, key by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model

from flairhub.config.base import (
    AverageChoice,
    BandNames,
    BatchSize,
    Channels,
    ClassNames,
    Count,
    CountOrZero,
    CrsName,
    FilePath,
    FillChoice,
    Flag,
    Fraction,
    FrozenDict,
    FrozenMapping,
    InputFlags,
    LabelName,
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
    is_weights_file,
)
from flairhub.modalities import INPUTS, MODALITIES, Kind, Modality


class ZonalNormalization(Section):
    """Normalisation of one image."""

    type: NormChoice = "custom"
    means: Statistics = None
    stds: Statistics = None


class ZonalBlock(Section):
    """The raster of one modality."""

    input_img_path: OptionalPath = None
    channels: Channels | None = None
    bands: BandNames | None = None


class ImageBlock(ZonalBlock):
    """A single-date raster."""

    normalization: ZonalNormalization | None = None


class ElevationBlock(ImageBlock):
    """A raster of surface and terrain heights."""

    calc_elevation: Flag | None = None
    calc_elevation_stack_dsm: Flag | None = None


class SeriesBlock(ZonalBlock):
    """A time series, bands of all dates in one raster."""

    dates_txt: OptionalPath = None
    temporal_average: AverageChoice | None = None
    temporal_average_fill: FillChoice | None = None


class FilteredSeriesBlock(SeriesBlock):
    """A time series with a quality mask; thresholds not given are those of `CloudFilter`, or of the bundle."""

    filter_clouds: Flag | None = None
    filter_clouds_img_path: OptionalPath = None
    filter_clouds_max_cloud: Percent | None = None
    filter_clouds_max_snow: Percent | None = None
    filter_clouds_max_frac_cover: Fraction | None = None


def _block_class(row: Modality) -> type[ZonalBlock]:
    if row.kind is Kind.SERIES:
        return FilteredSeriesBlock if row.quality_mask else SeriesBlock
    return ElevationBlock if row.is_elevation else ImageBlock


class ZonalModalitiesBase(Section):
    """Inputs of the map; one block per modality, `modalities.<name>`, comes from the modality table."""

    inputs: InputFlags

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the enabled inputs, in network order."""
        return tuple(name for name, enabled in self.inputs.items() if enabled)

    def block(self, name: str) -> Any:
        """Block of a modality (`ImageBlock`, `SeriesBlock`, ...), an empty one when it is not given."""
        given = getattr(self, name)
        return _block_class(MODALITIES[name])() if given is None else given

    def blocks(self) -> Iterator[tuple[str, Any]]:
        """Name and block of every enabled input, in network order."""
        return ((name, self.block(name)) for name in self.active)


if TYPE_CHECKING:
    ZonalModalities = ZonalModalitiesBase
else:
    ZonalModalities = create_model(
        "ZonalModalities",
        __base__=ZonalModalitiesBase,
        __module__=__name__,
        **{name: (_block_class(MODALITIES[name]) | None, None) for name in INPUTS},
    )


class ZonalTask(Section):
    """A label set to map."""

    name: LabelName
    active: Flag = True
    class_names: ClassNames = FrozenDict()


class ZonalArea(Section):
    """The area of interest: a vector file, a bounding box or GeoJSON."""

    path: OptionalPath = None
    layer: OptionalText = None
    where: OptionalText = None
    bbox: Annotated[tuple[Number, ...], Field(min_length=4, max_length=4)] | None = None
    geometry: FrozenMapping[str, Any] | None = None
    crs: CrsName = None

    @property
    def given(self) -> dict[str, Any]:
        """The keys that are given."""
        return {key: value for key, value in self if value is not None}


def _as_area(value: Any) -> Any:
    """A path, four numbers and GeoJSON stand for themselves."""
    if isinstance(value, str | Path):
        return {"path": value} if str(value).strip() else None
    if isinstance(value, list | tuple):
        return {"bbox": value}
    return {"geometry": value} if isinstance(value, Mapping) and "type" in value else value


class ZonalConfig(Section):
    """The whole zonal configuration; attributes are the published keys.

    Keys that a bundle answers (architecture, reference date, channels, normalisation, tasks, ...) are None or empty
    when not given.
    """

    output_path: FilePath
    output_name: PlainName
    write_dataframe: Flag = False
    output_type: Literal["argmax", "class_prob"] = "argmax"
    cog_conversion: Flag = True

    model_weights: FilePath
    use_gpu: Flag | None = None
    batch_size: BatchSize = 4
    num_worker: ProcessesOrZero = 0

    img_pixels_detection: Count = 512
    margin: CountOrZero = 128
    output_px_meters: Positive | None = None

    monotemp_arch: OptionalText = None
    multitemp_model_ref_date: RefDate | None = None

    cube: OptionalPath = None
    roi: OptionalText = None
    aoi: Annotated[ZonalArea | None, BeforeValidator(_as_area)] = None
    modalities: ZonalModalities
    tasks: tuple[ZonalTask, ...] = ()

    block_px: Count | None = None
    workers: ProcessesOrZero | None = None
    threads: Processes | None = None
    scheduler: OptionalText = None
    overwrite: Flag = False

    overlap: Literal["crop", "blend"] = "crop"
    precision: Literal["float32", "bf16"] = "float32"
    flips: Flag = False
    missing: Literal["nodata", "drop"] = "nodata"
    align: Literal["strict", "resample"] = "strict"

    write_confidence: Flag = False
    write_polygons: Literal[False, "gpkg", "parquet"] = False
    polygon_min_area_m2: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    write_stac: Flag = False
    write_quicklook: Flag = False
    class_language: Literal["en", "fr"] = "en"

    @property
    def is_bundle(self) -> bool:
        """True when `model_weights` names a bundle folder rather than a weights file."""
        return not is_weights_file(self.model_weights)

    @property
    def active_tasks(self) -> tuple[ZonalTask, ...]:
        """Tasks to map, in their order."""
        return tuple(task for task in self.tasks if task.active)
