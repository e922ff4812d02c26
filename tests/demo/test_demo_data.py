"""The made data set: layout, values, determinism."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio

from flairhub.config import load_train_config, load_zonal_config
from flairhub.demo import DemoData, DemoPlan, make_demo_data
from flairhub.demo.surfaces import LPIS_LEVEL_2, LPIS_LEVEL_3
from flairhub.demo.writing import MARKER
from flairhub.errors import OutputExistsError, UsageError
from flairhub.modalities import MODALITIES, Kind
from flairhub.tasks import level_sizes
from flairhub.written_dates import parse_dates_json

RATIOS = {"AERIAL-RLT_PAN": 2, "SPOT_RGBI": 2} | dict.fromkeys(
    ("SENTINEL2_TS", "SENTINEL2_MSK-SC", "SENTINEL1-ASC_TS", "SENTINEL1-DESC_TS"), 8
)


def rows_of(data: DemoData, split: str) -> list[dict[str, str]]:
    with data.csv[split].open(newline="") as file:
        return list(csv.DictReader(file))


def dates_of(data: DemoData, name: str) -> dict[str, str]:
    """Date JSON by patch id, as GDAL reads the GeoPackage."""
    table = MODALITIES[name].dates_file
    assert table is not None
    frame = pyogrio.read_dataframe(data.metadata / table)
    return dict(zip(frame["patch_id"], frame["acquisition_dates"], strict=True))


def test_csv_lists_every_patch_once_with_all_modalities(demo_data: DemoData) -> None:
    ids = [row["patch_id"] for split in ("train", "valid", "test") for row in rows_of(demo_data, split)]
    assert sorted(ids) == sorted(demo_data.patch_ids)
    assert len(set(ids)) == 3 * 5  # one cell of each ROI is left out
    assert list(rows_of(demo_data, "train")[0]) == ["patch_id", *MODALITIES]
    frame = pyogrio.read_dataframe(demo_data.metadata / "GLOBAL_ALL_MTD_SPLIT.gpkg")
    splits = dict(zip(frame["patch_id"], frame["split_1"], strict=True))
    assert splits == {row["patch_id"]: split for split in demo_data.csv for row in rows_of(demo_data, split)}


def test_names_follow_the_published_layout(demo_data: DemoData) -> None:
    row = rows_of(demo_data, "test")[0]
    domain, roi, cell = row["patch_id"].split("_")
    assert row["DEM_ELEV"] == f"{domain}_DEM_ELEV/{roi}/{domain}_DEM_ELEV_{roi}_{cell}.tif"
    old = domain.split("-")[0] + "-195X_AERIAL-RLT_PAN"
    assert row["AERIAL-RLT_PAN"] == f"{old}/{roi}/{old}_{roi}_{cell}.tif"


@pytest.mark.parametrize("name", MODALITIES)
def test_rasters_have_the_published_bands_types_and_one_footprint(demo_data: DemoData, name: str) -> None:
    known, size = MODALITIES[name], 64 // RATIOS.get(name, 1)
    for row in rows_of(demo_data, "train"):
        with rasterio.open(demo_data.data / row[name]) as source:
            bands = len(known.bands)
            assert source.dtypes[0] == known.dtype
            assert source.count % bands == 0 if known.is_series else source.count == bands
            assert (source.height, source.width) == (size, size)
            assert source.crs.to_epsg() == 2154
            footprint = source.bounds
        with rasterio.open(demo_data.data / row["AERIAL_RGBI"]) as aerial:
            assert np.allclose(footprint, aerial.bounds, rtol=0, atol=1e-6)


def test_patches_of_an_roi_lie_on_one_lattice(demo_data: DemoData) -> None:
    corners = {}
    for row in rows_of(demo_data, "train"):
        with rasterio.open(demo_data.data / row["AERIAL_RGBI"]) as source:
            line, column = map(int, row["patch_id"].rsplit("_", 1)[1].split("-"))
            corners[line, column] = (source.bounds.left - column * 81.92, source.bounds.top + line * 81.92)
    origins = np.array(list(corners.values()))
    assert np.allclose(origins, origins[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, row in MODALITIES.items() if row.kind is Kind.SERIES])
def test_every_image_has_a_date_of_the_domains_year(demo_data: DemoData, name: str) -> None:
    texts, counts = dates_of(demo_data, name), set()
    for row in rows_of(demo_data, "train") + rows_of(demo_data, "test"):
        text = texts[row["patch_id"]]
        assert list(json.loads(text)) == [str(i + 1) for i in range(len(json.loads(text)))]
        dates = parse_dates_json(text, row["patch_id"])
        with rasterio.open(demo_data.data / row[name]) as source:
            assert source.count == len(dates) * len(MODALITIES[name].bands)
        assert (np.diff(dates) > np.timedelta64(0, "D")).all()
        assert {str(date)[:4] for date in dates} == {row["patch_id"].split("_")[0].split("-")[1]}
        counts.add(len(dates))
    assert len(counts) > 1, "the number of dates must be ragged"


def test_the_mask_marks_exactly_the_bright_covered_pixels(demo_data: DemoData) -> None:
    """Clouds and snow are brighter in the blue band than any ground of the landscape; clear pixels never are."""
    covered, snowy = 0, 0
    for row in rows_of(demo_data, "train") + rows_of(demo_data, "test"):
        with rasterio.open(demo_data.data / row["SENTINEL2_TS"]) as source:
            values = source.read().reshape(-1, 10, source.height, source.width)
        with rasterio.open(demo_data.data / row["SENTINEL2_MSK-SC"]) as source:
            mask = source.read().reshape(-1, 2, source.height, source.width)
        assert len(values) == len(mask)
        assert mask.max() <= 100
        clear, thick = (mask == 0).all(axis=1), (mask > 80).any(axis=1)
        assert values[:, 0][clear].max(initial=0) < 2800
        assert values[:, 0][thick].min(initial=9999) > 3500
        covered, snowy = covered + int(thick.sum()), snowy + int((mask[:, 0] > 0).sum())
    assert covered > 1000
    assert snowy > 0


def test_labels_are_in_range_and_levels_agree(demo_data: DemoData) -> None:
    seen_crops: set[int] = set()
    seen_cover: set[int] = set()
    for split in demo_data.csv:
        for row in rows_of(demo_data, split):
            with rasterio.open(demo_data.data / row["ALL_LABEL-LPIS"]) as source:
                levels = source.read()
            with rasterio.open(demo_data.data / row["AERIAL_LABEL-COSIA"]) as source:
                seen_cover |= set(np.unique(source.read()).tolist())
            for level, size in zip(levels, level_sizes("ALL_LABEL-LPIS"), strict=True):
                assert level.max() < size
            assert np.array_equal(np.vectorize(LPIS_LEVEL_2.get)(levels[0]), levels[1])
            variety = levels[2].astype(int) - np.vectorize(LPIS_LEVEL_3.get)(levels[0])
            assert set(np.unique(variety).tolist()) <= {0, 1}
            seen_crops |= set(np.unique(levels[0]).tolist())
    assert len(seen_cover) >= 10
    assert len(seen_crops - {22}) >= 6
    assert 22 in seen_crops


def test_elevation_is_terrain_plus_objects(demo_data: DemoData) -> None:
    row = rows_of(demo_data, "train")
    surfaces, covers = [], []
    for entry in row:
        with rasterio.open(demo_data.data / entry["DEM_ELEV"]) as source:
            dsm, dtm = source.read()
        with rasterio.open(demo_data.data / entry["AERIAL_LABEL-COSIA"]) as source:
            covers.append(source.read(1))
        surfaces.append(dsm - dtm)
    height, cover = np.stack(surfaces), np.stack(covers)
    assert height.min() > -0.02
    assert np.median(height[cover == 12]) > 6  # deciduous trees
    assert np.median(height[cover == 3]) < 0.3  # roads


def test_the_zone_is_one_area_with_dates_and_truth(demo_data: DemoData) -> None:
    for name in MODALITIES:
        with rasterio.open(demo_data.zone / f"{name}.tif") as source:
            factor = RATIOS.get(name, 1)
            assert (source.height, source.width) == (64 // factor, 128 // factor)
            if name in demo_data.zone_dates:
                lines = demo_data.zone_dates[name].read_text().split()
                assert source.count == len(lines) * len(MODALITIES[name].bands)
                assert all(len(line) == 8 and line.startswith("2020") for line in lines)
    assert set(demo_data.zone_labels) == {"AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS"}


def test_configurations_load(demo_data: DemoData) -> None:
    config = load_train_config(demo_data.configs)
    assert config.modalities.active == ("AERIAL_RGBI", "SENTINEL2_TS")
    assert config.models.monotemp_model.pretrained is False
    assert Path(str(config.paths.test_csv)) == demo_data.csv["test"]
    zonal = load_zonal_config(demo_data.zonal_config)
    assert zonal.model_weights == demo_data.bundle
    assert zonal.is_bundle


def _contents(data: DemoData) -> dict[str, bytes]:
    """Bytes of every raster, table and date file by relative path."""
    files = [path for root in (data.data, data.zone) for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(data.folder)): path.read_bytes() for path in files}


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    plan = DemoPlan(roi_splits=(("train", "test"),), roi_grid=(1, 2), zone_grid=(1, 1))
    first = _contents(make_demo_data(tmp_path / "a", seed=5, plan=plan, workers=2))
    again = _contents(make_demo_data(tmp_path / "b", seed=5, plan=plan, workers=1))
    other = _contents(make_demo_data(tmp_path / "c", seed=6, plan=plan))
    assert first == again
    assert {path for path, content in first.items() if path.endswith("GLOBAL_ALL_MTD_SPLIT.gpkg")}
    same = [path for path in first if path.endswith("AERIAL_RGBI.tif") and first[path] == other.get(path)]
    assert same == []


def test_only_a_folder_made_by_the_demo_is_replaced(tmp_path: Path) -> None:
    plan = DemoPlan(roi_splits=(("train",),), roi_grid=(1, 1), zone_grid=(1, 1))
    made = make_demo_data(tmp_path / "demo", plan=plan).folder
    with pytest.raises(OutputExistsError, match=r"of other data \(seed 0\).*--overwrite"):
        make_demo_data(made, seed=1, plan=plan)
    stray = made / "runs" / "old.txt"
    stray.parent.mkdir()
    stray.write_text("old")
    make_demo_data(made, plan=plan, overwrite=True)
    assert not stray.exists()
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match=MARKER):
        make_demo_data(mine, plan=plan, overwrite=True)
    assert (mine / "chapter.txt").read_text() == "years of work"


def test_an_equal_call_keeps_what_is_whole_and_makes_anew_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = DemoPlan(roi_splits=(("train", "test"),), roi_grid=(1, 2), zone_grid=(1, 1))
    whole = make_demo_data(tmp_path / "whole" / "demo", seed=5, plan=plan)
    broken = tmp_path / "broken" / "demo"
    with monkeypatch.context() as patch:
        patch.setattr("flairhub.demo.dataset._write_tables", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_demo_data(broken, seed=5, plan=plan)
    assert not list(broken.rglob("*.csv"))
    (broken / "data" / "half.tif").write_bytes(b"II*")
    again = make_demo_data(broken, seed=5, plan=plan)
    assert _contents(again) == _contents(whole)
    assert again.patch_ids == whole.patch_ids
    before = {path: path.stat().st_mtime_ns for path in broken.rglob("*")}
    assert make_demo_data(broken, seed=5, plan=plan) == again
    assert {path: path.stat().st_mtime_ns for path in broken.rglob("*")} == before


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_two_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    from flairhub.errors import LockError
    from flairhub.jobs import writer_lock

    with (
        writer_lock(tmp_path / "demo", "demo"),
        pytest.raises(LockError, match=r"process \d+ on .* is writing this demo"),
    ):
        make_demo_data(tmp_path / "demo")


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(UsageError, match=r"multiple of 8, got 60"):
        DemoPlan(patch_px=60)
    with pytest.raises(UsageError, match=r"must divide 2.56 m"):
        DemoPlan(gsd_m=1.0)
    with pytest.raises(UsageError, match="unknown splits"):
        replace(DemoPlan(), roi_splits=(("training",),))
