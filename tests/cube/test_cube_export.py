"""Exported GeoTIFFs: the source files again, and mosaics that know where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

import flairhub as fh
from flairhub.cli import main
from flairhub.cube.export import export_patch, export_roi
from flairhub.errors import CubeError, OutputExistsError
from flairhub.modalities import MODALITIES
from tests.helpers.lacking import Source, image_files, rewrite
from tests.helpers.makers import PatchFiles, make_patch_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    return make_patch_files(tmp_path_factory.mktemp("export"), n_rois=1, cols=3, holes=[1], missing=[("DEM_ELEV", 0)])


@pytest.fixture(scope="module")
def path(files: PatchFiles, make_cube: Callable[..., Path]) -> Path:
    return make_cube(files)


def test_a_patch_is_its_source_file_again(path: Path, files: PatchFiles, tmp_path: Path) -> None:
    cube, patch_id = fh.open_cube(path), files.patch_ids[2]
    for name in MODALITIES:
        export_patch(cube, name, patch_id, tmp_path / f"{name}.tif")
        with rasterio.open(tmp_path / f"{name}.tif") as found, rasterio.open(files.files[name][patch_id]) as source:
            np.testing.assert_array_equal(found.read(), source.read())
            assert found.dtypes == source.dtypes
            assert found.crs == source.crs
            np.testing.assert_allclose(tuple(found.transform), tuple(source.transform), atol=1e-6)
            assert found.descriptions[0].split()[0] == MODALITIES[name].bands[0]
    with pytest.raises(CubeError, match="recorded as missing"):
        export_patch(cube, "DEM_ELEV", files.patch_ids[0], tmp_path / "none.tif")
    assert not list(tmp_path.glob("*none*"))


@pytest.mark.parametrize(
    "source",
    [
        Source("AERIAL_RGBI", None, 0, 0),
        Source("AERIAL_RGBI", mask=True),
        Source("DEM_ELEV", None, -9999, -9999),
        Source("DEM_ELEV", mask=True),
        Source("SPOT_RGBI", "int16", -9999, -9999),
    ],
)
def test_a_patch_says_where_it_holds_data(tmp_path: Path, source: Source) -> None:
    valid = np.ones((32, 32), dtype=bool)
    valid[4, 3:9] = False
    files = image_files(tmp_path / "files")
    clean = rewrite(files, source, valid)
    fh.ingest(root=files.folder, cube=tmp_path / "c.zarr")
    export_patch(fh.open_cube(tmp_path / "c.zarr"), source.name, files.patch_ids[0], tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as result:
        np.testing.assert_array_equal(result.dataset_mask() > 0, valid)
        np.testing.assert_array_equal(result.read()[:, valid], clean[:, valid])


@pytest.mark.parametrize("name", ["AERIAL_RGBI", "DEM_ELEV", "AERIAL_LABEL-COSIA", "SENTINEL1-ASC_TS"])
def test_an_roi_is_its_mosaic(path: Path, files: PatchFiles, tmp_path: Path, name: str) -> None:
    cube = fh.open_cube(path)
    export_roi(cube, name, "AF-S1-27", tmp_path / "roi.tif")
    mosaic = fh.open_roi(cube, "AF-S1-27")[name].to_dataset().load()
    with rasterio.open(tmp_path / "roi.tif") as found:
        values = mosaic.data.values
        np.testing.assert_array_equal(found.read(), values.reshape(-1, *values.shape[-2:]))
        assert found.crs == "EPSG:2154"
        np.testing.assert_allclose(tuple(found.transform), tuple(mosaic.rio.transform()))
        present = mosaic.present.values
        held = found.dataset_mask().astype(bool)
        np.testing.assert_array_equal(held, present.any(axis=0) if present.ndim == 3 else present)
        assert not held.all()


def test_the_command(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "roi.tif"
    (tmp_path / "file").write_text("x")
    patch = ["--patch", fh.open_cube(path).patch_ids[0]]
    for place, modality, code, text in (
        (path / "zarr.json", "SPOT_RGBI", 2, "zarr.json: a GeoTIFF is written. Name a file that ends with .tif."),
        (tmp_path, "SPOT_RGBI", 2, "a GeoTIFF is written"),
        (tmp_path / "file" / "a.tif", "SPOT_RGBI", 1, "a.tif: cannot be written: [Errno 17] File exists"),
        (target, "SPOT", 2, "unknown modality 'SPOT'. Did you mean SPOT_RGBI?"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["cube", "export", str(path), str(place), "--modality", modality, *patch, "--overwrite"])
        assert stopped.value.code == code
        assert text in capsys.readouterr().err
    arguments = ["cube", "export", str(path), str(target), "--modality", "SPOT_RGBI"]
    for more, code, text in (
        ([], 2, "pass either --roi or --patch"),
        (["--roi", "ZZ"], 1, "no ROI 'ZZ'"),
        (["--roi", "AF-S1-27"], 0, "MiB"),
        (["--roi", "AF-S1-27"], 2, "exists. Pass --overwrite"),
        (["--roi", "AF-S1-27", "--overwrite"], 0, "MiB"),
    ):
        found: object = 0
        try:
            main([*arguments, *more])
        except SystemExit as stopped:
            found = stopped.code or 0
        captured = capsys.readouterr()
        assert found == code
        assert text in captured.out + captured.err
    assert [entry.name for entry in target.parent.iterdir()] == ["roi.tif"]
    with pytest.raises(OutputExistsError):
        export_roi(fh.open_cube(path), "SPOT_RGBI", "AF-S1-27", target)
