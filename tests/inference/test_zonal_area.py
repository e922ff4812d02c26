"""Maps of an area of interest: the pixels of the whole map inside, none outside, and nothing done for the latter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.array as da
import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.features import geometry_mask

import flairhub as fh
from flairhub.cli import main
from flairhub.errors import OutputExistsError, ZoneError
from flairhub.inference import Extras, Style, predict_block, predict_zone, run_zonal, write_zone
from flairhub.inference.map_plan import PLAIN, MapPlan, map_sizes, plan_map
from flairhub.inference.model_ref import model_ref
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import SeriesPreparation
from flairhub.zones import FileRaster, Zone, with_area
from tests.helpers.bundle_makers import make_bundle, write_zonal_config
from tests.helpers.zone_makers import X_MIN, Y_MAX, MadeZone, fake_model, make_zone

HEIGHT, WIDTH, RES = 120, 136, 0.5
INPUTS = {"AERIAL_RGBI": ImagePreparation((4, 1, 2)), "SENTINEL2_TS": SeriesPreparation((3, 1))}
OUTPUTS = ("class", "confidence", "probabilities", "scaled")
AERIAL = {"AERIAL_RGBI": ImagePreparation()}
MAP = "map_AERIAL_LABEL-COSIA_argmax.tif"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeZone:
    return make_zone(tmp_path_factory.mktemp("zone"), HEIGHT, WIDTH, {"AERIAL_RGBI": 1, "SENTINEL2_TS": 8}, RES)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "aerial", AERIAL)


def in_pixels(*points: tuple[float, float], holes: Any = ()) -> Any:
    """A polygon of (column, row) in the CRS of the zone."""
    placed = [[(X_MIN + x * RES, Y_MAX - y * RES) for x, y in ring] for ring in (points, *holes)]
    return shapely.make_valid(shapely.Polygon(placed[0], placed[1:]))


TRIANGLE = in_pixels((40.6, 44), (100, 50.4), (66, 96))
RING = in_pixels((10, 10), (120, 14), (110, 100), (20, 110), holes=[[(40, 40), (90, 42), (80, 80), (45, 85)]])
CORNERS = shapely.union_all([in_pixels((2, 2), (6, 2), (4, 7)), in_pixels((120, 108), (130, 110), (124, 116))])


def pixels_inside(shape: Any, box: Any) -> NDArray[np.bool_]:
    """Brute force: burnt at full size. Lines and points, as degenerate rings become, are no area."""
    polygons = [part for part in shapely.get_parts(shape) if part.area]
    return np.asarray(
        geometry_mask(polygons or [shapely.Polygon()], (box.height, box.width), box.affine(), invert=True)
    )


def computed(maps: xr.Dataset) -> xr.Dataset:
    return maps.compute(scheduler="synchronous")


def plan_of(zone: Zone, model: Any, block_px: int | None = None, style: Style = PLAIN) -> MapPlan:
    return plan_map(zone, model_ref(model), map_sizes(zone), block_px, style)


def check_equal(maps: xr.Dataset, whole: xr.Dataset, inside: NDArray[np.bool_], plan: MapPlan) -> None:
    """The maps are those of the whole zone, but for pixels outside."""
    (top, bottom), (left, right) = plan.on_zone((0, plan.geobox.height), (0, plan.geobox.width))
    part = inside[top:bottom, left:right]
    assert part.sum() == inside.sum()
    assert set(maps.x.values) <= set(whole.x.values)
    expected = whole.sel(x=maps.x, y=maps.y)
    for name in maps.data_vars:
        blank = {"class": 255, "scaled": 0}.get(str(name).split("_")[0], np.nan)
        wanted = np.where(part, expected[name].values, blank)
        np.testing.assert_array_equal(maps[name].values, wanted)


points = st.tuples(st.integers(-40, WIDTH * 4 + 40), st.integers(-40, HEIGHT * 4 + 40)).map(
    lambda xy: (xy[0] / 4 + 0.0501237, xy[1] / 4 + 0.0317519)  # no centre of a pixel lies on an edge
)


WHOLE: dict[Any, xr.Dataset] = {}
"""Maps of the whole zone by window, margin, pixel and style."""


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rings=st.lists(st.lists(points, min_size=3, max_size=7), min_size=1, max_size=3), data=st.data())
def test_any_polygon_is_the_whole_map_inside_and_nothing_outside(
    made: MadeZone, rings: list[Any], data: st.DataObject
) -> None:
    shape = shapely.union_all([in_pixels(*ring) for ring in rings])
    output_px_m = data.draw(st.sampled_from([None, 0.8, 0.25]))
    sizes = data.draw(st.sampled_from([(32, 4), (40, 11)]))
    style = Style(blend=data.draw(st.booleans()))
    zone, model = made.open(*sizes, output_px_m=output_px_m), fake_model(INPUTS)
    try:
        chosen = with_area(zone, shape)
    except ZoneError:
        assert not pixels_inside(shape, zone.geobox).any()
        return
    options: dict[str, Any] = {"outputs": ("class", "scaled"), "style": style}
    key = (sizes, output_px_m, style)
    if key not in WHOLE:
        WHOLE[key] = computed(predict_zone(zone, model, **options))
    block_px = data.draw(st.integers(20, 90))
    maps = predict_zone(chosen, model, block_px=block_px, **options)
    plan = plan_of(chosen, model, block_px, style)
    inside = pixels_inside(shape, plan_of(zone, model, style=style).geobox)
    check_equal(computed(maps), WHOLE[key], inside, plan)


@pytest.mark.parametrize("shape", [TRIANGLE, RING, CORNERS], ids=["triangle", "ring", "corners"])
@pytest.mark.parametrize("blend", [False, True])
def test_only_windows_with_a_pixel_inside_are_computed(made: MadeZone, shape: Any, blend: bool) -> None:
    zone, model, style = made.open(32, 4), fake_model(INPUTS), Style(blend=blend)
    chosen = with_area(zone, shape)
    plan = plan_of(chosen, model, 2048, style)
    inside = pixels_inside(shape, zone.geobox)
    needed = set()
    for row in range(plan.rows.count):
        for col in range(plan.cols.count):
            spans = []
            for axis, index in ((plan.rows, row), (plan.cols, col)):
                start = axis.start(index)
                spans.append(slice(max(start, 0), start + axis.window) if blend else slice(*axis.core(index)))
            if inside[spans[0], spans[1]].any():
                needed.add((row, col))
    model.network.samples = 0
    computed(predict_zone(chosen, model, style=style))
    assert model.network.samples == len(needed) == plan.n_windows < plan.rows.count * plan.cols.count
    assert set(zip(*(numbers.tolist() for numbers in plan.windows()), strict=True)) == needed


def test_blocks_outside_read_nothing_and_are_not_computed(
    made: MadeZone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    zone, model = with_area(made.open(32, 4), CORNERS), fake_model(INPUTS)
    plan = plan_of(zone, model, 24)
    inside = pixels_inside(CORNERS, made.open(32, 4).geobox)
    expected = [
        block
        for block in plan.blocks()
        if inside[tuple(slice(*span) for span in plan.on_zone(*plan.extent(block)))].any()
    ]
    assert plan.blocks_inside() == expected
    assert (len(expected), plan.n_blocks) == (2, (5, 6))
    reads: list[tuple[str, Any, Any]] = []
    load = FileRaster.load

    def counted(raster: FileRaster, rows: Any, cols: Any) -> Any:
        reads.append((raster.name, rows, cols))
        return load(raster, rows, cols)

    monkeypatch.setattr(FileRaster, "load", counted)
    result = write_zone(zone, model, tmp_path, "map", block_px=24, tiles=True)
    assert (result.n_blocks, result.n_computed, result.n_windows) == (2, 2, 2)
    assert len(geopandas.read_file(tmp_path / "map_tiles.gpkg")) == 2
    assert model.network.samples == 2
    assert [name for name, _, _ in reads] == ["AERIAL_RGBI", "SENTINEL2_TS"] * 2
    # What a window reads, not what the block could.
    assert max(rows[1] - rows[0] for name, rows, _ in reads if name == "AERIAL_RGBI") == 32
    reads.clear()
    maps = predict_zone(zone, model, block_px=24)
    computed(maps.isel(x=slice(30, 100)))
    assert reads == []
    computed(maps)
    assert len(reads) == 4


def as_arrays(made: MadeZone, chunk_px: int, seen: list[Any]) -> dict[str, xr.DataArray]:
    """The rasters as dask arrays that tell which chunks are computed."""
    zone, arrays = made.open(32, 4), {}
    for name, node in zone.to_xarray(chunk_px).items():

        def count(block: NDArray[Any], block_info: Any = None, name: str = str(name)) -> NDArray[Any]:
            if block_info:
                seen.append((name, block_info[0]["chunk-location"][-2:]))
            return block

        lazy = node["data"].data
        counted = da.map_blocks(count, lazy, dtype=lazy.dtype, meta=lazy._meta)
        arrays[str(name)] = node["data"].copy(data=counted).rio.write_crs(zone.geobox.crs_wkt)
    return arrays


def test_xarray_sources_compute_only_chunks_near_the_area(made: MadeZone) -> None:
    seen: list[Any] = []
    model = fake_model(INPUTS)
    sizes: dict[str, Any] = {"window_px": 32, "margin_px": 4, "outputs": OUTPUTS}
    zone = fh.zone(as_arrays(made, 16, seen), aoi=TRIANGLE)
    from_files = computed(predict_zone(with_area(made.open(32, 4), TRIANGLE), model, outputs=OUTPUTS))
    xr.testing.assert_identical(computed(predict_zone(zone, model, **sizes)), from_files)
    aerial = [place for name, place in seen if name == "AERIAL_RGBI"]
    assert len(aerial) == len(set(aerial))
    near = near_windows(plan_of(with_area(made.open(32, 4), TRIANGLE), model))
    (top, left), (bottom, right) = np.min(list(near), axis=0), np.max(list(near), axis=0)
    assert set(aerial) == {(y, x) for y in range(top, bottom + 1) for x in range(left, right + 1)}
    assert len(near) < 8 * 9
    seen.clear()
    corners = fh.zone(as_arrays(made, 16, seen), aoi=CORNERS)
    computed(predict_zone(corners, model, block_px=24, **sizes))
    near = near_windows(plan_of(with_area(made.open(32, 4), CORNERS), model))
    assert {place for name, place in seen if name == "AERIAL_RGBI"} == near
    assert len(near) < 12 < 8 * 9


def near_windows(plan: MapPlan) -> set[tuple[int, int]]:
    """Chunks of 16 px that the computed windows read: those around all of them where they are one block."""
    rows, cols = plan.windows()
    return {
        (y, x)
        for row, col in zip(rows.tolist(), cols.tolist(), strict=True)
        for y in range(max(plan.rows.start(row), 0) // 16, -(-min(plan.rows.start(row) + 32, HEIGHT) // 16))
        for x in range(max(plan.cols.start(col), 0) // 16, -(-min(plan.cols.start(col) + 32, WIDTH) // 16))
    }


def test_map_blocks_over_a_template_of_the_area(made: MadeZone) -> None:
    zone, model = with_area(made.open(32, 4), RING), fake_model(INPUTS)
    whole = computed(predict_zone(zone, model, outputs=OUTPUTS))
    template = zone.template(model, outputs=OUTPUTS, block_px=31)
    maps = computed(xr.map_blocks(predict_block, template, args=[zone, model], template=template))
    xr.testing.assert_equal(maps, whole)
    part = template.isel(x=slice(11, 60, 2), y=slice(50, 70)).chunk({"x": 7, "y": 13})
    maps = computed(xr.map_blocks(predict_block, part, args=[zone, model], template=part))
    xr.testing.assert_equal(maps, whole.isel(x=slice(11, 60, 2), y=slice(50, 70)))
    for other in (with_area(made.open(32, 4), TRIANGLE), made.open(32, 4)):
        with pytest.raises(ZoneError, match="another area of interest"):
            predict_block(template.isel(x=slice(5), y=slice(5)), other, model)


def test_the_map_is_cropped_to_whole_cores_around_the_area(made: MadeZone) -> None:
    zone, model = made.open(32, 4), fake_model(INPUTS)
    plan = plan_of(with_area(zone, TRIANGLE), model)
    # Cores of 24 px; the margin is half a pixel of the series, so the first one begins 4 px before the zone.
    assert (plan.rows.step, plan.rows.phase) == (24, 4)
    assert plan.on_zone((0, plan.geobox.height), (0, plan.geobox.width)) == ((44, 116), (20, 116))
    assert plan.geobox.bounds == (X_MIN + 10, Y_MAX - 58, X_MIN + 58, Y_MAX - 22)
    assert predict_zone(with_area(zone, TRIANGLE), model, block_px=48).chunks["x"] == (48, 48)


def test_an_area_of_the_whole_zone_is_none(made: MadeZone, tmp_path: Path) -> None:
    zone, model = made.open(32, 4), fake_model(INPUTS)
    box = zone.geobox.bounds
    far = shapely.buffer(shapely.box(*box), 1000)
    halves = [shapely.box(box[0], box[1], box[0] + 20, box[3]), shapely.box(box[0] + 10, *box[1:])]
    degrees = geopandas.GeoSeries([far], crs=2154).to_crs(4326)
    for aoi in (box, far, halves, degrees, None):
        assert with_area(zone, aoi).aoi is None
    write_zone(zone, model, tmp_path, "plain")
    write_zone(with_area(zone, far), model, tmp_path, "whole")
    names = [f"{name}_AERIAL_LABEL-COSIA_argmax.tif" for name in ("plain", "whole")]
    assert (tmp_path / names[0]).read_bytes() == (tmp_path / names[1]).read_bytes()


@pytest.mark.parametrize("output_type", ["argmax", "class_prob"])
def test_files_of_an_area(made: MadeZone, tmp_path: Path, output_type: Any) -> None:
    zone, model = made.open(32, 4), fake_model(INPUTS)
    chosen = with_area(zone, RING)
    argmax = output_type == "argmax"
    extras = Extras(confidence=True, polygons="gpkg" if argmax else None, stac=True)
    result = write_zone(chosen, model, tmp_path, "map", output_type=output_type, block_px=50, extras=extras)
    inside = pixels_inside(RING, zone.geobox)
    whole = computed(predict_zone(zone, model, outputs=("class", "scaled")))
    assert result.nodata_share == 0
    with rasterio.open(result.maps[0].path) as dataset:
        window = dataset.window(*dataset.bounds)
        values, valid, tags = dataset.read(), dataset.dataset_mask() > 0, dataset.tags()
        row, col = (round((Y_MAX - dataset.bounds.top) / RES), round((dataset.bounds.left - X_MIN) / RES))
    part = inside[row : row + int(window.height), col : col + int(window.width)]
    np.testing.assert_array_equal(valid, part)
    assert part.sum() == inside.sum()
    name = "class" if argmax else "scaled"
    expected = whole[name].values[..., row : row + part.shape[0], col : col + part.shape[1]]
    np.testing.assert_array_equal(values.squeeze(), np.where(part, expected, 255 if argmax else 0))
    assert (tags["FLAIRHUB_AOI"], tags["FLAIRHUB_AOI_SHA256"]) == ("the geometry", chosen.aoi.digest)
    with rasterio.open(tmp_path / "map_AERIAL_LABEL-COSIA_confidence.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1) == 255, ~part)
    item = json.loads((tmp_path / "map_stac.json").read_text())
    footprint = geopandas.GeoSeries([shapely.geometry.shape(item["geometry"])], crs=4326).to_crs(2154).iloc[0]
    assert footprint.symmetric_difference(RING).area < 0.2  # 8 decimals: a millimetre
    assert item["bbox"] == list(shapely.geometry.shape(item["geometry"]).bounds)
    assert item["properties"]["proj:shape"] == list(part.shape)
    if argmax:
        polygons = geopandas.read_file(tmp_path / "map_AERIAL_LABEL-COSIA_polygons.gpkg")
        assert polygons.area_m2.sum() == pytest.approx(inside.sum() * RES**2)
        maps = computed(predict_zone(chosen, model))
        assert maps.flairhub.areas()["pixels"].sum() == inside.sum()


@pytest.mark.parametrize("scheduler", [None, pytest.param("processes", marks=pytest.mark.slow)])
def test_the_command_and_its_resumed_run(
    made: MadeZone, bundle: Path, tmp_path: Path, scheduler: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = geopandas.GeoDataFrame({"code": ["a", "b"]}, geometry=[TRIANGLE, CORNERS], crs=2154).to_crs(4326)
    frame.to_file(tmp_path / "areas.gpkg", layer="communes")
    only = replace_requests(made)
    config = write_zonal_config(tmp_path / "zonal.yaml", only, bundle, {"block_px": 24, "cog_conversion": False})
    options = ["--aoi", str(tmp_path / "areas.gpkg"), "--aoi-layer", "communes", "--aoi-where", "code = 'a'"]
    command = ["zonal", "--config", str(config), "--workers", "2"]
    command += ["--scheduler", scheduler] if scheduler else []
    assert cli(*command, *options) == 0
    done = (tmp_path / "out" / MAP).read_bytes()
    resolved = yaml.safe_load((tmp_path / "out" / "map_config.yaml").read_text())
    assert (resolved["aoi"]["layer"], resolved["aoi"]["where"]) == ("communes", "code = 'a'")
    inside = pixels_inside(TRIANGLE, made.open(32, 4).geobox)
    with rasterio.open(tmp_path / "out" / MAP) as dataset:
        assert (dataset.read(1) != 255).sum() == inside.sum()
        assert dataset.tags()["FLAIRHUB_AOI"] == f"{tmp_path / 'areas.gpkg'}, layer communes, where code = 'a'"
    shutil.rmtree(tmp_path / "out")
    with power_cut(monkeypatch):
        assert cli(*command[:5], *options) == 1
    assert (tmp_path / "out" / ".map.unfinished").is_dir()
    assert cli(*command, *options[:-1], "code = 'b'") == 2
    assert cli(*command) == 2
    assert cli(*command, *options) == 0
    assert (tmp_path / "out" / MAP).read_bytes() == done


def replace_requests(made: MadeZone) -> MadeZone:
    return MadeZone(made.folder, made.arrays, {}, made.requests[:1])


@contextmanager
def power_cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a run fail after two blocks."""
    from flairhub.inference.map_store import Work

    record, n_done = Work.record, [0]

    def failing(work: Work, *arguments: Any) -> None:
        record(work, *arguments)
        n_done[0] += 1
        if n_done[0] == 2:
            raise ZoneError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Work, "record", failing)
        yield


def cli(*arguments: str) -> int:
    try:
        main([*arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_another_area_is_another_plan(
    made: MadeZone, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_zonal_config(tmp_path / "zonal.yaml", replace_requests(made), bundle, {"block_px": 24})
    # Both have the same bounds.
    first, second = in_pixels((10, 10), (100, 10), (100, 90)), in_pixels((10, 10), (100, 90), (10, 90))
    zones = [fh.open_zone(config, aoi=shape) for shape in (first, second)]
    assert zones[0].aoi.bounds == zones[1].aoi.bounds
    options: dict[str, Any] = {"block_px": 24, "folder": tmp_path / "out", "name": "map"}
    with power_cut(monkeypatch), pytest.raises(ZoneError, match="power"):
        write_zone(zones[0], bundle, **options)
    with pytest.raises(OutputExistsError, match="another model, configuration or data"):
        write_zone(zones[1], bundle, **options)
    result = write_zone(zones[0], bundle, **options)
    assert result.n_blocks - result.n_computed == 2


@pytest.mark.parametrize("source", ["cube", "roi"])
def test_cubes_are_cropped_alike(
    made: MadeZone, bundle: Path, tmp_path: Path, source: str, request: pytest.FixtureRequest
) -> None:
    if source == "cube":
        config = write_zonal_config(tmp_path / "zonal.yaml", replace_requests(made), bundle)
        fh.ingest_zone(fh.open_zone(config), cube=tmp_path / "zone.zarr")
        changes: dict[str, Any] = {"cube": str(tmp_path / "zone.zarr")}
    else:
        cube = request.getfixturevalue("make_cube")(request.getfixturevalue("patch_files"))
        roi = next(iter(fh.open_cube(cube).rois))
        changes = {"cube": str(cube), "roi": str(roi), "img_pixels_detection": 64, "margin": 8}
    config = write_zonal_config(tmp_path / "from_cube.yaml", replace_requests(made), bundle, changes)
    zone = fh.open_zone(config)
    left, bottom, right, top = zone.geobox.bounds
    shape = shapely.Polygon([(left, top), (left + 0.4 * (right - left), top), (left, (bottom + top) / 2)])
    chosen = fh.open_zone(config, aoi=shape)
    whole = computed(predict_zone(zone, bundle))
    plan = plan_of(chosen, bundle)
    check_equal(computed(predict_zone(chosen, bundle)), whole, pixels_inside(shape, zone.geobox), plan)
    assert plan.n_windows < plan.rows.count * plan.cols.count


def test_check_reports_the_share_and_looks_inside(made: MadeZone, bundle: Path, tmp_path: Path) -> None:
    bow_tie = shapely.Polygon(
        [(X_MIN - 5, Y_MAX), (X_MIN + 20, Y_MAX - 20), (X_MIN + 20, Y_MAX), (X_MIN - 5, Y_MAX - 20)]
    )
    geopandas.GeoSeries([bow_tie], crs=2154).to_file(tmp_path / "area.shp")
    config = write_zonal_config(
        tmp_path / "zonal.yaml", replace_requests(made), bundle, {"aoi": str(tmp_path / "area.shp")}
    )
    report = fh.check(config)
    facts = dict(report.facts)
    area_m2 = shapely.make_valid(bow_tie).intersection(shapely.box(X_MIN, Y_MAX - 60, X_MIN + 68, Y_MAX)).area
    assert facts["area of interest"] == (
        f"{area_m2 / 60 / 68:.1%} of the zone, {area_m2 / 1e6:.3g} km2: {tmp_path / 'area.shp'}"
    )
    assert facts["windows"].startswith("4 of 32 px")
    notes = [finding.text for finding in report.findings if "aoi" in finding.text]
    assert any("1 invalid geometries are repaired" in note for note in notes)
    assert any("reaches beyond the zone" in note for note in notes)
    everything = write_zonal_config(
        tmp_path / "all.yaml", replace_requests(made), bundle, {"aoi": [X_MIN, Y_MAX - 60, X_MIN + 68, Y_MAX]}
    )
    assert dict(fh.check(everything).facts)["area of interest"] == "all of the zone"
    missing = write_zonal_config(tmp_path / "no.yaml", replace_requests(made), bundle, {"aoi": "no.gpkg"})
    assert [finding.text for finding in fh.check(missing).findings][0].startswith("aoi: no file no.gpkg")
    assert cli("check", str(config), "--aoi", f"{X_MIN},{Y_MAX - 10},{X_MIN + 10},{Y_MAX}") == 0
    result = run_zonal(config)
    assert result.maps[0].path.is_file()
