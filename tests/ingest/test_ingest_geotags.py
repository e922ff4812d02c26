"""Tags say what GDAL says, or nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from flairhub.geo import geobox_of
from flairhub.ingest import geotags, ingest
from flairhub.ingest.geotags import GeoTags, read_geotags
from flairhub.ingest.patch_geotiff import gdal, read_header
from tests.helpers.makers import make_patch_files, write_patch

VALUES = np.arange(2 * 8 * 8, dtype=np.uint16).reshape(2, 8, 8)


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geotags, "_known", {})


def tags_of(content: bytes) -> GeoTags | None:
    return read_geotags(lambda length, offset: content[offset : offset + length])


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"ENDIANNESS": "BIG"},
        {"BIGTIFF": "YES"},
        {"BIGTIFF": "YES", "ENDIANNESS": "BIG"},
        {"tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": "band"},
        {"crs": "EPSG:32631"},
        {"crs": "EPSG:2154", "COPY_SRC_OVERVIEWS": "YES", "GEOTIFF_KEYS_FLAVOR": "ESRI_PE"},
    ],
)
def test_tags_are_the_grid_that_gdal_finds(tmp_path: Path, profile: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    write_patch(path, VALUES, (489123.4, 6840987.6), 102.4, **profile)
    tags = tags_of(path.read_bytes())
    with rasterio.open(path) as source:
        box = geobox_of(source, "a.tif")
    assert tags is not None
    assert tags.box(8, 8) is None, "the CRS is not known yet"
    with gdal():
        assert read_header(str(path)).box == box
        assert tags.box(8, 8) == box
        # The second time GDAL is not asked.
        assert read_header(str(path)).box == box


def test_unusual_files_are_left_to_gdal(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    step = 12.8
    rotated = rasterio.Affine(step, 0.5, 489000, 0.5, -step, 6840000)
    south_up = rasterio.Affine(step, 0, 489000, 0, step, 6840000)
    for profile in ({"transform": rotated}, {"transform": south_up}, {"crs": None}):
        write_patch(path, VALUES, (489000, 6840000), **profile)  # type: ignore[arg-type]
        assert tags_of(path.read_bytes()) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_patch(path, VALUES, (489000, 6840000), transform=rasterio.Affine.identity(), crs=None)
    assert tags_of(path.read_bytes()) is None
    write_patch(path, VALUES, (489000, 6840000))
    with rasterio.open(path, "r+") as target:
        target.update_tags(AREA_OR_POINT="Point")
    assert tags_of(path.read_bytes()) is None
    with gdal():
        assert read_header(str(path)).box.x_min == pytest.approx(489000)


def test_a_crs_is_only_learnt_when_gdal_agrees() -> None:
    tags = GeoTags(b"keys", 1.0, 2.0, 0.5, 0.5)
    box = geotags.GeoBox("WKT", 1.0, 2.0, 0.5, 0.5, 4, 4)
    tags.learn(geotags.GeoBox("WKT", 1.0, 2.5, 0.5, 0.5, 4, 4))
    assert tags.box(4, 4) is None
    tags.learn(box)
    assert tags.box(4, 4) == box
    assert GeoTags(b"others", 1.0, 2.0, 0.5, 0.5).box(4, 4) is None
    assert GeoTags(b"keys", 7.0, 8.0, 0.5, 0.5).box(4, 4) == geotags.GeoBox("WKT", 7.0, 8.0, 0.5, 0.5, 4, 4)


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("tags")
    for number, profile in enumerate(({}, {"BIGTIFF": "YES"}, {"ENDIANNESS": "BIG"})):
        transform = from_origin(489000, 6840000, 12.8, 12.8)
        write_patch(folder / f"{number}.tif", VALUES, (0, 0), transform=transform, **profile)  # type: ignore[arg-type]
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_tags_are_no_crash(contents: list[bytes], data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(contents)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(700, len(content) - 1)))] = data.draw(st.integers(0, 255))
    tags_of(bytes(content[: data.draw(st.integers(0, len(content)))]))


def test_patches_in_degrees_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = make_patch_files(tmp_path / "data", n_rois=1, rows=1, cols=1, modalities=("DEM_ELEV",))
    (path,) = data.files["DEM_ELEV"].values()
    ingest(root=data.folder, cube=tmp_path / "lambert.zarr", workers=0)
    assert "degree" not in caplog.text
    with rasterio.open(path, "r+") as dataset:
        dataset.crs = "EPSG:4326"
    ingest(root=data.folder, cube=tmp_path / "degrees.zarr", workers=0)
    assert "is in EPSG:4326, whose unit is the degree: a geographic CRS has no metres. Warp it" in caplog.text
    assert "gdalwarp -t_srs EPSG:2154" in caplog.text
