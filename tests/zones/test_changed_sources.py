"""A source that is replaced while it is read: noticed at the next read, on every way, and before a map has its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr

from flairhub.errors import DataError
from flairhub.inference import predict_zone, write_zone, zone
from flairhub.ingest import ingest_zone
from flairhub.prepare import ImagePreparation
from flairhub.zones import RasterRequest, Zone, build_zone, zone_of_cube
from tests.helpers.zone_makers import X_MIN, Y_MAX, fake_model, made_values, write_raster

NAME = "AERIAL_RGBI"
VALUES = made_values(NAME, 0, 64, 64)


def later(path: Path) -> None:
    """A later time of change than that of the file before, however coarse the clock."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def other_pixels(path: Path) -> None:
    changed = path.stat().st_mtime_ns
    write_raster(path.with_name("new.tif"), 255 - VALUES, 0.2)
    os.replace(path.with_name("new.tif"), path)
    os.utime(path, ns=(changed, changed + 1_000_000))


def tile(folder: Path) -> tuple[Zone, Path]:
    write_raster(folder / "tiles/a.tif", VALUES[..., :32], 0.2)
    write_raster(folder / "tiles/b.tif", VALUES[..., 32:], 0.2, origin=(X_MIN + 6.4, Y_MAX))
    later(folder / "tiles/b.tif")
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}">'
        + "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">tiles/{name}</SourceFilename>'
            f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" xSize="32" ySize="64"/>'
            f'<DstRect xOff="{left}" yOff="0" xSize="32" ySize="64"/></SimpleSource>'
            for name, left in (("a.tif", 0), ("b.tif", 32))
        )
        + "</VRTRasterBand>"
        for band in (1, 2, 3, 4)
    )
    text = f"<SRS>EPSG:2154</SRS><GeoTransform>{X_MIN}, 0.2, 0, {Y_MAX}, 0, -0.2</GeoTransform>{bands}"
    (folder / "a.vrt").write_text(f'<VRTDataset rasterXSize="64" rasterYSize="64">{text}</VRTDataset>')
    # The tile that is not the newest.
    return build_zone([RasterRequest(NAME, folder / "a.vrt")]), folder / "tiles/a.tif"


def file(folder: Path) -> tuple[Zone, Path]:
    path = write_raster(folder / "a.tif", VALUES, 0.2)
    return build_zone([RasterRequest(NAME, path)]), path


def warped(folder: Path) -> tuple[Zone, Path]:
    path = write_raster(folder / "dem.tif", made_values("DEM_ELEV", 0, 32, 32), 0.4, origin=(X_MIN + 0.1, Y_MAX))
    ortho = write_raster(folder / "a.tif", VALUES, 0.2)
    return build_zone([RasterRequest(NAME, ortho), RasterRequest("DEM_ELEV", path)], resample=True), path


def cube(folder: Path) -> tuple[Zone, Path]:
    ingest_zone(file(folder)[0], cube=folder / "zone.zarr")
    return zone_of_cube(folder / "zone.zarr", None, [NAME]), folder / "zone.zarr/zarr.json"


def lazy(folder: Path) -> tuple[Zone, Path]:
    path = write_raster(folder / "a.tif", VALUES, 0.2)
    array = rioxarray.open_rasterio(path)
    assert isinstance(array, xr.DataArray)
    return zone({NAME: array}), path


def chunked(folder: Path) -> tuple[Zone, Path]:
    path = write_raster(folder / "a.tif", VALUES, 0.2)
    array = rioxarray.open_rasterio(path, chunks={"x": 32, "y": 32})
    assert isinstance(array, xr.DataArray)
    return zone({NAME: array}), path


@pytest.mark.parametrize("make", [file, tile, warped, cube, lazy, chunked])
def test_a_read_after_a_change_is_an_error(make: Callable[[Path], tuple[Zone, Path]], tmp_path: Path) -> None:
    opened, path = make(tmp_path)
    raster = list(opened.rasters.values())[-1]
    raster.read((0, 16), (0, 16))
    if path.suffix == ".tif":
        stat = path.stat()
        replacement = path.with_name("replacement.tif")
        shutil.copyfile(path, replacement)
        with rasterio.open(replacement, "r+") as dataset:
            dataset.write(dataset.read()[::-1])
        os.replace(replacement, path)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    else:
        later(path)
    with pytest.raises(DataError, match=r"was changed, replaced or removed .* \(--overwrite\)"):
        raster.read((16, 32), (0, 16))


@pytest.mark.parametrize("sidecar", ["a.tif.msk", "a.tif.aux.xml", "a.tif.ovr"])
def test_a_sidecar_that_comes_or_goes_counts(sidecar: str, tmp_path: Path) -> None:
    opened, path = file(tmp_path)
    beside = tmp_path / sidecar
    beside.write_bytes(path.read_bytes() if sidecar != "a.tif.aux.xml" else b"<PAMDataset></PAMDataset>")
    with pytest.raises(DataError, match="sidecar of it"):
        opened.rasters[NAME].read((0, 16), (0, 16))
    again = build_zone([RasterRequest(NAME, path)])
    again.rasters[NAME].read((0, 16), (0, 16))
    beside.unlink()
    with pytest.raises(DataError, match="sidecar of it"):
        again.rasters[NAME].read((0, 16), (0, 16))


@pytest.mark.parametrize("make", [file, tile])
def test_no_block_of_another_raster_gets_into_a_map(
    make: Callable[[Path], tuple[Zone, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fake_model({NAME: ImagePreparation()})
    opened, path = make(tmp_path)
    journal = tmp_path / "out/.map.unfinished/journal.jsonl"

    def report(stage: str, done: int, total: int) -> None:
        if stage == "map" and done == 2:
            later(path)

    sizes = {"window_px": 32, "margin_px": 4, "block_px": 24}
    with pytest.raises(DataError, match="was changed, replaced or removed"):
        write_zone(opened, model, tmp_path / "out", "map", progress=report, **sizes)  # type: ignore[arg-type]
    assert journal.read_text().count('"block"') < 9
    assert not list((tmp_path / "out").glob("*.tif"))


def test_a_map_whose_source_changes_last_gets_no_name(tmp_path: Path) -> None:
    opened, path = file(tmp_path)

    def report(stage: str, done: int, total: int) -> None:
        if stage.startswith("check"):
            later(path)

    model = fake_model({NAME: ImagePreparation()})
    with pytest.raises(DataError, match="was changed, replaced or removed"):
        write_zone(opened, model, tmp_path / "out", "map", window_px=32, margin_px=4, progress=report)
    assert not list((tmp_path / "out").glob("*.tif"))


def test_lazy_maps_and_zone_cubes_mix_no_versions(tmp_path: Path) -> None:
    opened, path = file(tmp_path)
    maps = predict_zone(opened, fake_model({NAME: ImagePreparation()}), window_px=32, margin_px=4, block_px=24)
    tree = opened.to_xarray()
    maps["class"].isel(y=slice(0, 24), x=slice(0, 24)).compute()
    other_pixels(path)
    with pytest.raises(DataError, match="was changed"):
        maps["class"].isel(y=slice(40, 64)).compute()
    with pytest.raises(DataError, match="was changed"):
        np.asarray(tree[NAME]["data"])
    with pytest.raises(DataError, match="was changed"):
        ingest_zone(opened, cube=tmp_path / "zone.zarr")
    with pytest.raises(Exception, match=r"building|incomplete|not complete"):
        zone_of_cube(tmp_path / "zone.zarr", None, [NAME])
