"""`flairhub model info` and `convert`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import flairhub as fh
from flairhub.cli.model import command
from flairhub.errors import OutputExistsError, WeightsError
from tests.helpers.model_makers import GOLDEN, LC, LPIS, golden_batch, golden_cases, golden_state, relative_error
from tests.models.test_model_spec import train_values

CASE = "aerial_resnet18_unet"


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Published weights and their configuration folder."""
    folder = tmp_path_factory.mktemp("published")
    weights = folder / "weights.ckpt"
    tensors = {f"model.{name}": value for name, value in golden_state(golden_cases()[CASE]).items()}
    torch.save({"state_dict": tensors, "epoch": 1}, weights)
    values = train_values(("AERIAL_RGBI",), inputs_channels={"AERIAL_RGBI": [1, 2, 3]})
    values |= {"labels": [LC], "labels_configs": {LC: {}}}
    config = folder / "configs"
    config.mkdir()
    (config / "config.yaml").write_text(yaml.safe_dump(values))
    return weights, config


def test_convert_makes_a_bundle_with_the_published_logits(files: tuple[Path, Path], tmp_path: Path) -> None:
    weights, config = files
    result = invoke("convert", weights, "--config", config, "-o", tmp_path / "lc-a.model")
    assert result.exit_code == 0
    assert "matched" in result.output
    assert "unused" in result.output
    model = fh.load_model(tmp_path / "lc-a.model")
    assert model.manifest["training"]["converted_from"] == "weights.ckpt"
    assert [task.label for task in model.tasks] == [LC]
    with torch.no_grad():
        logits = model.network(golden_batch(golden_cases()[CASE])[0], size=(128, 128)).logits[LC]
    import numpy as np

    with np.load(GOLDEN / f"{CASE}.npz") as golden:
        assert relative_error(logits[:, :, ::4, ::4], torch.from_numpy(golden[f"logits/{LC}"])) < 1e-4
    with pytest.raises(OutputExistsError, match="--overwrite"):
        invoke("convert", weights, "--config", config, "-o", tmp_path / "lc-a.model")
    assert invoke("convert", weights, "--config", config, "-o", tmp_path / "lc-a.model", "--overwrite").exit_code == 0


def test_convert_refuses_what_does_not_fit(files: tuple[Path, Path], tmp_path: Path) -> None:
    weights, config = files
    values = yaml.safe_load((config / "config.yaml").read_text())
    values |= {"labels": [LPIS], "labels_configs": {LPIS: {}}}
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(values))
    with pytest.raises(WeightsError, match="do not fit"):
        invoke("convert", weights, "--config", other, "-o", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    result = invoke("convert", weights, "--config", other, "-o", tmp_path / "bundle", "--reinit-heads")
    assert "reinitialised" in result.output
    reinitialised = fh.load_model(tmp_path / "bundle").manifest["training"]["reinitialised"]
    assert reinitialised
    # A bundle is a source, too; and whoever starts from it with other classes is given the whole command.
    few = {LC: {"value_name": {0: "other", 1: "tree", 2: "house"}}}
    other.write_text(yaml.safe_dump(values | {"labels": [LC], "labels_configs": few}))
    invoke("convert", weights, "--config", config, "-o", tmp_path / "lc.bundle")
    with pytest.raises(WeightsError, match=r"`flairhub model convert .* --reinit-heads`"):
        invoke("convert", tmp_path / "lc.bundle", "--config", other, "-o", tmp_path / "few.bundle")
    invoke("convert", tmp_path / "lc.bundle", "--config", other, "-o", tmp_path / "few.bundle", "--reinit-heads")
    assert fh.load_model(tmp_path / "few.bundle").spec.tasks == {LC: 3}


def test_info_of_each_kind_of_source(files: tuple[Path, Path], tmp_path: Path) -> None:
    weights, config = files
    invoke("convert", weights, "--config", config, "-o", tmp_path / "bundle")
    save_file(golden_state(golden_cases()["s2_utae"]), tmp_path / "s2.safetensors")
    for source in (config, tmp_path / "bundle"):
        output = invoke("info", source).output
        assert "AERIAL_RGBI" in output
        assert "resnet18" in output
        assert "unet" in output
        assert "11,176,512" in output  # resnet18 without its classifier
        assert "14.33 M" in output
    output = invoke("info", tmp_path / "s2.safetensors").output
    assert "encoders.SENTINEL2_TS" in output
    assert "0.92 M" in output


def test_info_prints_the_published_table() -> None:
    output = invoke("info", "--table").output
    for text in ("LC-ALL", "365.76", "365.8", "LPIS-H", "2.77", "2.8"):
        assert text in output
    assert invoke("info").exit_code == 2


@pytest.mark.parametrize("arguments", [(), ("info",), ("convert",)])
def test_help_shows_an_example(arguments: tuple[str, ...]) -> None:
    assert "flairhub model" in invoke(*arguments, "--help").output
