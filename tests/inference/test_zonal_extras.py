"""Files beside the maps: confidence, polygons, styles, STAC item, picture."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from flairhub.cli import main
from flairhub.errors import ConfigError, UsageError
from flairhub.geo import GeoBox
from flairhub.inference import Extras, predict_zone, run_zonal, write_zone
from flairhub.inference.polygons import Polygons, trace, write_polygons
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from tests.helpers.bundle_makers import make_bundle, write_zonal_config
from tests.helpers.zone_makers import fake_model, make_zone, write_raster

AERIAL = {"AERIAL_RGBI": ImagePreparation()}
TASK = default_task("AERIAL_LABEL-COSIA")


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def flood(classes: np.ndarray) -> list[tuple[int, int]]:
    """(class, pixels) of all 4-connected areas, by brute force."""
    left = set(map(tuple, np.argwhere(classes != 255).tolist()))
    found = []
    while left:
        start = left.pop()
        queue, count = deque([start]), 0
        while queue:
            y, x = queue.popleft()
            count += 1
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left and classes[near] == classes[start]:
                    left.remove(near)
                    queue.append(near)
        found.append((int(classes[start]), count))
    return sorted(found)


def collected(batches: Iterable[Polygons]) -> Polygons:
    whole = Polygons()
    for batch in batches:
        whole.geometry += batch.geometry
        whole.classes += batch.classes
        whole.confidence += batch.confidence
    return whole


@given(height=st.integers(1, 24), width=st.integers(1, 24), piece=st.integers(1, 25), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_polygons_are_the_connected_areas_for_every_piece_size(height: int, width: int, piece: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.choice(np.array([0, 3, 255], np.uint8), (height, width), p=[0.55, 0.35, 0.1])
    confidence = rng.random((height, width)).astype(np.float32)
    found = collected(
        trace(lambda r, c: (classes[slice(*r), slice(*c)], confidence[slice(*r), slice(*c)]), height, width, piece)
    )
    areas = [(value, round(shape.area)) for value, shape in zip(found.classes, found.geometry, strict=True)]
    assert sorted(areas) == flood(classes)
    assert all(shape.is_valid and shape.geom_type == "Polygon" for shape in found.geometry)
    for value in (0, 3):
        sums = sum(part for part, own in zip(found.confidence, found.classes, strict=True) if own == value)
        np.testing.assert_allclose(sums, confidence[classes == value].sum(), rtol=1e-4)


def test_small_polygons_are_left_out_and_an_empty_map_has_none(tmp_path: Path) -> None:
    classes = np.zeros((6, 6), np.uint8)
    classes[2, 2] = 4
    ones = np.ones((6, 6), np.float32)
    box = GeoBox("EPSG:2154", 1000.0, 2000.0, 2.0, 2.0, 6, 6)
    found = list(trace(lambda r, c: (classes, ones), 6, 6, 10))
    write_polygons(found, TASK.names, box, tmp_path / "all.gpkg", "gpkg")
    write_polygons(found, TASK.names, box, tmp_path / "large.gpkg", "gpkg", min_area_m2=4.1)
    frame = geopandas.read_file(tmp_path / "all.gpkg")
    assert sorted(frame["area_m2"]) == [4.0, 140.0]
    small = frame[frame["class"] == 4].iloc[0]
    assert tuple(small.geometry.bounds) == (1004.0, 1994.0, 1006.0, 1996.0)
    assert (small["name"], small["confidence"]) == (TASK.names[4], 1.0)
    assert list(geopandas.read_file(tmp_path / "large.gpkg")["class"]) == [0]
    nothing = trace(lambda r, c: (np.full((6, 6), 255, np.uint8), ones), 6, 6, 10)
    write_polygons(nothing, TASK.names, box, tmp_path / "none.gpkg", "gpkg")
    assert len(geopandas.read_file(tmp_path / "none.gpkg")) == 0


def test_polygons_are_written_as_they_end(tmp_path: Path) -> None:
    """Only what goes on below is held, the file grows batch by batch, its areas are the pixels' area."""
    rng = np.random.default_rng(3)
    classes = rng.choice(np.array([0, 3, 5, 255], np.uint8), (120, 40))
    classes[:, 20] = 7
    confidence = np.full(classes.shape, 0.5, np.float32)
    batches = list(trace(lambda r, c: (classes[slice(*r), slice(*c)], confidence[slice(*r), slice(*c)]), 120, 40, 16))
    assert len(batches) == 8
    sizes = [len(batch.classes) for batch in batches]
    assert max(sizes) < sum(sizes) / 4
    assert [7 in batch.classes for batch in batches] == [False] * 7 + [True]
    box = GeoBox("EPSG:2154", 1000.0, 2000.0, 0.5, 0.5, 120, 40)
    for name in ("one", "again"):
        write_polygons(iter(batches), TASK.names, box, tmp_path / f"{name}.gpkg", "gpkg")
    assert (tmp_path / "one.gpkg").read_bytes() == (tmp_path / "again.gpkg").read_bytes()
    frame = geopandas.read_file(tmp_path / "one.gpkg")
    assert len(frame) == len(flood(classes))
    assert frame.geometry.area.sum() == frame["area_m2"].sum() == (classes != 255).sum() * 0.25
    by_class = frame.groupby("class")["area_m2"].sum()
    assert {int(value): area for value, area in by_class.items()} == {
        value: (classes == value).sum() * 0.25 for value in (0, 3, 5, 7)
    }


def test_geoparquet(tmp_path: Path) -> None:
    """pyarrow is optional: without it the format is refused (below), with it the file holds the same areas."""
    pytest.importorskip("pyarrow")
    classes = np.random.default_rng(3).choice(np.array([0, 3, 255], np.uint8), (30, 30))
    ones = np.ones(classes.shape, np.float32)
    box = GeoBox("EPSG:2154", 1000.0, 2000.0, 2.0, 2.0, 30, 30)
    batches = list(trace(lambda r, c: (classes[slice(*r), slice(*c)], ones[slice(*r), slice(*c)]), 30, 30, 8))
    for kind in ("parquet", "gpkg"):
        write_polygons(batches, TASK.names, box, tmp_path / f"p.{kind}", kind)  # type: ignore[arg-type]
    one, other = geopandas.read_parquet(tmp_path / "p.parquet"), geopandas.read_file(tmp_path / "p.gpkg")
    assert one.crs == other.crs
    assert one.geometry.geom_equals(other.geometry).all()
    for column in ("class", "name", "area_m2", "confidence"):
        assert list(one[column]) == list(other[column])


def test_all_extras_of_two_tasks_in_one_pass(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 40, 56, {"AERIAL_RGBI": 1}, profiles={"AERIAL_RGBI": {"nodata": 0}})
    values = np.maximum(made.arrays["AERIAL_RGBI"], 1)
    values[:, 5:9, 5:9] = 0
    write_raster(tmp_path / "AERIAL_RGBI.tif", values, 0.2, nodata=0)
    labels = ("AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS")
    model, zone = fake_model(AERIAL, labels), made.open(16, 3)
    extras = Extras(confidence=True, polygons="gpkg", stac=True, language="fr")
    files: dict[int, dict[str, bytes]] = {}
    for block_px in (17, 64):
        out = tmp_path / f"out{block_px}"
        result = write_zone(zone, model, out, "map", block_px=block_px, extras=extras, tiles=True)
        assert all(path.is_file() for path in result.extras)
        files[block_px] = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
    assert files[17] == files[64]
    assert len(files[17]) == 12
    lazy = predict_zone(zone, model, outputs=("class", "confidence"))
    for label in labels:
        name = f"{out}/map_{label}"
        confidence, expected = read(Path(f"{name}_confidence.tif"))[0], lazy[f"confidence_{label}"].values
        np.testing.assert_array_equal(confidence == 255, np.isnan(expected))
        good = confidence != 255
        np.testing.assert_allclose(confidence[good] / 254, expected[good], atol=0.501 / 254)
        frame = geopandas.read_file(f"{name}_polygons.gpkg")
        classes = lazy[f"class_{label}"].values
        for index in np.unique(classes[good]):
            rows = frame[frame["class"] == index]
            np.testing.assert_allclose(rows.area.sum(), (classes == index).sum() * 0.04, rtol=1e-6)
            np.testing.assert_allclose(rows["area_m2"].sum(), (classes == index).sum() * 0.04, rtol=1e-9)
            mean = (rows["confidence"] * rows["area_m2"]).sum() / rows["area_m2"].sum()
            np.testing.assert_allclose(mean, (confidence[classes == index] / 254.0).mean(), rtol=1e-4)
        task = default_task(label)
        assert frame["name"][0] == task.classes[frame["class"][0]].name_fr
        style = ElementTree.parse(f"{name}_argmax.qml")
        entries = [entry.attrib for entry in style.iter("paletteEntry")]
        assert [entry["label"] for entry in entries] == [row.name_fr for row in task.classes]
        assert entries[1]["color"] == "#{:02x}{:02x}{:02x}".format(*task.classes[1].colour)
        with rasterio.open(f"{name}_argmax.tif") as dataset:
            assert dataset.tags(1)["CLASS_2"] == task.classes[2].name_fr
        with rasterio.open(f"{name}_confidence.tif") as dataset:
            assert dataset.nodata == 255
            assert dataset.scales == (1 / 254,)
    _check_stac(json.loads((out / "map_stac.json").read_text()), out)


def _check_stac(item: dict[str, Any], folder: Path) -> None:
    assert (item["type"], item["stac_version"], item["id"]) == ("Feature", "1.0.0", "map")
    assert item["properties"]["datetime"].endswith("Z")
    assert item["properties"]["proj:epsg"] == 2154
    assert item["properties"]["proj:shape"] == [40, 56]
    west, south, east, north = item["bbox"]
    assert 2 < west < east < 3
    assert 48 < south < north < 49
    assert len(item["assets"]) == 4
    for asset in item["assets"].values():
        assert (folder / asset["href"]).is_file()
    classes = item["assets"]["map_AERIAL_LABEL-COSIA_argmax"]["classification:classes"]
    assert [row["value"] for row in classes] == list(range(19))


def test_command_writes_all_that_the_configuration_asks_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_zone(tmp_path / "zone", 40, 40, {"AERIAL_RGBI": 1})
    bundle = make_bundle(tmp_path / "bundle", AERIAL)
    wanted = {
        "write_confidence": True,
        "write_polygons": "gpkg",
        "polygon_min_area_m2": 1.0,
        "write_stac": True,
        "write_quicklook": True,
        "overlap": "blend",
        "flips": True,
        "class_language": "fr",
    }
    path = write_zonal_config(tmp_path / "zonal.yaml", made, bundle, wanted)
    main(["zonal", "--config", str(path)])
    printed = capsys.readouterr().out.replace("\n", "")
    stem = "map_AERIAL_LABEL-COSIA"
    expected = {
        "map_config.yaml",
        "map_stac.json",
        f"{stem}_argmax.tif",
        f"{stem}_argmax.tif.aux.xml",
        f"{stem}_argmax.qml",
        f"{stem}_argmax.png",
        f"{stem}_confidence.tif",
        f"{stem}_polygons.gpkg",
    }
    assert {file.name for file in (tmp_path / "out").iterdir()} == expected
    assert f"{stem}_argmax.png" in printed
    assert (geopandas.read_file(tmp_path / "out" / f"{stem}_polygons.gpkg").area >= 0.999).all()
    plain = write_zonal_config(tmp_path / "plain.yaml", made, bundle, {"output_name": "plain"})
    other = read(run_zonal(plain).maps[0].path)
    assert other.shape == read(tmp_path / "out" / f"{stem}_argmax.tif").shape


def test_extras_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="needs output_type argmax, got class_prob"):
        Extras(polygons="gpkg").check("class_prob")
    monkeypatch.setattr("flairhub.inference.sidecars.find_spec", lambda _name: None)
    made = make_zone(tmp_path / "zone", 16, 16, {"AERIAL_RGBI": 1})
    path = write_zonal_config(tmp_path / "z.yaml", made, tmp_path / "no", {"write_polygons": "parquet"})
    with pytest.raises(ConfigError, match="parquet needs the package pyarrow"):
        run_zonal(path)
