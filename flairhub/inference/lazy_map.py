"""The maps of a model as xarray: the one function that computes a block of them, and the lazy Dataset.

A block carries the sizes of windows in its attributes and needs nothing else: it finds its windows from its own `x` and
`y`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dask.array as da
import numpy as np
import rioxarray  # noqa: F401  (adds `.rio`)
import xarray as xr
from numpy.typing import NDArray

from flairhub.class_raster import class_attributes
from flairhub.config import Paths, ZonalConfig
from flairhub.errors import UsageError, ZoneError
from flairhub.inference.block import Region, predict_region
from flairhub.inference.block_graph import block_array, zones_in
from flairhub.inference.map_plan import PLAIN, MapPlan, Output, Sizes, Style, fitted, map_sizes, plan_map
from flairhub.inference.model_ref import ModelRef, block_model, model_ref
from flairhub.inference.opening import open_zone
from flairhub.inference.window_outputs import DTYPES, NODATA, OUTPUTS
from flairhub.not_finite import too_many_not_finite
from flairhub.tasks import IGNORE_INDEX, Task
from flairhub.zones import Zone, identity, joined

if TYPE_CHECKING:
    from flairhub.models import Model

Block = tuple[int, int]
MakeArray = Callable[[str, Task, Output], Any]

_TOLERANCE_PX = 0.01
"""How far a coordinate may be off the centre of its pixel."""


def predict_block(
    chunk: xr.Dataset,
    zone: Zone,
    model: Model | ModelRef | str | Path,
    *,
    stop: threading.Event | None = None,
) -> xr.Dataset:
    """Compute a block of the maps of a model: the function for `xr.map_blocks`, which `predict_zone` calls, too.

    Args:
        chunk: Any part of a template of this zone: which pixels (its `x` and `y`) and which variables are wanted. Its
            values do not matter.
        zone: The rasters, as for the template.
        model: Path of a bundle, which a process loads once, or a loaded model, for threads; as for the template.
        stop: When it is set, the block ends after the windows that are being computed.

    Returns:
        The chunk with its values.

    Raises:
        UsageError: The chunk is no part of a template.
        ZoneError: It is one of another zone, zone and model do not fit, or the logits of more than the share
            `flairhub.not_finite.MOST_NOT_FINITE` of the pixels with data are not finite; fewer have no data.
        flairhub.jobs.Stopped: `stop` was set.
    """
    result, region = computed_block(chunk, zone, model, stop)
    for task, count in region.not_finite.items():
        problem = too_many_not_finite(count, region.n_valid, task)
        if problem is not None:
            raise ZoneError(problem)
    return result


def computed_block(
    chunk: xr.Dataset, zone: Zone, model: Model | ModelRef | str | Path, stop: threading.Event | None = None
) -> tuple[xr.Dataset, Region]:
    """Return what `predict_block` does, and what was counted: whoever has other blocks, too, judges them together."""
    facts = chunk.attrs if isinstance(chunk, xr.Dataset) else {}
    if not {"window_px", "margin_px", "tasks"} <= set(facts) or not {"x", "y"} <= set(chunk.coords):
        raise UsageError(
            "predict_block: the block does not say how it is computed. Map over a Dataset of zone.template(model), "
            "with its attributes and its coordinates x and y."
        )
    if facts.get("aoi_sha256") != (None if zone.aoi is None else zone.aoi.digest):
        raise ZoneError("predict_block: the template is of another area of interest. Take a template of the same zone.")
    zone = _zone_of(chunk, zone)
    labels = tuple(np.atleast_1d(facts["tasks"]).tolist())
    ref = fitted(zone, block_model(model, facts.get("device")).select_tasks(labels))
    plan = plan_map(zone, ref, _sizes_of(facts), MAX_BLOCK, _style_of(facts))
    names = {variable_name(output, task, ref.tasks): (task.label, output) for task in ref.tasks for output in OUTPUTS}
    wanted = {name: names[name] for name in chunk.data_vars if name in names}
    if len(wanted) < len(chunk.data_vars):
        raise UsageError(f"predict_block: variables {list(chunk.data_vars)}, expected some of {', '.join(names)}.")
    box = plan.geobox
    rows = _positions(chunk["y"], box.y_max, -box.y_res, box.height)
    cols = _positions(chunk["x"], box.x_min, box.x_res, box.width)
    if not wanted or not rows.size or not cols.size:
        return chunk, Region({}, 0, {})
    spans = plan.on_zone((int(rows.min()), int(rows.max()) + 1), (int(cols.min()), int(cols.max()) + 1))
    region = predict_region(plan, ref, *spans, tuple(dict.fromkeys(output for _, output in wanted.values())), stop)
    values = {name: _filled(chunk[name], region.values[key], rows, cols) for name, key in wanted.items()}
    return chunk.assign(values), region


def _zone_of(chunk: xr.Dataset, zone: Zone) -> Zone:
    """The zone with the pixels that a block of a template brings along."""
    given = list(zones_in(chunk))
    if not given:
        return zone
    if [identity(raster) for raster in given[0].everything] != [identity(raster) for raster in zone.everything]:
        raise ZoneError("predict_block: the template is one of another zone. Give the zone that made it.")
    return joined(given)


MAX_BLOCK = 2**31
"""A block length that cuts nothing."""


def _filled(variable: xr.DataArray, values: NDArray[Any], rows: NDArray[np.int64], cols: NDArray[np.int64]) -> Any:
    """Values of a region as a variable of the chunk, which may pick pixels of it and may have lost dimensions."""
    leading = [name for name in variable.dims if name not in ("y", "x")]
    result = xr.Variable((*leading, "y", "x"), values)
    for axis, numbers in (("y", rows), ("x", cols)):
        if axis not in variable.dims:
            result = result.isel({axis: 0})
        elif (np.diff(numbers) != 1).any():
            result = result.isel({axis: numbers - numbers.min()})
    return xr.Variable(variable.dims, result.transpose(*variable.dims).values, variable.attrs, variable.encoding)


def _positions(axis: xr.DataArray, edge: float, step: float, length: int) -> NDArray[np.int64]:
    """Numbers of the pixels with these centres."""
    exact = (np.atleast_1d(axis.values) - edge) / step - 0.5
    numbers: NDArray[np.int64] = np.rint(exact).astype(np.int64)
    if (abs(exact - numbers) > _TOLERANCE_PX).any() or (numbers < 0).any() or (numbers >= length).any():
        raise ZoneError(
            f"predict_block: {axis.name} from {np.min(axis.values)} to {np.max(axis.values)} are no centres of pixels "
            f"of the zone's map. Take a template of the same zone and sizes."
        )
    return numbers


def predict_zone(
    zone: Zone | ZonalConfig | Paths,
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
        zone: The rasters, from `open_zone` or `zone`; or a zonal configuration, or its path or paths, to open.
        model: Path of a bundle, or a loaded model.
        block_px: Largest dask chunk along y and x in output pixels; default 2048, less for long series.
        outputs: Any of `class`, `confidence`, `probabilities`, `scaled`.
        tasks: Which of the model's tasks; default all.
        batch_size: Windows per call of the network; default as in the zone's configuration.
        window_px: Window length in finest pixels; default as the configuration that opened the zone has it, else what
            the model was trained at.
        margin_px: Margin in finest pixels; default likewise, else an eighth of the window.
        output_px_m: Pixel of the maps in metres, instead of the configured one.
        device: torch device; default: the CPU for a path, the model's own for a loaded one.
        style: Blending, precision, flips, missing inputs.

    Returns:
        Dataset on the output grid with coordinates `x`, `y` (pixel centres), `spatial_ref` and, with probabilities,
        `class_name`: `class` (y, x) uint8, 255 = no data, with CF `flag_values`, `flag_meanings` and `flag_colors`;
        `confidence` (y, x) float32 0-1, NaN = no data; `probabilities` (class_name, y, x) float32, NaN = no data;
        `scaled` (class_name, y, x) uint8 round(255 x probability), all 0 = no data. With several tasks every name ends
        in `_<task>`. `.to_zarr` writes it without further arguments.

    Raises:
        ZoneError: Zone and model do not fit.
        UsageError: An unknown output or task, or sizes that cannot be.
    """
    zone = open_zone(zone)
    ref, chosen = chosen_outputs(model_ref(model, device), tasks, outputs)
    ref = fitted(zone, ref)
    sizes = map_sizes(zone, window_px, margin_px, output_px_m, batch_size, ref)
    plan = plan_map(zone, ref, sizes, block_px, style)
    # One task per block makes all outputs together; what the arrays hold is picked from its result.
    packed = block_array(plan, ref.preparations, partial(_packed, ref, chosen))

    def picked(name: str, task: Task, output: Output) -> Any:
        chunks = _chunks(plan, task, output)
        return da.map_blocks(
            partial(_pick, name),
            packed,
            dtype=DTYPES[output],
            meta=np.empty((0,) * len(chunks), dtype=DTYPES[output]),
            chunks=chunks,
            new_axis=0 if len(chunks) == 3 else None,
            name=f"{name}-{uuid4().hex}",
        )

    return lazy_maps(plan, ref.tasks, chosen, picked)


def _packed(model: ModelRef, outputs: tuple[Output, ...], plan: MapPlan, block: Block) -> xr.Dataset:
    return predict_block(blank_block(plan, model.tasks, outputs, block), plan.zone, model)


def _pick(name: str, block: xr.Dataset) -> NDArray[Any]:
    values: NDArray[Any] = block[name].values
    return values


def blank_block(plan: MapPlan, tasks: Sequence[Task], outputs: Iterable[Output], block: Block) -> xr.Dataset:
    """Return a block of the template, for `predict_block`; its values take no memory."""
    (top, bottom), (left, right) = plan.extent(block)
    coords = plan.coords
    facts = {**_attributes(plan, tasks), "batch_size": plan.sizes.batch_size}
    part = xr.Dataset({}, {"y": coords["y"][top:bottom], "x": coords["x"][left:right]}, facts)
    for task in tasks:
        for output in outputs:
            dims = _dims(task, tasks, output)
            shape = (*(task.n_classes for _ in dims[:-2]), bottom - top, right - left)
            part[variable_name(output, task, tasks)] = dims, np.broadcast_to(np.zeros((), DTYPES[output]), shape)
    return part


def described(plan: MapPlan, tasks: Sequence[Task], variables: Mapping[str, xr.Variable]) -> xr.Dataset:
    """Return the Dataset of maps: variables by name with coordinates, CRS, class names and sizes."""
    maps = xr.Dataset(dict(variables), coords=_axes(plan), attrs=_attributes(plan, tasks))
    for task in tasks:
        dim = variable_name("class_name", task, tasks)
        if dim in maps.dims:
            # As objects they are stored as text of any length, which every reader of Zarr knows.
            maps = maps.assign_coords({dim: np.array(task.names, dtype=object)})
    maps = maps.rio.write_crs(plan.geobox.crs_wkt).rio.write_transform(plan.geobox.affine())
    for variable in maps.data_vars.values():
        # Read back as a coordinate, and the CRS with it, also by readers that do not follow `grid_mapping`.
        variable.encoding["coordinates"] = "spatial_ref"
    return maps


def lazy_maps(plan: MapPlan, tasks: Sequence[Task], outputs: Iterable[Output], make: MakeArray) -> xr.Dataset:
    """Return maps whose arrays `make` gives, with what `to_zarr` needs."""
    variables = {}
    uneven = any(len(edges) > 2 and edges[2] - edges[1] > edges[1] for edges in (plan.row_edges, plan.col_edges))
    for task in tasks:
        for output in outputs:
            name, dims = variable_name(output, task, tasks), _dims(task, tasks, output)
            variable = xr.Variable(dims, make(name, task, output), _variable_attributes(task, output))
            # What readers other than xarray take for no data.
            variable.encoding["fill_value"] = NODATA[output]
            if uneven:
                # A first block that is shorter is taken only when the chunks to write are given.
                variable.encoding["chunks"] = (*(task.n_classes for _ in dims[:-2]), *plan.chunks)
            variables[name] = variable
    return described(plan, tasks, variables)


def variable_name(output: str, task: Task, tasks: Sequence[Task]) -> str:
    """Return the name of a map in a Dataset: with several tasks it ends in the task's."""
    return output if len(tasks) == 1 else f"{output}_{task.label}"


def _dims(task: Task, tasks: Sequence[Task], output: Output) -> tuple[str, ...]:
    return ("y", "x") if output in ("class", "confidence") else (variable_name("class_name", task, tasks), "y", "x")


def leading_of(task: Task, output: Output) -> tuple[int, ...]:
    """Return the lengths of the axes of an output before y and x."""
    return () if output in ("class", "confidence") else (task.n_classes,)


def _chunks(plan: MapPlan, task: Task, output: Output) -> tuple[tuple[int, ...], ...]:
    blocks = tuple(tuple(np.diff(edges).tolist()) for edges in (plan.row_edges, plan.col_edges))
    return (*((length,) for length in leading_of(task, output)), *blocks)


def _axes(plan: MapPlan) -> dict[str, Any]:
    return {
        name: (name, centres, {"axis": name.upper(), "standard_name": f"projection_{name}_coordinate"})
        for name, centres in plan.coords.items()
    }


def _variable_attributes(task: Task, output: Output) -> dict[str, Any]:
    if output == "class":
        return {**class_attributes(task), "_FillValue": IGNORE_INDEX}
    return {"task": task.label, "class_names": list(task.names)}


def _attributes(plan: MapPlan, tasks: Sequence[Task]) -> dict[str, Any]:
    """How maps are computed, in words of the configuration; text and numbers, as every format stores them."""
    sizes, style = plan.sizes, plan.style
    attributes: dict[str, Any] = {
        "tasks": [task.label for task in tasks],
        "window_px": sizes.window_px,
        "margin_px": sizes.margin_px,
        "overlap": "blend" if style.blend else "crop",
        "precision": "bf16" if style.bf16 else "float32",
        "flips": int(style.flips),
        "missing": "drop" if style.drop_missing else "nodata",
    }
    if plan.zone.aoi is not None:
        attributes |= {"aoi": plan.zone.aoi.name, "aoi_sha256": plan.zone.aoi.digest}
    return attributes if sizes.output_px_m is None else {**attributes, "output_px_m": sizes.output_px_m}


def _sizes_of(facts: Mapping[Hashable, Any]) -> Sizes:
    pixel = facts.get("output_px_m")
    return Sizes(
        int(facts["window_px"]),
        int(facts["margin_px"]),
        None if pixel is None else float(pixel),
        int(facts.get("batch_size", 1)),
    )


def _style_of(facts: Mapping[Hashable, Any]) -> Style:
    return Style(
        facts.get("overlap") == "blend",
        facts.get("precision") == "bf16",
        bool(facts.get("flips", 0)),
        facts.get("missing") == "drop",
    )


def chosen_outputs(
    ref: ModelRef, tasks: Sequence[str] | None, outputs: Sequence[Output]
) -> tuple[ModelRef, tuple[Output, ...]]:
    """Return the model asked for some of its tasks, and the outputs each once."""
    unknown = [output for output in outputs if output not in OUTPUTS]
    if unknown or not outputs:
        raise UsageError(f"outputs: got {list(outputs)}, expected some of {', '.join(OUTPUTS)}.")
    return ref if tasks is None else ref.select_tasks(tuple(tasks)), tuple(dict.fromkeys(outputs))
