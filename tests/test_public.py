"""The public names: paths or objects, signatures, how objects show themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import rasterio

import flairhub as fh
from flairhub.config import TrainConfig, ZonalConfig, load_train_config
from flairhub.errors import ConfigError
from flairhub.models import Accounting, load_model
from flairhub.prepare import ImagePreparation
from flairhub.training import TrainResult
from tests.helpers.bundle_makers import make_bundle, write_zonal_config
from tests.helpers.makers import PatchFiles, write_train_config
from tests.helpers.zone_makers import make_zone

NAMES = ["open_cube", "open_roi", "loader", "patches", "open_zone", "load_model", "load_config", "predict_zone"]
NAMES += ["zone", "predict_block", "write_zone", "check", "ingest", "ingest_zone", "train", "evaluate"]


def test_every_name_of_the_design_is_public_and_described() -> None:
    assert set(NAMES) <= set(fh.__all__)
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    for name in NAMES:
        function = getattr(fh, name)
        assert callable(function)
        assert f"`{name}(" in page, f"docs/api.md does not describe {name}"
        for argument in inspect.signature(function).parameters:
            assert f"`{argument}`" in page or argument in page.split(f"`{name}(")[1].split("`")[0], (name, argument)


def test_ingest_keeps_its_signature_when_its_package_is_imported() -> None:
    from flairhub.ingest.run import ingest

    assert inspect.ismodule(fh.ingest)
    assert inspect.signature(fh.ingest) == inspect.signature(ingest)
    assert list(inspect.signature(fh.ingest).parameters)[:2] == ["config", "cube"]


def test_configurations_come_as_paths_or_objects(
    patch_files: PatchFiles, make_cube: Callable[..., Path], tmp_path: Path
) -> None:
    nothing = {"train": False, "predict": False, "metrics_only": False}
    folder = write_train_config(tmp_path / "configs", patch_files, tasks=nothing)
    config = fh.load_config(str(folder))
    assert isinstance(config, TrainConfig)
    assert fh.load_config(config) is config
    assert load_train_config([folder]) == config
    with pytest.raises(ConfigError, match="overrides apply to files"):
        load_train_config(config, ["hyperparams.num_epochs=3"])
    for given in (str(folder), folder, [folder], config):
        with pytest.raises(ConfigError, match="train, predict and metrics_only are all false"):
            fh.train(given)
    fh.ingest(folder, cube=tmp_path / "cube.zarr")
    assert fh.open_cube(tmp_path / "cube.zarr").patch_ids == fh.open_cube(make_cube(patch_files)).patch_ids


def test_zones_come_as_paths_or_objects(tmp_path: Path) -> None:
    made = make_zone(tmp_path / "zone", 40, 40, {"AERIAL_RGBI": 1})
    bundle = make_bundle(tmp_path / "bundle", {"AERIAL_RGBI": ImagePreparation()})
    path = write_zonal_config(tmp_path / "zonal.yaml", made, bundle)
    config = fh.load_config(path)
    assert isinstance(config, ZonalConfig)
    zone = fh.open_zone(path)
    assert fh.open_zone(zone) is zone
    assert fh.open_zone(config).geobox == fh.open_zone([path]).geobox == zone.geobox
    assert fh.check(str(path)).facts[:3] == fh.check(config).facts[:3]
    model = load_model(bundle)
    assert fh.load_model(model) is model
    expected = fh.predict_zone(zone, bundle).compute()
    for source in (path, str(path), config):
        assert fh.predict_zone(source, bundle).compute().equals(expected)
    (written,) = fh.write_zone(path, bundle, tmp_path / "out", "map").maps
    with rasterio.open(written.path) as dataset:
        assert (dataset.read(1) == expected["class"].values).all()
    stores = [
        fh.ingest_zone(source, cube=tmp_path / f"{number}.zarr").cube for number, source in enumerate((zone, path))
    ]
    one, two = (fh.open_zone(fh.load_config(path, [f"cube={store}"])).to_xarray() for store in stores)
    assert one["AERIAL_RGBI"].to_dataset().equals(two["AERIAL_RGBI"].to_dataset())


def test_objects_show_themselves_in_a_line(patch_files: PatchFiles, tmp_path: Path) -> None:
    model = load_model(make_bundle(tmp_path / "bundle", {"AERIAL_RGBI": ImagePreparation()}))
    accounting = Accounting(matched=[f"a<b>.{i}" for i in range(900)], missing=["head"])
    metrics = {"tasks": {"AERIAL_LABEL-COSIA": {"strict": {"miou": 0.5}}, "ALL_LABEL-LPIS": {"strict": {"miou": None}}}}
    result = TrainResult(
        tmp_path, tmp_path, history=[{"epoch": i} for i in range(200)], metrics=metrics, seconds={"train": 3.21}
    )
    config = load_train_config(write_train_config(tmp_path / "configs", patch_files))
    for shown in (model, accounting, result, config):
        assert "\n" not in repr(shown)
        assert len(repr(shown)) < 400
        html = shown._repr_html_()
        assert html.startswith("<div><strong>")
        assert len(html) < 3000
    assert repr(accounting) == "<Accounting incomplete: 900 matched, 1 missing>"
    assert "a&lt;b&gt;.0, a&lt;b&gt;.1, a&lt;b&gt;.2, ... (900 in all)" in accounting._repr_html_()
    assert repr(result) == (
        f"<TrainResult {tmp_path}: epochs 200, test mIoU AERIAL_LABEL-COSIA 0.5000, "
        "test mIoU ALL_LABEL-LPIS undefined, seconds train 3.2>"
    )
    assert "-> AERIAL_LABEL-COSIA (19 classes)" in repr(model)
    assert repr(config) == str(config)
    assert repr(config).startswith("<TrainConfig ")
