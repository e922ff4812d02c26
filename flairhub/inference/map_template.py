"""The template of the maps of a model: a Dataset like the maps, without their values, for `xr.map_blocks`.

Where sources enter graphs chunk by chunk, the values of a template bring them along: a task of `xr.map_blocks` has no
other inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd
import xarray as xr

from flairhub.inference.block_graph import blank_array, block_sources
from flairhub.inference.lazy_map import chosen_outputs, lazy_maps, leading_of
from flairhub.inference.map_plan import PLAIN, Output, Style, fitted, map_sizes, plan_map
from flairhub.inference.model_ref import ModelRef, model_ref
from flairhub.inference.window_outputs import DTYPES
from flairhub.tasks import Task
from flairhub.zones import Zone

if TYPE_CHECKING:
    from flairhub.models import Model


class ScalarIndex(xr.Index):
    """Index of the scalar coordinate of a CRS.

    `xr.map_blocks` takes coordinates without index from a block that it computes, the last one; those that have one
    stay as they are.
    """

    def __init__(self, variable: xr.Variable):
        """Take the coordinate."""
        self._variable = variable

    @classmethod
    def from_variables(cls, variables: Mapping[Any, xr.Variable], *, options: Mapping[str, Any]) -> Self:
        """Make one of a scalar coordinate."""
        (variable,) = variables.values()
        return cls(variable)

    def equals(self, other: xr.Index, *, exclude: frozenset[Any] | None = None) -> bool:
        """Whether another one is of the same CRS."""
        return isinstance(other, ScalarIndex) and self._variable.identical(other._variable)

    def to_pandas_index(self) -> pd.Index:
        """Return its value as pandas has it."""
        return pd.Index([self._variable.values.item()])


def template(
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
    """Return what the maps of a model will look like; `predict_block` fills it:

        template = zone.template("lc.bundle", outputs=("class", "confidence"))
        maps = xr.map_blocks(predict_block, template, args=[zone, "lc.bundle"], template=template)

    It may be sliced and chunked otherwise before; a chunk that is no whole block costs windows that its neighbours
    compute as well, and has the same pixels.

    Args:
        zone: The rasters.
        model: Path of a bundle, or a loaded model.
        block_px: As for `predict_zone`, like all that follow.
        outputs: Any of `class`, `confidence`, `probabilities`, `scaled`.
        tasks: Which of the model's tasks; default all.
        batch_size: Windows per call of the network.
        window_px: Window length in finest pixels; default as the configuration that opened the zone has it, else what
            the model was trained at.
        margin_px: Margin in finest pixels; default likewise, else an eighth of the window.
        output_px_m: Pixel of the maps in metres.
        device: torch device.
        style: Blending, precision, flips, missing inputs.

    Returns:
        Dataset with the coordinates, attributes and chunks of `predict_zone`'s.

    Raises:
        ZoneError: Zone and model do not fit.
        UsageError: An unknown output or task, or sizes that cannot be.
    """
    ref, chosen = chosen_outputs(model_ref(model, device), tasks, outputs)
    ref = fitted(zone, ref)
    sizes = map_sizes(zone, window_px, margin_px, output_px_m, batch_size, ref)
    plan = plan_map(zone, ref, sizes, block_px, style)

    sources = block_sources(plan, ref.preparations)

    def blank(name: str, task: Task, output: Output) -> Any:
        return blank_array(plan, sources, leading_of(task, output), DTYPES[output])

    # What a map does not depend on is no fact of the map.
    maps = lazy_maps(plan, ref.tasks, chosen, blank).assign_attrs(batch_size=sizes.batch_size, device=ref.device)
    crs = maps["spatial_ref"].variable
    return maps.drop_vars("spatial_ref").assign_coords(
        xr.Coordinates({"spatial_ref": crs}, indexes={"spatial_ref": ScalarIndex(crs)})
    )


Zone.register_template(template)
