"""Which patches of a cube belong to which split."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import DataError, TrainingError
from flairhub.ingest.tables import read_csv

if TYPE_CHECKING:
    from flairhub.cube import Cube

logger = logging.getLogger(__name__)


def split_indices(cube: Cube, split: str, csv: Path | None) -> NDArray[np.int64]:
    """Return the cube positions of a split, in storage order.

    Args:
        cube: The cube.
        split: `train`, `valid` or `test`.
        csv: The configuration's CSV; None takes the split recorded in the cube.

    Raises:
        DataError: The CSV cannot be read or lists a patch twice.
        CubeError: The CSV lists patches that are not in the cube.
        TrainingError: The split is empty.
    """
    if csv is None:
        found = cube.patches.in_split(split)
        source = f"{cube.path} (splits recorded at ingest)"
    else:
        ids = [row["patch_id"] for _, row in read_csv(csv, ["patch_id"]).rows]
        doubled = sorted({patch_id for patch_id in ids if ids.count(patch_id) > 1}) if len(set(ids)) < len(ids) else []
        if doubled:
            raise DataError(f"{csv}: lists patches more than once: {', '.join(doubled[:10])}. Keep one line of each.")
        found, source = np.sort(cube.indices(ids)), str(csv)
    if not len(found):
        raise TrainingError(f"{source}: no patch in split {split!r}, at least one is needed.")
    return found


def warn_of_overlap(cube: Cube, splits: Mapping[str, NDArray[np.int64]]) -> None:
    """Log a warning where two splits share patches: scores would be too good."""
    names = list(splits)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = np.intersect1d(splits[first], splits[second])
            if len(shared):
                ids = ", ".join(cube.patch_ids[index] for index in shared[:3])
                logger.warning("splits %s and %s share %d patches: %s", first, second, len(shared), ids)
