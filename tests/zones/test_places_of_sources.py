"""What is checked is what is opened; rasters without a place; rasters that differ in nothing that counts."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from flairhub.errors import DataError, FlairhubError, ZoneError
from flairhub.inference import predict_zone, zone
from flairhub.ingest.patch_geotiff import lossless
from flairhub.prepare import ImagePreparation
from flairhub.zones import RasterRequest, build_zone, open_file
from tests.helpers.zone_makers import X_MIN, Y_MAX, fake_model, made_values, write_raster

NAME = "AERIAL_RGBI"
VALUES = made_values(NAME, 0, 32, 32)


def mosaic(folder: Path, source: str, around: str = "", kind: str = "SimpleSource") -> Path:
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><{kind}>{source}<SourceBand>{band}</SourceBand></{kind}>'
        f"{around}</VRTRasterBand>"
        for band in (1, 2, 3, 4)
    )
    place = f"<SRS>EPSG:2154</SRS><GeoTransform>{X_MIN}, 0.2, 0, {Y_MAX}, 0, -0.2</GeoTransform>"
    path = folder / "a.vrt"
    path.write_text(f'<VRTDataset rasterXSize="32" rasterYSize="32">{place}{bands}</VRTDataset>')
    return path


PLAIN = '<SourceFilename relativeToVRT="1">a.tif</SourceFilename>'


def test_a_plain_mosaic_is_read(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", VALUES, 0.2)
    pixels = open_file(mosaic(tmp_path, PLAIN), NAME, "key").read((0, 32), (0, 32))
    np.testing.assert_array_equal(pixels.values, VALUES)


@pytest.mark.parametrize(
    ("source", "around", "kind"),
    [
        ("<SourceFilename>a.tif</SourceFilename>", "", "SimpleSource"),
        ('<SourceFilename relativeToVRT="0">a.tif</SourceFilename>', "", "SimpleSource"),
        ('<SourceFilename relativetovrt="0" relativeToVRT="1">a.tif</SourceFilename>', "", "SimpleSource"),
        ('<SourceFilename relativeToVRT="1"> a.tif</SourceFilename>', "", "SimpleSource"),
        ('<SourceFilename relativeToVRT="1">a.tif\n</SourceFilename>', "", "SimpleSource"),
        ('<SourceFilename relativeToVRT="1">../a.tif</SourceFilename>', "", "SimpleSource"),
        ('<SourceFilename relativeToVRT="1">link.tif</SourceFilename>', "", "SimpleSource"),
        ('<SourceFilename relativeToVRT="1">GTIFF_DIR:1:a.tif</SourceFilename>', "", "SimpleSource"),
        ('<SourceFilename relativeToVRT="1">/vsizip/a.zip/a.tif</SourceFilename>', "", "SimpleSource"),
        ('<SourceFilename relativeToVRT="1">b.vrt</SourceFilename>', "", "SimpleSource"),
        ('<SourceFilename relativeToVRT="1">&lt;VRTDataset/&gt;</SourceFilename>', "", "SimpleSource"),
        (PLAIN + "<OpenOptions><OOI key='NUM_THREADS'>1</OOI></OpenOptions>", "", "SimpleSource"),
        (PLAIN, "<simplesource><sourcefilename>/etc/passwd</sourcefilename></simplesource>", "SimpleSource"),
        (PLAIN, "<SourceDataset>/etc/passwd</SourceDataset>", "SimpleSource"),
        (PLAIN, "<Overview><SourceFilename>/etc/passwd</SourceFilename></Overview>", "SimpleSource"),
        (PLAIN, "<VRTDataset><SourceDataset>x</SourceDataset></VRTDataset>", "SimpleSource"),
        (PLAIN, "", "KernelFilteredSource"),
        (PLAIN, "", "AveragedSource"),
        (PLAIN, "", "simplesource"),
    ],
)
def test_a_mosaic_that_names_anything_else_is_refused(
    source: str, around: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mosaic"
    for place in (tmp_path, folder):
        write_raster(place / "a.tif", VALUES, 0.2)
    (folder / "link.tif").symlink_to(tmp_path / "a.tif")
    (folder / "b.vrt").write_text(mosaic(folder, PLAIN).read_text())
    # Where GDAL would look for what is not relative to the mosaic.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZoneError, match="key: "):
        open_file(mosaic(folder, source, around, kind), NAME, "key")


def test_a_link_to_a_mosaic_reads_the_tiles_of_the_mosaic(tmp_path: Path) -> None:
    write_raster(tmp_path / "there/a.tif", VALUES, 0.2)
    write_raster(tmp_path / "here/a.tif", 255 - VALUES, 0.2)
    (tmp_path / "here/m.vrt").symlink_to(mosaic(tmp_path / "there", PLAIN))
    pixels = open_file(tmp_path / "here/m.vrt", NAME, "key").read((0, 32), (0, 32))
    np.testing.assert_array_equal(pixels.values, VALUES)


def test_a_file_with_the_name_of_a_connection_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raster(tmp_path / "a.tif", VALUES, 0.2)
    write_raster(tmp_path / "other.tif", 255 - VALUES, 0.2)
    os.rename(tmp_path / "other.tif", tmp_path / "GTIFF_DIR:1:a.tif")
    monkeypatch.chdir(tmp_path)
    pixels = open_file(Path("GTIFF_DIR:1:a.tif"), NAME, "key").read((0, 32), (0, 32))
    np.testing.assert_array_equal(pixels.values, 255 - VALUES)


def test_sidecars_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", VALUES, 0.2)
    beside = tmp_path / "a.tif.msk"
    beside.write_text("<VRTDataset rasterXSize='32' rasterYSize='32'/>")
    with pytest.raises(ZoneError, match=r"key: .*a\.tif has a\.tif\.msk beside it, which is no TIFF"):
        open_file(path, NAME, "key")
    with pytest.raises(ZoneError, match=r"which is no TIFF\. Expected plain GeoTIFFs"):
        open_file(mosaic(tmp_path, PLAIN), NAME, "key")
    beside.unlink()
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="overview_file">/etc/x.ovr</MDI></Metadata></PAMDataset>'
    )
    with pytest.raises(ZoneError, match=r"names '/etc/x.ovr' as the file of its overviews"):
        open_file(path, NAME, "key")


def without_tie_point(path: Path) -> Path:
    """Give the tie point another number: GDAL keeps the pixel size and takes (0, 0)."""
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    places = [start + 2 + 12 * number for number in range(count)]
    (place,) = [place for place in places if struct.unpack_from("<H", content, place)[0] == 33922]
    struct.pack_into("<H", content, place, 33921)
    path.write_bytes(content)
    return path


def test_a_pixel_size_without_a_tie_point_is_no_place(tmp_path: Path) -> None:
    path = without_tie_point(write_raster(tmp_path / "a.tif", VALUES, 0.2))
    with rasterio.open(path) as dataset:
        assert dataset.transform.c == 0
    message = "a pixel size, but no tie point .* gdal_edit.py -a_ullr"
    with pytest.raises(DataError, match=message):
        open_file(path, NAME, "key")
    with pytest.raises(DataError, match=message):
        open_file(mosaic(tmp_path, PLAIN), NAME, "key")
    with pytest.raises(DataError, match=message):
        zone({NAME: path})
    placed = write_raster(tmp_path / "b.tif", VALUES, 0.2, origin=(0, 0))
    assert open_file(placed, NAME, "key").geobox.bounds == pytest.approx((0, -6.4, 6.4, 0))


def test_control_points_are_no_transform(tmp_path: Path) -> None:
    points = [GroundControlPoint(row, col, X_MIN + col, Y_MAX - row) for row, col in ((0, 0), (0, 31), (31, 0))]
    profile = {"driver": "GTiff", "count": 4, "height": 32, "width": 32, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", gcps=points, crs="EPSG:2154", **profile) as dataset:
        dataset.write(VALUES)
    with pytest.raises(DataError, match=r"3 ground control points .* gdalwarp"):
        open_file(tmp_path / "a.tif", NAME, "key")


@pytest.mark.parametrize("resample", [False, True])
def test_a_height_system_and_rounded_rotation_change_nothing(resample: bool, tmp_path: Path) -> None:
    heights = made_values("DEM_ELEV", 0, 16, 16)
    ortho = write_raster(tmp_path / "a.tif", VALUES, 0.2)
    dem = write_raster(tmp_path / "dem.tif", heights, 0.4)
    expected = build_zone([RasterRequest(NAME, ortho), RasterRequest("DEM_ELEV", dem)])
    compound = CRS.from_user_input("EPSG:5698")
    turned = rasterio.Affine(0.4, 1e-12, X_MIN, -1e-12, -0.4, Y_MAX)
    other = write_raster(tmp_path / "other.tif", heights, 0.4, crs=compound, transform=turned)
    given = build_zone([RasterRequest(NAME, ortho), RasterRequest("DEM_ELEV", other)], resample=resample)
    for raster, wanted in zip(given.everything, expected.everything, strict=True):
        pixels, reference = raster.read((-4, 16), (0, 20)), wanted.read((-4, 16), (0, 20))
        np.testing.assert_array_equal(pixels.values, reference.values)
        assert pixels.valid is None


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint64", "uint32", "float64"])
def test_every_number_type_is_read_strictly_and_resampled(dtype: str, tmp_path: Path) -> None:
    model = fake_model({NAME: ImagePreparation(), "DEM_ELEV": ImagePreparation()})
    heights = made_values("DEM_ELEV", 0, 16, 16).astype(dtype)
    ortho = write_raster(tmp_path / "a.tif", VALUES.astype(dtype), 0.2, nodata=7)
    dem = write_raster(tmp_path / "dem.tif", heights, 0.4)
    moved = write_raster(tmp_path / "moved.tif", heights, 0.4, origin=(X_MIN - 0.4, Y_MAX))
    maps = [
        predict_zone(
            build_zone([RasterRequest(NAME, ortho), RasterRequest("DEM_ELEV", path)], resample=resample),
            model,
            window_px=32,
            margin_px=4,
        )["class"].values
        for path, resample in ((dem, False), (moved, True))
    ]
    assert (maps[0] != 255).mean() > 0.5
    # Moved by one pixel of its own: the same heights stand one of them farther left.
    assert (maps[1][:, -2:] == 255).all()
    assert (maps[1][:, :-2] != 255).mean() > 0.5


def test_heights_of_double_precision_are_rounded_and_never_become_infinite() -> None:
    values = np.array([[[101.123456789, -0.1, np.nan, np.inf]]])
    stored, lost = lossless(values, "float32", "a.tif")
    np.testing.assert_array_equal(stored, values.astype(np.float32))
    assert lost is None
    with pytest.raises(FlairhubError, match=r"a\.tif: dtype float64 value 1e\+39 does not fit float32"):
        lossless(np.array([[[1e39]]]), "float32", "a.tif")
    stored, _ = lossless(np.array([[[1e39, 5.0]]]), "float32", "a.tif", np.array([[False, True]]))
    assert stored.tolist() == [[[np.inf, 5.0]]]
