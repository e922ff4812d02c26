"""A small data set that each test may break."""

from __future__ import annotations

from pathlib import Path

import pytest
from breaking import NAMES, SIZES, copy_files
from makers import PatchFiles, make_patch_files


@pytest.fixture(scope="session")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    """Four patches of an image, a DEM, a series and a label. Read only."""
    return make_patch_files(tmp_path_factory.mktemp("small"), n_rois=1, modalities=NAMES, sizes_px=SIZES)


@pytest.fixture
def files(small_files: PatchFiles, tmp_path: Path) -> PatchFiles:
    """A copy of `small_files` in `tmp_path / "files"`, to be changed."""
    return copy_files(small_files, tmp_path / "files")
