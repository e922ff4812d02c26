"""Batches equal what the published preparation says, computed here from the GeoTIFFs with rasterio and numpy."""

from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from flairhub.cube import Cube, open_cube
from flairhub.data import BatchLoader, prepare_batch
from flairhub.errors import CubeError, DataError, UsageError
from flairhub.modalities import INPUTS, MODALITIES
from flairhub.prepare import ImagePreparation
from flairhub.tasks import Task, default_task, numbered_classes
from flairhub.timeseries import CloudFilter, SeriesPreparation
from tests.helpers.makers import PatchFiles, make_patch_files, write_train_config

MakeCube = Callable[..., Path]


@pytest.fixture(scope="module")
def cube(patch_files: PatchFiles, make_cube: MakeCube) -> Cube:
    return open_cube(make_cube(patch_files))


def raster(files: PatchFiles, name: str, patch_id: str) -> np.ndarray:
    with rasterio.open(files.files[name][patch_id]) as source:
        return source.read()


def dated(files: PatchFiles, name: str, patch_id: str) -> np.ndarray:
    """(time, band, y, x): band index = date * bands + band."""
    values = raster(files, name, patch_id)
    n_bands = len(MODALITIES[name].bands)
    return values.reshape(len(values) // n_bands, n_bands, *values.shape[1:])


def days_from_reference(day: date, year: int, month_day: tuple[int, int]) -> int:
    return (day - date(year, *month_day)).days


def one_batch(cube: Cube, preparations, tasks=(), **options):
    loader = BatchLoader(cube, np.arange(cube.n_patches), preparations, tasks, batch_size=cube.n_patches, **options)
    (batch,) = list(loader)
    return batch


def prepared(cube: Cube, preparations, tasks=(), **options):
    return prepare_batch(one_batch(cube, preparations, tasks, **options), preparations, "cpu")


IMAGES = {
    "AERIAL_RGBI": (4, 1, 2),
    "AERIAL-RLT_PAN": None,
    "SPOT_RGBI": (3, 1),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("normalisation", ["custom", "scaling", "without"])
def test_images(patch_files: PatchFiles, cube: Cube, name: str, normalisation: str) -> None:
    channels = IMAGES[name]
    n = len(channels or MODALITIES[name].bands)
    means, stds = tuple(50.0 + 7 * i for i in range(n)), tuple(20.0 + 3 * i for i in range(n))
    statistics = {"means": means, "stds": stds} if normalisation == "custom" else {}
    preparation = ImagePreparation(channels, normalisation=normalisation, **statistics)
    values = prepared(cube, {name: preparation}).inputs[name]
    assert values.dtype == torch.float32
    for i, patch_id in enumerate(patch_files.patch_ids):
        source = raster(patch_files, name, patch_id)
        for j, channel in enumerate(channels or range(1, n + 1)):
            band = source[channel - 1].astype(np.float64)
            if normalisation == "custom":
                band = (band - means[j]) / stds[j]
            if normalisation == "scaling":
                band = band / {"uint8": 255, "uint16": 65535}[MODALITIES[name].dtype]
            np.testing.assert_allclose(values[i, j].numpy(), band, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["dsm_dtm", "ndsm", "dsm_ndsm"])
def test_elevation(patch_files: PatchFiles, cube: Cube, mode: str) -> None:
    n = 1 if mode == "ndsm" else 2
    means, stds = (240.0, 5.0)[:n], (30.0, 4.0)[:n]
    preparation = ImagePreparation(elevation=mode, normalisation="custom", means=means, stds=stds)
    values = prepared(cube, {"DEM_ELEV": preparation}).inputs["DEM_ELEV"].numpy()
    assert values.shape[1] == n
    for i, patch_id in enumerate(patch_files.patch_ids):
        surface, terrain = raster(patch_files, "DEM_ELEV", patch_id).astype(np.float64)
        bands = {"dsm_dtm": [surface, terrain], "ndsm": [surface - terrain], "dsm_ndsm": [surface, surface - terrain]}
        for j, band in enumerate(bands[mode]):
            np.testing.assert_allclose(values[i, j], (band - means[j]) / stds[j], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in INPUTS if MODALITIES[name].is_series])
def test_raw_series_keep_values_dates_and_order(patch_files: PatchFiles, cube: Cube, name: str) -> None:
    channels = {"SENTINEL2_TS": (10, 3)}.get(name, (2, 1))
    preparation = SeriesPreparation(channels=channels, ref_date="02-01")
    batch = one_batch(cube, {name: preparation})
    assert str(batch.inputs[name].dtype).removeprefix("torch.") == MODALITIES[name].dtype
    values = prepare_batch(batch, {name: preparation}, "cpu").inputs[name].numpy()
    lengths = [len(patch_files.dates[name][patch_id]) for patch_id in patch_files.patch_ids]
    assert values.shape[1] == max(lengths)
    for i, patch_id in enumerate(patch_files.patch_ids):
        source, count = dated(patch_files, name, patch_id), lengths[i]
        np.testing.assert_array_equal(values[i, :count], source[:, [c - 1 for c in channels]].astype(np.float32))
        expected = [days_from_reference(d, d.year, (2, 1)) for d in patch_files.dates[name][patch_id].tolist()]
        assert batch.dates[name][i, :count].tolist() == expected
        assert batch.masks[name][i].tolist() == [True] * count + [False] * (values.shape[1] - count)
        assert not values[i, count:].any()
        assert not batch.dates[name][i, count:].any()


def kept(quality: np.ndarray, cloud: float, snow: float, share: float) -> list[int]:
    n_pixels = quality[0, 0].size
    clear = [
        d
        for d in range(len(quality))
        if ((quality[d, 1] <= cloud) & (quality[d, 0] <= snow)).sum() >= (1 - share) * n_pixels
    ]
    return clear or [d for d in range(len(quality)) if (quality[d, 0] <= snow).sum() >= (1 - share) * n_pixels]


@pytest.mark.parametrize(("cloud", "snow", "share"), [(1, 1, 0.05), (50, 20, 0.4), (1, 1, 0.0)])
def test_cloud_filter(patch_files: PatchFiles, cube: Cube, cloud: float, snow: float, share: float) -> None:
    preparations = {"SENTINEL2_TS": SeriesPreparation(cloud_filter=CloudFilter(cloud, snow, share))}
    batch = one_batch(cube, preparations, missing="drop")
    dropped = 0
    for i, patch_id in enumerate(patch_files.patch_ids):
        keep = kept(dated(patch_files, "SENTINEL2_MSK-SC", patch_id), cloud, snow, share)
        source = dated(patch_files, "SENTINEL2_TS", patch_id)
        dropped += len(source) - len(keep)
        assert int(batch.masks["SENTINEL2_TS"][i].sum()) == len(keep)
        np.testing.assert_array_equal(batch.inputs["SENTINEL2_TS"][i, : len(keep)].numpy(), source[keep])
    assert dropped > 0


@pytest.mark.parametrize("average", ["monthly", "semi-monthly"])
@pytest.mark.parametrize("name", ["SENTINEL2_TS", "SENTINEL1-ASC_TS", "SENTINEL1-DESC_TS"])
def test_averages(patch_files: PatchFiles, cube: Cube, name: str, average: str) -> None:
    rule = CloudFilter(50, 50, 0.3) if name == "SENTINEL2_TS" else None
    preparation = SeriesPreparation((2, 1), rule, average, ref_date="05-15")
    batch = one_batch(cube, {name: preparation})
    mid_days = [15] if average == "monthly" else [8, 23]
    for i, patch_id in enumerate(patch_files.patch_ids):
        source, dates = dated(patch_files, name, patch_id), patch_files.dates[name][patch_id].tolist()
        keep = kept(dated(patch_files, "SENTINEL2_MSK-SC", patch_id), 50, 50, 0.3) if rule else range(len(dates))
        year = dates[next(iter(keep))].year
        step = 0
        for month in range(1, 13):
            for half, mid_day in enumerate(mid_days):
                inside = [
                    d
                    for d in keep
                    if dates[d].month == month and (average == "monthly" or (dates[d].day > 15) == bool(half))
                ]
                offset = days_from_reference(date(year, month, mid_day), year, (5, 15))
                assert int(batch.dates[name][i, step]) == offset
                assert bool(batch.masks[name][i, step]) == bool(inside)
                values = batch.inputs[name][i, step].numpy()
                expected = source[inside].astype(np.float64).mean(axis=0)[[1, 0]] if inside else np.zeros_like(values)
                np.testing.assert_allclose(values, expected, rtol=1e-5)
                step += 1
        assert step == batch.inputs[name].shape[1]


def test_published_fill_repeats_the_last_filled_period(cube: Cube) -> None:
    name = "SENTINEL1-ASC_TS"
    masked = one_batch(cube, {name: SeriesPreparation(average="monthly")})
    filled = one_batch(cube, {name: SeriesPreparation(average="monthly", fill="published")})
    assert filled.masks[name].all()
    for i in range(cube.n_patches):
        last = None
        for step in range(12):
            last = step if masked.masks[name][i, step] else last
            expected = torch.zeros_like(masked.inputs[name][i, 0]) if last is None else masked.inputs[name][i, last]
            assert torch.equal(filled.inputs[name][i, step], expected)
            assert int(filled.dates[name][i, step]) == (0 if last is None else int(masked.dates[name][i, last]))


@pytest.mark.parametrize(("label", "level"), [("AERIAL_LABEL-COSIA", 1), ("ALL_LABEL-LPIS", 1), ("ALL_LABEL-LPIS", 3)])
def test_targets(patch_files: PatchFiles, cube: Cube, label: str, level: int) -> None:
    batch = one_batch(cube, {"AERIAL_RGBI": ImagePreparation()}, [default_task(label, level)])
    target = batch.targets[label]
    assert target.dtype == torch.uint8
    for i, patch_id in enumerate(patch_files.patch_ids):
        np.testing.assert_array_equal(target[i].numpy(), raster(patch_files, label, patch_id)[level - 1])


def everything() -> dict[str, ImagePreparation | SeriesPreparation]:
    return {name: SeriesPreparation() if MODALITIES[name].is_series else ImagePreparation() for name in INPUTS}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_batches(cube: Cube, threads: int) -> None:
    options = {"batch_size": 3, "shuffle": True, "seed": 4, "epoch": 1}
    tasks = [default_task("ALL_LABEL-LPIS", 2)]
    serial = list(BatchLoader(cube, np.arange(8), everything(), tasks, threads=0, **options))
    parallel = list(BatchLoader(cube, np.arange(8), everything(), tasks, threads=threads, **options))
    assert [len(batch) for batch in serial] == [3, 3, 2]
    for a, b in zip(serial, parallel, strict=True):
        assert torch.equal(a.index, b.index)
        for field in ("inputs", "dates", "masks", "targets"):
            first, second = getattr(a, field), getattr(b, field)
            assert first.keys() == second.keys()
            assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_batch_holds_what_each_patch_holds_alone(cube: Cube) -> None:
    alone = list(BatchLoader(cube, np.arange(8), everything(), [], batch_size=1))
    together = one_batch(cube, everything())
    for i, single in enumerate(alone):
        for name, values in single.inputs.items():
            count = values.shape[1] if name in single.masks else None
            assert torch.equal(together.inputs[name][i, :count], values[0])


def test_positions_can_be_resumed(cube: Cube) -> None:
    def loader() -> BatchLoader:
        preparations = {"SPOT_RGBI": ImagePreparation()}
        return BatchLoader(cube, np.arange(8), preparations, [], batch_size=2, shuffle=True, seed=1)

    first = loader()
    first.set_epoch(3)
    whole = [batch.index.tolist() for batch in first]
    second = loader()
    second.set_epoch(3)
    iterator = iter(second)
    seen = [next(iterator).index.tolist(), next(iterator).index.tolist()]
    state = second.state_dict()
    iterator.close()
    third = loader()
    third.load_state_dict(state)
    assert seen + [batch.index.tolist() for batch in third] == whole
    third.set_epoch(4)
    assert len(list(third)) == 4


def test_stored_averages_equal_computed_ones(tmp_path: Path) -> None:
    from flairhub.config import load_train_config
    from flairhub.ingest import ingest

    files = make_patch_files(
        tmp_path / "files",
        n_rois=1,
        modalities=("SENTINEL2_TS", "SENTINEL2_MSK-SC", "SENTINEL1-ASC_TS", "AERIAL_LABEL-COSIA"),
    )
    options = {
        "filter_sentinel2": True,
        "filter_sentinel2_max_cloud": 30,
        "filter_sentinel2_max_snow": 20,
        "filter_sentinel2_max_frac_cover": 0.2,
        "temporal_average_sentinel2": "monthly",
        "temporal_average_sentinel1": "semi-monthly",
    }
    folder = write_train_config(tmp_path / "config", files, modalities={"pre_processings": options})
    config = load_train_config(folder)
    ingest(config, cube=tmp_path / "stored.zarr")
    ingest(root=files.folder, cube=tmp_path / "raw.zarr")
    stored, raw = open_cube(tmp_path / "stored.zarr"), open_cube(tmp_path / "raw.zarr")
    assert "monthly" in stored.averages("SENTINEL2_TS")
    assert raw.averages("SENTINEL2_TS") == {}
    preparations = {
        "SENTINEL2_TS": SeriesPreparation((3, 1), CloudFilter(30, 20, 0.2), "monthly", ref_date="09-01"),
        "SENTINEL1-ASC_TS": SeriesPreparation(None, None, "semi-monthly"),
    }
    a, b = one_batch(stored, preparations), one_batch(raw, preparations)
    for name in preparations:
        assert torch.equal(a.inputs[name], b.inputs[name])
        assert torch.equal(a.dates[name], b.dates[name])
        assert torch.equal(a.masks[name], b.masks[name])
    # Other parameters: computed from the raw series, not taken from the store.
    other = {"SENTINEL2_TS": SeriesPreparation(None, CloudFilter(100, 100, 1.0), "monthly")}
    assert torch.equal(one_batch(stored, other).inputs["SENTINEL2_TS"], one_batch(raw, other).inputs["SENTINEL2_TS"])


@pytest.fixture(scope="module")
def gappy(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """Patch 1 lacks SPOT and S2, patch 2 the land-cover label."""
    from flairhub.ingest import ingest

    folder = tmp_path_factory.mktemp("gappy")
    names = ("SPOT_RGBI", "SENTINEL2_TS", "AERIAL_RGBI", "AERIAL_LABEL-COSIA")
    missing = [("SPOT_RGBI", 1), ("SENTINEL2_TS", 1), ("AERIAL_LABEL-COSIA", 2)]
    files = make_patch_files(folder / "files", n_rois=1, modalities=names, missing=missing)
    ingest(root=files.folder, cube=folder / "cube.zarr")
    return open_cube(folder / "cube.zarr")


def test_missing_patches_are_named(gappy: Cube) -> None:
    preparations = {"SPOT_RGBI": ImagePreparation(), "AERIAL_RGBI": ImagePreparation()}
    with pytest.raises(DataError) as caught:
        BatchLoader(gappy, np.arange(4), preparations, [default_task("AERIAL_LABEL-COSIA")], batch_size=2)
    message = str(caught.value)
    assert f"SPOT_RGBI: missing in 1 of 4 patches: {gappy.patch_ids[1]}" in message
    assert f"AERIAL_LABEL-COSIA: missing in 1 of 4 patches: {gappy.patch_ids[2]}" in message
    assert "modalities.missing: drop" in message
    assert caught.value.exit_code == 1
    # A split without them is fine.
    assert len(BatchLoader(gappy, np.array([0, 3]), preparations, [default_task("AERIAL_LABEL-COSIA")], batch_size=2))


def test_missing_patches_can_be_dropped(gappy: Cube) -> None:
    preparations = {
        "AERIAL_RGBI": ImagePreparation(),
        "SPOT_RGBI": ImagePreparation(normalisation="custom", means=(9.0,) * 4, stds=(2.0,) * 4),
        "SENTINEL2_TS": SeriesPreparation(),
    }
    batch = one_batch(gappy, preparations, [default_task("AERIAL_LABEL-COSIA")], missing="drop")
    assert set(batch.present) == {"SPOT_RGBI", "SENTINEL2_TS"}
    assert batch.present["SPOT_RGBI"].tolist() == [True, False, True, True]
    assert not batch.masks["SENTINEL2_TS"][1].any()
    assert (batch.targets["AERIAL_LABEL-COSIA"][2] == 255).all()
    assert (batch.targets["AERIAL_LABEL-COSIA"][1] != 255).all()
    inputs = prepare_batch(batch, preparations, "cpu").inputs
    assert not inputs["SPOT_RGBI"][1].any()
    spot = (gappy.read("SPOT_RGBI", [3])[0].astype(np.float32) - 9) / 2
    np.testing.assert_allclose(inputs["SPOT_RGBI"][3].numpy(), spot, rtol=1e-5)


def test_modalities_that_are_not_in_the_cube(gappy: Cube) -> None:
    preparations = {
        "DEM_ELEV": ImagePreparation(elevation="ndsm"),
        "SENTINEL2_TS": SeriesPreparation(cloud_filter=CloudFilter()),
    }
    with pytest.raises(CubeError, match="the configuration needs DEM_ELEV, SENTINEL2_MSK-SC") as caught:
        BatchLoader(gappy, np.arange(1), preparations, [], batch_size=1)
    assert str(gappy.path) in str(caught.value)
    with pytest.raises(UsageError, match=r"SPOT_RGBI: channels \[5\] do not exist: the data has bands 1..4"):
        BatchLoader(gappy, np.arange(1), {"SPOT_RGBI": ImagePreparation((5,))}, [], batch_size=1)
    task = Task("AERIAL_LABEL-COSIA", 2, numbered_classes(3))
    with pytest.raises(UsageError, match="level 2 does not exist"):
        BatchLoader(gappy, np.arange(1), {"AERIAL_RGBI": ImagePreparation()}, [task], batch_size=1)


def test_labels_beyond_the_declared_classes_are_named(patch_files: PatchFiles, cube: Cube) -> None:
    task = Task("AERIAL_LABEL-COSIA", 1, numbered_classes(18))
    loader = BatchLoader(cube, np.arange(2), {"SPOT_RGBI": ImagePreparation()}, [task], batch_size=2)
    with pytest.raises(DataError, match=r"class values \[18\] in patches .*expected 0\.\.17 or 255") as caught:
        list(loader)
    assert cube.patch_ids[0] in str(caught.value)


class _Poisoned:
    """A cube whose elevation has a NaN in one patch."""

    def __init__(self, cube: Cube, patch: int):
        self._cube, self._patch = cube, patch

    def __getattr__(self, name: str):
        return getattr(self._cube, name)

    def array(self, name: str):
        reader, patch = self._cube.array(name), self._patch

        class Reader:
            shape, dtype, shard_patches = reader.shape, reader.dtype, reader.shard_patches

            def read_into(self, indices, out, level=None):
                reader.read_into(indices, out, level)
                out[np.asarray(indices) == patch, ..., 3, 4] = np.nan

        return Reader()


@pytest.mark.parametrize("name", ["DEM_ELEV", "SENTINEL1-ASC_TS"])
def test_nan_pixels_hold_no_data(cube: Cube, name: str) -> None:
    preparations = {name: SeriesPreparation() if MODALITIES[name].is_series else ImagePreparation()}
    clean = list(BatchLoader(cube, np.arange(8), preparations, [], batch_size=4))
    first, second = BatchLoader(_Poisoned(cube, 5), np.arange(8), preparations, [], batch_size=4)
    assert (first.valid, list(second.valid)) == ({}, [name])
    assert (~second.valid[name]).nonzero().tolist() == [[1, 3, 4]]
    expected = prepare_batch(clean[1], preparations, "cpu").inputs[name].clone()
    expected[1, ..., 3, 4] = 0
    assert torch.equal(prepare_batch(second, preparations, "cpu").inputs[name], expected)


def test_series_without_a_usable_date(patch_files: PatchFiles, cube: Cube) -> None:
    never = SeriesPreparation(cloud_filter=CloudFilter(max_cloud=-1, max_snow=-1, max_frac=0.0))
    loader = BatchLoader(cube, np.arange(2), {"SENTINEL2_TS": never}, [], batch_size=2)
    with pytest.raises(DataError, match="SENTINEL2_TS: no usable date in patches") as caught:
        list(loader)
    assert cube.patch_ids[0] in str(caught.value)
    batch = next(iter(BatchLoader(cube, np.arange(2), {"SENTINEL2_TS": never}, [], batch_size=2, missing="drop")))
    assert not batch.present["SENTINEL2_TS"].any()
    assert batch.inputs["SENTINEL2_TS"].shape[:2] == (2, 1)
    assert not batch.masks["SENTINEL2_TS"].any()


def test_the_consumer_learns_how_long_it_waited(cube: Cube) -> None:
    loader = BatchLoader(cube, np.arange(8), {"SPOT_RGBI": ImagePreparation()}, [], batch_size=4, threads=0)
    assert all(batch.waited_s > 0 for batch in loader)
