"""What a cube must hold before it is read: checked once, so that epochs do not fail halfway."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flairhub.data.preparation import Preparation
from flairhub.errors import CubeError, DataError, UsageError
from flairhub.prepare import ImagePreparation
from flairhub.tasks import Task
from flairhub.timeseries import check_channels

if TYPE_CHECKING:
    from flairhub.cube import AverageInfo, Cube

logger = logging.getLogger(__name__)

_NAMED = 10


def named(cube: Cube, indices: NDArray[np.int64]) -> str:
    """Ids of patches for messages: the first ten and how many more."""
    ids = [cube.patch_ids[index] for index in indices[:_NAMED]]
    more = len(indices) - len(ids)
    return ", ".join(ids) + (f" and {more} more" if more > 0 else "")


def stored_averages(cube: Cube, preparations: Mapping[str, Preparation]) -> dict[str, AverageInfo]:
    """Return the cube's own averages for the series whose preparation asks for just these."""
    result = {}
    for name, preparation in preparations.items():
        if isinstance(preparation, ImagePreparation) or preparation.average is None or name not in cube.modalities:
            continue
        stored = cube.averages(name).get(preparation.average)
        if stored is not None and stored.cloud_filter == preparation.cloud_filter:
            result[name] = stored
    return result


def check_request(
    cube: Cube, preparations: Mapping[str, Preparation], tasks: Sequence[Task], sources: Iterable[str]
) -> None:
    """Check modalities, quality masks, channels and levels.

    Args:
        cube: The cube.
        preparations: By modality.
        tasks: Labels to read.
        sources: Modalities that the preparations read, quality masks included.

    Raises:
        CubeError: The cube lacks a modality.
        UsageError: Channels or levels that its arrays do not have.
    """
    wanted = [*sources, *(task.label for task in tasks)]
    absent = [name for name in dict.fromkeys(wanted) if name not in cube.modalities]
    if absent:
        raise CubeError(
            f"{cube.path}: holds {', '.join(cube.modalities)}, but the configuration needs {', '.join(absent)}. "
            "Ingest with this configuration, or disable the modality."
        )
    for name, preparation in preparations.items():
        _check_bands(cube, name, preparation)
    for task in tasks:
        levels = cube.array(task.label).shape[1]
        if not 1 <= task.level <= levels:
            raise UsageError(f"{task.label}: level {task.level} does not exist, the cube holds levels 1..{levels}.")


def _check_bands(cube: Cube, name: str, preparation: Preparation) -> None:
    n_bands = cube.array(name).shape[-3]
    if isinstance(preparation, ImagePreparation) and preparation.elevation is not None:
        if n_bands != 2:
            raise UsageError(f"{name}: elevation needs 2 bands (DSM, DTM), the cube holds {n_bands}.")
    elif preparation.channels is not None:
        try:
            check_channels(preparation.channels, n_bands)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error


def warn_of_old_nodata(cube: Cube, names: Iterable[str]) -> None:
    """Warn of numbers without meaning in a cube that was written before cubes kept what tells them from data."""
    for name in names:
        facts = cube.info(name)
        if "validity" not in facts and any(entry["invalid"] for entry in facts.get("statistics", [])):
            logger.warning(
                "%s: %s holds pixels without data, and was written by a version that did not keep their nodata value: "
                "only NaN and infinity are left out. Ingest again with --overwrite.",
                cube.path,
                name,
            )


def check_present(cube: Cube, names: Iterable[str], indices: NDArray[np.int64]) -> None:
    """Raise when patches lack a modality.

    Raises:
        DataError: Names each modality with its patches.
    """
    problems = []
    for name in names:
        lacking = indices[~cube.present(name)[indices]]
        if len(lacking):
            problems.append(f"{name}: missing in {len(lacking)} of {len(indices)} patches: {named(cube, lacking)}")
    if problems:
        raise DataError(
            "\n".join(problems) + "\nTake the patches out of the split, or set modalities.missing: drop to train on "
            "the modalities that each patch has."
        )
