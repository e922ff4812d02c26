"""The maps of a model as lazy xarray, computed block by block when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dask.array as da
import numpy as np
import rioxarray  # noqa: F401  (adds `.rio`)
import xarray as xr
from numpy.typing import NDArray

from flairhub.errors import UsageError
from flairhub.inference.block import DTYPES, OUTPUTS, predict_block
from flairhub.inference.block_graph import block_array
from flairhub.inference.forward import PLAIN, Output, Style
from flairhub.inference.network import ModelRef, model_ref
from flairhub.inference.plan import MapPlan, fitted, map_sizes, plan_map
from flairhub.zones import Zone

if TYPE_CHECKING:
    from flairhub.models import Model


def predict_zone(
    zone: Zone,
    model: Model | ModelRef | str | Path,
    *,
    block_px: int | None = None,
    outputs: Sequence[Output] = ("class",),
    tasks: Sequence[str] | None = None,
    batch_size: int | None = None,
    window_px: int | None = None,
    margin_px: int | None = None,
    output_px_m: float | None = None,
    device: str | None = None,
    style: Style = PLAIN,
) -> xr.Dataset:
    """Map a model over a zone, lazily: computing a slice reads and predicts only the blocks it touches.

    Building the Dataset reads no pixel and calls no network. A bundle given by path is loaded once per process and
    works on every dask scheduler; a model object works in this process (threads).

    Args:
        zone: The rasters, from `open_zone`.
        model: Path of a bundle, or a loaded model.
        block_px: Largest dask chunk along y and x in output pixels; default 2048, less for long series.
        outputs: Any of `class`, `confidence`, `probabilities`, `scaled`.
        tasks: Which of the model's tasks; default all.
        batch_size: Windows per call of the network; default as in the zone's configuration.
        window_px: Window length in finest pixels, instead of the configured one.
        margin_px: Margin in finest pixels, instead of the configured one.
        output_px_m: Pixel of the maps in metres, instead of the configured one.
        device: torch device; default: the CPU for a path, the model's own for a loaded one.
        style: Blending, precision, flips, missing inputs.

    Returns:
        Dataset on the output grid with coordinates `x`, `y` (pixel centres), `spatial_ref` and, with probabilities,
        `class_name`: `class` (y, x) uint8, 255 = no data; `confidence` (y, x) float32 0-1, NaN = no data;
        `probabilities` (class_name, y, x) float32, NaN = no data; `scaled` (class_name, y, x) uint8
        round(255 x probability), all 0 = no data. With several tasks every name ends in `_<task>`.

    Raises:
        ZoneError: Zone and model do not fit.
        UsageError: An unknown output or task, or sizes that cannot be.
    """
    unknown = [output for output in outputs if output not in OUTPUTS]
    if unknown or not outputs:
        raise UsageError(f"outputs: got {list(outputs)}, expected some of {', '.join(OUTPUTS)}.")
    ref = model_ref(model, device)
    if tasks is not None:
        ref = ref.select_tasks(tuple(tasks))
    ref = fitted(zone, ref)
    sizes = map_sizes(zone, window_px, margin_px, output_px_m, batch_size)
    plan = plan_map(zone, ref, sizes, block_px, style)
    wanted = tuple(dict.fromkeys(outputs))
    # One task per block makes all outputs together; what the arrays hold is picked from its result.
    packed = block_array(plan, ref.preparations, partial(_packed, ref, wanted))
    dataset = xr.Dataset(coords=plan.geobox.coords())
    for task in ref.tasks:
        suffix = "" if len(ref.tasks) == 1 else f"_{task.label}"
        for output in wanted:
            array, dims = _picked(packed, (task.label, output), task.n_classes, suffix)
            dataset[output + suffix] = xr.Variable(dims, array, _attributes(task, output))
            if len(dims) == 3:
                dataset = dataset.assign_coords({dims[0]: list(task.names)})
    return dataset.rio.write_crs(zone.geobox.crs_wkt).rio.write_transform(plan.geobox.affine())


def _packed(
    model: ModelRef, outputs: tuple[Output, ...], plan: MapPlan, block: tuple[int, int]
) -> dict[tuple[str, Output], NDArray[Any]]:
    return predict_block(plan, model, block, outputs)[0]


def _picked(packed: da.Array, key: tuple[str, Output], n_classes: int, suffix: str) -> tuple[da.Array, tuple[str, ...]]:
    dtype, flat = DTYPES[key[1]], key[1] in ("class", "confidence")
    pick = partial(_pick, key)
    name = f"{key[1]}{suffix}-{uuid4().hex}"
    if flat:
        meta = np.empty((0, 0), dtype=dtype)
        return da.map_blocks(pick, packed, dtype=dtype, meta=meta, chunks=packed.chunks, name=name), ("y", "x")
    meta = np.empty((0, 0, 0), dtype=dtype)
    chunks = ((n_classes,), *packed.chunks)
    array = da.map_blocks(pick, packed, dtype=dtype, meta=meta, chunks=chunks, new_axis=0, name=name)
    return array, (f"class_name{suffix}", "y", "x")


def _pick(key: tuple[str, Output], block: dict[tuple[str, Output], NDArray[Any]]) -> NDArray[Any]:
    return block[key]


def _attributes(task: Any, output: Output) -> dict[str, Any]:
    attributes: dict[str, Any] = {"task": task.label, "class_names": list(task.names)}
    return attributes | {"_FillValue": 255} if output == "class" else attributes
