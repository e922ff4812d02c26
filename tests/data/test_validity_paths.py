"""Every reason why a pixel of a patch file holds no data, along every path to the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import ColorInterp

from flairhub.config import load_train_config
from flairhub.cube import Cube, open_cube
from flairhub.cube.verify import verify
from flairhub.data import BatchLoader, prepare_batch
from flairhub.errors import DataError
from flairhub.ingest import ingest
from flairhub.prepare import ImagePreparation, prepare_image
from flairhub.tasks import default_task
from flairhub.timeseries import CloudFilter, SeriesPreparation
from tests.helpers.lacking import LABEL, Source, image_files, rewrite
from tests.helpers.makers import PatchFiles, make_patch_files, write_patch, write_train_config

S1, S2, CLOUDS = "SENTINEL1-ASC_TS", "SENTINEL2_TS", "SENTINEL2_MSK-SC"


LOWEST, LOWEST_64 = -3.4028234663852886e38, -1.7976931348623157e308
IMAGES = {
    "uint8, nodata 0": Source("AERIAL_RGBI", None, 0, 0, arrays=("nodata",)),
    "uint8, nodata 255": Source("AERIAL_RGBI", None, 255, 255, arrays=("nodata",)),
    "uint8, one band": Source("AERIAL-RLT_PAN", None, 0, 0, arrays=("nodata",)),
    "uint16, nodata 65535": Source("SPOT_RGBI", None, 65535, 65535, arrays=("nodata",)),
    "int16, nodata -9999": Source("SPOT_RGBI", "int16", -9999, -9999, arrays=("valid", "has_mask")),
    "int32, nodata 0": Source("SPOT_RGBI", "int32", 0, 0, arrays=("nodata",)),
    "float32 for uint16, NaN": Source("SPOT_RGBI", "float32", np.nan, arrays=("valid", "has_mask")),
    "float32, nodata -9999": Source("DEM_ELEV", None, -9999, -9999, arrays=("nodata",)),
    "float32, lowest number": Source("DEM_ELEV", None, LOWEST, -3.40282347e38, arrays=("nodata",)),
    "float64, lowest number": Source("DEM_ELEV", "float64", LOWEST_64, LOWEST_64, arrays=("nodata",)),
    "float32, NaN": Source("DEM_ELEV", None, np.nan),
    "float32, NaN declared": Source("DEM_ELEV", None, np.nan, np.nan),
    "float32, infinity": Source("DEM_ELEV", None, np.inf),
    "float32, -infinity": Source("DEM_ELEV", None, -np.inf),
    "uint8, mask": Source("AERIAL_RGBI", mask=True, arrays=("valid", "has_mask")),
    "float32, mask": Source("DEM_ELEV", mask=True, arrays=("valid", "has_mask")),
    "uint8, alpha": Source("AERIAL_RGBI", alpha=True, arrays=("valid", "has_mask")),
    "uint8, mask and alpha": Source("AERIAL_RGBI", mask=True, alpha=True, arrays=("valid", "has_mask")),
    "uint8, whole raster": Source("AERIAL_RGBI", None, 0, 0, everywhere=True),
    "float32, whole raster": Source("DEM_ELEV", None, np.nan, everywhere=True),
    "mask, whole raster": Source("SPOT_RGBI", mask=True, everywhere=True),
}
SERIES = {
    "uint16, nodata 0": Source(S2, None, 0, 0, arrays=("nodata",)),
    "uint16, nodata 65535": Source(S2, None, 65535, 65535, arrays=("nodata",)),
    "int16, nodata -10000": Source(S2, "int16", -10000, -10000, arrays=("valid", "has_mask")),
    "float32, nodata -9999": Source(S1, None, -9999, -9999, arrays=("nodata",)),
    "float32, NaN": Source(S1, None, np.nan),
    "float32, infinity": Source(S1, None, np.inf),
    "uint16, mask": Source(S2, mask=True, arrays=("valid", "has_mask")),
    "float32, mask": Source(S1, mask=True, arrays=("valid", "has_mask")),
    "uint16, alpha": Source(S2, alpha=True, arrays=("valid", "has_mask")),
    "uint16, whole raster": Source(S2, None, 65535, 65535, everywhere=True),
    "float32, whole raster": Source(S1, None, np.nan, everywhere=True),
}


def image_preparation(source: Source) -> ImagePreparation:
    if source.name == "DEM_ELEV":
        return ImagePreparation(None, "dsm_ndsm", "custom", (250.0, 4.0), (20.0, 3.0))
    channels = (1,) if source.name == "AERIAL-RLT_PAN" else (4, 1, 2)
    return ImagePreparation(channels, None, "custom", (107.0,) * len(channels), (40.0,) * len(channels))


@pytest.mark.parametrize("backend", ["direct", "zarr"])
@pytest.mark.parametrize("case", IMAGES)
def test_images(tmp_path: Path, case: str, backend: str) -> None:
    source, valid = IMAGES[case], np.ones((32, 32), dtype=bool)
    valid[3, 4:9] = valid[20:, 31] = False
    if source.everywhere:
        valid[:] = False
    files = image_files(tmp_path / "files")
    clean = rewrite(files, source, valid)
    report = ingest(root=files.folder, cube=tmp_path / "c.zarr", shard=2)
    cube = open_cube(tmp_path / "c.zarr", backend=backend)  # type: ignore[arg-type]
    lacking = int((~valid).sum())
    assert report.invalid == {name: lacking * (name == source.name) for name in cube.modalities if name != LABEL}
    assert {entry["invalid"] for entry in cube.info(source.name)["statistics"]} == {lacking}
    if not source.everywhere:
        assert cube.info(source.name)["validity"] == list(source.arrays)
    both = np.stack([valid, np.ones_like(valid)])
    result = cube.read_valid(source.name, [0, 1])
    np.testing.assert_array_equal(result, both)
    np.testing.assert_array_equal(
        cube.read_valid(source.name, [1, 0], values=cube.read(source.name, [1, 0])), both[::-1]
    )
    np.testing.assert_array_equal(cube.to_xarray(source.name)["valid"].values, both)
    assert "valid" not in cube.to_xarray("AERIAL-RLT_PAN" if source.name != "AERIAL-RLT_PAN" else "SPOT_RGBI")
    assert not verify(cube).damage

    preparations = {source.name: image_preparation(source)}
    task = default_task(LABEL)
    loader = BatchLoader(cube, np.arange(2), preparations, [task], batch_size=2, missing="drop")
    (batch,) = loader
    prepared = prepare_batch(batch, preparations, "cpu")
    stored = np.stack([clean, files.arrays[source.name][files.patch_ids[1]]])
    expected = prepare_image(stored, preparations[source.name])
    expected[np.broadcast_to(~both[:, None], expected.shape)] = 0
    np.testing.assert_array_equal(prepared.inputs[source.name].numpy(), expected)
    np.testing.assert_array_equal(prepared.valid[source.name].numpy(), both)
    labels = np.stack([files.arrays[LABEL][patch][0] for patch in files.patch_ids])
    np.testing.assert_array_equal(prepared.targets[LABEL].numpy(), np.where(both, labels, 255))
    assert batch.left_out == lacking
    assert batch.present.keys() == ({source.name} if source.everywhere else set())
    if source.everywhere:
        assert batch.present[source.name].tolist() == [False, True]
        strict = BatchLoader(cube, np.arange(2), preparations, [task], batch_size=2)
        with pytest.raises(DataError, match=f"{source.name}: no pixel with data in patches {files.patch_ids[0]}. Take"):
            list(strict)


def test_only_the_channels_that_are_used_count(tmp_path: Path) -> None:
    files = image_files(tmp_path / "files")
    patch, name = files.patch_ids[0], "AERIAL_RGBI"
    values = np.full((4, 32, 32), 9, dtype=np.uint8)
    values[:3, 2, 2] = values[3, 5, 5] = values[:, 7, 7] = 0
    write_patch(files.files[name][patch], values, files.origins[patch], nodata=0)
    ingest(root=files.folder, cube=tmp_path / "c.zarr")
    cube = open_cube(tmp_path / "c.zarr")

    def lacking(**options: Any) -> list[list[int]]:
        valid = cube.read_valid(name, [0], **options)
        return [] if valid is None else np.argwhere(~valid[0]).tolist()

    assert lacking() == [[7, 7]]
    assert lacking(channels=(1, 2)) == [[2, 2], [7, 7]]
    assert lacking(channels=(4,)) == [[5, 5], [7, 7]]
    assert lacking(every_band=True) == [[2, 2], [5, 5], [7, 7]]
    for channels in ((1, 2), (4,)):
        loader = BatchLoader(cube, np.arange(1), {name: ImagePreparation(channels)}, [], batch_size=1)
        (batch,) = loader
        assert (~batch.valid[name][0]).nonzero().tolist() == lacking(channels=channels)


def test_a_number_that_does_not_fit_where_there_is_data_is_refused(tmp_path: Path) -> None:
    files = image_files(tmp_path / "files")
    patch, name = files.patch_ids[0], "SPOT_RGBI"
    values = files.arrays[name][patch].astype(np.int16)
    values[0, 3, 3] = -9999
    write_patch(files.files[name][patch], values, files.origins[patch], nodata=-9999)
    with pytest.raises(DataError, match=r"dtype int16 value -9999 does not fit uint16 without loss"):
        ingest(root=files.folder, cube=tmp_path / "c.zarr")


def test_an_alpha_flag_on_a_band_that_is_expected_means_nothing(tmp_path: Path) -> None:
    files = image_files(tmp_path / "files")
    patch, name = files.patch_ids[0], "AERIAL_RGBI"
    values = files.arrays[name][patch].copy()
    values[3] = 0
    write_patch(files.files[name][patch], values, files.origins[patch])
    with rasterio.open(files.files[name][patch], "r+") as target:
        target.colorinterp = [*target.colorinterp[:3], ColorInterp.alpha]
    ingest(root=files.folder, cube=tmp_path / "c.zarr")
    cube = open_cube(tmp_path / "c.zarr")
    assert cube.read_valid(name, [0, 1]) is None
    np.testing.assert_array_equal(cube.read(name, [0])[0], values)


def series_files(folder: Path) -> PatchFiles:
    names = (S1, S2, CLOUDS, LABEL)
    return make_patch_files(
        folder, n_rois=1, rows=1, cols=2, modalities=names, n_dates={S1: (8, 12), S2: (8, 12)}, footprint_m=102.4
    )


def ingest_averages(files: PatchFiles, folder: Path, filtered: bool) -> Cube:
    steps = {
        "filter_sentinel2": filtered,
        "filter_sentinel2_max_frac_cover": 0.3,
        "temporal_average_sentinel2": "monthly",
        "temporal_average_sentinel1": "monthly",
    }
    config = load_train_config(write_train_config(folder / "config", files, modalities={"pre_processings": steps}))
    ingest(config, cube=folder / "c.zarr")
    return open_cube(folder / "c.zarr")


def monthly(values: np.ndarray, valid: np.ndarray, days: np.ndarray, kept: list[int]) -> tuple[np.ndarray, list[bool]]:
    """Means of the valid observations by a loop over months and pixels."""
    result, seen = np.zeros((12, *values.shape[1:])), []
    for month in range(12):
        chosen = [i for i in kept if days[i].astype("datetime64[M]").astype(int) % 12 == month]
        seen.append(bool(chosen))
        for y, x in np.ndindex(values.shape[-2:]):
            having = [i for i in chosen if valid[i, y, x]]
            if having:
                result[month, :, y, x] = values[having, :, y, x].astype(np.float64).mean(axis=0)
    return result, seen


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("case", SERIES)
def test_series(tmp_path: Path, case: str, filtered: bool) -> None:
    source = SERIES[case]
    files = series_files(tmp_path / "files")
    patch, name = files.patch_ids[0], source.name
    n_dates = len(files.dates[name][patch])
    valid = np.ones((n_dates, 10, 10), dtype=bool)
    valid[:, 2, 3] = False
    if not (source.mask or source.alpha):
        valid[1, :6] = valid[2] = False
    if source.everywhere:
        valid[:] = False
    clean = rewrite(files, source, valid)
    cube = ingest_averages(files, tmp_path, filtered)
    result = cube.read_valid(name, [0, 1])
    np.testing.assert_array_equal(result[0, :n_dates], valid)
    assert result[1].all()
    view = cube.to_xarray(name)
    np.testing.assert_array_equal(view["valid"].values[0, :n_dates], valid)
    n_second = int(view["n_dates"][1])
    assert view["valid"].dims == ("patch", "time", "y", "x")
    assert view["valid"].values[1].all(axis=(1, 2)).tolist() == [time < n_second for time in range(view.sizes["time"])]
    assert cube.info(name)["statistics"][0]["invalid"] == (~valid).sum()
    if not source.everywhere:
        assert cube.info(name)["validity"] == list(source.arrays)
    assert not verify(cube).damage

    rule = CloudFilter(1.0, 1.0, 0.3) if filtered and name == S2 else None
    kept = [i for i in range(n_dates) if valid[i].any()]
    if rule is not None and kept:
        quality = files.arrays[CLOUDS][patch]
        for bands in ((0, 1), (0,)):
            shares = {i: (quality[i, list(bands)] > 1).any(axis=0)[valid[i]].mean() for i in kept}
            clear = [i for i in kept if shares[i] <= 0.3 + 1e-9]
            if clear:
                break
        kept = clear
    means, seen = monthly(clean, valid, files.dates[name][patch], kept)
    ever = valid[kept].any(axis=0) if kept else np.zeros((10, 10), dtype=bool)

    def batch_of(preparation: SeriesPreparation) -> Any:
        loader = BatchLoader(
            cube, np.arange(2), {name: preparation}, [default_task(LABEL)], batch_size=2, missing="drop"
        )
        (batch,) = loader
        return batch, prepare_batch(batch, {name: preparation}, "cpu")

    single, prepared = batch_of(SeriesPreparation(cloud_filter=rule))
    used = prepared.inputs[name][0][prepared.masks[name][0]].numpy()
    np.testing.assert_array_equal(used, np.where(valid[:, None], clean, 0)[kept])
    stored, from_store = batch_of(SeriesPreparation(cloud_filter=rule, average="monthly"))
    rows = [i for i in range(12) if seen[i]]
    np.testing.assert_allclose(from_store.inputs[name][0].numpy()[rows], means[rows], rtol=1e-6)
    assert from_store.masks[name][0].tolist()[:12] == (seen if kept else [False] * len(from_store.masks[name][0]))
    for batch in (single, stored):
        if source.everywhere:
            assert batch.present[name].tolist() == [False, True]
        else:
            np.testing.assert_array_equal(batch.valid[name][0].numpy(), ever)
            assert batch.valid[name][1].all()
    labels = files.arrays[LABEL][patch][0]
    lacking = ~ever[((2 * np.arange(64) + 1) * 10 // 128)[:, None], (2 * np.arange(64) + 1) * 10 // 128]
    np.testing.assert_array_equal(prepared.targets[LABEL][0].numpy(), np.where(lacking, 255, labels))
    raw = cube.read_average(name, "monthly", [0])[0]
    for month in rows:
        having = np.isfinite(raw[month]).all(axis=0)
        chosen = [i for i in kept if files.dates[name][patch][i].astype("datetime64[M]").astype(int) % 12 == month]
        np.testing.assert_array_equal(having, valid[chosen].any(axis=0))


@pytest.mark.parametrize("case", [case for case, source in SERIES.items() if not source.everywhere])
def test_stored_averages_are_the_computed_ones(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, files = SERIES[case], series_files(tmp_path / "files")
    name = source.name
    valid = np.random.default_rng(1).random((len(files.dates[name][files.patch_ids[0]]), 10, 10)) < 0.7
    if source.mask or source.alpha:
        valid[:] = valid[0]
    rewrite(files, source, valid)
    cube = ingest_averages(files, tmp_path, True)
    rule = CloudFilter(1.0, 1.0, 0.3) if name == S2 else None
    preparation = SeriesPreparation((2, 1), rule, "monthly")
    batches = []
    for _ in range(2):
        (batch,) = BatchLoader(cube, np.arange(2), {name: preparation}, [], batch_size=2, threads=0)
        batches.append(batch)
        monkeypatch.setattr("flairhub.data.batch_reader.stored_averages", lambda *_: {})
    stored, computed = batches
    for group in ("inputs", "dates", "masks", "valid"):
        one, two = getattr(stored, group), getattr(computed, group)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_an_unknown_quality_pixel_is_not_clear(tmp_path: Path) -> None:
    files = series_files(tmp_path / "files")
    patch = files.patch_ids[0]
    quality = np.zeros_like(files.arrays[CLOUDS][patch])
    quality[0, :, :5] = 255
    write_patch(files.files[CLOUDS][patch], quality, files.origins[patch], nodata=255)
    cube = ingest_averages(files, tmp_path, True)
    rule = CloudFilter(300.0, 300.0, 0.3)
    (batch,) = BatchLoader(cube, np.arange(1), {S2: SeriesPreparation(cloud_filter=rule)}, [], batch_size=1)
    assert batch.dates[S2].shape[1] == len(quality) - 1
    day = files.dates[S2][patch][0]
    reference = np.datetime64(f"{str(day)[:4]}-05-15")
    assert int((day - reference).astype(int)) not in batch.dates[S2][0].tolist()
