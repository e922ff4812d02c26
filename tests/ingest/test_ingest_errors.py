"""Bad input that is left out, outvoted, put right, or that no patch alone is guilty of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import from_origin

import flairhub as fh
from flairhub.config import load_train_config
from flairhub.errors import DataError, UsageError
from flairhub.ingest.origins import Origins
from tests.helpers.breaking import bomb, label, rewrite, truncate
from tests.helpers.commands import failure
from tests.helpers.comparisons import same_tree
from tests.helpers.makers import PatchFiles, make_patch_files, write_patch, write_train_config
from tests.helpers.waiting import HANG_S


def test_where_modalities_disagree_the_majority_is_right_in_any_order(files: PatchFiles, tmp_path: Path) -> None:
    """The first modality's file is the one that is off; interrupted between the two passes, too."""
    x, y = files.origins[files.patch_ids[2]]
    rewrite(files, "AERIAL_RGBI", transform=from_origin(x + 3.2, y, 6.4, 6.4))
    options = {"root": files.folder, "on_error": "skip", "shard": 2}
    report = fh.ingest(cube=tmp_path / "c.zarr", **options)  # type: ignore[arg-type]
    ((name, patch_id, reason),) = report.skipped
    assert (name, patch_id) == ("AERIAL_RGBI", files.patch_ids[2])
    assert "expected (489921.600, 6839590.400) as in " in reason
    assert "_DEM_ELEV_" in reason
    assert fh.open_cube(tmp_path / "c.zarr").patches.x_min[2] == pytest.approx(x)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Origins, "misplaced", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fh.ingest(cube=tmp_path / "d.zarr", **options)  # type: ignore[arg-type]
    assert fh.ingest(cube=tmp_path / "d.zarr", **options).n_reused == 8  # type: ignore[arg-type]
    assert same_tree(tmp_path / "d.zarr", tmp_path / "c.zarr")


def test_an_odd_first_file_is_outvoted(files: PatchFiles, tmp_path: Path) -> None:
    rewrite(files, "DEM_ELEV", 0, np.zeros((2, 8, 8), dtype=np.float32), transform=from_origin(0, 0, 12.8, 12.8))
    report = fh.ingest(root=files.folder, cube=tmp_path / "c.zarr", on_error="skip")
    assert [entry[:2] for entry in report.skipped] == [("DEM_ELEV", files.patch_ids[0])]


def test_how_much_may_be_skipped(files: PatchFiles, tmp_path: Path) -> None:
    truncate(files)
    cube = tmp_path / "c.zarr"
    options = {"root": files.folder, "cube": cube, "on_error": "skip"}
    report = fh.ingest(**options)  # type: ignore[arg-type]
    assert (report.n_files, report.skipped_share, report.too_many_skipped) == (16, 1 / 16, True)
    again = fh.ingest(**options, max_skipped=0.0625)  # type: ignore[arg-type]
    assert (again.already_complete, again.skipped, again.too_many_skipped) == (True, report.skipped, False)
    with pytest.raises(UsageError, match=r"max_skipped: got 2, expected a share between 0 and 1"):
        fh.ingest(**options, max_skipped=2)  # type: ignore[arg-type]


def test_a_series_without_a_usable_date(tmp_path: Path) -> None:
    names = ("SENTINEL2_TS", "SENTINEL2_MSK-SC", "AERIAL_LABEL-COSIA")
    files = make_patch_files(tmp_path / "files", n_rois=1, modalities=names)
    mask = files.arrays["SENTINEL2_MSK-SC"]
    for patch_id in files.patch_ids:
        mask[patch_id][:] = 0
    mask[files.patch_ids[1]][:] = 100
    for patch_id in files.patch_ids:
        write_patch(files.files["SENTINEL2_MSK-SC"][patch_id], mask[patch_id], files.origins[patch_id])
    steps = {"filter_sentinel2": True, "temporal_average_sentinel2": "monthly"}
    config = write_train_config(tmp_path / "config", files, modalities={"pre_processings": steps})
    fh.ingest(load_train_config(config), cube=tmp_path / "c.zarr")
    cube = fh.open_cube(tmp_path / "c.zarr")
    means = cube.averages("SENTINEL2_TS")["monthly"]
    assert means.n_observations.sum(axis=1).astype(bool).tolist() == [True, False, True, True]
    assert np.isnat(means.dates[1]).all()
    assert not cube.read_average("SENTINEL2_TS", "monthly", [1]).any()
    assert cube.series("SENTINEL2_TS").n_dates[1] == len(files.arrays["SENTINEL2_TS"][files.patch_ids[1]])


BOMB = """
import sys
import flairhub as fh
from flairhub.errors import DataError
for number in (1, 2):
    try:
        fh.ingest(root=sys.argv[number], cube=sys.argv[3] + str(number), modalities=["DEM_ELEV"])
    except DataError as error:
        print(error)
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("index", [0, 2])
def test_a_refused_bomb_takes_no_memory(files: PatchFiles, small_files: PatchFiles, tmp_path: Path, index: int) -> None:
    """3 kB that declare 300000 x 300000 px, 360 GB: hardly more than the good data set that was ingested before."""
    bomb(files, index)
    assert files.files["DEM_ELEV"][files.patch_ids[index]].stat().st_size < 3000
    arguments = [sys.executable, "-c", BOMB, str(small_files.folder), str(files.folder), str(tmp_path / "cube")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=HANG_S, check=True)
    before_kib, message, peak_kib = done.stdout.strip().split("\n")
    assert "300000 x 300000 px" in message
    assert int(peak_kib) - int(before_kib) < 50 * 1024


def test_a_fixed_file_continues(files: PatchFiles, tmp_path: Path) -> None:
    good = files.files["AERIAL_LABEL-COSIA"][files.patch_ids[2]].read_bytes()
    label(77)(files)
    with pytest.raises(DataError, match="value 77"):
        fh.ingest(root=files.folder, cube=tmp_path / "c.zarr", shard=2)
    files.files["AERIAL_LABEL-COSIA"][files.patch_ids[2]].write_bytes(good)
    report = fh.ingest(root=files.folder, cube=tmp_path / "c.zarr", shard=2)
    assert report.n_reused >= 4
    assert fh.open_cube(tmp_path / "c.zarr").present("AERIAL_LABEL-COSIA").all()


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_one_footprint_and_one_crs_for_all_modalities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], on_error: str
) -> None:
    """No single patch is bad: nothing can be skipped."""
    files = make_patch_files(tmp_path, n_rois=1, modalities=["AERIAL_RGBI", "SPOT_RGBI"])
    arguments = ["ingest", "--root", files.folder, "--cube", tmp_path / "c.zarr", "--on-error", on_error]
    for footprint, crs, message in (
        (102.3, "EPSG:2154", "footprint 102.3 x 102.3 m (16 x 16 px), expected 102.4 x 102.4 m as in "),
        (102.4, "EPSG:3035", "CRS EPSG:3035, expected EPSG:2154 as in "),
    ):
        for patch_id in files.patch_ids:
            path, values = files.files["SPOT_RGBI"][patch_id], files.arrays["SPOT_RGBI"][patch_id]
            write_patch(path, values, files.origins[patch_id], footprint, crs=crs)
        code, shown = failure(capsys, *arguments)
        first = files.patch_ids[0]
        assert code == 1
        assert f"DataError: {files.files['SPOT_RGBI'][first]}: {message}{files.files['AERIAL_RGBI'][first]}" in shown


def test_everything_skipped_is_no_cube(files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in files.files["DEM_ELEV"].values():
        path.write_bytes(path.read_bytes()[:-900])
    arguments = ["--root", files.folder, "--cube", tmp_path / "c.zarr", "--modality", "DEM_ELEV", "--on-error", "skip"]
    code, shown = failure(capsys, "ingest", *arguments)
    assert (code, "every patch was skipped, the cube would be empty" in shown) == (1, True)
    for path in files.files["DEM_ELEV"].values():
        path.write_text("<html></html>")
    code, shown = failure(capsys, "ingest", *arguments, "--overwrite")
    assert code == 1
    assert "DEM_ELEV: no readable file. First problem: " in shown
    assert f"{files.files['DEM_ELEV'][files.patch_ids[0]]}: not a readable GeoTIFF" in shown


def test_a_patch_without_the_mask_that_its_averages_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("SENTINEL2_TS", "SENTINEL2_MSK-SC", "AERIAL_LABEL-COSIA")
    files = make_patch_files(tmp_path / "files", n_rois=1, modalities=names, missing=[("SENTINEL2_MSK-SC", 1)])
    steps = {"filter_sentinel2": True, "temporal_average_sentinel2": "monthly"}
    config = write_train_config(tmp_path / "config", files, modalities={"pre_processings": steps})
    code, shown = failure(capsys, "ingest", "--config", config, "--cube", tmp_path / "c.zarr")
    message = "the filtered averages need the quality mask SENTINEL2_MSK-SC of patch"
    assert code == 1
    assert f"{files.files['SENTINEL2_TS'][files.patch_ids[1]]}: {message} {files.patch_ids[1]}, which has none" in shown
    report = fh.ingest(load_train_config(config), cube=tmp_path / "c.zarr", on_error="skip")
    assert [entry[:2] for entry in report.skipped] == [("SENTINEL2_TS", files.patch_ids[1])]
    assert fh.open_cube(tmp_path / "c.zarr").averages("SENTINEL2_TS")["monthly"].n_observations[1].sum() == 0


def test_sidecar_files_are_not_looked_at(files: PatchFiles, tmp_path: Path) -> None:
    """Neither another place, nor other values, nor a reference to the network come in beside a file."""
    path = files.files["DEM_ELEV"][files.patch_ids[2]]
    pam = "<PAMDataset><GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform><SRS>EPSG:4326</SRS></PAMDataset>"
    path.with_name(path.name + ".aux.xml").write_text(pam)
    path.with_suffix(".tfw").write_text("1\n0\n0\n-1\n0\n0\n")
    path.with_name(path.name + ".ovr").write_text("<VRTDataset/>")
    path.with_name(path.name + ".msk").write_text("/vsicurl/https://x.org/a.tif")
    fh.ingest(root=files.folder, cube=tmp_path / "c.zarr", modalities=["DEM_ELEV"])
    cube = fh.open_cube(tmp_path / "c.zarr")
    np.testing.assert_array_equal(cube.read("DEM_ELEV", [2])[0], files.arrays["DEM_ELEV"][files.patch_ids[2]])
    assert (cube.patches.x_min[2], cube.patches.y_max[2]) == pytest.approx(files.origins[files.patch_ids[2]])
