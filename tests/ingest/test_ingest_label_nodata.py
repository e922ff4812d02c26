"""Label files whose declared nodata is a class: said by ingest and training, and counted."""

import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio

from flairhub.cube import open_cube
from flairhub.ingest import ingest, nodata_classes
from tests.helpers.makers import make_patch_files

LAND = "AERIAL_LABEL-COSIA"


def test_a_class_declared_as_nodata_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = make_patch_files(tmp_path / "data", n_rois=1, rows=1, cols=4, modalities=(LAND,), sizes_px={LAND: 16})
    for patch_id in files.patch_ids[:3]:
        with rasterio.open(files.files[LAND][patch_id], "r+") as label:
            label.nodata = 6 if patch_id != files.patch_ids[0] else 200
    with caplog.at_level(logging.WARNING):
        ingest(root=files.folder, cube=tmp_path / "cube.zarr")
    said = [record.getMessage() for record in caplog.records if "declare" in record.getMessage()]
    text = f"{LAND}: 2 files declare 6 as nodata, which is class 6 (water): its pixels in them are no labels"
    assert [message.startswith(text) for message in said] == [True]
    cube = open_cube(tmp_path / "cube.zarr")
    assert cube.info(LAND)["nodata_classes"] == {"6": 2}
    assert nodata_classes(LAND, cube.info(LAND), [f"own {i}" for i in range(19)])[0].count("(own 6)") == 1
    # The store has no table of nodata for labels: the pixels are 255.
    assert cube.validity(LAND).nodata is None
    expected = sum(int((files.arrays[LAND][patch_id] == 6).sum()) for patch_id in files.patch_ids[1:3])
    assert expected > 0
    stored = cube.read(LAND, np.arange(4))
    assert int((stored == 255).sum()) == expected + sum(
        int((files.arrays[LAND][p] == 255).sum()) for p in files.patch_ids
    )


def test_other_labels_say_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = make_patch_files(tmp_path / "data", n_rois=1, rows=1, cols=2, modalities=(LAND,), sizes_px={LAND: 16})
    with caplog.at_level(logging.WARNING):
        ingest(root=files.folder, cube=tmp_path / "cube.zarr")
    assert not [record for record in caplog.records if "declare" in record.getMessage()]
    assert "nodata_classes" not in open_cube(tmp_path / "cube.zarr").info(LAND)
