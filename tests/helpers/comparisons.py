"""Comparing cubes with their source files and with each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import flairhub as fh
from flairhub.modalities import MODALITIES
from tests.helpers.makers import PatchFiles


def assert_equals_files(cube: fh.cube.Cube, files: PatchFiles, names: tuple[str, ...]) -> None:
    """Compare every pixel and every date of all patches."""
    assert cube.modalities == names
    for name in names:
        row = MODALITIES[name]
        present = cube.present(name)
        for position, patch_id in enumerate(cube.patch_ids):
            expected = files.arrays[name].get(patch_id)
            assert present[position] == (expected is not None)
            if expected is None:
                continue
            stored = cube.read(name, [position])[0]
            assert stored.dtype == expected.dtype == row.dtype
            if row.is_series:
                days = files.dates[row.dates_of or name][patch_id]
                series = cube.series(name)
                assert series.n_dates[position] == len(days) == len(expected)
                np.testing.assert_array_equal(series.dates[position, : len(days)], days)
                assert np.isnat(series.dates[position, len(days) :]).all()
                assert not stored[len(days) :].any(), "padding is 0"
                stored = stored[: len(days)]
            np.testing.assert_array_equal(stored, expected)


def same_tree(one: Path, two: Path) -> bool:
    """True when two stores have the same files with the same bytes."""

    def content(store: Path) -> dict[str, bytes]:
        return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}

    return content(one) == content(two)
