"""Opening a cube: the patch table, xarray, and everything that is no cube."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import flairhub as fh
from flairhub.config import load_train_config
from flairhub.cube.template import set_status
from flairhub.cube.verify import verify
from flairhub.errors import CubeError, UsageError
from flairhub.modalities import MODALITIES
from tests.helpers.makers import PatchFiles, write_train_config


@pytest.fixture(scope="module")
def cube_path(patch_files: PatchFiles, make_cube: Callable[..., Path]) -> Path:
    return make_cube(patch_files)


@pytest.fixture
def copy(cube_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cube_path, tmp_path / "copy.zarr"))


def test_patch_table(cube_path: Path, patch_files: PatchFiles) -> None:
    cube = fh.open_cube(cube_path)
    table = cube.patches
    assert cube.patch_ids == patch_files.patch_ids
    assert cube.n_patches == len(table) == 8
    ids = [f"{d}_{r}_{row}-{col}" for d, r, row, col in zip(table.domain, table.roi, table.row, table.col, strict=True)]
    assert ids == cube.patch_ids
    assert table.col[:2].tolist() == [9, 10], "cells are sorted as numbers"
    assert table.split.tolist() == [patch_files.splits[patch_id] for patch_id in cube.patch_ids]
    assert table.in_split("valid").tolist() == [1, 5]
    origins = np.array([patch_files.origins[patch_id] for patch_id in cube.patch_ids])
    np.testing.assert_allclose(np.stack([table.x_min, table.y_max], axis=1), origins, atol=1e-6)
    assert table.footprint_m == pytest.approx((102.4, 102.4))
    assert "Lambert-93" in table.crs_wkt


def test_indices(cube_path: Path, patch_files: PatchFiles) -> None:
    cube = fh.open_cube(cube_path)
    assert cube.indices(patch_files.patch_ids[::-1]).tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    with pytest.raises(CubeError, match="1 of 2 patches are not in the cube: D999_X_1-1"):
        cube.indices([patch_files.patch_ids[0], "D999_X_1-1"])


def test_xarray_opens_every_group_without_a_warning(cube_path: Path, patch_files: PatchFiles) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xr.open_zarr(cube_path)
        patches = xr.open_zarr(cube_path, group="patches").load()
        assert patches.patch_id.values.tolist() == patch_files.patch_ids
        for name, row in MODALITIES.items():
            group = xr.open_zarr(cube_path, group=name).load()
            labels = "level" if name in ("AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS") else "band"
            assert group[labels].values.tolist() == list(row.bands)
            assert group.patch_id.values.tolist() == patch_files.patch_ids
            if name in patch_files.dates:
                for position, patch_id in enumerate(patch_files.patch_ids):
                    days = group.date.values[position, : int(group.n_dates[position])].astype("datetime64[D]")
                    np.testing.assert_array_equal(days, patch_files.dates[name][patch_id])
        tree = xr.open_datatree(cube_path, engine="zarr")
        assert set(tree.children) == {*MODALITIES, "patches", "ingest"}
        tree.close()


def test_to_xarray_is_lazy_and_right(cube_path: Path, patch_files: PatchFiles) -> None:
    cube = fh.open_cube(cube_path)
    for name in ("SPOT_RGBI", "SENTINEL1-ASC_TS", "ALL_LABEL-LPIS"):
        dataset = cube.to_xarray(name)
        assert dataset.data.chunks is not None
        assert dataset.data.dtype == MODALITIES[name].dtype
        np.testing.assert_array_equal(dataset.data.values, cube.read(name, range(8)))
        assert dataset.patch.values.tolist() == patch_files.patch_ids
    assert dataset.level.values.tolist() == ["LPIS-23", "LPIS-31", "LPIS-46"]


def test_patches_are_selected_by_id_and_band(cube_path: Path, patch_files: PatchFiles) -> None:
    cube = fh.open_cube(cube_path)
    assert fh.open_cube(cube) is cube
    patch_id = patch_files.patch_ids[3]
    one = cube["SENTINEL2_TS"].sel(patch=patch_id, band="B08")
    count = int(one.n_dates)
    expected = patch_files.arrays["SENTINEL2_TS"][patch_id][:, MODALITIES["SENTINEL2_TS"].bands.index("B08")]
    np.testing.assert_array_equal(one.data.values[:count], expected)
    assert (
        one.date.values[:count].astype("datetime64[D]").tolist() == patch_files.dates["SENTINEL2_TS"][patch_id].tolist()
    )
    assert one.rio.crs.to_epsg() == 2154
    assert (float(one.x_min), float(one.y_max)) == pytest.approx(patch_files.origins[patch_id])
    with pytest.raises(KeyError, match="not all values found in index"):
        cube["SENTINEL2_TS"].sel(patch="nothing")
    with pytest.raises(CubeError, match="no ROI 'nowhere'"):
        fh.open_roi(cube_path, "nowhere")


def test_regions_by_name(cube_path: Path) -> None:
    cube = fh.open_cube(cube_path)
    assert cube.rois == sorted(cube.rois)
    assert len(cube.rois) == 2
    for name in cube.rois:
        tree = cube.roi(name)
        assert set(tree.children) == set(cube.modalities)
        assert tree["AERIAL_RGBI"].to_dataset().rio.crs.to_epsg() == 2154
        assert tree.identical(fh.open_roi(cube_path, name))


def test_names_of_regions_carry_their_domain_where_they_must(cube_path: Path) -> None:
    table = fh.open_cube(cube_path).patches
    same = replace(table, roi=np.full(8, "AF-S1-1"))
    assert same.rois == ["D012-2019_AF-S1-1", "D033-2018_AF-S1-1"]
    gone = replace(same, x_min=np.where(table.domain == "D012-2019", np.nan, table.x_min))
    assert gone.rois == ["AF-S1-1"]


def test_patch_table_as_a_frame_of_footprints(cube_path: Path, patch_files: PatchFiles) -> None:
    table = fh.open_cube(cube_path).patches
    frame = table.to_frame()
    assert frame.index.tolist() == patch_files.patch_ids
    assert frame.index.name == "patch"
    assert frame.crs.to_epsg() == 2154
    assert frame.columns.tolist() == ["domain", "roi", "row", "col", "split", "geometry"]
    x, y = patch_files.origins[patch_files.patch_ids[5]]
    assert frame.geometry.iloc[5].bounds == pytest.approx((x, y - 102.4, x + 102.4, y))
    assert frame["split"].tolist() == table.split.tolist()
    x_min = np.where(np.arange(8) == 2, np.nan, table.x_min)
    assert replace(table, x_min=x_min).to_frame().geometry.isna().tolist() == [i == 2 for i in range(8)]


def test_cube_and_table_show_themselves_briefly(cube_path: Path) -> None:
    cube = fh.open_cube(cube_path)
    assert repr(cube.patches).startswith("<PatchTable 8 patches (train ")
    assert len(repr(cube.patches)) < 200
    assert len(repr(cube)) < 400
    for shown in (cube, cube.patches):
        assert "<th" in shown._repr_html_()
        assert len(shown._repr_html_()) < 2000
    odd = replace(cube.patches, domain=np.full(8, "<script>"))
    assert "<script>" not in odd._repr_html_()
    assert "&lt;script&gt;" in odd._repr_html_()


def test_statistics_are_those_of_the_values(cube_path: Path, patch_files: PatchFiles) -> None:
    cube = fh.open_cube(cube_path)
    for name in ("AERIAL_RGBI", "DEM_ELEV", "SPOT_RGBI", "SENTINEL2_TS"):
        stored = cube.info(name)["statistics"]
        axis = 1 if MODALITIES[name].is_series else 0
        arrays = [np.moveaxis(values, axis, 0) for values in patch_files.arrays[name].values()]
        for band, entry in enumerate(stored):
            values = np.concatenate([array[band].ravel() for array in arrays]).astype(np.float64)
            assert entry["band"] == MODALITIES[name].bands[band]
            assert entry["count"] == values.size
            assert entry["invalid"] == 0
            assert (entry["min"], entry["max"]) == (values.min(), values.max())
            assert entry["mean"] == pytest.approx(values.mean(), rel=1e-9)
            assert entry["std"] == pytest.approx(values.std(), rel=1e-7)
    counts = cube.info("AERIAL_LABEL-COSIA")["class_counts"][0]
    labels = np.concatenate([values.ravel() for values in patch_files.arrays["AERIAL_LABEL-COSIA"].values()])
    assert counts == np.bincount(labels, minlength=19).tolist()


def test_unknown_names(cube_path: Path, patch_files: PatchFiles, make_cube: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"unknown modality 'AERIAL_RGB'. Did you mean AERIAL_RGBI"):
        fh.open_cube(cube_path).array("AERIAL_RGB")
    few = fh.open_cube(make_cube(patch_files, modalities=("SPOT_RGBI", "SENTINEL1-ASC_TS")))
    assert few.modalities == ("SPOT_RGBI", "SENTINEL1-ASC_TS")
    with pytest.raises(CubeError, match="DEM_ELEV is not in the cube, it holds SPOT_RGBI, SENTINEL1-ASC_TS"):
        few.read("DEM_ELEV", [0])
    with pytest.raises(UsageError, match="SPOT_RGBI is no time series"):
        few.series("SPOT_RGBI")
    with pytest.raises(CubeError, match="has no monthly averages, found: none"):
        few.read_average("SENTINEL1-ASC_TS", "monthly", [0])


def test_what_is_no_cube(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(CubeError, match="does not exist"):
        fh.open_cube(tmp_path / "nothing.zarr")
    with pytest.raises(CubeError, match="is no cube"):
        fh.open_cube(tmp_path)
    zarr.create_group(str(tmp_path / "other.zarr"))
    with pytest.raises(CubeError, match="a Zarr store, but no cube of flairhub"):
        fh.open_cube(tmp_path / "other.zarr")
    set_status(copy, "complete")  # without a seal, as of an earlier version
    for key, value, message in (
        ("status", "building", r"not complete \(status 'building'\). Run the same `flairhub ingest` again"),
        ("format", 2, "cube format 2, this version reads format 1"),
    ):
        document = json.loads((copy / "zarr.json").read_text())
        document["attributes"]["flairhub"][key] = value
        (copy / "zarr.json").write_text(json.dumps(document))
        with pytest.raises(CubeError, match=message):
            fh.open_cube(copy)
    (copy / "zarr.json").write_text("{")
    with pytest.raises(CubeError, match="cannot be opened as a Zarr group"):
        fh.open_cube(copy)


def test_an_absent_or_damaged_table_is_no_table_of_fill_values(copy: Path) -> None:
    chunk = copy / "patches" / "patch_id" / "c" / "0"
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(CubeError, match="patches/patch_id is damaged"):
        _ = fh.open_cube(copy).patch_ids
    chunk.unlink()
    with pytest.raises(CubeError, match="patches/patch_id: 1 of 1 chunks are absent"):
        _ = fh.open_cube(copy).patch_ids


def test_verify_lists_all_damage(copy: Path, patch_files: PatchFiles) -> None:
    whole = verify(fh.open_cube(copy))
    assert whole.damage == ()
    assert whole.n_chunks == 8 * (9 + 3)
    assert whole.n_files == sum(path.is_file() for path in copy.rglob("*")) - 2, "all but root metadata and journal"
    assert whole.unchecked == ()
    first = copy / "DEM_ELEV/data/c/0/0/0/0"
    data = bytearray(first.read_bytes())
    data[3] ^= 1
    first.write_bytes(data)
    (copy / "SPOT_RGBI/data/c/0/0/0/0").unlink()
    (copy / "SENTINEL1-ASC_TS/date/c/0/0").unlink()
    found = verify(fh.open_cube(copy)).damage
    assert sum("DEM_ELEV/data: chunk 0 " in message for message in found) == 1
    assert sum("SPOT_RGBI/data: chunk" in message and "absent" in message for message in found) == 8
    assert all(any(patch_id in message for message in found) for patch_id in patch_files.patch_ids)
    assert sum("SENTINEL1-ASC_TS/date" in message for message in found) == 1
    assert len(found) == 10


@pytest.fixture(scope="module")
def averaged(patch_files: PatchFiles, make_cube: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    steps = {
        "filter_sentinel2": True,
        "temporal_average_sentinel2": "semi-monthly",
        "temporal_average_sentinel1": "monthly",
    }
    folder = write_train_config(tmp_path_factory.mktemp("config"), patch_files, modalities={"pre_processings": steps})
    return make_cube(patch_files, load_train_config(folder), shard=3)


AVERAGES = {"SENTINEL2_TS": "semi-monthly", "SENTINEL1-ASC_TS": "monthly", "SENTINEL1-DESC_TS": "monthly"}


def test_xarray_opens_averages_without_a_warning(averaged: Path, patch_files: PatchFiles) -> None:
    cube = fh.open_cube(averaged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, period in AVERAGES.items():
            group = xr.open_zarr(averaged, group=f"{name}/{period}").load()
            stored = cube.averages(name)[period]
            np.testing.assert_array_equal(group.data.values, cube.read_average(name, period, range(8)))
            np.testing.assert_array_equal(group.n_observations.values, stored.n_observations)
            np.testing.assert_array_equal(group.date.values.astype("datetime64[D]"), stored.dates)
            assert group.patch_id.values.tolist() == patch_files.patch_ids
            assert group.data.dims == ("patch", "period", "band", "y", "x")
            assert group.band.values.tolist() == list(MODALITIES[name].bands)
            assert group.attrs["crs_wkt"] == cube.patches.crs_wkt
            xr.open_zarr(averaged, group=name).load()
        xr.open_datatree(averaged, engine="zarr").close()


def test_verify_finds_damage_of_averages(averaged: Path, tmp_path: Path, patch_files: PatchFiles) -> None:
    copy = Path(shutil.copytree(averaged, tmp_path / "copy.zarr"))
    assert verify(fh.open_cube(copy)).damage == ()
    shard = copy / "SENTINEL2_TS/semi-monthly/data/c/1/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    (copy / "SENTINEL1-ASC_TS/monthly/n_observations/c/2/0").unlink()
    first, second = verify(fh.open_cube(copy)).damage
    assert "SENTINEL1-ASC_TS/monthly/n_observations: 1 of 3 chunks are absent" in first
    assert f"SENTINEL2_TS/semi-monthly/data: chunk 3 (shard 1, patch {patch_files.patch_ids[3]}) is damaged" in second


def test_verify_checks_files_and_journal(copy: Path) -> None:
    journal = copy / "ingest" / "journal.jsonl"
    lines = journal.read_bytes().split(b"\n")
    lines[0] = lines[0].replace(b'"job"', b'"jab"')
    journal.write_bytes(b"\n".join(lines))
    assert [message.split(": ", 1)[1] for message in verify(fh.open_cube(copy)).damage] == [
        "ingest/journal.jsonl line 1 is damaged",
        "AERIAL-RLT_PAN/data/c/0/0/0/0 is not in the journal",
    ]


def test_metadata_is_consolidated_as_zarr_does_it(copy: Path) -> None:
    groups = [path.parent for path in copy.rglob("zarr.json") if json.loads(path.read_text())["node_type"] == "group"]
    assert len(groups) == 13, "root, patches, ingest, the modalities"
    for group in groups:
        before = (group / "zarr.json").read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(str(group), zarr_format=3)
        assert (group / "zarr.json").read_bytes() == before


def test_verify_misses_no_line_of_the_journal(copy: Path) -> None:
    (copy / "ingest" / "journal.jsonl").write_bytes(b"")
    found = verify(fh.open_cube(copy))
    assert (found.n_files, len(found.damage)) == (10, 10)
    assert all(message.endswith("/data/c/0/0/0/0 is not in the journal") for message in found.damage[:3])


def test_verify_goes_on_after_a_damaged_table(copy: Path) -> None:
    """What cannot be looked at any more is named once; the rest is checked."""
    (copy / "SPOT_RGBI/present/c/0").write_bytes(b"xx")
    shutil.rmtree(copy / "SENTINEL1-ASC_TS")
    shard = copy / "DEM_ELEV/data/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    found = verify(fh.open_cube(copy))
    assert [message.split(": ")[1] for message in found.damage[:2]] == [
        "SPOT_RGBI/present is damaged",
        "SENTINEL1-ASC_TS/present",
    ]
    assert "DEM_ELEV/data: chunk 0 " in found.damage[2]
    assert found.n_chunks == 8 * (8 + 2)


def test_metadata_that_does_not_fit(copy: Path) -> None:
    path = copy / "zarr.json"
    set_status(copy, "complete")  # without a seal, as of an earlier version
    document = json.loads(path.read_text())
    document["consolidated_metadata"]["metadata"]["DEM_ELEV/data"]["shape"][0] = 9
    path.write_text(json.dumps(document))
    message = r"DEM_ELEV/data has 9 patches, the patch table 8 and `present` 8: the metadata is damaged"
    with pytest.raises(CubeError, match=message):
        fh.open_cube(copy).array("DEM_ELEV")
    assert any(message.split("`")[0] in found for found in verify(fh.open_cube(copy)).damage)
    del document["attributes"]["flairhub"]["n_patches"], document["attributes"]["flairhub"]["footprint_m"]
    path.write_text(json.dumps(document))
    with pytest.raises(CubeError, match="damaged metadata: n_patches, footprint_m missing"):
        fh.open_cube(copy)
