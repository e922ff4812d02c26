"""`flairhub train`: table, paths, messages and exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flairhub.cli import main

Configure = Callable[..., Any]
SMALL: dict[str, Any] = {
    "modalities": {"inputs": {"AERIAL_RGBI": False, "SENTINEL2_TS": True}},
    "labels": ["ALL_LABEL-LPIS"],
    "hyperparams": {"num_epochs": 1, "batch_size": 8, "learning_rate": 1e-3},
}


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments])
    return int(stopped.value.code or 0), capsys.readouterr().err


def test_a_first_ingest_asks_the_configured_scheduler(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flairhub.jobs.engine.CONNECT_TIMEOUT_S", 0.3)
    configure(tmp_path, **SMALL, hardware={"scheduler": "tcp://127.0.0.1:9"})
    cube = ["--set", f"paths.cube={tmp_path / 'new.zarr'}"]
    for command in ("ingest", "train"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--config", str(tmp_path), *cube])
        message = capsys.readouterr().err
        assert stopped.value.code == 2, message
        assert "scheduler: no dask scheduler answers at tcp://127.0.0.1:9" in message
    # Workers on this machine are asked for by name, so the scheduler is not needed.
    main(["ingest", "--config", str(tmp_path), *cube, "--workers", "1"])
    assert "16 patches" in capsys.readouterr().out


def test_it_trains_and_says_what_came_out(
    configure: Configure, learnable_cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(tmp_path, **SMALL, saving={"verbose_config": True})
    command = ["--config", str(tmp_path), "--cube", str(learnable_cube), "--set", "paths.out_model_name=named"]
    main(["train", *command])
    shown = capsys.readouterr().out
    folder = tmp_path / "out" / "named"
    assert "out_model_name: named" in shown
    assert "ALL_LABEL-LPIS" in shown
    for path in (folder, folder / "best.bundle", folder / "metrics.json", folder / "predictions" / "ALL_LABEL-LPIS"):
        assert str(path) in shown
        assert path.exists()
    assert json.loads((folder / "metrics.json").read_text())["split"] == "test"
    # Again: nothing to do; another configuration without --overwrite: refused. Nothing is lost.
    before = (folder / "metrics.json").stat().st_mtime_ns
    main(["train", *command])
    assert "complete already, nothing to do" in capsys.readouterr().out
    code, message = fails([*command, "--set", "hyperparams.seed=3"], capsys)
    assert code == 2
    assert "OutputExistsError" in message
    assert "--overwrite" in message
    assert (folder / "metrics.json").stat().st_mtime_ns == before
    # A run that cannot start leaves the old results alone, even when it may overwrite.
    code, message = fails([*command, "--overwrite", "--set", f"paths.val_csv={tmp_path / 'none.csv'}"], capsys)
    assert code == 1
    assert "none.csv" in message
    assert (folder / "metrics.json").stat().st_mtime_ns == before
    main(["train", *command, "--overwrite"])
    assert (folder / "metrics.json").stat().st_mtime_ns > before
    # Existing predictions, one of them gone: exit 1 with its name, no score.
    capsys.readouterr()
    lost = sorted((folder / "predictions" / "ALL_LABEL-LPIS").iterdir())[0]
    lost.unlink()
    code, message = fails([*command, "--set", "tasks.metrics_only=true"], capsys)
    assert code == 1
    assert "1 of 4 prediction rasters cannot be scored" in message
    assert lost.name in message


def test_missing_things_are_named(
    configure: Configure, learnable_cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(tmp_path, **SMALL)
    code, message = fails(["--config", str(tmp_path), "--cube", str(tmp_path / "none.zarr")], capsys)
    assert code == 1
    assert "none.zarr: does not exist" in message
    code, message = fails(["--config", str(tmp_path), "--set", "hyperparams.epochs=3"], capsys)
    assert code == 2
    assert "hyperparams.epochs" in message
    weights = tmp_path / "none.safetensors"
    settings = ["--set", "tasks.train=false", "--set", f"paths.ckpt_model_path={weights}"]
    code, message = fails(["--config", str(tmp_path), "--cube", str(learnable_cube), *settings], capsys)
    assert code == 1
    assert f"paths.ckpt_model_path: {weights} does not exist, but tasks.predict is true" in message
    assert not (tmp_path / "out").exists()


def test_patches_that_are_not_in_the_cube(
    configure: Configure, learnable_cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "train.csv"
    table.write_text("patch_id\nD012-2019_AF-S1-27_99-99\n")
    configure(tmp_path, **SMALL, paths={"train_csv": str(table)})
    code, message = fails(["--config", str(tmp_path), "--cube", str(learnable_cube)], capsys)
    assert code == 1
    assert "1 of 1 patches are not in the cube: D012-2019_AF-S1-27_99-99" in message
    table.write_text("patch\nD012-2019_AF-S1-27_99-99\n")
    code, message = fails(["--config", str(tmp_path), "--cube", str(learnable_cube)], capsys)
    assert code == 1
    assert f"{table}: column patch_id is missing. Found patch." in message
    table.write_text("patch_id\n")
    code, message = fails(["--config", str(tmp_path), "--cube", str(learnable_cube)], capsys)
    assert code == 1
    assert f"{table}: no patch in split 'train'" in message
    assert not (tmp_path / "out").exists()


def test_pretrained_weights_that_are_not_there(
    configure: Configure, learnable_cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = tmp_path / "encoder.pth"
    models = {"monotemp_model": {"arch": "tu-test_resnet.r160_in1k-linknet", "pretrained": str(local)}}
    configure(tmp_path, models=models)
    code, message = fails(["--config", str(tmp_path), "--cube", str(learnable_cube)], capsys)
    assert code == 1
    assert "encoder.pth" in message
