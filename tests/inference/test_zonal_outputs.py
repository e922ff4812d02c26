"""Maps on disk: what a GIS finds in them, and that they are the lazy Dataset's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from flairhub.errors import OutputExistsError, UsageError
from flairhub.inference import predict_zone, write_zone
from flairhub.inference.outputs import map_name
from flairhub.inference.resample import output_length, output_ratio
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from tests.helpers.zone_makers import fake_model, make_zone, whole_area_logits, whole_area_map, write_raster

AERIAL = {"AERIAL_RGBI": ImagePreparation()}
COSIA, LPIS = "AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS"


def test_class_map(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 600, 520, {"AERIAL_RGBI": 1}, profiles={"AERIAL_RGBI": {"nodata": 0}})
    values = np.maximum(made.arrays["AERIAL_RGBI"], 1)
    values[:, 10:20, 30:50] = 0
    write_raster(tmp_path / "AERIAL_RGBI.tif", values, 0.2, nodata=0)
    made.arrays["AERIAL_RGBI"][:] = values  # type: ignore[index]
    model, zone = fake_model(AERIAL), made.open(128, 4)
    result = write_zone(zone, model, tmp_path / "out", "map", block_px=250, batch_size=4, config_hash="abc")
    (file,) = result.maps
    assert file.path == tmp_path / "out" / "map_AERIAL_LABEL-COSIA_argmax.tif"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{file.path.stem}.qml",
        file.path.name,
        f"{file.path.name}.aux.xml",
    ]
    expected = whole_area_map(made, zone, model)
    # Zeros stand for nodata pixels in the network, so that only the pixels themselves are missing.
    expected[10:20, 30:50] = 255
    task = default_task(COSIA)
    with rasterio.open(file.path) as dataset:
        found = dataset.read(1)
        assert (dataset.driver, dataset.count, dataset.dtypes[0], dataset.nodata) == ("GTiff", 1, "uint8", 255)
        assert dataset.crs.to_epsg() == 2154
        assert dataset.bounds == pytest.approx(zone.geobox.bounds)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.overviews(1) == [2, 4]
        assert dataset.colorinterp == (ColorInterp.palette,)
        colours = dataset.colormap(1)
        assert {i: colours[i][:3] for i in range(19)} == {row.index: row.colour for row in task.classes}
        assert dataset.descriptions == (COSIA,)
        assert dataset.tags(1)["CLASS_12"] == "deciduous"
        tags = dataset.tags()
        assert tags["FLAIRHUB_INPUTS"] == "AERIAL_RGBI"
        assert tags["FLAIRHUB_CONFIG_SHA256"] == "abc"
        assert len(tags["FLAIRHUB_MODEL_SHA256"]) == 64
    with rasterio.open(file.path, overview_level=0) as overview:
        classes = overview.read(1)
    assert set(np.unique(classes)) <= set(np.unique(expected)), "overviews hold classes, not means of them"
    np.testing.assert_array_equal(found, expected)
    assert result.nodata_share == 200 / (600 * 520)
    counts = np.bincount(expected[expected < 255], minlength=19)
    assert file.shares == {name: n / counts.sum() for name, n in zip(task.names, counts, strict=True) if n}
    names = [e.text for e in ElementTree.parse(f"{file.path}.aux.xml").iter("Category")]
    assert names == list(task.names)


def test_probability_map(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 70, 50, {"AERIAL_RGBI": 1})
    values = np.maximum(made.arrays["AERIAL_RGBI"], 1)
    values[:, 5, 6] = 0
    write_raster(tmp_path / "AERIAL_RGBI.tif", values, 0.2, nodata=0)
    made.arrays["AERIAL_RGBI"][:] = values  # type: ignore[index]
    model, zone = fake_model(AERIAL), made.open(32, 4)
    result = write_zone(zone, model, tmp_path / "out", "map", output_type="class_prob", block_px=30)
    logits = whole_area_logits(made, zone, model)[COSIA]
    exponentials = np.exp(logits - logits.max(axis=0))
    expected = np.rint(255 * exponentials / exponentials.sum(axis=0))
    with rasterio.open(result.maps[0].path) as dataset:
        found, mask = dataset.read(), dataset.dataset_mask()
        assert dataset.count == 19
        assert dataset.descriptions == default_task(COSIA).names
        assert dataset.nodata is None, "255 is a probability of 1 here: validity is a mask"
        assert ColorInterp.alpha not in dataset.colorinterp
    assert result.maps[0].path.name == "map_AERIAL_LABEL-COSIA_class_prob.tif"
    valid = np.ones((70, 50), dtype=bool)
    valid[5, 6] = False
    np.testing.assert_array_equal(mask > 0, valid)
    assert (found[:, 5, 6] == 0).all()
    assert np.abs(found[:, valid].astype(int) - expected[:, valid]).max() <= 1
    assert (found[:, valid] == expected[:, valid]).mean() > 0.999


def test_plain_geotiff_tasks_and_tiles(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 70, 50, {"AERIAL_RGBI": 1})
    model, zone = fake_model(AERIAL, (COSIA, LPIS)), made.open(32, 4)
    result = write_zone(zone, model, tmp_path / "out", "map", cog=False, tiles=True, config_yaml="a: 1\n")
    for file in result.maps:
        with rasterio.open(file.path) as dataset:
            expected = whole_area_logits(made, zone, model)[file.task].argmax(axis=0)
            np.testing.assert_array_equal(dataset.read(1), expected)
            assert dataset.overviews(1) == []
            assert dataset.profile["tiled"]
    assert (tmp_path / "out" / "map_config.yaml").read_text().startswith("a: 1\n# finished: {")
    assert result.tiles == tmp_path / "out" / "map_tiles.gpkg"
    tiles = geopandas.read_file(result.tiles)
    assert len(tiles) == result.n_windows == 3 * 3
    assert tiles.crs.to_epsg() == 2154
    assert tiles.area.sum() == pytest.approx(70 * 50 * 0.04)
    assert tiles.union_all().area == pytest.approx(70 * 50 * 0.04)
    assert tiles.total_bounds == pytest.approx(zone.geobox.bounds)
    assert set(tiles["read_px"]) == {32}


@pytest.mark.parametrize("output_px_m", [0.4, 0.15])
def test_output_pixel(tmp_path: Path, output_px_m: float) -> None:
    made = make_zone(tmp_path, 45, 30, {"AERIAL_RGBI": 1})
    model, zone = fake_model(AERIAL), made.open(32, 4, output_px_m=output_px_m)
    result = write_zone(zone, model, tmp_path / "out", "map", block_px=13)
    with rasterio.open(result.maps[0].path) as dataset:
        assert dataset.res == pytest.approx((output_px_m, output_px_m))
        assert (dataset.bounds.left, dataset.bounds.top) == (zone.geobox.x_min, zone.geobox.y_max)
        assert dataset.height == output_length(45, output_ratio(output_px_m, 0.2))
        np.testing.assert_array_equal(dataset.read(1), predict_zone(zone, model)["class"].values)


def test_bytes_do_not_depend_on_how_it_was_computed(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 90, 70, {"AERIAL_RGBI": 1, "SPOT_RGBI": 2})
    model = fake_model({"AERIAL_RGBI": ImagePreparation(), "SPOT_RGBI": ImagePreparation()})
    zone = made.open(32, 4)
    found = set()
    for block_px, batch_size, workers in [(1000, 1, 1), (24, 3, 2), (50, 7, 4)]:
        folder = tmp_path / f"out{block_px}"
        result = write_zone(
            zone, model, folder, "map", tiles=True, block_px=block_px, batch_size=batch_size, workers=workers
        )
        assert result.n_computed == result.n_blocks
        found.add(tuple(path.read_bytes() for path in sorted(folder.iterdir())))
    assert len(found) == 1


def test_existing_outputs_stay(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 40, 40, {"AERIAL_RGBI": 1})
    model, zone = fake_model(AERIAL), made.open(32, 4)
    out = tmp_path / "out"
    out.mkdir()
    existing = out / map_name("map", COSIA, "argmax")
    existing.write_text("precious")
    with pytest.raises(OutputExistsError, match=r"argmax.tif exists already.*--overwrite") as error:
        write_zone(zone, model, out, "map")
    assert error.value.exit_code == 2
    assert existing.read_text() == "precious"
    assert model.network.calls == 0
    assert not list(out.glob(".*"))
    write_zone(zone, model, out, "map", overwrite=True)
    with rasterio.open(existing) as dataset:
        assert dataset.shape == (40, 40)


def test_wrong_scheduler(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 40, 40, {"AERIAL_RGBI": 1})
    for options, message in [
        ({"scheduler": "cluster"}, "scheduler: got 'cluster'"),
        ({"workers": 0}, "workers: got 0"),
    ]:
        with pytest.raises(UsageError, match=message):
            write_zone(made.open(32, 4), fake_model(AERIAL), tmp_path / "out", "map", **options)  # type: ignore[arg-type]


def test_progress_counts_every_block(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 60, 60, {"AERIAL_RGBI": 1})
    seen: list[tuple[str, int, int]] = []
    write_zone(
        made.open(32, 4),
        fake_model(AERIAL),
        tmp_path / "out",
        "map",
        block_px=24,
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )
    assert [row[1:] for row in seen if row[0] == "map"] == [(i, 9) for i in range(10)]
    assert {row[0] for row in seen} == {"map", f"write {COSIA}", f"check {COSIA}"}
    assert json.dumps(seen)
