"""The zonal command from its YAML: bundles, published weights, errors with their exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from flairhub.cli import main
from flairhub.config import load_zonal_config
from flairhub.errors import ConfigError, OutputExistsError, WeightsError, ZoneError
from flairhub.inference import open_zone, predict_zone, run_zonal, zone_model
from flairhub.inference.map_plan import map_sizes, plan_axes
from flairhub.models import load_model
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import CloudFilter, SeriesPreparation
from tests.helpers.bundle_makers import ARCH, make_bundle, write_zonal_config
from tests.helpers.zone_makers import MadeZone, fake_model, make_zone, write_raster

NORMAL = ImagePreparation((1, 2, 3), None, "custom", (50.0, 51.0, 52.0), (20.0, 21.0, 22.0))
SERIES = SeriesPreparation((1, 3, 4, 9), average="monthly")
PREPARATIONS = {"AERIAL_RGBI": NORMAL, "SENTINEL2_TS": SERIES}
MAP = "map_AERIAL_LABEL-COSIA_argmax.tif"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "aerial_s2", PREPARATIONS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeZone:
    ratios = {"AERIAL_RGBI": 1, "SENTINEL2_TS": 8}
    return make_zone(tmp_path_factory.mktemp("zone"), 96, 80, ratios, n_dates=6, quality=True)


@pytest.fixture
def config(tmp_path: Path, made: MadeZone, bundle: Path) -> Callable[..., Path]:
    """Return `config(**changes)`: a zonal YAML with dotted keys changed."""

    def write(changes: Mapping[str, Any] | None = None) -> Path:
        defaults = {"modalities.SENTINEL2_TS.filter_clouds": False}
        return write_zonal_config(tmp_path / "zonal.yaml", made, bundle, {**defaults, **(changes or {})})

    return write


def cli(*arguments: str) -> int:
    try:
        main(["zonal", *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_command_maps_the_zone(
    config: Callable[..., Path], tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config({"write_dataframe": True})
    assert cli("--config", str(path), "--set", "batch_size=3", "--workers", "2") == 0
    printed = capsys.readouterr().out
    assert MAP in printed.replace("\n", "")
    assert "20 windows in 1 blocks" in printed
    found = read(tmp_path / "out" / MAP)[0]
    zone = open_zone(path)
    lazy = predict_zone(zone, bundle, block_px=24)["class"]
    np.testing.assert_array_equal(found, lazy.values)
    np.testing.assert_array_equal(found, predict_zone(zone, load_model(bundle))["class"].values)
    saved = load_zonal_config(tmp_path / "out" / "map_config.yaml")
    assert saved.batch_size == 3
    assert cli("--config", str(path)) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_same_command_again_has_nothing_to_do(
    config: Callable[..., Path], made: MadeZone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raster = tmp_path / "ortho.tif"
    shutil.copy(made.folder / "AERIAL_RGBI.tif", raster)
    changes = {"write_confidence": True, "cog_conversion": False, "modalities.AERIAL_RGBI.input_img_path": str(raster)}
    path = config(changes)
    first = run_zonal(path)
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (tmp_path / "out").iterdir()}
    assert cli("--config", str(path)) == 0
    assert f"{MAP}: complete already, nothing to do." in capsys.readouterr().out.replace("\n", "")
    again = run_zonal(path)
    assert again.already_complete
    assert not first.already_complete
    assert again.n_computed == 0
    assert again.maps == first.maps
    assert (again.nodata_share, again.not_finite, again.n_blocks) == (first.nodata_share, first.not_finite, 1)
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (tmp_path / "out").iterdir()} == before
    # Another command, a file that is gone or cut off, or other pixels: not finished.
    assert cli("--config", str(path), "--set", "margin=8") == 2
    map_file = tmp_path / "out" / MAP
    content = map_file.read_bytes()
    map_file.write_bytes(content[:-1])
    assert cli("--config", str(path)) == 2
    map_file.write_bytes(content)
    assert cli("--config", str(path)) == 0
    write_raster(raster, 99 - made.arrays["AERIAL_RGBI"], 0.2)
    capsys.readouterr()
    assert cli("--config", str(path)) == 2
    assert "exists already" in capsys.readouterr().err


def test_windows_through_a_real_network_equal_single_passes(
    config: Callable[..., Path], made: MadeZone, bundle: Path
) -> None:
    """What training's preparation makes of one window is what the zone's windows get."""
    from flairhub.data.batch import Batch
    from flairhub.data.preparation import prepare_batch
    from flairhub.timeseries import prepare_series

    zone = open_zone(config())
    model = load_model(bundle)
    found = predict_zone(zone, model, outputs=("probabilities",), batch_size=7)["probabilities"].values
    rows, cols = plan_axes(zone, map_sizes(zone))
    for i, j in [(1, 1), (2, 0), (rows.count - 1, cols.count - 1)]:
        top, left = rows.start(i), cols.start(j)
        image = np.pad(made.arrays["AERIAL_RGBI"], ((0, 0), (64, 64), (64, 64)), mode="symmetric")
        image = image[:, 64 + top : 96 + top, 64 + left : 96 + left]
        series = np.pad(made.arrays["SENTINEL2_TS"], ((0, 0), (8, 8), (8, 8)), mode="symmetric")
        series = series[:, 8 + top // 8 : 12 + top // 8, 8 + left // 8 : 12 + left // 8].reshape(6, 10, 4, 4)
        one = prepare_series(series, zone.dates["SENTINEL2_TS"], None, SERIES)
        batch = Batch(
            {"AERIAL_RGBI": torch.from_numpy(image[None]), "SENTINEL2_TS": torch.from_numpy(one.values[None])},
            {"SENTINEL2_TS": torch.from_numpy(one.offsets[None])},
            {"SENTINEL2_TS": torch.from_numpy(one.valid[None])},
            {},
            torch.zeros(1, dtype=torch.int64),
        )
        prepared = prepare_batch(batch, PREPARATIONS, "cpu")
        with torch.inference_mode():
            logits = model.network(prepared.inputs, prepared.dates, prepared.masks, size=(32, 32)).logits
        expected = logits["AERIAL_LABEL-COSIA"].softmax(dim=1)[0].numpy()
        (y0, y1), (x0, x1) = rows.core(i), cols.core(j)
        np.testing.assert_allclose(
            found[:, y0:y1, x0:x1], expected[:, y0 - top : y1 - top, x0 - left : x1 - left], atol=1e-5
        )


def test_dask_cluster_gives_the_same_bytes(config: Callable[..., Path], tmp_path: Path) -> None:
    """A scheduler address, here of a cluster inside this process."""
    from distributed import LocalCluster

    path = config({"block_px": 40})
    first = run_zonal(path, workers=1)
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
        address = cluster.scheduler_address
        again = run_zonal(load_zonal_config(path, ["output_name=again"]), workers=2, scheduler=address)
    assert first.n_blocks == again.n_blocks == again.n_computed == 20
    assert read(first.maps[0].path).tobytes() == read(again.maps[0].path).tobytes()
    assert first.maps[0].shares == again.maps[0].shares


@pytest.mark.slow
def test_local_processes_give_the_same_bytes(config: Callable[..., Path], tmp_path: Path) -> None:
    path = config({"block_px": 40})
    first = run_zonal(path, workers=1)
    again = run_zonal(load_zonal_config(path, ["output_name=again"]), workers=2, scheduler="processes")
    assert again.n_computed == 20
    assert read(first.maps[0].path).tobytes() == read(again.maps[0].path).tobytes()


def test_published_weights_take_their_preparation_from_the_yaml(tmp_path: Path, made: MadeZone, bundle: Path) -> None:
    """The same tensors as a bare file: spec and preparation come from the configuration."""
    only = replace(made, requests=made.requests[:1])
    described = make_bundle(tmp_path / "aerial", {"AERIAL_RGBI": NORMAL})
    weights = tmp_path / "weights.safetensors"
    shutil.copy(described / "weights.safetensors", weights)
    block = {"type": "custom", "means": list(NORMAL.means), "stds": list(NORMAL.stds)}
    changes = {
        "monotemp_arch": ARCH,
        "modalities.AERIAL_RGBI.channels": [1, 2, 3],
        "modalities.AERIAL_RGBI.normalization": block,
    }
    path = write_zonal_config(tmp_path / "zonal.yaml", only, weights, changes)
    result = run_zonal(path)
    zone = open_zone(path)
    expected = predict_zone(zone, described)["class"].values
    np.testing.assert_array_equal(read(result.maps[0].path)[0], expected)
    other = load_zonal_config(path, ["modalities.AERIAL_RGBI.normalization.means=[0,0,0]", "output_name=other"])
    assert (read(run_zonal(other).maps[0].path)[0] != expected).any()


def test_configured_thresholds_act(config: Callable[..., Path], bundle: Path) -> None:
    """The zone decides whether and how clouds are filtered; the rest is the bundle's."""
    filtered = {
        "modalities.SENTINEL2_TS.filter_clouds": True,
        "modalities.SENTINEL2_TS.filter_clouds_max_cloud": 55,
        "modalities.SENTINEL2_TS.filter_clouds_max_snow": 65,
        "modalities.SENTINEL2_TS.filter_clouds_max_frac_cover": 0.4,
    }
    loaded = load_zonal_config(config(filtered))
    zone = open_zone(loaded)
    ref = zone_model(loaded, zone)
    assert ref.preparations["SENTINEL2_TS"] == replace(SERIES, cloud_filter=CloudFilter(55, 65, 0.4))
    found = predict_zone(zone, ref, outputs=("probabilities",))["probabilities"].values
    plain = predict_zone(zone, bundle, outputs=("probabilities",))["probabilities"].values
    assert np.abs(found - plain).max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_weights": "/nowhere/model"}, WeightsError, "model_weights: no bundle folder /nowhere/model"),
        ({"model_weights": "/nowhere/model.ckpt", "margin": 4}, ConfigError, "monotemp_arch"),
        ({"modalities.AERIAL_RGBI.channels": [3, 2, 1]}, ConfigError, "modalities.AERIAL_RGBI.channels: got"),
        ({"modalities.inputs.SENTINEL2_TS": False}, ConfigError, "the bundle needs this input"),
        ({"multitemp_model_ref_date": "01-01"}, ConfigError, "multitemp_model_ref_date: got 01-01"),
        ({"tasks": [{"name": "ALL_LABEL-LPIS"}]}, ConfigError, "does not predict ALL_LABEL-LPIS"),
        ({"img_pixels_detection": 36}, ConfigError, "img_pixels_detection: 36 px hold no whole number"),
        ({"margin": 13}, ConfigError, "margin: 13 px on each side"),
        (
            {"modalities.AERIAL_RGBI.input_img_path": "/no.tif"},
            ZoneError,
            "AERIAL_RGBI.input_img_path: no file /no.tif",
        ),
        ({"modalities.SENTINEL2_TS.dates_txt": "/no.txt"}, ZoneError, "SENTINEL2_TS.dates_txt: cannot read .*no.txt"),
    ],
)
def test_errors_name_key_and_file(
    config: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: Mapping[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    path = config(changes)
    with pytest.raises(error, match=message):
        run_zonal(path)
    assert cli("--config", str(path)) == (2 if error is ConfigError else 1)
    assert type(error).__name__ != "Unexpected"
    assert error.__name__ in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tif"))


def test_gpu_that_is_not_there(config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"use_gpu: true, but torch finds no CUDA device") as error:
        run_zonal(config({"use_gpu": True}))
    assert error.value.exit_code == 2


def test_existing_map_is_refused_before_any_file_is_opened(config: Callable[..., Path], tmp_path: Path) -> None:
    path = config({"modalities.AERIAL_RGBI.input_img_path": "/no.tif"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MAP).write_text("precious")
    with pytest.raises(OutputExistsError, match=r"--overwrite"):
        run_zonal(path)
    assert (tmp_path / "out" / MAP).read_text() == "precious"


def test_a_changed_bundle_is_found_out(config: Callable[..., Path], tmp_path: Path, bundle: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    manifest = json.loads((copy / "model.json").read_text())
    manifest["ref_date"] = "01-01"
    (copy / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=r"model.json: damaged or edited"):
        run_zonal(config({"model_weights": str(copy)}))


def test_one_model_per_process(config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bundle is read once for a run, however many blocks and threads there are."""
    import flairhub.models

    loads: list[Path] = []
    original = flairhub.models.load_model

    def counted(path: Any, device: Any = "cpu") -> Any:
        loads.append(path)
        return original(path, device)

    monkeypatch.setattr(flairhub.models, "load_model", counted)
    fresh = make_bundle(tmp_path / "fresh", PREPARATIONS, seed=5)
    result = run_zonal(config({"model_weights": str(fresh), "block_px": 24}), workers=3)
    assert result.n_blocks > 10
    assert len(loads) == 1


def test_unknown_in_memory_kind_of_model_needs_no_bundle(made: MadeZone) -> None:
    model = fake_model({"AERIAL_RGBI": ImagePreparation()})
    zone = replace(made, requests=made.requests[:1]).open(32, 4)
    assert predict_zone(zone, model)["class"].shape == (96, 80)
