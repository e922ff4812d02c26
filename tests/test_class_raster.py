"""Class rasters: the colours of one table everywhere, files that read back, names that can be parsed."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio

from flairhub.class_raster import (
    NO_CLASS_COLOUR,
    category_xml,
    class_attributes,
    paint,
    prediction_files,
    prediction_name,
    qgis_style,
    read_class_raster,
    stac_classes,
    task_of_attributes,
    write_class_raster,
)
from flairhub.errors import DataError, UsageError
from flairhub.geo import GeoBox
from flairhub.tasks import IGNORE_INDEX, LabelClass, Task, default_task

COSIA = default_task("AERIAL_LABEL-COSIA")
CLASSES = np.array([[0, 6, 18], [IGNORE_INDEX, 1, 6]], np.uint8)


def test_one_colour_table_for_pictures_rasters_styles_and_catalogues(tmp_path: Path) -> None:
    write_class_raster(tmp_path / "a.tif", CLASSES, COSIA, None)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(tmp_path / "a.tif") as source:
        table, name = source.colormap(1), source.descriptions[0]
    assert name == "AERIAL_LABEL-COSIA"
    entries = {int(e.get("value", "")): e for e in ElementTree.fromstring(qgis_style(COSIA)).iter("paletteEntry")}
    stac = {row["value"]: row for row in stac_classes(COSIA)}
    for row in COSIA.classes:
        assert table[row.index] == (*row.colour, 255)
        assert paint(np.array([[row.index]]), COSIA).tolist() == [[list(row.colour)]]
        assert entries[row.index].get("color") == row.css
        assert stac[row.index]["color_hint"] == row.css[1:].upper()
    assert COSIA.classes[0].css == "#db0e9a"
    assert table[IGNORE_INDEX] == (0, 0, 0, 0)
    assert paint(np.array([[IGNORE_INDEX, 100]]), COSIA).tolist() == [[list(NO_CLASS_COLOUR)] * 2]


def test_names_in_both_languages() -> None:
    for language, first in (("en", "building"), ("fr", "bâtiment")):
        names = [e.text for e in ElementTree.fromstring(category_xml(COSIA, language)).iter("Category")]
        labels = [e.get("label") for e in ElementTree.fromstring(qgis_style(COSIA, language)).iter("paletteEntry")]
        assert names == labels == list(COSIA.names_in(language))
        assert names[0] == first
    assert (stac_classes(COSIA)[0]["name"], stac_classes(COSIA)[0]["title"]) == ("building", "bâtiment")


def test_a_raster_that_reads_back_differently_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flairhub.class_raster.read_class_raster", lambda _: CLASSES + 1)
    with pytest.raises(DataError, match=r"a\.tif: does not read back as written"):
        write_class_raster(tmp_path / "a.tif", CLASSES, COSIA, None)
    assert list(tmp_path.iterdir()) == []


def test_files_read_back_with_their_grid(tmp_path: Path) -> None:
    grid = GeoBox(rasterio.crs.CRS.from_epsg(2154).to_wkt(), 489_000.0, 6_840_000.0, 0.2, 0.4, 2, 3)
    write_class_raster(tmp_path / "a.tif", CLASSES, COSIA, grid)
    np.testing.assert_array_equal(read_class_raster(tmp_path / "a.tif"), CLASSES)
    with rasterio.open(tmp_path / "a.tif") as source:
        assert (source.transform, source.crs.to_epsg(), source.nodata) == (grid.affine(), 2154, IGNORE_INDEX)


def test_what_is_no_class_raster_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.tif: is missing"):
        read_class_raster(tmp_path / "b.tif")
    (tmp_path / "c.tif").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"c\.tif: cannot be read"):
        read_class_raster(tmp_path / "c.tif")
    profile = {"driver": "GTiff", "height": 2, "width": 2, "transform": rasterio.Affine(1, 0, 5, 0, -1, 5)}
    with rasterio.open(tmp_path / "d.tif", "w", count=2, dtype="uint16", **profile) as target:
        target.write(np.zeros((2, 2, 2), np.uint16))
    with pytest.raises(DataError, match="got 2 bands of uint16, expected 1 of uint8"):
        read_class_raster(tmp_path / "d.tif")
    with pytest.raises(DataError, match=r"c\.tif/e\.tif: cannot be written"):
        write_class_raster(tmp_path / "c.tif" / "e.tif", CLASSES, COSIA, None)


def test_a_prediction_is_found_by_the_patch_it_belongs_to(tmp_path: Path) -> None:
    name = prediction_name("D012-2019", "ALL_LABEL-LPIS", "AF-S1-27", (5, 10))
    assert name == "PRED_D012-2019_ALL_LABEL-LPIS_AF-S1-27_5-10.tif"
    (tmp_path / name).touch()
    (tmp_path / "notes.tif").touch()
    assert prediction_files(tmp_path) == {"D012-2019_AF-S1-27_5-10": tmp_path / name}


def test_the_class_table_travels_in_attributes() -> None:
    attributes = class_attributes(default_task("AERIAL_LABEL-COSIA"))
    assert attributes["task"] == "AERIAL_LABEL-COSIA"
    assert attributes["level"] == 1
    assert attributes["flag_values"] == list(range(19))
    assert attributes["flag_meanings"].split()[:4] == ["building", "greenhouse", "swimming_pool", "impervious_surface"]
    assert attributes["flag_colors"].split()[:2] == ["#db0e9a", "#9999ff"]
    assert attributes["class_names"][3] == "impervious surface"
    assert attributes["class_names_fr"][3] == "zone imperméable"
    assert json.loads(json.dumps(attributes)) == attributes


@pytest.mark.parametrize(
    "task",
    [
        default_task("AERIAL_LABEL-COSIA"),
        default_task("ALL_LABEL-LPIS", 2),
        Task("mine", 3, (LabelClass(0, "a b", "à b", (1, 2, 3)), LabelClass(1, "c", "d", (255, 0, 16)))),
        Task("one", 1, (LabelClass(0, "all", "tout", (0, 0, 0)),)),
    ],
    ids=lambda task: task.label,
)
def test_attributes_give_the_task_back(task: Task) -> None:
    attributes = class_attributes(task)
    assert task_of_attributes(attributes) == task
    # Formats without lists give arrays back, and one value as a number.
    stored = {key: np.array(value) if isinstance(value, list) else value for key, value in attributes.items()}
    assert task_of_attributes(stored | {"flag_values": np.squeeze(stored["flag_values"])}) == task


def test_what_attributes_lack_comes_from_the_published_nomenclature() -> None:
    published = default_task("AERIAL_LABEL-COSIA")
    assert task_of_attributes({"task": published.label, "class_names": list(published.names)}) == published
    on_disk = {f"CLASS_{i}": name for i, name in enumerate(published.names)} | {"long_name": published.label}
    assert task_of_attributes(on_disk) == published
    foreign = task_of_attributes(
        {"flag_meanings": "dry_land sea", "flag_values": [0, 1], "flag_colors": "#010203 #ffffff"}
    )
    assert foreign.names == ("dry land", "sea")
    assert foreign.classes[0].colour == (1, 2, 3)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"units": "m"}, "no class names: the array has none of the attributes class_names"),
        ({"class_names": ["a", "b"], "flag_values": [1, 2]}, r"flag_values \[1, 2\]. Expected as many of each"),
        ({"class_names": ["a", "b"], "flag_colors": "#000000"}, "2 class names, 2 French ones, 1 colours"),
        ({"class_names": ["a"], "flag_colors": "red"}, "colour: got 'red', expected #rrggbb"),
        ({"CLASS_0": "a", "CLASS_2": "b"}, "'CLASS_1' is missing among CLASS_0, CLASS_2"),
    ],
)
def test_attributes_that_are_no_class_table_are_refused(attributes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task_of_attributes(attributes)
