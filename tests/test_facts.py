"""Tables: modalities, tasks, grids."""

import pytest

from flairhub.baselines import BASELINES, CHANNELS, find_baseline
from flairhub.errors import ConfigError, DataError, OutputExistsError, UsageError
from flairhub.geo import GeoBox, crs_name, geobox_of, integer_ratio, same_crs
from flairhub.modalities import INPUTS, LABELS, MODALITIES, PATCH_SIZE_M, Kind, modality
from flairhub.tasks import default_task, level_sizes, named_task, numbered_classes


def test_inputs_are_in_network_order() -> None:
    assert INPUTS == (
        "AERIAL_RGBI",
        "AERIAL-RLT_PAN",
        "DEM_ELEV",
        "SPOT_RGBI",
        "SENTINEL2_TS",
        "SENTINEL1-ASC_TS",
        "SENTINEL1-DESC_TS",
    )
    assert LABELS == ("AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS")


def test_every_modality_covers_one_patch() -> None:
    for row in MODALITIES.values():
        assert row.size_px * row.gsd_m == pytest.approx(PATCH_SIZE_M)
        if row.kind is Kind.SERIES and row.quality_mask:
            assert MODALITIES[row.quality_mask].dates_of == row.name


def test_every_input_has_a_title_of_its_own_and_colours_are_bands() -> None:
    titles = [MODALITIES[name].title for name in INPUTS]
    assert all(titles)
    assert len(set(titles)) == len(titles)
    for row in MODALITIES.values():
        assert len(row.true_colour) in (0, 3)
        assert set(row.true_colour) <= set(row.bands)


def test_unknown_modality_is_explained() -> None:
    with pytest.raises(UsageError, match=r"'AERIAL_RGB'\. Did you mean AERIAL_RGBI\?"):
        modality("AERIAL_RGB")


def test_nomenclatures() -> None:
    cosia, lpis = default_task("AERIAL_LABEL-COSIA"), default_task("ALL_LABEL-LPIS")
    assert (cosia.n_classes, lpis.n_classes) == (19, 23)
    assert level_sizes("ALL_LABEL-LPIS") == (23, 31, 46)
    assert cosia.classes[6].colour == (0x15, 0x53, 0xAE)
    assert cosia.classes[0].name_fr == "bâtiment"
    assert lpis.names[3] == "Maize"
    assert len({row.colour for row in numbered_classes(46)}) == 46
    with pytest.raises(UsageError, match="level 4"):
        default_task("ALL_LABEL-LPIS", 4)


def test_configured_names_replace_published_ones() -> None:
    names = dict(enumerate(default_task("AERIAL_LABEL-COSIA").names))
    assert named_task("AERIAL_LABEL-COSIA", 1, names) == default_task("AERIAL_LABEL-COSIA")
    task = named_task("AERIAL_LABEL-COSIA", 1, {0: "house", 1: "greenhouse"})
    assert task.classes[0].name_fr == "house"
    assert task.classes[1].name_fr == "serre"
    with pytest.raises(UsageError, match=r"must be 0\.\.1, got \[0, 2\]"):
        named_task("AERIAL_LABEL-COSIA", 1, {0: "a", 2: "b"})


def test_exit_codes() -> None:
    assert DataError("x").exit_code == 1
    assert OutputExistsError("x").exit_code == 2
    error = ConfigError("config.yaml", ["a: wrong", "b: missing"])
    assert error.exit_code == 2
    assert str(error) == "config.yaml: 2 problems\n  - a: wrong\n  - b: missing"


class FakeDataset:
    def __init__(self, transform: tuple[float, ...], crs: object = None):
        self.transform, self.crs, self.height, self.width = transform, crs, 10, 20
        self.driver, self.gcps = "GTiff", ([], None)
        self.name = "no file"


def test_geobox_edges_and_windows() -> None:
    box = geobox_of(FakeDataset((0.5, 0.0, 100.0, 0.0, -0.5, 50.0)), "a.tif")
    assert box.bounds == (100.0, 45.0, 110.0, 50.0)
    assert box.crop(2, -4, 3, 5) == GeoBox("", 98.0, 49.0, 0.5, 0.5, 3, 5)
    assert box.resized(5, 10).bounds == box.bounds
    assert box.resized(5, 10).x_res == 1.0


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0), "no georeferencing"),
        ((1.0, 0.1, 0.0, 0.0, -1.0, 0.0), "rotated"),
        ((1.0, 0.0, 5.0, 0.0, 1.0, 0.0), "not north-up"),
    ],
)
def test_odd_rasters_are_refused(transform: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"a.tif.*{message}"):
        geobox_of(FakeDataset(transform), "a.tif")


@pytest.mark.parametrize(
    ("b", "d", "accepted"), [(1e-12, -1e-12, True), (0.0005 - 1e-9, 0, True), (0.0006, 0, False), (0, 0.0003, False)]
)
def test_terms_of_rotation_are_measured_over_the_raster(b: float, d: float, accepted: bool) -> None:
    """10 rows and 20 columns of 0.5: the tolerance of 0.01 px is 0.005."""
    dataset = FakeDataset((0.5, b, 100.0, d, -0.5, 50.0))
    if accepted:
        assert geobox_of(dataset, "a.tif").bounds == (100.0, 45.0, 110.0, 50.0)
    else:
        with pytest.raises(DataError, match=r"a.tif: the raster is rotated"):
            geobox_of(dataset, "a.tif")


def test_control_points_name_the_way_out() -> None:
    dataset = FakeDataset((1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    dataset.gcps = ([1, 2, 3], None)
    with pytest.raises(DataError, match=r"3 ground control points instead of a transform: .* gdalwarp -t_srs"):
        geobox_of(dataset, "a.tif")


def test_a_height_beside_the_plane_is_no_other_crs() -> None:
    import pyproj

    lambert, utm = (pyproj.CRS.from_epsg(code).to_wkt() for code in (2154, 32631))
    compound = pyproj.CRS.from_user_input("EPSG:2154+5720").to_wkt()
    assert same_crs(lambert, compound)
    assert same_crs(compound, pyproj.CRS.from_epsg(5698).to_wkt())
    assert not same_crs(compound, utm)
    assert same_crs(pyproj.CRS.from_epsg(4979).to_wkt(), pyproj.CRS.from_epsg(4326).to_wkt())


def test_crs_are_compared_by_meaning() -> None:
    from rasterio.crs import CRS

    lambert, utm = CRS.from_epsg(2154).to_wkt(), CRS.from_epsg(32631).to_wkt()
    assert same_crs(lambert, CRS.from_epsg(2154).to_wkt(version="WKT1_ESRI"))
    assert not same_crs(lambert, utm)
    assert not same_crs(lambert, "")
    assert crs_name(lambert) == "EPSG:2154"
    assert crs_name("") == "none"


def test_integer_ratio_tolerates_rounding_only() -> None:
    assert integer_ratio(10.24, 0.2, 10) is None  # 51.2
    assert integer_ratio(1.6, 0.2, 64) == 8
    assert integer_ratio(1.6000001, 0.2, 64) == 8
    assert integer_ratio(1.61, 0.2, 64) is None
    assert integer_ratio(0.2, 0.2, 100) == 1


def test_centres_come_from_the_number_of_the_pixel() -> None:
    """A sum of steps would be off by its rounding; the corner of a pixel is half a step away."""
    box = GeoBox("", 652_000.1, 6_860_000.3, 0.2, 0.4, 50_000, 70_000)
    coords = box.coords()
    assert list(coords) == ["y", "x"]
    assert (coords["y"].shape, coords["x"].shape) == ((50_000,), (70_000,))
    for row, column in ((0, 0), (1, 2), (49_999, 69_999)):
        assert coords["x"][column] == 652_000.1 + (column + 0.5) * 0.2
        assert coords["y"][row] == 6_860_000.3 - (row + 0.5) * 0.4


def test_affine_is_what_rasterio_makes_of_the_corner() -> None:
    from rasterio.transform import from_origin

    assert GeoBox("", 489_000.0, 6_840_000.0, 12.8, 6.4, 3, 2).affine() == from_origin(489_000, 6_840_000, 12.8, 6.4)


def test_every_published_row_has_inputs_of_its_own() -> None:
    assert len(BASELINES) == len({(row.label, frozenset(row.inputs)) for row in BASELINES}) == 24
    assert tuple(CHANNELS) == INPUTS
    for row in BASELINES:
        assert find_baseline(row.label, reversed(row.inputs)) is row
        assert row.inputs == tuple(name for name in INPUTS if name in row.inputs)
        assert list(row.channels) == list(row.inputs)
    row = find_baseline("AERIAL_LABEL-COSIA", ["SENTINEL2_TS", "AERIAL_RGBI"])
    assert row is not None
    assert (row.name, row.millions, row.accuracy, row.miou) == ("LC-D", 93.9, 77.6, 64.7)
    assert row.aux == ("AERIAL_RGBI", "SENTINEL2_TS")
    assert row.channels == {"AERIAL_RGBI": 3, "SENTINEL2_TS": 10}
    assert find_baseline("AERIAL_LABEL-COSIA", ["SENTINEL1-ASC_TS"]) is None
