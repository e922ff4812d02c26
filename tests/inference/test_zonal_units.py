"""Metres are metres: feet are converted, degrees refused, areas that the projection distorts say so."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
from pyarrow import parquet

from flairhub.errors import ZoneError
from flairhub.geo import GeoBox, area_note
from flairhub.inference import Extras, Sizes, open_zone, predict_zone, write_zone
from flairhub.inference.check import check
from flairhub.inference.map_plan import output_geobox, output_ratio_of
from flairhub.ingest import ingest_zone
from flairhub.prepare import ImagePreparation
from flairhub.zones import RasterRequest, Zone, build_zone
from tests.helpers.bundle_makers import make_bundle, write_zonal_config
from tests.helpers.commands import failure
from tests.helpers.zone_makers import fake_model, made_values, make_zone, write_raster

NAME, FEET = "AERIAL_RGBI", "EPSG:2227"
FOOT_M = 1200 / 3937


def zone_in(folder: Path, crs: str, res: float, origin: tuple[float, float]) -> Zone:
    path = write_raster(folder / "a.tif", made_values(NAME, 0, 48, 48), res, crs=crs, origin=origin)
    return build_zone([RasterRequest(NAME, path)])


def feet(folder: Path) -> Zone:
    return zone_in(folder, FEET, 1.0, (6_000_000.0, 2_100_000.0))


def mercator(folder: Path) -> Zone:
    return zone_in(folder, "EPSG:3857", 0.2, (260_000.0, 5_860_000.0))


def test_feet_are_converted(tmp_path: Path) -> None:
    zone = feet(tmp_path)
    sizes = Sizes(32, 4, output_px_m=2 * FOOT_M)
    assert output_geobox(zone, output_ratio_of(zone, sizes)).x_res == 2.0
    extras = Extras(polygons="gpkg", min_area_m2=1.5 * FOOT_M**2)
    options = {"window_px": 32, "margin_px": 4, "extras": extras}
    result = write_zone(zone, fake_model({NAME: ImagePreparation()}), tmp_path / "out", "map", **options)  # type: ignore[arg-type]
    (path,) = result.extras
    areas = geopandas.read_file(path)
    pixels = areas.geometry.area
    np.testing.assert_allclose(areas["area_m2"], pixels * FOOT_M**2, rtol=1e-9)
    assert pixels.min() == 2
    maps = predict_zone(zone, fake_model({NAME: ImagePreparation()}), window_px=32, margin_px=4)
    table = maps.flairhub.areas()
    np.testing.assert_allclose(table["ha"], table["pixels"] * FOOT_M**2 / 10_000, rtol=1e-9)
    everything = maps.flairhub.to_polygons(tmp_path / "all.gpkg")
    assert geopandas.read_file(everything)["area_m2"].sum() == pytest.approx(48 * 48 * FOOT_M**2)


def test_check_counts_in_metres(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 48, 48, {NAME: 1})
    write_raster(made.folder / f"{NAME}.tif", made.arrays[NAME], 1.0, crs=FEET, origin=(6_000_000, 2_100_000))
    path = write_zonal_config(tmp_path / "z.yaml", made, make_bundle(tmp_path / "b", {NAME: ImagePreparation()}))
    report = check(path)
    assert dict(report.facts)["zone"] == f"48 x 48 px of 0.304801 m, {48 * 48 * FOOT_M**2 / 1e6:.3g} km2"
    assert any("pixels of 0.304801 m, published are 0.2 m" in finding.text for finding in report.findings)


def test_the_finest_raster_is_the_finest_in_metres(tmp_path: Path) -> None:
    """Of 0.5 feet and 0.2 metres the former is finer."""
    fine = write_raster(
        tmp_path / "a.tif", made_values(NAME, 0, 48, 48), 0.5, crs=FEET, origin=(6_000_000.0, 2_100_000.0)
    )
    other = write_raster(
        tmp_path / "b.tif", made_values("DEM_ELEV", 0, 48, 48), 0.2, crs="EPSG:26910", origin=(540_000.0, 4_170_000.0)
    )
    zone = build_zone([RasterRequest(NAME, fine), RasterRequest("DEM_ELEV", other)], resample=True)
    assert zone.geobox.x_res == 0.5


def test_degrees_are_refused_everywhere_with_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_zone(tmp_path, 48, 48, {NAME: 1})
    write_raster(made.folder / f"{NAME}.tif", made.arrays[NAME], 1e-6, crs="EPSG:4326", origin=(2.5, 46.5))
    path = write_zonal_config(tmp_path / "z.yaml", made, make_bundle(tmp_path / "b", {NAME: ImagePreparation()}))
    message = f"{NAME}.tif is in EPSG:4326, whose unit is the degree: a geographic CRS has no metres"
    with pytest.raises(ZoneError, match=rf"{message}.*gdalwarp -t_srs EPSG:2154"):
        open_zone(path)
    with pytest.raises(ZoneError, match=message):
        open_zone(write_zonal_config(tmp_path / "r.yaml", made, tmp_path / "b", {"align": "resample"}))
    assert [message in finding.text for finding in check(path).findings] == [True]
    assert message in failure(capsys, "zonal", "--config", path)[1]
    assert message in failure(capsys, "ingest", "--zone", path, "--cube", tmp_path / "zone.zarr")[1]
    assert not (tmp_path / "zone.zarr").exists()


def test_a_coarse_raster_in_degrees_is_resampled(tmp_path: Path) -> None:
    ortho = write_raster(tmp_path / "a.tif", made_values(NAME, 0, 48, 48), 0.2)
    heights = np.full((2, 40, 40), 7, np.float32)
    dem = write_raster(tmp_path / "b.tif", heights, 1e-5, crs="EPSG:4326", origin=(2.3180, 48.8415))
    zone = build_zone([RasterRequest(NAME, ortho), RasterRequest("DEM_ELEV", dem)], resample=True)
    assert zone.geobox.x_res == 0.2


def test_the_projection_of_france_keeps_areas_and_mercator_does_not(tmp_path: Path) -> None:
    from rasterio.crs import CRS

    lambert = GeoBox(CRS.from_epsg(2154).to_wkt(), 650_000, 6_860_000, 0.2, 0.2, 100, 100)
    assert area_note(lambert) == ""
    zone = mercator(tmp_path)
    note = area_note(zone.geobox)
    # 1 / cos^2 of the latitude, 46.5 degrees, on the ellipsoid.
    assert "EPSG:3857, which at the middle of the map shows them 2.1" in note
    model = fake_model({NAME: ImagePreparation()})
    for kind in ("gpkg", "parquet"):
        options = {"window_px": 32, "margin_px": 4, "extras": Extras(polygons=kind)}  # type: ignore[arg-type]
        (path,) = write_zone(zone, model, tmp_path / kind, "map", **options).extras  # type: ignore[arg-type]
        if kind == "gpkg":
            assert pyogrio.read_info(path)["layer_metadata"]["AREA"] == note
        else:
            assert parquet.read_schema(path).metadata[b"AREA"].decode() == note
            assert len(geopandas.read_parquet(path)) > 10
    maps = predict_zone(zone, model, window_px=32, margin_px=4)
    assert maps.flairhub.areas().attrs["note"] == note
    ingest_zone(zone, cube=tmp_path / "zone.zarr")
