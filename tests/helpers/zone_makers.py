"""Made zones and networks with a known receptive field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.transform import from_origin
from torch import nn

from flairhub.modalities import MODALITIES
from flairhub.prepare import ImagePreparation, prepare_image
from flairhub.tasks import Task, default_task
from flairhub.timeseries import SeriesPreparation, prepare_series
from flairhub.zones import RasterRequest, Zone, build_zone

X_MIN, Y_MAX = 650_000.0, 6_860_000.0


def write_raster(
    path: Path,
    values: NDArray[Any],
    res_m: float,
    crs: str = "EPSG:2154",
    origin: tuple[float, float] = (X_MIN, Y_MAX),
    **profile: Any,
) -> Path:
    """Write (band, y, x) as a tiled GeoTIFF."""
    options: dict[str, Any] = {
        "driver": "GTiff",
        "count": values.shape[0],
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype.name,
        "crs": crs,
        "transform": from_origin(*origin, res_m, res_m),
        "tiled": True,
        "blockxsize": 16,
        "blockysize": 16,
        "compress": "deflate",
        **profile,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **options) as dataset:
        dataset.write(values)
    return path


def made_values(name: str, n_dates: int, height: int, width: int, seed: int = 0) -> NDArray[Any]:
    """(band, y, x) values of a raster: small whole numbers, so that float32 sums are exact."""
    row = MODALITIES[name]
    rng = np.random.default_rng([seed, len(name), height, width])
    n_bands = len(row.bands) * (n_dates if row.is_series else 1)
    return rng.integers(0, 100, (n_bands, height, width)).astype(row.dtype)


def made_dates(n_dates: int, seed: int = 0) -> NDArray[np.datetime64]:
    days = np.sort(np.random.default_rng(seed).choice(365, n_dates, replace=False))
    return np.datetime64("2021-01-01", "D") + days


@dataclass(frozen=True)
class MadeZone:
    """Files of a zone and the arrays they hold."""

    folder: Path
    arrays: Mapping[str, NDArray[Any]]
    dates: Mapping[str, NDArray[np.datetime64]]
    requests: tuple[RasterRequest, ...]

    def open(self, window_px: int, margin_px: int, **options: Any) -> Zone:
        """The zone; sizes are those that a configuration would suggest."""
        return open_sized(self.requests, window_px=window_px, margin_px=margin_px, **options)


def open_sized(requests: Sequence[RasterRequest], *, resample: bool = False, **sizes: Any) -> Zone:
    """Open a zone as a configuration with these sizes of windows does."""
    return build_zone(requests, resample=resample, suggested=sizes)


def make_zone(
    folder: Path,
    height: int,
    width: int,
    ratios: Mapping[str, Any],
    res_m: float = 0.2,
    n_dates: int = 5,
    quality: bool = False,
    profiles: Mapping[str, Mapping[str, Any]] | None = None,
) -> MadeZone:
    """Write one raster per modality of `ratios` (finest pixels per pixel) over one footprint."""
    arrays, dates, requests = {}, {}, []
    for name, ratio in ratios.items():
        own = (int(height / ratio), int(width / ratio))
        arrays[name] = made_values(name, n_dates, *own)
        profile = (profiles or {}).get(name, {})
        path = write_raster(folder / f"{name}.tif", arrays[name], float(res_m * ratio), **profile)
        dates_path = quality_path = None
        if MODALITIES[name].is_series:
            dates[name] = made_dates(n_dates)
            dates_path = write_dates(folder / f"{name}.txt", dates[name])
            mask_name = MODALITIES[name].quality_mask
            if quality and mask_name:
                arrays[mask_name] = made_values(mask_name, n_dates, *own, seed=1)
                quality_path = write_raster(folder / f"{mask_name}.tif", arrays[mask_name], float(res_m * ratio))
        requests.append(RasterRequest(name, path, dates_path, quality_path, f"modalities.{name}"))
    return MadeZone(folder, arrays, dates, tuple(requests))


def write_dates(path: Path, dates: NDArray[np.datetime64]) -> Path:
    path.write_text("".join(f"{str(day).replace('-', '')}\n" for day in dates))
    return path


@dataclass
class FakeOutput:
    logits: dict[str, torch.Tensor]


class SmallField(nn.Module):
    """Whole-number 3x3 filters per modality, summed on the finest grid: receptive field of one pixel of each.

    Arithmetic stays in whole numbers below 2^24, so every order of summation gives the same bits. A series enters as
    its masked sum over time, weighted by day offset parity, so that dates, masks and padding matter.
    """

    def __init__(self, channels: Mapping[str, int], tasks: Mapping[str, int]):
        super().__init__()
        self.tasks, self.calls, self.samples = dict(tasks), 0, 0
        self.filters = nn.ModuleDict()
        generator = torch.Generator().manual_seed(1)
        for name, n_channels in channels.items():
            layer = nn.Conv2d(n_channels, sum(tasks.values()), 3, padding=1, padding_mode="zeros", bias=False)
            weights = torch.randint(-3, 4, layer.weight.shape, generator=generator).float()
            # Filters that sum to zero tell neighbours apart instead of showing the mean.
            weights[:, :, 1, 1] -= weights.sum(dim=(2, 3))
            layer.weight = nn.Parameter(weights, requires_grad=False)
            self.filters[name] = layer

    def forward(
        self,
        inputs: Mapping[str, torch.Tensor],
        dates: Mapping[str, torch.Tensor] | None = None,
        masks: Mapping[str, torch.Tensor] | None = None,
        size: tuple[int, int] | None = None,
        aux: bool = False,
        present: Mapping[str, torch.Tensor] | None = None,
    ) -> FakeOutput:
        self.calls += 1
        self.samples += len(next(iter(inputs.values())))
        total: Any = 0
        for name, values in inputs.items():
            if values.ndim == 5:
                assert dates is not None
                assert masks is not None
                weight = masks[name] * (1 + dates[name].abs() % 3)
                values = (values * weight[:, :, None, None, None]).sum(dim=1)
            maps = self.filters[name](values)
            assert size is not None
            total = total + nn.functional.interpolate(maps, size=size, mode="nearest-exact")
        parts = torch.split(total / 64, list(self.tasks.values()), dim=1)
        return FakeOutput(dict(zip(self.tasks, parts, strict=True)))


@dataclass(frozen=True)
class FakeModel:
    network: nn.Module
    preparations: Mapping[str, ImagePreparation | SeriesPreparation]
    tasks: tuple[Task, ...]


def fake_model(
    preparations: Mapping[str, ImagePreparation | SeriesPreparation],
    labels: Sequence[str] = ("AERIAL_LABEL-COSIA",),
) -> FakeModel:
    channels = {name: prep.n_channels(len(MODALITIES[name].bands)) for name, prep in preparations.items()}
    tasks = tuple(default_task(label) for label in labels)
    network = SmallField(channels, {task.label: task.n_classes for task in tasks}).eval()
    return FakeModel(network, preparations, tasks)


def whole_area_logits(made: MadeZone, zone: Zone, model: FakeModel) -> dict[str, NDArray[np.float32]]:
    """One forward pass over the whole area, reflected far beyond its edges: (class, y, x) by task."""
    pad = zone.lattice_px * (-(-4 // zone.lattice_px))
    inputs, dates, masks = {}, {}, {}
    for name, preparation in model.preparations.items():
        own = int(pad / zone.ratio(name))
        values = np.pad(made.arrays[name], ((0, 0), (own, own), (own, own)), mode="symmetric")
        if isinstance(preparation, SeriesPreparation):
            values = values.reshape(-1, len(MODALITIES[name].bands), *values.shape[1:])
            series = prepare_series(values, made.dates[name], None, preparation)
            inputs[name] = torch.from_numpy(series.values[None]).float()
            dates[name] = torch.from_numpy(series.offsets[None])
            masks[name] = torch.from_numpy(series.valid[None])
        else:
            inputs[name] = torch.from_numpy(prepare_image(values[None], preparation))
    size = (zone.geobox.height + 2 * pad, zone.geobox.width + 2 * pad)
    with torch.inference_mode():
        logits = model.network(inputs, dates, masks, size=size).logits
    return {task: maps[0, :, pad:-pad, pad:-pad].numpy() for task, maps in logits.items()}


def whole_area_map(made: MadeZone, zone: Zone, model: FakeModel) -> NDArray[np.uint8]:
    """Classes of the first task over the whole area, (y, x)."""
    logits = whole_area_logits(made, zone, model)[model.tasks[0].label]
    return logits.argmax(axis=0).astype(np.uint8)
