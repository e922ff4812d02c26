"""Fixtures of the whole suite: made data sets and cubes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.helpers.makers import PatchFiles, make_patch_files

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

# A shell that starts the suite in the background has it ignore Ctrl-C, and so all processes that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Processes that tests start import `tests.helpers` too, wherever they stand.
REPOSITORY = str(Path(__file__).parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [REPOSITORY, os.environ.get("PYTHONPATH")]))

# The networks of the tests are so small that a second thread costs more than it brings.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes longest: of two processes none is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.fixture(scope="session")
def patch_files(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    """One data set with all ten data groups: 2 domains, 1 ROI each of 2 x 2 patches. Read only: copy to change."""
    return make_patch_files(tmp_path_factory.mktemp("files"), n_rois=1, domains=("D012-2019", "D033-2018"))


@pytest.fixture(scope="session")
def make_cube(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return `make_cube(files, config=None, **options)`: ingests a made data set, returns the cube's path.

    Cubes of the same data set and options are made once per session: read only, copy to change.
    """
    # The configuration is kept too: its identity is part of the key.
    made: dict[Any, tuple[Path, Any]] = {}

    def make(files: PatchFiles, config: Any = None, **options: Any) -> Path:
        from flairhub.ingest import ingest

        key = (str(files.folder), id(config) if config is not None else None, repr(sorted(options.items())))
        if key not in made:
            path = tmp_path_factory.mktemp("cubes") / "made.zarr"
            source: dict[str, Any] = {"root": files.folder} if config is None else {"config": config}
            ingest(cube=path, **source, **options)
            made[key] = path, config
        return made[key][0]

    return make
