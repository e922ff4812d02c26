"""`flairhub evaluate`: the scores of the run that made the predictions, intervals, exit codes."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flairhub.class_raster import read_class_raster
from flairhub.cli import main
from flairhub.training import train
from tests.helpers.makers import PatchFiles

CROP = "ALL_LABEL-LPIS"
Configure = Callable[..., Any]
SMALL: dict[str, Any] = {
    "modalities": {"inputs": {"AERIAL_RGBI": False, "SENTINEL2_TS": True}},
    "labels": [CROP],
    "hyperparams": {"num_epochs": 1, "batch_size": 8, "learning_rate": 1e-3},
}


def test_it_scores_what_lies_there(
    configure: Configure,
    learnable: PatchFiles,
    learnable_cube: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = train(configure(tmp_path, **SMALL), cube=learnable_cube)
    predictions = result.predictions[CROP]
    command = ["evaluate", "--config", str(tmp_path), "--cube", str(learnable_cube), "--predictions"]
    # One folder per label set, and all rasters in one folder.
    for source, output in ((predictions.parent, None), (predictions, tmp_path / "scores")):
        capsys.readouterr()
        main([*command, str(source), *(["--output", str(output)] if output else [])])
        folder = output or source / "scores"
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["tasks"] == json.loads((result.folder / "metrics.json").read_text())["tasks"]
        assert (folder / "config.yaml").exists()
        assert CROP in capsys.readouterr().out

    entry = metrics["tasks"][CROP]
    low, high = entry["intervals"]["overall_accuracy"]
    assert low <= entry["strict"]["overall_accuracy"] <= high
    # Scores by patch are those of the files.
    with (tmp_path / "scores" / "patches" / f"{CROP}.csv").open() as stream:
        rows = {row["patch_id"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {patch_id for patch_id in learnable.patch_ids if learnable.splits[patch_id] == "test"}
    for patch_id, row in rows.items():
        classes = read_class_raster(predictions / f"PRED_{learnable.files[CROP][patch_id].name}")
        truth = learnable.arrays[CROP][patch_id][0]
        assert float(row["accuracy"]) == pytest.approx(np.mean(classes == truth), abs=1e-6)
        assert row["domain"] == patch_id.split("_")[0]

    def fails(arguments: list[str]) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([*command, *arguments])
        return int(stopped.value.code or 0), capsys.readouterr().err

    code, message = fails([str(predictions), "--output", str(tmp_path / "scores")])
    assert code == 2
    assert "exists already" in message
    code, message = fails([str(tmp_path / "nowhere")])
    assert code == 2
    assert "is no folder" in message
    # Missing and unreadable predictions: all listed, exit 1, no score.
    damaged = tmp_path / "damaged"
    shutil.copytree(predictions, damaged)
    gone, broken, *_ = sorted(damaged.glob("*.tif"))
    gone.unlink()
    broken.write_bytes(b"<html>not found</html>")
    code, message = fails([str(damaged)])
    assert code == 1
    assert "2 of 4 prediction rasters cannot be scored" in message
    assert gone.name in message
    assert broken.name in message
    assert not (damaged / "scores").exists()
