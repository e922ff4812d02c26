"""Rasters stay open between reads: decoded once, never stale."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioError

from flairhub.zones import open_file
from flairhub.zones.geotiff import MAX_OPEN, borrowed, close_all
from tests.helpers.zone_makers import write_raster


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts read() calls as Linux shows them")
def test_overlapping_regions_decode_each_chunk_about_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (3, 512, 512), dtype=np.uint8)
    path = write_raster(tmp_path / "a.tif", values, 0.2, blockxsize=128, blockysize=128)
    source = open_file(path, "AERIAL_RGBI", "key")
    close_all()
    before = bytes_read()
    for top in range(0, 512, 64):
        for left in range(0, 512, 64):
            found = source.read((top - 32, top + 96), (left - 32, left + 96)).values
            assert found.shape == (3, 128, 128)
    assert bytes_read() - before < 1.2 * path.stat().st_size
    close_all()


def test_a_replaced_file_is_opened_anew(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.zeros((1, 16, 16), np.uint8), 0.2)
    with borrowed(str(path)) as dataset:
        assert not dataset.read().any()
    path.unlink()
    write_raster(path, np.full((1, 16, 16), 7, np.uint8), 0.2)
    with borrowed(str(path)) as dataset:
        assert (dataset.read() == 7).all()
    path.unlink()
    with pytest.raises(RasterioError), borrowed(str(path)):
        pass


def test_many_files_from_many_threads(tmp_path: Path) -> None:
    """More files than are kept open; a raster that another thread still reads is not closed under it."""
    count = MAX_OPEN + 6
    for number in range(count):
        write_raster(tmp_path / f"{number}.tif", np.full((1, 32, 32), number, np.uint8), 0.2)

    def read(number: int) -> bool:
        with borrowed(str(tmp_path / f"{number % count}.tif")) as dataset:
            return bool((dataset.read() == number % count).all())

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(4 * count)))
    close_all()
    assert rasterio.open(tmp_path / "0.tif").read()[0, 0, 0] == 0
