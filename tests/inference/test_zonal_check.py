"""The check command: seconds, no model run, every kind of trouble named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flairhub.cli import main
from flairhub.config import load_zonal_config
from flairhub.inference.check import check
from flairhub.inference.values import compare_values
from flairhub.models import Network
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import SeriesPreparation
from tests.helpers.bundle_makers import make_bundle, write_zonal_config
from tests.helpers.zone_makers import MadeZone, make_zone, write_raster

NORMAL = ImagePreparation((1, 2, 3), None, "custom", (20.0, 50.0, 90.0), (10.0, 10.0, 10.0))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    preparations = {"AERIAL_RGBI": NORMAL, "SENTINEL2_TS": SeriesPreparation(average="monthly")}
    return make_bundle(tmp_path_factory.mktemp("bundles") / "aerial_s2", preparations)


@pytest.fixture
def made(tmp_path: Path) -> MadeZone:
    zone = make_zone(tmp_path / "zone", 96, 80, {"AERIAL_RGBI": 1, "SENTINEL2_TS": 8}, n_dates=6, quality=True)
    aerial(zone, (20, 50, 90))
    return zone


def aerial(made: MadeZone, means: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    values = np.asarray([*means, 60])[:, None, None] + rng.integers(-9, 10, (4, 96, 80))
    write_raster(made.folder / "AERIAL_RGBI.tif", values.clip(0, 255).astype(np.uint8), 0.2)


def report(tmp_path: Path, made: MadeZone, bundle: Path, changes: Mapping[str, Any] | None = None) -> Any:
    return check(load_zonal_config(write_zonal_config(tmp_path / "zonal.yaml", made, bundle, changes)))


def run(path: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["check", str(path), *arguments])
    return int(end.value.code or 0)


def test_a_good_zone_without_a_model_run(
    tmp_path: Path,
    made: MadeZone,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_zonal_config(tmp_path / "zonal.yaml", made, bundle)

    def no_call(*_: Any, **__: Any) -> None:
        raise AssertionError("check runs no model")

    monkeypatch.setattr(Network, "forward", no_call)
    main(["check", str(path), "--dates"])
    printed = capsys.readouterr().out
    assert "No trouble found." in printed
    found = dict(check(load_zonal_config(path)).facts)
    assert found["windows"] == "20 of 32 px, 24 px apart"
    assert found["pixels computed per pixel"] == f"{20 * 32 * 32 / (96 * 80):.2f}"
    assert found["SENTINEL2_TS"] == "12 x 10 px of 1.6 m, 6 dates x 10 bands uint16"
    assert "2021-" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("means", "message"),
    [
        ((90, 50, 20), r"fit the model's statistics far better in the order \[3, 2, 1\]"),
        ((20, 50, 200), "channel 3 lies 1"),
    ],
)
def test_wrong_values(
    tmp_path: Path, made: MadeZone, bundle: Path, means: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    aerial(made, means)
    path = write_zonal_config(tmp_path / "zonal.yaml", made, bundle)
    assert run(path) == 1
    assert re.search(message, capsys.readouterr().out)


def test_stretched_pictures_and_empty_rasters() -> None:
    statistics = ImagePreparation(None, None, "custom", (1100.0, 1000.0), (300.0, 280.0))
    rng = np.random.default_rng(0)
    shrunk = rng.integers(60, 90, (2, 500)).astype(np.uint8)
    assert "about 1/" in compare_values(shrunk, statistics, "SPOT")[0][1]
    assert "values are about 1" in compare_values(shrunk.astype(np.uint16) * 200, statistics, "SPOT")[0][1]
    assert "Is the raster empty?" in compare_values(np.zeros((2, 50), np.uint16), statistics, "SPOT")[0][1]
    good = np.stack([rng.normal(1100, 300, 500), rng.normal(1000, 280, 500)]).astype(np.float32)
    assert compare_values(good, statistics, "SPOT") == []
    assert compare_values(shrunk, ImagePreparation(), "SPOT") == []


def test_eight_bit_series_and_resolution(tmp_path: Path, made: MadeZone, bundle: Path) -> None:
    write_raster(made.folder / "SENTINEL2_TS.tif", made.arrays["SENTINEL2_TS"].astype(np.uint8), 1.6)
    found = report(tmp_path, made, bundle)
    assert not found.ok
    texts = [finding.text for finding in found.findings]
    assert any("8-bit pixels (uint8), published are 16-bit (uint16)" in text for text in texts)
    assert any("pixels of 1.6 m, published are 10.24 m" in text for text in texts)


def test_cloud_statistics_per_date(tmp_path: Path, made: MadeZone, bundle: Path) -> None:
    quality = np.zeros((6, 2, 12, 10), np.uint8)
    quality[2, 1], quality[4, 1, :6] = 90, 90
    write_raster(made.folder / "SENTINEL2_MSK-SC.tif", quality.reshape(12, 12, 10), 1.6)
    found = report(tmp_path, made, bundle)
    clear = [row[1] for row in found.dates["SENTINEL2_TS"]]
    assert clear == [1, 1, 0, 1, 0.5, 1]
    assert [row[2] for row in found.dates["SENTINEL2_TS"]] == [1, 1, 0, 1, 0, 1]
    quality[0, 0] = 200
    write_raster(made.folder / "SENTINEL2_MSK-SC.tif", quality.reshape(12, 12, 10), 1.6)
    assert "values up to 200" in report(tmp_path, made, bundle).findings[-1].text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities.AERIAL_RGBI.input_img_path": "/no.tif", "model_weights": "/no"}, "no file /no.tif"),
        ({"model_weights": "/no/bundle"}, "no bundle folder /no/bundle"),
        ({"img_pixels_detection": 36}, "36 px hold no whole number"),
        ({"modalities.inputs.SENTINEL2_TS": False}, "the bundle needs this input"),
    ],
)
def test_trouble_is_collected(tmp_path: Path, made: MadeZone, bundle: Path, changes: Any, message: str) -> None:
    found = report(tmp_path, made, bundle, changes)
    assert not found.ok
    assert any(message in finding.text for finding in found.findings)
    if "modalities.AERIAL_RGBI.input_img_path" in changes:
        assert len(found.findings) == 2
