"""Mosaics, and rasters of other grids resampled while reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flairhub.errors import ZoneError
from flairhub.inference import predict_zone
from flairhub.ingest import ingest_zone
from flairhub.prepare import ImagePreparation
from flairhub.zones import RasterRequest, zone_of_cube
from tests.helpers.zone_makers import X_MIN, Y_MAX, fake_model, make_zone, open_sized, write_raster

AERIAL = {"AERIAL_RGBI": ImagePreparation()}

SOURCE = """    <SimpleSource>
      <SourceFilename relativeToVRT="1">{file}</SourceFilename>
      <SourceBand>{band}</SourceBand>
      <SrcRect xOff="0" yOff="0" xSize="{width}" ySize="40"/>
      <DstRect xOff="{left}" yOff="0" xSize="{width}" ySize="40"/>
    </SimpleSource>
"""


def mosaic(folder: Path, files: tuple[tuple[str, int, int], ...], extra: str = "") -> Path:
    bands = "".join(
        f'  <VRTRasterBand dataType="Byte" band="{band}"{extra}>\n'
        + "".join(SOURCE.format(file=f, band=band, width=w, left=x) for f, x, w in files)
        + "  </VRTRasterBand>\n"
        for band in range(1, 5)
    )
    text = (
        f'<VRTDataset rasterXSize="48" rasterYSize="40">\n  <SRS>EPSG:2154</SRS>\n'
        f"  <GeoTransform>{X_MIN}, 0.2, 0, {Y_MAX}, 0, -0.2</GeoTransform>\n{bands}</VRTDataset>\n"
    )
    path = folder / "mosaic.vrt"
    path.write_text(text)
    return path


def test_a_mosaic_is_read_like_one_file(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 40, 48, {"AERIAL_RGBI": 1})
    values = made.arrays["AERIAL_RGBI"]
    write_raster(tmp_path / "a.tif", values[:, :, :20], 0.2)
    write_raster(tmp_path / "b.tif", values[:, :, 20:], 0.2, origin=(X_MIN + 4, Y_MAX))
    path = mosaic(tmp_path, (("a.tif", 0, 20), ("b.tif", 20, 28)))
    zone = open_sized([RasterRequest("AERIAL_RGBI", path)], window_px=16, margin_px=2)
    expected = predict_zone(made.open(16, 2), fake_model(AERIAL))["class"].values
    np.testing.assert_array_equal(predict_zone(zone, fake_model(AERIAL))["class"].values, expected)


@pytest.mark.parametrize(
    ("file", "extra", "message"),
    [
        ("/vsicurl/http://example.org/a.tif", "", "expected files in"),
        ("http://example.org/a.tif", "", "expected files in"),
        ("../outside.tif", "", "expected files in"),
        ("missing.tif", "", "does not open as a GeoTIFF"),
        ("mosaic.vrt", "", "does not open as a GeoTIFF"),
        ("a.tif", ' subClass="VRTDerivedRasterBand"', "no plain mosaic"),
    ],
)
def test_a_mosaic_names_only_files_beside_it(tmp_path: Path, file: str, extra: str, message: str) -> None:
    folder = tmp_path / "zone"
    folder.mkdir()
    for name in (folder / "a.tif", tmp_path / "outside.tif"):
        write_raster(name, np.ones((4, 40, 48), np.uint8), 0.2)
    path = mosaic(folder, ((file, 0, 48),), extra)
    with pytest.raises(ZoneError, match=message):
        open_sized([RasterRequest("AERIAL_RGBI", path, key="key")], window_px=16, margin_px=2)


def test_other_extents_and_grids_are_resampled(tmp_path: Path) -> None:
    """A constant stays one in every CRS; where a raster does not reach there is no data."""
    rng = np.random.default_rng(0)
    aerial = write_raster(tmp_path / "aerial.tif", rng.integers(1, 99, (4, 43, 50)).astype(np.uint8), 0.2)
    spot = np.full((4, 4, 20), 77, np.uint16)
    # Covers the upper part only, off the aerial grid, in another CRS of nearly the same metres.
    path = write_raster(tmp_path / "spot.tif", spot, 1.6, origin=(X_MIN - 1.1, Y_MAX + 0.7))
    requests = [RasterRequest("AERIAL_RGBI", aerial), RasterRequest("SPOT_RGBI", path)]
    with pytest.raises(ZoneError, match="align: resample"):
        open_sized(requests, window_px=16, margin_px=0)
    zone = open_sized(requests, window_px=16, margin_px=0, resample=True)
    assert (zone.geobox.height, zone.geobox.width) == (48, 56)
    assert zone.ratio("SPOT_RGBI") == 8
    tree = zone.to_xarray()
    read = tree["SPOT_RGBI"]["data"].values
    assert (read[:, :3] == 77).all()
    model = fake_model({**AERIAL, "SPOT_RGBI": ImagePreparation()})
    found = predict_zone(zone, model, block_px=20)["class"].values
    assert (found[:24, :50] != 255).all()
    assert (found[40:] == 255).all()
    assert (found[:, 50:] == 255).all()
    np.testing.assert_array_equal(found, predict_zone(zone, model)["class"].values)
    # A zone cube keeps what was resampled, and where it reaches.
    ingest_zone(zone, cube=tmp_path / "zone.zarr")
    sizes = {"suggested": {"window_px": 16, "margin_px": 0}}
    cube = zone_of_cube(tmp_path / "zone.zarr", None, ["AERIAL_RGBI", "SPOT_RGBI"], **sizes)
    np.testing.assert_array_equal(found, predict_zone(cube, model)["class"].values)


def test_another_crs(tmp_path: Path) -> None:
    import rasterio
    from rasterio.warp import calculate_default_transform, reproject

    ramp = np.broadcast_to(np.arange(60, dtype=np.float32) * 10, (4, 60, 60)).copy()
    aerial = write_raster(tmp_path / "aerial.tif", np.ones((4, 80, 80), np.uint8), 0.2)
    near = write_raster(tmp_path / "near.tif", ramp, 1.6, origin=(X_MIN - 40, Y_MAX + 40))
    with rasterio.open(near) as dataset:
        transform, width, height = calculate_default_transform(dataset.crs, "EPSG:32631", 60, 60, *dataset.bounds)
        warped = np.zeros((4, height, width), np.float32)
        source = {"src_transform": dataset.transform, "src_crs": dataset.crs}
        reproject(ramp, warped, **source, dst_transform=transform, dst_crs="EPSG:32631")
    far = tmp_path / "far.tif"
    profile = {"driver": "GTiff", "count": 4, "height": height, "width": width, "dtype": "float32"}
    with rasterio.open(far, "w", **profile, crs="EPSG:32631", transform=transform) as target:
        target.write(warped)
    requests = [RasterRequest("AERIAL_RGBI", aerial), RasterRequest("SPOT_RGBI", far)]
    zone = open_sized(requests, window_px=16, margin_px=0, resample=True)
    read = zone.to_xarray()["SPOT_RGBI"]["data"].values
    assert read.shape == (4, 10, 10)
    # Ten per pixel of 1.6 m; nearest and bilinear resampling are off by less than a pixel.
    expected = 250 + 10 * np.arange(10)
    assert np.abs(read[0] - expected).max() < 12
