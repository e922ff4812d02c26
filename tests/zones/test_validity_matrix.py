"""One rule of validity: every reason why a pixel holds no data, on every path by which it is read.

Each case writes a raster of which a known part holds no data, opens it by a path, and compares validity and network
input with what was written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from flairhub.inference import predict_zone
from flairhub.inference.batches import make_batch, read_block
from flairhub.ingest import ingest_zone
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import SeriesPreparation
from flairhub.zones import Raster, RasterRequest, Zone, build_zone, zone_of_cube
from tests.helpers.zone_makers import X_MIN, Y_MAX, fake_model, write_raster

SIZE, SHIFT, RES = 48, 2, 1.6
GAP = slice(16, 32), slice(16, 48)
"""Two blocks of 16 px, so that they can be left unwritten, and two tiles of a mosaic."""

Array = NDArray[Any]
Made = tuple[Path, Array, Array]
"""File, values (band, y, x), and validity (y, x) or (time, y, x)."""


def image(dtype: str, n_bands: int = 4) -> Array:
    return np.random.default_rng(3).integers(1, 100, (n_bands, SIZE, SIZE)).astype(dtype)


def without_gap() -> Array:
    valid = np.ones((SIZE, SIZE), dtype=bool)
    valid[GAP] = False
    return valid


def declared(dtype: str, nodata: float) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        values = image(dtype)
        values[:, GAP[0], GAP[1]] = nodata
        # One band may hold the number by chance: that is data, but for floats.
        if np.dtype(dtype).kind in "iu":
            values[0, 0, 0] = nodata
        return write_raster(folder / "a.tif", values, RES, nodata=nodata), values, without_gap()

    return make


def undeclared(number: float) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        values = image("float32")
        values[1, GAP[0], GAP[1]] = number
        return write_raster(folder / "a.tif", values, RES), values, without_gap()

    return make


def mask(internal: bool) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        values = image("uint16")
        path = write_raster(folder / "a.tif", values, RES)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(without_gap().astype(np.uint8) * 255)
        assert (folder / "a.tif.msk").exists() != internal
        return path, values, without_gap()

    return make


def fifth_band_alpha(folder: Path) -> Made:
    values = image("uint8")
    alpha = without_gap().astype(np.uint8) * 255
    path = write_raster(folder / "a.tif", np.concatenate([values, alpha[None]]), RES, photometric="MINISBLACK")
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * 3, ColorInterp.alpha]
    return path, values, without_gap()


def fourth_band_alpha(folder: Path) -> Made:
    """Red, green, blue and opacity, for a model that takes the first three."""
    values = image("uint8")
    values[3] = without_gap() * 255
    return write_raster(folder / "a.tif", values, RES, photometric="RGB", alpha="YES"), values, without_gap()


def fourth_band_infrared(folder: Path) -> Made:
    """Infrared that GDAL marks as alpha, as it does with any four bands of bytes: zeros in it are dark, not missing."""
    values = image("uint8")
    values[3, GAP[0], GAP[1]] = 0
    path = write_raster(folder / "a.tif", values, RES, photometric="RGB", alpha="YES")
    return path, values, np.ones((SIZE, SIZE), dtype=bool)


def never_written(folder: Path) -> Made:
    values = image("uint16")
    path = write_raster(folder / "whole.tif", values, RES)
    with rasterio.open(path) as whole, rasterio.open(folder / "a.tif", "w", **whole.profile, SPARSE_OK=True) as part:
        for row in range(0, SIZE, 16):
            for col in range(0, SIZE, 16):
                if (row, col) not in ((16, 16), (16, 32)):
                    part.write(values[:, row : row + 16, col : col + 16], window=Window(col, row, 16, 16))
    values[:, GAP[0], GAP[1]] = 0
    return folder / "a.tif", values, without_gap()


def vrt(
    path: Path,
    tiles: list[tuple[str, int, int, int, int]],
    dtype: str,
    n_bands: int = 4,
    mask: str = "",
    alpha: int | None = None,
) -> Path:
    """A mosaic: (file, column, row, width, height) of its tiles."""
    kinds = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}

    def tile(band: str, file: str, x: int, y: int, width: int, height: int) -> str:
        return (
            f'<SimpleSource><SourceFilename relativeToVRT="1">{file}</SourceFilename><SourceBand>{band}</SourceBand>'
            f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
            f'<DstRect xOff="{x}" yOff="{y}" xSize="{width}" ySize="{height}"/></SimpleSource>'
        )

    bands = "".join(
        f'<VRTRasterBand dataType="{kinds[dtype]}" band="{band}">'
        + ("<ColorInterp>Alpha</ColorInterp>" if band == alpha else "")
        + "".join(tile(str(band), *one) for one in tiles)
        + "</VRTRasterBand>"
        for band in range(1, n_bands + 1)
    )
    if mask:
        shown = tile("mask,1", mask, 0, 0, SIZE, SIZE)
        bands += f'<MaskBand><VRTRasterBand dataType="Byte">{shown}</VRTRasterBand></MaskBand>'
    path.write_text(
        f'<VRTDataset rasterXSize="{SIZE}" rasterYSize="{SIZE}"><SRS>EPSG:2154</SRS>'
        f"<GeoTransform>{X_MIN}, {RES}, 0, {Y_MAX}, 0, -{RES}</GeoTransform>{bands}</VRTDataset>"
    )
    return path


def hole(folder: Path) -> Made:
    values, tiles = image("uint16"), []
    for row in range(0, SIZE, 16):
        for col in range(0, SIZE, 16):
            if (row, col) in ((16, 16), (16, 32)):
                continue
            name = f"{row}-{col}.tif"
            part = values[:, row : row + 16, col : col + 16]
            write_raster(folder / name, part, RES, origin=(X_MIN + col * RES, Y_MAX - row * RES))
            tiles.append((name, col, row, 16, 16))
    values[:, GAP[0], GAP[1]] = 0
    return vrt(folder / "a.vrt", tiles, "uint16"), values, without_gap()


def vrt_mask(folder: Path) -> Made:
    path, values, valid = mask(True)(folder)
    # The tiles of the bands carry no mask: only the mosaic knows it.
    write_raster(folder / "plain.tif", values, RES)
    return vrt(folder / "b.vrt", [("plain.tif", 0, 0, SIZE, SIZE)], "uint16", mask=path.name), values, valid


def nothing(folder: Path) -> Made:
    values = np.zeros((4, SIZE, SIZE), np.uint8)
    return write_raster(folder / "a.tif", values, RES, nodata=0), values, np.zeros((SIZE, SIZE), dtype=bool)


IMAGES: dict[str, Callable[[Path], Made]] = {
    "uint8 nodata": declared("uint8", 0),
    "uint16 nodata": declared("uint16", 65535),
    "int16 nodata": declared("int16", -9999),
    "float32 nodata": declared("float32", -3.4028234663852886e38),
    "NaN": undeclared(np.nan),
    "infinity": undeclared(np.inf),
    "internal mask": mask(True),
    ".msk": mask(False),
    "VRT mask": vrt_mask,
    "alpha beyond the bands": fifth_band_alpha,
    "alpha as fourth band": fourth_band_alpha,
    "infrared marked alpha": fourth_band_infrared,
    "hole of a mosaic": hole,
    "never written": never_written,
    "whole raster": nothing,
}


def series(dtype: str, empty: float, nodata: float | None) -> Callable[[Path], Made]:
    """Three dates: the second has a gap, the third holds nothing."""

    def make(folder: Path) -> Made:
        values = image(dtype, 30)
        values[10:20, GAP[0], GAP[1]] = empty
        values[20:] = empty
        valid = np.stack([np.ones((SIZE, SIZE), dtype=bool), without_gap(), np.zeros((SIZE, SIZE), dtype=bool)])
        return write_raster(folder / "a.tif", values, RES, nodata=nodata), values, valid

    return make


def series_of_holes(folder: Path) -> Made:
    """A stack by gdalbuildvrt -separate: the second date lacks a tile, the third has none."""
    values = image("uint16", 30)
    write_raster(folder / "first.tif", values[:10], RES)
    write_raster(folder / "left.tif", values[10:20, :, :16], RES)
    values[10:20, :, 16:] = 0
    values[20:] = 0
    text = ""
    for band in range(30):
        date, number = divmod(band, 10)
        file, width = (("first.tif", SIZE), ("left.tif", 16), ("", 0))[date]
        source = (
            f'<SimpleSource><SourceFilename relativeToVRT="1">{file}</SourceFilename>'
            f"<SourceBand>{number + 1}</SourceBand>"
            f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{SIZE}"/>'
            f'<DstRect xOff="0" yOff="0" xSize="{width}" ySize="{SIZE}"/></SimpleSource>'
        )
        text += f'<VRTRasterBand dataType="UInt16" band="{band + 1}">{source if file else ""}</VRTRasterBand>'
    (folder / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="{SIZE}" rasterYSize="{SIZE}"><SRS>EPSG:2154</SRS>'
        f"<GeoTransform>{X_MIN}, {RES}, 0, {Y_MAX}, 0, -{RES}</GeoTransform>{text}</VRTDataset>"
    )
    valid = np.zeros((3, SIZE, SIZE), dtype=bool)
    valid[0] = True
    valid[1, :, :16] = True
    return folder / "a.vrt", values, valid


SERIES: dict[str, Callable[[Path], Made]] = {
    "uint16 65535": series("uint16", 65535, 65535),
    "uint16 0": series("uint16", 0, 0),
    "int16 -10000": series("int16", -10000, -10000),
    "float32 -9999": series("float32", -9999, -9999),
    "NaN": series("float32", np.nan, None),
    "holes": series_of_holes,
}


def request(name: str, path: Path) -> RasterRequest:
    dates = path.with_name("dates.txt")
    dates.write_text("20180105\n20180120\n20180622\n")
    return RasterRequest(name, path, dates if name == "SENTINEL2_TS" else None)


def strict(folder: Path, name: str, made: Made) -> tuple[Zone, Array, Array]:
    return build_zone([request(name, made[0])]), made[1], made[2]


def resampled(folder: Path, name: str, made: Made) -> tuple[Zone, Array, Array]:
    """Onto the grid of a finer image that begins two pixels farther in: every pixel is one of the raster's."""
    n_fine = (SIZE - 2 * SHIFT) * 8
    origin = (X_MIN + SHIFT * RES, Y_MAX - SHIFT * RES)
    fine = write_raster(folder / "fine.tif", np.ones((4, n_fine, n_fine), np.uint8), 0.2, origin=origin)
    zone = build_zone([RasterRequest("AERIAL_RGBI", fine), request(name, made[0])], resample=True)
    inside = slice(SHIFT, SIZE - SHIFT)
    return zone, made[1][..., inside, inside], made[2][..., inside, inside]


def mosaic(folder: Path, name: str, made: Made) -> tuple[Zone, Array, Array]:
    """Through a mosaic of the one file, which declares nothing of its own."""
    if made[0].suffix == ".vrt":
        pytest.skip("a mosaic already; mosaics of mosaics are refused")
    with rasterio.open(made[0]) as dataset:
        n_bands, dtype, meanings = dataset.count, dataset.dtypes[0], list(dataset.colorinterp)
    # As gdalbuildvrt does, the mosaic says which band is alpha, and nothing of nodata or masks.
    alpha = meanings.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in meanings else None
    tiles = [(made[0].name, 0, 0, SIZE, SIZE)]
    path = vrt(made[0].with_name("mosaic.vrt"), tiles, dtype, n_bands, alpha=alpha)
    return build_zone([request(name, path)]), made[1], made[2]


def cube(folder: Path, name: str, made: Made) -> tuple[Zone, Array, Array]:
    ingest_zone(strict(folder, name, made)[0], cube=folder / "zone.zarr")
    return zone_of_cube(folder / "zone.zarr", None, [name]), made[1], made[2]


def cube_of_resampled(folder: Path, name: str, made: Made) -> tuple[Zone, Array, Array]:
    zone, values, valid = resampled(folder, name, made)
    ingest_zone(zone, cube=folder / "zone.zarr")
    return zone_of_cube(folder / "zone.zarr", None, list(zone.rasters)), values, valid


PATHS = [strict, resampled, mosaic, cube, cube_of_resampled]


def seen(raster: Raster, channels: tuple[int, ...] | None, valid: Array) -> None:
    """The whole raster, and a part of it, say where there is data."""
    height, width = raster.geobox.height, raster.geobox.width
    for rows, cols in (((0, height), (0, width)), ((17, 40), (5, 20))):
        pixels = raster.read(rows, cols, channels)
        expected = valid[..., slice(*rows), slice(*cols)]
        result = np.ones_like(expected) if pixels.valid is None else pixels.valid
        np.testing.assert_array_equal(np.broadcast_to(result, expected.shape), expected)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
@pytest.mark.parametrize("source", IMAGES, ids=str)
def test_images(tmp_path: Path, source: str, path: Callable[..., tuple[Zone, Array, Array]]) -> None:
    made = IMAGES[source](tmp_path)
    zone, values, valid = path(tmp_path, "SPOT_RGBI", made)
    how = {"SPOT_RGBI": ImagePreparation((3, 1, 2), None, "custom", (10.0, 20.0, 30.0), (2.0, 4.0, 5.0))}
    seen(zone.rasters["SPOT_RGBI"], (3, 1, 2), valid)
    # What the network gets: 0 where there is no data, else the normalised value.
    ratio = int(zone.ratio("SPOT_RGBI"))
    length = zone.geobox.height
    pixels = read_block(zone, how, (0, length), (0, length))
    batch, _ = make_batch(zone, pixels, how, [(0, 0)], length, "cpu")
    means, stds = np.array([10, 20, 30]), np.array([2, 4, 5])
    chosen = values[[2, 0, 1]].astype(np.float64)
    expected = (chosen - means[:, None, None]) / stds[:, None, None]
    expected = np.where(valid, expected, 0.0)
    np.testing.assert_allclose(batch.inputs["SPOT_RGBI"][0].numpy(), expected, rtol=1e-5, atol=1e-5)
    # The map: no data where the input has none.
    model = fake_model(how)
    maps = predict_zone(zone, model, window_px=16 * ratio, margin_px=0)["class"].values
    np.testing.assert_array_equal(maps != 255, valid.repeat(ratio, 0).repeat(ratio, 1))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
@pytest.mark.parametrize("source", SERIES, ids=str)
def test_series(tmp_path: Path, source: str, path: Callable[..., tuple[Zone, Array, Array]]) -> None:
    zone, values, valid = path(tmp_path, "SENTINEL2_TS", SERIES[source](tmp_path))
    values = values.reshape(3, 10, *values.shape[-2:]).astype(np.float64)
    seen(zone.rasters["SENTINEL2_TS"], (1, 2), valid)
    length = zone.geobox.height
    for average in (None, "monthly"):
        how: Any = {"SENTINEL2_TS": SeriesPreparation(channels=(2, 9), average=average)}
        pixels = read_block(zone, how, (0, length), (0, length))
        batch, _ = make_batch(zone, pixels, how, [(0, 0)], length, "cpu")
        inputs, masks = batch.inputs["SENTINEL2_TS"][0].numpy(), batch.masks["SENTINEL2_TS"][0].numpy()
        chosen = np.where(valid[:, None], values[:, [1, 8]], 0.0)
        if average is None:
            # The third date, of which nothing is valid, is left out; the second keeps its valid pixels.
            assert masks.tolist() == [True, True]
            np.testing.assert_array_equal(inputs, chosen[:2])
        else:
            counts = valid[:2].sum(axis=0)
            mean = chosen[:2].sum(axis=0) / np.maximum(counts, 1)
            assert masks.tolist() == [True, *[False] * 11]
            np.testing.assert_allclose(inputs[0], mean, rtol=1e-6)
