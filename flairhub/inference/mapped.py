"""A block function for `xarray.map_blocks`: one Dataset with its halo in, classes out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from flairhub.data.batch import Batch
from flairhub.data.prepare import prepare_batch
from flairhub.errors import UsageError, ZoneError
from flairhub.inference.block import DTYPES
from flairhub.inference.forward import PLAIN, Output, window_outputs
from flairhub.inference.network import ModelRef, load, model_ref
from flairhub.modalities import MODALITIES
from flairhub.timeseries import SeriesPreparation
from flairhub.validity import valid_pixels

if TYPE_CHECKING:
    from pathlib import Path

    from flairhub.models import Model


def block_template(dataset: xr.Dataset, model: Model | ModelRef | str | Path, outputs: Sequence[Output]) -> xr.Dataset:
    """Return the lazy template that `predict_block_dataset` fills: give it to `xr.map_blocks(template=...)`.

    Args:
        dataset: See `predict_block_dataset`; chunked along `y` and `x`, other dimensions in one chunk.
        model: Path of a bundle, or a loaded model.
        outputs: `class`, `confidence`.
    """
    import dask.array as da

    ref = model_ref(model)
    chunks = tuple(dataset.chunks[name] if dataset.chunks else (dataset.sizes[name],) for name in ("y", "x"))
    shape = dataset.sizes["y"], dataset.sizes["x"]
    variables = {
        _name(task.label, output, ref): (("y", "x"), da.zeros(shape, chunks=chunks, dtype=DTYPES[output]))
        for task in ref.tasks
        for output in _checked(outputs)
    }
    return xr.Dataset(variables, coords=_axes(dataset))


def predict_block_dataset(
    dataset: xr.Dataset,
    model: Model | ModelRef | str | Path,
    window_px: int,
    outputs: Sequence[Output] = ("class",),
    batch_size: int = 4,
) -> xr.Dataset:
    """Predict a Dataset whose images share one grid: works directly with `xr.map_blocks`.

        maps = xr.map_blocks(predict_block_dataset, images, args=[bundle, 256],
                             template=block_template(images, bundle, ("class",)))

    The block is cut into windows that touch, without overlap: chunks should be multiples of `window_px`, so that no
    window is padded (its missing part is the mirror image). For overlapping windows and inputs of several
    resolutions there is `predict_zone`.

    Args:
        dataset: One variable per image the model takes, named by modality, (band, y, x); without data where it is NaN
            or the declared `_FillValue`. A coordinate `band` says which band is which.
        model: Path of a bundle (any dask scheduler) or a loaded model (threads).
        window_px: Window length.
        outputs: `class` uint8, 255 = no data; `confidence` float32, NaN = no data.
        batch_size: Windows per call of the network.

    Returns:
        Dataset on the same `y` and `x`, without other coordinates (`.assign_coords(spatial_ref=...)` brings the CRS
        back); with several tasks every name ends in `_<task>`.

    Raises:
        ZoneError: An input of the model is missing or is a time series.
    """
    ref = model_ref(model)
    height, width = dataset.sizes["y"], dataset.sizes["x"]
    arrays = _arrays(dataset, ref)
    validity: dict[str, NDArray[np.bool_]] = {}
    valid = np.ones((height, width), dtype=bool)
    for name, values in arrays.items():
        row = MODALITIES[name]
        channels = ref.preparations[name].channels
        has_data = valid_pixels(values, _nodata(dataset[name]), None, channels, row.is_elevation)
        if has_data is not None:
            validity[name] = has_data
            valid &= has_data
    tasks = [(task.label, task.n_classes) for task in ref.tasks]
    wanted = _checked(outputs)
    result = {
        (task, output): np.zeros((height, width), DTYPES[output]) for task, output in product(dict(tasks), wanted)
    }
    corners = product(range(0, height, window_px), range(0, width, window_px))
    needed = [(y, x) for y, x in corners if valid[y : y + window_px, x : x + window_px].any()]
    network = load(ref)
    for start in range(0, len(needed), batch_size):
        places = needed[start : start + batch_size]
        inputs = {
            name: torch.from_numpy(np.stack([_window(values, y, x, window_px) for y, x in places]))
            for name, values in arrays.items()
        }
        masks = {
            name: torch.from_numpy(np.stack([_window(has_data[None], y, x, window_px)[0] for y, x in places]))
            for name, has_data in validity.items()
        }
        batch = Batch(inputs, {}, {}, {}, torch.arange(len(places)), valid=masks)
        prepared = prepare_batch(batch, ref.preparations, network.device)
        found = window_outputs(network, prepared, (window_px, window_px), tasks, wanted, PLAIN)
        for key, array in result.items():
            for (y, x), window in zip(places, found[key], strict=True):
                part = array[y : y + window_px, x : x + window_px]
                part[:] = window[: part.shape[0], : part.shape[1]]
    for (_, output), array in result.items():
        array[~valid] = np.nan if output == "confidence" else 255
    variables = {_name(task, output, ref): (("y", "x"), values) for (task, output), values in result.items()}
    return xr.Dataset(variables, coords=_axes(dataset))


def _axes(dataset: xr.Dataset) -> dict[str, Any]:
    # Other coordinates (the CRS) would be computed from a block, even where only another one is asked for.
    return {name: dataset.coords[name].variable for name in ("y", "x") if name in dataset.coords}


def _arrays(dataset: xr.Dataset, ref: ModelRef) -> dict[str, NDArray[Any]]:
    for name, preparation in ref.preparations.items():
        if isinstance(preparation, SeriesPreparation):
            raise ZoneError(f"{name} is a time series on its own grid. Use predict_zone for models that take series.")
        if name not in dataset:
            raise ZoneError(f"the model takes {name}, but the dataset has {', '.join(map(str, dataset.data_vars))}.")
    return {
        name: np.ascontiguousarray(_in_file_order(dataset[name], name).transpose("band", "y", "x").values)
        for name in ref.preparations
    }


def _in_file_order(array: xr.DataArray, name: str) -> xr.DataArray:
    """Bands by their numbers or names where the array has them: channels count the bands of a file.

    Raises:
        ZoneError: Its bands are neither numbered 1..N nor the modality's.
    """
    if "band" not in array.coords:
        return array
    given, names = array["band"].values.tolist(), list(MODALITIES[name].bands)
    for expected in (list(range(1, len(given) + 1)), names):
        if set(given) == set(expected) and len(given) == len(expected):
            return array.isel(band=[given.index(band) for band in expected])
    raise ZoneError(f"{name}: bands {given}, expected the numbers 1..{len(given)} or the names {', '.join(names)}.")


def _nodata(array: xr.DataArray) -> float | None:
    """The declared value without meaning, as rioxarray and xarray keep it."""
    for facts in (array.attrs, array.encoding):
        for key in ("_FillValue", "nodata", "missing_value"):
            if facts.get(key) is not None:
                return float(facts[key])
    return None


def _window(values: NDArray[Any], y: int, x: int, size: int) -> NDArray[Any]:
    part = values[:, y : y + size, x : x + size]
    return np.pad(part, ((0, 0), (0, size - part.shape[1]), (0, size - part.shape[2])), mode="symmetric")


def _checked(outputs: Sequence[Output]) -> tuple[Output, ...]:
    if not outputs or set(outputs) - {"class", "confidence"}:
        raise UsageError(f"outputs: got {list(outputs)}, expected some of class, confidence.")
    return tuple(dict.fromkeys(outputs))


def _name(task: str, output: str, ref: ModelRef) -> str:
    return output if len(ref.tasks) == 1 else f"{output}_{task}"
