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
from flairhub.timeseries import SeriesPreparation

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
        dataset: One variable per image the model takes, named by modality, (band, y, x); NaN = no data.
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
    valid = np.ones((height, width), dtype=bool)
    for values in arrays.values():
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(axis=0)
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
        batch = Batch(inputs, {}, {}, {}, torch.arange(len(places)))
        prepared = prepare_batch(batch, ref.preparations, network.device)
        prepared.inputs.update({name: torch.nan_to_num(values, nan=0.0) for name, values in prepared.inputs.items()})
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
    return {name: np.ascontiguousarray(dataset[name].transpose("band", "y", "x").values) for name in ref.preparations}


def _window(values: NDArray[Any], y: int, x: int, size: int) -> NDArray[Any]:
    part = values[:, y : y + size, x : x + size]
    return np.pad(part, ((0, 0), (0, size - part.shape[1]), (0, size - part.shape[2])), mode="symmetric")


def _checked(outputs: Sequence[Output]) -> tuple[Output, ...]:
    if not outputs or set(outputs) - {"class", "confidence"}:
        raise UsageError(f"outputs: got {list(outputs)}, expected some of class, confidence.")
    return tuple(dict.fromkeys(outputs))


def _name(task: str, output: str, ref: ModelRef) -> str:
    return output if len(ref.tasks) == 1 else f"{output}_{task}"
