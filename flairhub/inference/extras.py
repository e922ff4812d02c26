"""What a run writes beside its maps when asked: confidence, polygons, a STAC item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import UsageError
from flairhub.geo import GeoBox
from flairhub.inference.outputs import MapStore, Span, confidence_array, map_name, stored_probability
from flairhub.inference.polygons import PolygonFormat, trace, write_polygons
from flairhub.tasks import Language, Task

PIECE_PX = 2048


@dataclass(frozen=True)
class Extras:
    """Files beside the maps.

    Attributes:
        confidence: A raster of the highest probability per task.
        polygons: Format of the polygons; None = none.
        min_area_m2: Smaller polygons are left out.
        stac: A STAC item.
        language: Of the class names in all files.
    """

    confidence: bool = False
    polygons: PolygonFormat | None = None
    min_area_m2: float = 0.0
    stac: bool = False
    language: Language = "en"

    @property
    def stores_confidence(self) -> bool:
        """Blocks keep their confidence: the raster or the polygons need it."""
        return self.confidence or self.polygons is not None

    def check(self, output_type: str) -> None:
        """Raise UsageError when something asked for cannot be written."""
        if self.polygons is not None and output_type != "argmax":
            raise UsageError(f"write_polygons: needs output_type argmax, got {output_type}.")
        if self.polygons == "parquet" and find_spec("pyarrow") is None:
            raise UsageError(
                "write_polygons: parquet needs the package pyarrow. Install it (pip install pyarrow), or use gpkg."
            )

    def names(self, name: str, tasks: Sequence[Task]) -> list[str]:
        """Names of the files."""
        files = [f"{name}_{task.label}_polygons.{self.polygons}" for task in tasks if self.polygons]
        files += [map_name(name, task.label, "confidence") for task in tasks if self.confidence]
        return files + ([f"{name}_stac.json"] if self.stac else [])


NONE = Extras()


def write_task_polygons(
    extras: Extras, store: MapStore, task: Task, box: GeoBox, path: Path, with_confidence: bool = True
) -> None:
    """Trace a finished class map from its blocks; without confidence the polygons have no such column."""
    assert extras.polygons is not None

    def read(rows: Span, cols: Span) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        classes = store.read(task.label, rows, cols)[0]
        if not with_confidence:
            return classes, np.zeros(classes.shape, np.float32)
        return classes, stored_probability(store.read(confidence_array(task.label), rows, cols)[0])

    polygons = trace(read, box.height, box.width, PIECE_PX)
    path.unlink(missing_ok=True)
    names = task.names_in(extras.language)
    write_polygons(polygons, names, box, path, extras.polygons, extras.min_area_m2, with_confidence)
