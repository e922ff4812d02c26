"""A small data set that each test may break."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dask
import pytest

from tests.helpers import processes
from tests.helpers.breaking import NAMES, SIZES, copy_files
from tests.helpers.makers import PatchFiles, make_patch_files


@pytest.fixture(scope="session")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    """Four patches of an image, a DEM, a series and a label. Read only."""
    return make_patch_files(tmp_path_factory.mktemp("small"), n_rois=1, modalities=NAMES, sizes_px=SIZES)


@pytest.fixture
def files(small_files: PatchFiles, tmp_path: Path) -> PatchFiles:
    """A copy of `small_files` in `tmp_path / "files"`, to be changed."""
    return copy_files(small_files, tmp_path / "files")


@pytest.fixture(scope="session", autouse=True)
def quick_starts() -> Iterator[None]:
    """dask's workers, too, are copies of the process that has imported everything."""
    # Before distributed gives the server another list of modules.
    processes.start_server()
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield
