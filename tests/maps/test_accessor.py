"""The accessors of class maps: registration, tables, files, pictures, comparison."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import geopandas
import matplotlib as mpl
import numpy as np
import pytest
import rasterio
import rioxarray
import shapely
import xarray as xr
from matplotlib import pyplot

import flairhub  # noqa: F401
from flairhub.errors import DataError, OutputExistsError, UsageError
from flairhub.inference import Extras, predict_zone, write_zone
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from tests.helpers.zone_makers import fake_model, make_zone
from tests.maps.conftest import GSD_M, X_MIN, Y_MAX

COSIA = default_task("AERIAL_LABEL-COSIA")


@pytest.mark.parametrize(
    "imports",
    [
        "import flairhub, xarray as xr",
        "import xarray as xr, flairhub",
        "import flairhub; from xarray import DataArray; import xarray as xr",
    ],
)
def test_the_accessor_is_there_in_every_order_of_imports(imports: str) -> None:
    code = (
        "import sys; before = len(sys.meta_path); "
        f"{imports}; a = xr.DataArray([[0, 1]], dims=('y', 'x'), attrs={{'class_names': ['a', 'b']}}); "
        "print('flairhub.maps' in sys.modules, a.flairhub.names(), a.to_dataset(name='class').flairhub.tasks); "
        "assert not [f for f in sys.meta_path if type(f).__module__.startswith('flairhub')]"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False {0: 'a', 1: 'b'} ('class',)\n"


def test_looking_for_xarray_without_importing_it_changes_nothing() -> None:
    code = (
        "import flairhub, sys, importlib.util as u; assert u.find_spec('xarray') and 'xarray' not in sys.modules; "
        "import xarray; print(hasattr(xarray.DataArray, 'flairhub'), hasattr(xarray.Dataset, 'flairhub'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "True True\n"


def test_names(maps: xr.Dataset) -> None:
    assert maps.flairhub.names()[3] == "impervious surface"
    assert maps["class"].flairhub.names("fr") == dict(enumerate(COSIA.names_in("fr")))
    assert maps["class"].flairhub.task == COSIA


def test_areas_of_the_whole_map(maps: xr.Dataset) -> None:
    table = maps.flairhub.areas()
    assert table.index.tolist() == list(range(19))
    # Columns and rows of fields give 0..6; of field (0, 0), class 0, 20 px have no data.
    assert table["pixels"].tolist()[:8] == [80, 200, 300, 300, 300, 200, 100, 0]
    assert table["ha"].tolist()[:2] == pytest.approx([80 * 0.04 / 1e4, 200 * 0.04 / 1e4])
    assert table["share"].sum() == pytest.approx(1)
    assert table.loc[1, "share"] == pytest.approx(200 / 1480)
    assert table.loc[0, "name"] == "building"
    assert maps["class"].flairhub.areas(language="fr").loc[0, "name"] == "bâtiment"


def test_areas_by_polygon_in_any_crs(maps: xr.Dataset) -> None:
    x, y = X_MIN, Y_MAX
    shapes = {
        "field": shapely.box(x + 2, y - 2, x + 4, y),  # field (0, 1): class 1
        "two rows of pixels": shapely.box(x, y - 2.2, x + 2, y - 1.8),  # 10 px of class 0 above, 10 px of class 1
        "corner": shapely.box(x - 5, y - 0.8, x + 1, y + 5),  # 4 x 5 px without data
        "outside": shapely.box(x + 100, y, x + 101, y + 1),
        "empty": shapely.Polygon(),
    }
    frame = geopandas.GeoDataFrame({"name": list(shapes)}, geometry=list(shapes.values()), crs="EPSG:2154")
    frame = frame.set_index("name")
    for polygons in (frame, frame.to_crs("EPSG:4326"), frame.geometry):
        table = maps.flairhub.areas(polygons)
        assert table.index.names == ["name", "class"]
        pixels = table["pixels"].unstack("class").loc[list(shapes)]
        assert pixels[[0, 1, 2]].to_numpy().tolist() == [[0, 100, 0], [10, 10, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert table.loc[("field", 1), "share"] == 1
    assert table.loc["corner", "share"].isna().all()
    parts = maps.chunk(y=7, x=11).flairhub.areas(frame)
    assert parts.equals(maps.flairhub.areas(frame))
    with pytest.raises(UsageError, match="the polygons have no CRS"):
        maps.flairhub.areas(geopandas.GeoSeries([shapely.box(0, 0, 1, 1)]))
    with pytest.raises(UsageError, match="index names some twice"):
        maps.flairhub.areas(frame.rename(index={"field": "corner"}))


def test_a_stored_map_keeps_its_class_table_and_crs(maps: xr.Dataset, tmp_path: Path) -> None:
    maps.chunk(y=10).to_zarr(tmp_path / "map.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "map.zarr", consolidated=False)
    assert opened["class"].dtype == np.float32  # xarray decodes _FillValue to NaN
    assert opened.flairhub.areas().equals(maps.flairhub.areas())
    assert opened["class"].flairhub.task == COSIA
    whole = xr.open_zarr(tmp_path / "map.zarr", consolidated=False, decode_coords="all", mask_and_scale=False)
    assert whole["class"].flairhub.areas().equals(maps.flairhub.areas())
    known = opened["class"].assign_attrs({"proj:code": "EPSG:2154"})
    assert known.flairhub.areas().equals(maps.flairhub.areas())


def test_files_are_the_ones_of_a_run(tmp_path: Path) -> None:
    """COG, sidecars and polygons byte for byte, whatever the blocks, and the network called once per window."""
    made = make_zone(tmp_path / "zone", 96, 160, {"AERIAL_RGBI": 1})
    zone, model = made.open(64, 8), fake_model({"AERIAL_RGBI": ImagePreparation()})
    write_zone(zone, model, tmp_path / "run", "run", extras=Extras(polygons="gpkg"))
    maps = predict_zone(zone, model, outputs=("class", "confidence"), block_px=48)
    maps["class"].attrs.update({"task": COSIA.label, "class_names": list(COSIA.names)})
    calls: list[int] = []
    model.network.register_forward_pre_hook(lambda _module, inputs: calls.append(1))
    path = maps.flairhub.to_cog(tmp_path / "own.tif")
    once = len(calls)
    maps["class"].compute()
    assert len(calls) == 2 * once
    run = tmp_path / "run" / f"run_{COSIA.label}_argmax.tif"
    with rasterio.open(run) as expected, rasterio.open(path) as written:
        assert np.array_equal(expected.read(), written.read())
        assert expected.colormap(1) == written.colormap(1)
        assert expected.crs == written.crs
        assert expected.transform == written.transform
        assert expected.overviews(1) == written.overviews(1)
        assert expected.profile == written.profile
        assert {**expected.tags(1), **expected.tags(ns="IMAGE_STRUCTURE")} == {
            **written.tags(1),
            **written.tags(ns="IMAGE_STRUCTURE"),
        }
    for suffix in (".tif.aux.xml", ".qml"):
        assert (tmp_path / f"own{suffix}").read_bytes() == run.with_name(run.stem + suffix).read_bytes()
    polygons = maps.flairhub.to_polygons(tmp_path / "own.gpkg")
    expected = geopandas.read_file(tmp_path / "run" / f"run_{COSIA.label}_polygons.gpkg")
    assert geopandas.read_file(polygons).equals(expected)
    assert (tmp_path / "own.gpkg").read_bytes() == (tmp_path / "run" / f"run_{COSIA.label}_polygons.gpkg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "own.gpkg", "own.qml", "own.tif", "own.tif.aux.xml", "run", "zone",
    ]  # fmt: skip


def test_polygons_with_and_without_confidence(maps: xr.Dataset, tmp_path: Path) -> None:
    sure = geopandas.read_file(maps.flairhub.to_polygons(tmp_path / "sure.gpkg"))
    assert sure.area.sum() == pytest.approx(1480 * GSD_M**2)
    assert sure.crs.to_epsg() == 2154
    by_class = sure.groupby("class")["confidence"].first()
    assert by_class.tolist() == pytest.approx([1.0 if index % 2 == 0 else 0.5 for index in by_class.index], abs=1 / 254)
    unknown = geopandas.read_parquet(
        maps["class"].flairhub.to_polygons(tmp_path / "a.parquet", min_area_m2=3.5, language="fr")
    )
    assert unknown.columns.tolist() == ["class", "name", "area_m2", "geometry"]
    assert unknown["area_m2"].min() == pytest.approx(4.0)
    assert set(unknown["name"]) <= set(COSIA.names_in("fr"))


def test_files_are_not_replaced_unasked(maps: xr.Dataset, tmp_path: Path) -> None:
    path = maps.flairhub.to_cog(tmp_path / "sub" / "map.tif")
    with pytest.raises(OutputExistsError, match=r"map\.tif exists already. Choose another name, or"):
        maps.flairhub.to_cog(path)
    changed = maps.assign({"class": maps["class"].where(maps["class"] != 1, 12)})
    changed.flairhub.to_cog(path, overwrite=True)
    with rasterio.open(path) as written:
        assert (written.read(1) == 12).sum() == 200
    assert sorted(file.name for file in path.parent.iterdir()) == ["map.qml", "map.tif", "map.tif.aux.xml"]
    with pytest.raises(UsageError, match=r"Name a file that ends with \.tif"):
        maps.flairhub.to_cog(tmp_path / "map.png")
    with pytest.raises(UsageError, match="GeoPackage"):
        maps.flairhub.to_polygons(tmp_path / "map.shp")


def test_a_map_read_by_rioxarray_knows_its_classes(maps: xr.Dataset, tmp_path: Path) -> None:
    array: Any = rioxarray.open_rasterio(maps.flairhub.to_cog(tmp_path / "map.tif"))
    assert array.dims == ("band", "y", "x")
    assert array.flairhub.task == COSIA
    assert array.flairhub.areas().equals(maps.flairhub.areas())


def test_compare_counts_pixels(maps: xr.Dataset, tmp_path: Path) -> None:
    truth = maps["class"].values.copy()
    truth[10:20, 10:20] = 5  # mapped as 2
    truth[0, 0] = 3  # the map has no data there
    truth[-1] = 255
    result = maps.flairhub.compare(truth)
    assert result.matrix[5, 2] == 100
    assert result.matrix.sum() == 1480 - 50
    assert result.unmapped_px == 1
    assert result.overall_accuracy == pytest.approx(1330 / 1430)
    # Class 2: 300 px mapped, 10 of them in the last row; 100 px are 5 in truth.
    assert result.table.loc[2, "iou"] == pytest.approx(190 / 290)
    assert result.table.loc[0, ["name", "iou", "support_px"]].tolist() == ["building", 1.0, 80]
    assert np.isnan(result.table.loc[18, "iou"])
    assert result.miou == pytest.approx(np.nanmean(result.table["iou"]))
    without = maps.flairhub.compare(truth, ignored=("bare soil",))
    assert without.matrix.tolist() == result.matrix.tolist()
    assert 5 not in without.table.index
    assert without.overall_accuracy == 1.0
    assert repr(result) == "<Comparison AERIAL_LABEL-COSIA: mIoU 0.9015, overall accuracy 0.9301, 1430 pixels>"
    assert "<td>building</td>" in result._repr_html_()
    assert "<td>snow</td>" not in result._repr_html_()
    with pytest.raises(UsageError, match="'lake' is no class of AERIAL_LABEL-COSIA"):
        maps.flairhub.compare(truth, ignored=("lake",))


def test_truth_may_reach_beyond_the_map_but_not_lie_elsewhere(maps: xr.Dataset, tmp_path: Path) -> None:
    path = maps.flairhub.to_cog(tmp_path / "truth.tif")
    part = maps.isel(y=slice(8, 23), x=slice(13, 44))
    for truth in (path, maps["class"], maps["class"].where(maps["class"] != 255)):
        result = part.flairhub.compare(truth)
        assert np.diag(result.matrix).sum() == 15 * 31 == result.matrix.sum()
    with pytest.raises(DataError, match="lies on another grid or does not cover the map: EPSG:2154, 31 x 15 px"):
        maps.flairhub.compare(part["class"])
    moved = maps["class"].assign_coords(x=maps["x"] + 0.05)
    with pytest.raises(DataError, match="another grid"):
        part.flairhub.compare(moved)
    with pytest.raises(DataError, match="truth has shape"):
        maps.flairhub.compare(np.zeros((2, 2)))


def test_plot_shows_the_published_colours_in_the_map_s_coordinates(maps: xr.Dataset) -> None:
    mpl.use("Agg")
    axes = maps.flairhub.plot(title="Zone")
    (image,) = axes.get_images()
    assert image.get_extent() == pytest.approx([X_MIN, X_MIN + 10, Y_MAX - 6, Y_MAX])
    picture = np.asarray(image.get_array())
    assert picture.shape == (30, 50, 3)
    assert tuple(picture[0, 10]) == COSIA.classes[1].colour
    assert tuple(picture[0, 0]) == (235, 235, 235)
    assert axes.get_aspect() == 1
    labels = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert labels == [
        "Building",
        "Greenhouse",
        "Swimming pool",
        "Impervious surface",
        "Pervious surface",
        "Bare soil",
        "Water",
        "No label",
    ]
    assert [text.get_text() for text in axes.texts] == ["2 m"]
    assert [text.get_text() for text in axes.figure.texts] == ["Zone"]
    pyplot.close(axes.figure)
    figure, axes = pyplot.subplots()
    part = maps["class"].drop_vars("spatial_ref").isel(x=slice(10, 20), y=slice(10))
    assert part.flairhub.plot(axes, language="fr") is axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Serre"]
    assert not axes.texts  # without a CRS nobody knows the unit
    assert axes.get_xlim() == pytest.approx((X_MIN + 2, X_MIN + 4))
    pyplot.close(figure)


def test_large_maps_are_thinned_with_the_legend_of_all_pixels(maps: xr.Dataset) -> None:
    mpl.use("Agg")
    classes = np.zeros((5000, 3300), np.uint8)
    classes[4321, 1235] = 7
    coords = {"y": -np.arange(5000.0), "x": np.arange(3300.0)}
    large = xr.DataArray(classes, coords, ("y", "x"), attrs=maps["class"].attrs).chunk(y=777)
    axes = large.flairhub.plot()
    assert np.asarray(axes.get_images()[0].get_array()).shape == (1250, 825, 3)
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["Building", "Snow"]
    pyplot.close(axes.figure)


def test_blocks_are_computed_once(maps: xr.Dataset, tmp_path: Path) -> None:
    counts: dict[Any, int] = {}

    def counted(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        place = tuple(block_info[0]["chunk-location"])
        counts[place] = counts.get(place, 0) + 1
        return block

    lazy = maps.chunk(y=8, x=16)
    lazy["class"].data = lazy["class"].data.map_blocks(counted, dtype=np.uint8, meta=np.empty((0, 0), np.uint8))
    with dask.config.set(scheduler="synchronous"):
        lazy.flairhub.to_cog(tmp_path / "map.tif")
    assert counts == {(i, j): 1 for i in range(4) for j in range(4)}


def test_several_tasks_need_a_choice(maps: xr.Dataset) -> None:
    lpis = default_task("ALL_LABEL-LPIS")
    two = xr.Dataset({f"class_{task.label}": maps["class"] for task in (COSIA, lpis)})
    two[f"class_{lpis.label}"].attrs = {"task": lpis.label, "class_names": list(lpis.names)}
    assert two.flairhub.tasks == (COSIA.label, lpis.label)
    assert two.flairhub.names(task=lpis.label)[1] == "Wheat"
    assert two.flairhub.areas(task=lpis.label)["pixels"].sum() == 1480
    with pytest.raises(UsageError, match="several class maps, choose one: task= AERIAL_LABEL-COSIA, ALL_LABEL-LPIS"):
        two.flairhub.names()
    with pytest.raises(UsageError, match="no class map of 'x', there are AERIAL_LABEL-COSIA"):
        two.flairhub.names(task="x")
    with pytest.raises(UsageError, match=r"no class map .* it has confidence"):
        maps[["confidence"]].flairhub.names()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.assign({"class": m["class"].where(m["class"] != 6, 19)}), DataError, r"class values \[19\]"),
        (lambda m: m.drop_vars("spatial_ref"), UsageError, "the map has no CRS"),
        (lambda m: m.drop_vars("spatial_ref").rio.write_crs("EPSG:4326"), UsageError, "does not count in metres"),
        (lambda m: m.drop_vars("x"), UsageError, "no coordinates x and y"),
        (lambda m: m.isel(y=slice(None, None, -1)), UsageError, "coordinate y is not regular and north-up"),
        (lambda m: m.isel(x=[0, 1, 5]), UsageError, "coordinate x is not regular"),
        (lambda m: m.expand_dims(time=2), UsageError, r"dimensions \(y, x\), got \('time', 'y', 'x'\)"),
        (lambda m: m.assign({"class": m["class"].drop_attrs()}), UsageError, "no class names"),
    ],
)  # fmt: skip
def test_what_is_no_class_map_in_metres_is_refused(
    maps: xr.Dataset, change: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        change(maps).flairhub.areas()


def test_slices_and_thinned_maps_keep_exact_grids(maps: xr.Dataset) -> None:
    from flairhub.maps import class_map

    whole = class_map(maps["class"]).geobox
    assert (whole.x_min, whole.y_max) == pytest.approx((X_MIN, Y_MAX), abs=1e-9)
    placed = maps.rio.write_transform(rasterio.transform.from_origin(X_MIN, Y_MAX, GSD_M, GSD_M))
    part = class_map(placed["class"].isel(y=slice(7, 20), x=slice(3, 4))).geobox
    assert part == class_map(placed["class"]).geobox.crop(7, 3, 13, 1)
    assert class_map(
        placed["class"].isel(y=slice(None, None, 2), x=slice(None, None, 2))
    ).geobox.x_res == pytest.approx(0.4)
