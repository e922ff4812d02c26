"""Areas of interest: every way to give one, every way it can be wrong, and which pixels are inside."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.transform import Affine

import flairhub as fh
from flairhub.errors import UsageError, ZoneError
from flairhub.geo import GeoBox
from flairhub.zones import Area, Zone, with_area
from tests.helpers.zone_makers import X_MIN, Y_MAX, make_zone

LAMBERT = geopandas.GeoSeries([], crs=2154).crs.to_wkt()
SHAPE = shapely.Polygon([(X_MIN + 3.1, Y_MAX - 2.2), (X_MIN + 30.3, Y_MAX - 7.4), (X_MIN + 11.7, Y_MAX - 28.9)])
HOLED = shapely.MultiPolygon(
    [
        shapely.Polygon(
            SHAPE.exterior.coords, [[(X_MIN + 9, Y_MAX - 8), (X_MIN + 16, Y_MAX - 9), (X_MIN + 12, Y_MAX - 16)]]
        ),
        shapely.Point(X_MIN + 24.3, Y_MAX - 20.1).buffer(3),
    ]
)


@pytest.fixture(scope="module")
def zone(tmp_path_factory: pytest.TempPathFactory) -> Zone:
    return make_zone(tmp_path_factory.mktemp("zone"), 64, 64, {"AERIAL_RGBI": 1}, 0.5).open(32, 4)


def box_of(wkt: str = LAMBERT, origin: tuple[float, float] = (X_MIN, Y_MAX), res: float = 0.5, size: int = 64) -> Zone:
    """A zone without rasters."""
    return Zone(GeoBox(wkt, *origin, res, res, size, size), {}, {})


def inside(zone: Zone) -> NDArray[np.bool_]:
    assert zone.aoi is not None
    return zone.aoi.mask((0, zone.geobox.height), (0, zone.geobox.width))


def burnt(shape: Any, box: GeoBox) -> NDArray[np.bool_]:
    return np.asarray(rasterize([shape], (box.height, box.width), transform=box.affine())).astype(bool)


FILES = {"a.gpkg": {}, "a.geojson": {}, "a.json": {"driver": "GeoJSON"}, "a.shp": {}, "a.fgb": {}, "a.parquet": {}}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [None, "code = 'x' AND size > 3"])
def test_every_format_and_filter(zone: Zone, tmp_path: Path, name: str, where: str | None) -> None:
    other = shapely.box(X_MIN + 20, Y_MAX - 30, X_MIN + 28, Y_MAX - 22)
    frame = geopandas.GeoDataFrame({"code": ["x", "y"], "size": [4, 5]}, geometry=[HOLED, other], crs=2154)
    frame = frame.to_crs(4326) if "json" in name else frame
    if name.endswith("parquet"):
        frame.to_parquet(tmp_path / name)
    else:
        frame.to_file(tmp_path / name, **FILES[name])
    aoi = tmp_path / name if where is None else {"path": str(tmp_path / name), "where": where}
    expected = burnt(HOLED if where else shapely.union_all([HOLED, other]), zone.geobox)
    np.testing.assert_array_equal(inside(with_area(zone, aoi)), expected)
    assert 0 < expected.sum() < 64 * 64


SERIES = geopandas.GeoSeries([HOLED], crs=2154)
DEGREES = SERIES.to_crs(4326)
GIVEN: Mapping[str, Any] = {
    "shapely": HOLED,
    "geometries": list(HOLED.geoms),
    "array": np.array(list(HOLED.geoms), dtype=object),
    "collection": shapely.GeometryCollection([HOLED, shapely.Point(X_MIN, Y_MAX)]),
    "height": shapely.force_3d(HOLED, 7.0),
    "series": SERIES,
    "frame in degrees": geopandas.GeoDataFrame({"a": [1]}, geometry=DEGREES),
    "in utm": SERIES.to_crs(32631),
    "stated": {"geometry": DEGREES.iloc[0], "crs": "EPSG:4326"},
    "stated number": {"geometry": DEGREES.iloc[0], "crs": 4326},
    "series without crs": {"geometry": geopandas.GeoSeries([HOLED]), "crs": SERIES.crs},
    "geojson": DEGREES.__geo_interface__,
    "feature": DEGREES.__geo_interface__["features"][0],
    "geojson geometry": shapely.geometry.mapping(DEGREES.iloc[0]),
    "geojson of another crs": {"geometry": shapely.geometry.mapping(HOLED), "crs": "EPSG:2154"},
    "first geojson": {
        **SERIES.__geo_interface__,
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::2154"}},
    },
    "with empty ones": [HOLED, shapely.Polygon(), None][:2],
}


@pytest.mark.parametrize("how", GIVEN)
def test_every_way_to_give_a_geometry(zone: Zone, how: str) -> None:
    np.testing.assert_array_equal(inside(with_area(zone, GIVEN[how])), burnt(HOLED, zone.geobox))


@pytest.mark.parametrize(
    "aoi",
    [
        (X_MIN + 2, Y_MAX - 20, X_MIN + 10, Y_MAX - 5),
        [X_MIN + 2, Y_MAX - 20, X_MIN + 10, Y_MAX - 5],
        np.array([X_MIN + 2, Y_MAX - 20, X_MIN + 10, Y_MAX - 5]),
        {"bbox": (X_MIN + 2, Y_MAX - 20, X_MIN + 10, Y_MAX - 5), "crs": "EPSG:2154"},
    ],
)
def test_a_bbox(zone: Zone, aoi: Any) -> None:
    expected = np.zeros((64, 64), bool)
    expected[10:40, 4:20] = True
    np.testing.assert_array_equal(inside(with_area(zone, aoi)), expected)


def test_zone_and_repr(zone: Zone) -> None:
    made = fh.zone(AERIAL_RGBI=zone.rasters["AERIAL_RGBI"].where, aoi=HOLED)
    assert repr(made) == "<Zone 64 x 64 px of 0.5, EPSG:2154: AERIAL_RGBI; the geometry>"
    table = made._repr_html_()
    for fact in ("64 x 64 px of 0.5", "EPSG:2154", "the geometry", "AERIAL_RGBI", "4 bands uint8, 64 x 64 px of 0.5"):
        assert f">{fact}<" in table
    assert len(table) < 1500
    np.testing.assert_array_equal(inside(made), burnt(HOLED, zone.geobox))
    assert with_area(made, None) is made
    travelled = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(inside(travelled), inside(made))
    assert len(pickle.dumps(made.aoi)) < 3000


def layers_file(folder: Path) -> Path:
    for name in ("communes", "parcels"):
        SERIES.to_file(folder / "two.gpkg", layer=name)
    return folder / "two.gpkg"


def test_layers(zone: Zone, tmp_path: Path) -> None:
    path = layers_file(tmp_path)
    np.testing.assert_array_equal(
        inside(with_area(zone, {"path": path, "layer": "parcels"})), burnt(HOLED, zone.geobox)
    )
    with pytest.raises(ZoneError, match=r"aoi: .*two.gpkg has the layers communes, parcels. Choose one: layer."):
        with_area(zone, path)
    with pytest.raises(ZoneError, match=r"aoi: .*two.gpkg has no layer 'regions', only communes, parcels."):
        with_area(zone, {"path": path, "layer": "regions"})


def wrong_file(folder: Path, name: str, content: bytes | geopandas.GeoSeries) -> Path:
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        content.to_file(folder / name)
    return folder / name


POINTS = geopandas.GeoSeries([shapely.Point(X_MIN + 1, Y_MAX - 1)], crs=2154)
LINES = geopandas.GeoSeries([shapely.LineString([(X_MIN, Y_MAX), (X_MIN + 1, Y_MAX - 1)])], crs=2154)
VRT = b"<OGRVRTDataSource><OGRVRTLayer name='a'><SrcDataSource>/vsicurl/http://127.0.0.1/</SrcDataSource></OGRVRTLayer>"


@pytest.mark.parametrize(
    ("name", "content", "details", "message"),
    [
        ("no.gpkg", None, {}, r"no file .*no.gpkg. Expected a vector file \(.gpkg, .geojson"),
        ("a.txt", b"a", {}, r"a.txt is no vector file by its name. Expected .gpkg, .*GeoPackage"),
        ("a.gpkg", VRT, {}, r"a.gpkg is no GPKG file inside"),
        ("a.json", VRT, {}, r"a.json is no GeoJSON file inside"),
        ("a.geojson", b"{", {}, r"a.geojson does not open as GeoJSON"),
        ("a.fgb", b"fgb\x03fgb\x00nothing", {}, r"a.fgb (does not open as FlatGeobuf|has no layer with geometries)"),
        ("a.parquet", b"PAR1", {}, r"a.parquet does not open as GeoParquet"),
        ("a.gpkg", SERIES, {"where": "code = 3"}, r"where: 'code = 3' does not work \(.*\). Its columns are none"),
        ("a.gpkg", SERIES, {"where": "fid > 9"}, r"a.gpkg has no feature that passes where: 'fid > 9'"),
        ("a.gpkg", geopandas.GeoSeries([HOLED]), {}, r"a.gpkg has no CRS. Assign one to the file, or state it"),
        ("a.gpkg", SERIES, {"crs": "EPSG:4326"}, r"a.gpkg is in EPSG:2154, but crs says EPSG:4326. Leave crs out"),
        ("a.gpkg", POINTS, {}, r"a.gpkg holds Point, expected polygons. Buffer them"),
        ("a.shp", LINES, {}, r"a.shp holds LineString, expected polygons"),
    ],
)
def test_wrong_files(zone: Zone, tmp_path: Path, name: str, content: Any, details: Any, message: str) -> None:
    path = tmp_path / name if content is None else wrong_file(tmp_path, name, content)
    with pytest.raises(ZoneError, match=message) as raised:
        with_area(zone, {"path": path, **details})
    assert str(raised.value).startswith("aoi: ")
    assert "\n" not in str(raised.value)


NEAR = (X_MIN + 2, Y_MAX - 20, X_MIN + 10, Y_MAX - 5)
LON_LAT = tuple(geopandas.GeoSeries([shapely.box(*NEAR)], crs=2154).to_crs(4326).total_bounds)
LAT_LON = (LON_LAT[1], LON_LAT[0], LON_LAT[3], LON_LAT[2])


@pytest.mark.parametrize(
    ("aoi", "error", "message"),
    [
        ((5, 1, 2, 3), UsageError, r"bbox: x min 5 is not below x max 2"),
        ((1, 5, 2, 3), UsageError, r"bbox: y min 5 is not below y max 3"),
        ((1, 1, 1, 3), UsageError, r"bbox: x min 1 is not below x max 1"),
        ((1, 2, 3), UsageError, r"bbox: got \(1, 2, 3\), expected four numbers"),
        ((1, 2, 3, "a"), UsageError, r"expected four numbers"),
        ((1, 2, 3, float("nan")), UsageError, r"expected finite numbers"),
        (7, UsageError, r"got int, expected the path of a vector file, a geometry"),
        ({"file": "a"}, UsageError, r"got the keys file, expected one of path, bbox or geometry"),
        ({"bbox": NEAR, "path": "a"}, UsageError, r"expected one of path, bbox or geometry"),
        ({"bbox": NEAR, "layer": "a"}, UsageError, r"layer and where choose from a file, but bbox is given"),
        ({"bbox": NEAR, "crs": "EPSG:0"}, UsageError, r"crs: 'EPSG:0' is no CRS"),
        ({"type": "Polygon"}, ZoneError, r"'Polygon' does not read as GeoJSON"),
        ({"type": "Topology"}, ZoneError, r"'Topology' does not read as GeoJSON"),
        (shapely.Polygon(), ZoneError, r"the geometry holds no geometry"),
        (shapely.Point(X_MIN, Y_MAX), ZoneError, r"the geometry holds Point, expected polygons"),
        (shapely.Polygon([(0, 0), (1, 1), (2, 2)]), ZoneError, r"polygons without area"),
        (shapely.Polygon([(0, 0), (1, np.inf), (2, 2)]), ZoneError, r"no finite numbers"),
        (geopandas.GeoSeries([HOLED]), ZoneError, r"the GeoSeries has no CRS. set_crs"),
        (shapely.affinity.translate(SHAPE, 900), ZoneError, r"they do not overlap \(left, bottom, right, top\)\.$"),
        (shapely.geometry.mapping(HOLED), ZoneError, r"These are no degrees, but EPSG:4326 counts in them"),
        (LON_LAT, ZoneError, r"These look like degrees: state crs: EPSG:4326"),
        ({"bbox": LAT_LON, "crs": 4326}, ZoneError, r"With x and y exchanged they would: expected longitude, latitude"),
        ((NEAR[1], NEAR[0], NEAR[3], NEAR[2]), ZoneError, r"With x and y exchanged they would"),
        ((X_MIN + 0.05, Y_MAX - 0.2, X_MIN + 0.2, Y_MAX - 0.05), ZoneError, r"holds no centre of a pixel"),
    ],
)
def test_wrong_geometries(zone: Zone, aoi: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        with_area(zone, aoi)
    assert "\n" not in str(raised.value)


def test_both_extents_are_said(zone: Zone) -> None:
    with pytest.raises(ZoneError) as raised:
        with_area(zone, {"bbox": (5.0, 45.0, 5.5, 46.25), "crs": 4326})
    text = str(raised.value)
    assert text.startswith("aoi: the bbox covers (5, 45, 5.5, 46.25) in EPSG:4326, the zone (650000, 6859968, ")
    assert "in EPSG:2154, which is (2.318791, 48.837822, 2.31923, 48.838113) there: they do not overlap" in text


def test_invalid_polygons_are_repaired_and_counted(zone: Zone, caplog: pytest.LogCaptureFixture) -> None:
    x, y = X_MIN + 4, Y_MAX - 4
    bow_tie = shapely.Polygon([(x, y), (x + 16.2, y - 16.2), (x + 16.2, y), (x, y - 16.2)])
    made = with_area(zone, [bow_tie, SHAPE])
    assert made.aoi is not None
    assert made.aoi.n_repaired == 1
    assert "1 invalid geometries were repaired" in caplog.text
    both = shapely.union_all([shapely.make_valid(bow_tie), SHAPE])
    np.testing.assert_array_equal(inside(made), burnt(both, zone.geobox))
    assert made.aoi.n_px == pytest.approx(both.area / 0.25)


def test_edges_bend_in_another_crs() -> None:
    """A parallel of 2 degrees lies 50 m off the chord between its ends: 5 px."""
    zone = box_of(origin=(560_000, 6_580_000), res=10.0, size=16_000)
    aoi = {"bbox": (1.5, 44.5, 3.5, 46.0), "crs": 4326}
    ring = shapely.segmentize(shapely.box(*aoi["bbox"]), 0.001)
    exact = geopandas.GeoSeries([ring], crs=4326).to_crs(2154).iloc[0]
    made = with_area(zone, aoi)
    assert made.aoi is not None
    drawn = made.aoi.outline(zone.geobox)
    assert shapely.hausdorff_distance(drawn, exact.intersection(shapely.box(*zone.geobox.bounds))) < 0.1
    corners = geopandas.GeoSeries([shapely.box(*aoi["bbox"])], crs=4326).to_crs(2154).iloc[0]
    assert shapely.hausdorff_distance(corners, exact) > 20


@pytest.mark.parametrize(
    "aoi",
    [
        {"bbox": (179.99, -17.01, 180.01, -16.99), "crs": 4326},
        {"bbox": (-180.01, -17.01, -179.99, -16.99), "crs": 4326},
        shapely.geometry.mapping(
            shapely.MultiPolygon([shapely.box(179.99, -17.01, 180, -16.99), shapely.box(-180, -17.01, -179.99, -16.99)])
        ),
    ],
    ids=["beyond 180", "before -180", "two parts"],
)
def test_areas_across_the_antimeridian(aoi: Any) -> None:
    utm = geopandas.GeoSeries([], crs=32701).crs.to_wkt()
    centre = geopandas.GeoSeries([shapely.Point(180, -17)], crs=4326).to_crs(32701).iloc[0]
    made = with_area(box_of(utm, (centre.x - 2000, centre.y + 2000), 10.0, 400), aoi)
    assert made.aoi is not None
    # 0.02 degrees along each axis.
    assert made.aoi.n_px == pytest.approx(0.02 * 110.65e3 * 0.02 * 111.32e3 * np.cos(np.radians(17)) / 100, rel=0.01)
    mask = inside(made)
    assert mask[150:250, 150:250].all()
    assert mask.sum() == pytest.approx(made.aoi.n_px, rel=0.01)


rings = st.lists(st.tuples(st.integers(-30, 700), st.integers(-30, 700)), min_size=3, max_size=9)


@settings(max_examples=20, deadline=None)
@given(shapes=st.lists(rings, min_size=1, max_size=4), data=st.data())
def test_masks_are_those_of_the_whole_for_every_region_and_ratio(shapes: list[Any], data: st.DataObject) -> None:
    # Odd thirty-seconds of a pixel: no centre lies on an edge by construction of the vertices alone.
    polygons = [shapely.make_valid(shapely.Polygon([(x + 1 / 32, y + 3 / 32) for x, y in ring])) for ring in shapes]
    zone = box_of(origin=(0.0, 700.0), res=1.0, size=700)
    flipped = [shapely.transform(polygon, lambda xy: xy * [1, -1] + [0, 700]) for polygon in polygons]
    try:
        area = with_area(zone, flipped).aoi
    except ZoneError:
        assert not any(burnt(polygon, zone.geobox).any() for polygon in flipped if polygon.area)
        return
    if area is None:
        return
    ratio = data.draw(st.sampled_from([Fraction(1), Fraction(5, 2), Fraction(1, 2), Fraction(40)]))
    size = int(700 / ratio)
    solid = [part for part in polygons if part.area]
    expected = rasterize(solid, (size, size), transform=Affine.scale(float(ratio))).astype(bool)
    first = [data.draw(st.integers(0, size - 1)) for _ in range(2)]
    last = [data.draw(st.integers(low + 1, size)) for low in first]
    rows, cols = (first[0], last[0]), (first[1], last[1])
    part = expected[slice(*rows), slice(*cols)]
    np.testing.assert_array_equal(area.mask(rows, cols, ratio), part)
    assert area.touches([rows], [cols], ratio).tolist() == [bool(part.any())]
    around = area.around(rows, cols, ratio)
    if around is None:
        assert not part.any()
    else:
        outside = part.copy()
        outside[around[0][0] - rows[0] : around[0][1] - rows[0], around[1][0] - cols[0] : around[1][1] - cols[0]] = 0
        assert not outside.any()
    assert area.n_px == pytest.approx(shapely.union_all(solid).intersection(shapely.box(0, 0, 700, 700)).area, abs=1e-3)


def test_very_many_polygons_and_vertices() -> None:
    """What a block asks costs what lies near it: 20,000 parts, and one polygon of 30,000 vertices."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50_000, (20_000, 2))
    parts = shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + 20.3, corners[:, 1] + 20.3)
    area = Area.of("many", parts)
    rows, cols = (20_000, 20_700), (5_000, 5_600)
    expected = rasterize(
        parts[shapely.intersects(shapely.box(5_000, 20_000, 5_600, 20_700), parts)],
        (700, 600),
        transform=Affine.translation(5_000, 20_000),
    )
    np.testing.assert_array_equal(area.mask(rows, cols), expected)
    angle = np.linspace(0, 2 * np.pi, 30_000, endpoint=False)
    radius = 20_000 + 3_000 * np.sin(17 * angle) + 5 * np.sin(4_000 * angle)
    star = shapely.polygons(25_000 + np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]))
    area = Area.of("star", np.array([star]))
    assert area.n_px == pytest.approx(star.area, rel=1e-9)
    edge = (25_000, 25_300), (47_000, 48_500)
    expected = rasterize([star], (300, 1500), transform=Affine.translation(47_000, 25_000))
    np.testing.assert_array_equal(area.mask(*edge), expected)
    # The outline of so many vertices is squares.
    box = GeoBox(LAMBERT, 0, 50_000, 1, 1, 50_000, 50_000)
    assert shapely.get_num_coordinates(area.outline(box)) < 2_000
    assert area.outline(box).buffer(1).contains(shapely.transform(star, lambda xy: xy * [1, -1] + [0, 50_000]))
