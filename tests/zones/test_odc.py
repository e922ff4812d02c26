"""Sources as odc-geo and odc-stac give them: a CRS that only `.odc` knows, a series from a STAC catalogue."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.xr import assign_crs, wrap_xr
from odc.stac import load
from rasterio.warp import transform_bounds

import flairhub as fh
from flairhub.errors import ZoneError
from flairhub.inference import predict_zone
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import SeriesPreparation
from tests.helpers.zone_makers import X_MIN, Y_MAX, fake_model, made_values, write_raster

BOX = GeoBox((40, 56), rasterio.Affine(0.2, 0, X_MIN, 0, -0.2, Y_MAX), "EPSG:2154")


def image() -> xr.DataArray:
    values = made_values("AERIAL_RGBI", 1, 40, 56)
    array = wrap_xr(values, BOX, axis=1)
    return array.rename({array.dims[0]: "band"}).assign_coords(band=["R", "G", "B", "NIR"])


def known_to_odc_only() -> dict[str, xr.DataArray]:
    bare = image().drop_vars("spatial_ref")
    bare.encoding, bare.attrs = {}, {}
    named = assign_crs(bare, "EPSG:2154", crs_coord_name="place")
    named.encoding = {}
    on_axes = bare.copy()
    for name in ("x", "y"):
        on_axes[name].attrs["crs"] = "EPSG:2154"
    return {"another name": named, "on the axes": on_axes, "as odc writes it": image()}


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("name", list(known_to_odc_only()))
def test_a_crs_that_only_odc_knows(name: str, chunk: int | None, tmp_path: Path) -> None:
    array = known_to_odc_only()[name]
    assert array.odc.crs.epsg == 2154
    assert name == "as odc writes it" or array.rio.crs is None
    array = array if chunk is None else array.chunk(x=chunk, y=chunk)
    model = fake_model({"AERIAL_RGBI": ImagePreparation()})
    zone = fh.zone(AERIAL_RGBI=array)
    assert zone.geobox.bounds == (X_MIN, Y_MAX - 8, X_MIN + 11.2, Y_MAX)
    maps = predict_zone(zone, model, window_px=16, margin_px=2)
    file = write_raster(tmp_path / "image.tif", image().values, 0.2)
    xr.testing.assert_equal(
        maps.compute(), predict_zone(fh.zone(AERIAL_RGBI=file), model, window_px=16, margin_px=2).compute()
    )


def test_coordinates_that_disagree_are_refused() -> None:
    array = known_to_odc_only()["on the axes"]
    array["y"].attrs["crs"] = "EPSG:32631"
    with pytest.raises(ZoneError, match=r"AERIAL_RGBI: its coordinates .*x.* name different CRS. Say which one holds"):
        fh.zone(AERIAL_RGBI=array)


BANDS = {"B02": "blue", "B04": "red", "B08": "nir"}
DAYS = [datetime.datetime(2021, month, 5, tzinfo=datetime.UTC) for month in (3, 6, 9)]


def write_scene(folder: Path, epsg: int, bounds: tuple[float, float, float, float], number: int) -> pystac.Item:
    """A scene of 10 m in a UTM zone that covers the bounds; each band holds one number, rising with the date."""
    left, bottom, right, top = transform_bounds(2154, epsg, *bounds)
    left, top = np.floor(left / 10) * 10 - 50, np.ceil(top / 10) * 10 + 50
    width, height = int(np.ceil((right + 50 - left) / 10)), int(np.ceil((top - bottom + 50) / 10))
    grid = transform_bounds(epsg, 4326, left, top - 10 * height, left + 10 * width, top)
    day = DAYS[number]
    polygon = {
        "type": "Polygon",
        "coordinates": [[[x, y] for x, y in zip(*_corners(grid), strict=True)]],
    }
    item = pystac.Item(f"{epsg}-{number}", polygon, list(grid), day, {"proj:code": f"EPSG:{epsg}"})
    for position, (asset, name) in enumerate(BANDS.items()):
        path = folder / f"{item.id}-{asset}.tif"
        values = np.full((1, height, width), 1000 * (number + 1) + position, "uint16")
        profile: dict[str, Any] = {"driver": "COG", "count": 1, "height": height, "width": width, "dtype": "uint16"}
        transform = rasterio.Affine(10, 0, left, 0, -10, top)
        with rasterio.open(path, "w", crs=f"EPSG:{epsg}", transform=transform, nodata=0, **profile) as target:
            target.write(values)
        facts = {
            "eo:bands": [{"name": asset, "common_name": name}],
            "raster:bands": [{"nodata": 0, "data_type": "uint16"}],
        }
        item.add_asset(asset, pystac.Asset(str(path), media_type=pystac.MediaType.COG, extra_fields=facts))
    return item


def _corners(bounds: tuple[float, float, float, float]) -> tuple[list[float], list[float]]:
    left, bottom, right, top = bounds
    return [left, right, right, left, left], [bottom, bottom, top, top, bottom]


def test_a_series_of_a_catalogue_in_two_utm_zones(tmp_path: Path) -> None:
    """On the border of zones 30 and 31 a date is put together from both; the map is that of one lazy Dataset."""
    bounds = (458_000.0, 6_700_000.0, 458_320.0, 6_700_320.0)
    catalogue = pystac.Catalog("made", "two UTM zones")
    for number in range(3):
        for epsg in (32630, 32631):
            half = 160.0 if epsg == 32630 else 0.0
            part = bounds[0] + 160 - half, bounds[1], bounds[2] - half, bounds[3]
            catalogue.add_item(write_scene(tmp_path, epsg, part, number))
    catalogue.normalize_and_save(str(tmp_path / "catalogue"), pystac.CatalogType.SELF_CONTAINED)
    opened = pystac.Catalog.from_file(str(tmp_path / "catalogue" / "catalog.json"))
    grid = GeoBox((32, 32), rasterio.Affine(10, 0, bounds[0], 0, -10, bounds[3]), "EPSG:2154")
    series = load(
        opened.get_items(recursive=True), bands=list(BANDS), geobox=grid, chunks={"x": 16, "y": 16}, groupby="solar_day"
    )
    assert dict(series.sizes) == {"time": 3, "y": 32, "x": 32}
    zone = fh.zone(SENTINEL2_TS=series)
    assert zone.rasters["SENTINEL2_TS"].bands == ("B02", "B04", "B08")
    assert zone.rasters["SENTINEL2_TS"].nodata == 0
    pixels = zone.rasters["SENTINEL2_TS"].read((0, 32), (0, 32))
    numbers: NDArray[Any] = pixels.values[:, :, 16, 16]
    assert numbers.tolist() == [[1000 * date + band for band in range(3)] for date in (1, 2, 3)]
    assert pixels.valid is None or pixels.valid.mean() > 0.99
    model = fake_model({"SENTINEL2_TS": SeriesPreparation((1, 2, 3))})
    lazy = predict_zone(zone, model, window_px=16, margin_px=2, block_px=20)["class"]
    memory = predict_zone(fh.zone(SENTINEL2_TS=series.compute()), model, window_px=16, margin_px=2)["class"]
    np.testing.assert_array_equal(lazy.values, memory.values)
    assert (lazy != 255).mean() > 0.99
