"""`flairhub ingest` and `flairhub cube`: messages and exit codes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.helpers.breaking import NAMES
from tests.helpers.commands import failure, run_command
from tests.helpers.makers import PatchFiles, write_train_config


def test_command_line(files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = partial(run_command, capsys)
    config = write_train_config(tmp_path / "config", files)
    cube = tmp_path / "c.zarr"
    code, out, _ = run("ingest", "--config", config, "--cube", cube)
    assert code == 0
    assert "4 patches, 4 modalities, 4 shards" in out
    code, out, _ = run("ingest", "--config", config, "--cube", cube)
    assert (code, "complete already, nothing to do" in out) == (0, True)
    code, _, err = run("ingest", "--config", config, "--cube", cube, "--codec", "fast")
    assert (code, "OutputExistsError" in err, "--overwrite" in err) == (2, True, True)
    code, out, _ = run("cube", "info", cube)
    assert code == 0
    for text in ("4 patches of 102.4 x 102.4 m, EPSG:2154", "1 domains, 1 ROIs; train 2, valid 1, test 1", *NAMES):
        assert text in out
    code, out, _ = run("cube", "verify", cube)
    assert code == 0
    # All but the journal, and the root's metadata, which have digests of their own.
    n_files = sum(path.is_file() for path in cube.rglob("*")) - 2
    assert f"16 chunks and {n_files} files are whole" in out
    (cube / "DEM_ELEV/data/c/0/0/0/0").unlink()
    code, out, err = run("cube", "verify", cube)
    assert code == 1
    assert "DEM_ELEV/data: chunk 3" in out
    assert "4 problems in 16 chunks" in err
    assert run("cube", "info", tmp_path / "no.zarr")[0] == 1
    assert run("ingest", "--config", config)[0] == 2
    assert run("ingest", "--cube", cube)[0] == 2
    code, _, err = run("ingest", "--root", files.folder, "--cube", cube, "--modality", "DEM_ELV")
    assert (code, "Did you mean DEM_ELEV" in err) == (2, True)
    path = files.files["DEM_ELEV"][files.patch_ids[2]]
    path.write_bytes(path.read_bytes()[:-900])
    code, _, err = run("ingest", "--root", files.folder, "--cube", cube, "--overwrite")
    assert (code, "truncated or damaged" in err) == (1, True)
    code, out, err = run("ingest", "--root", files.folder, "--cube", cube, "--on-error", "skip")
    assert code == 1
    assert f"skipped DEM_ELEV {files.patch_ids[2]}" in out
    assert "1 of 16 files were bad" in err
    files.csvs["train"].write_text(files.csvs["train"].read_text().replace("DEM_ELEV", "DEM", 1))
    code, _, err = run("ingest", "--config", config, "--cube", tmp_path / "d.zarr")
    assert (code, "column DEM_ELEV is missing" in err) == (1, True)


def test_a_configuration_with_mistakes_is_refused_before_any_file_is_read(
    files: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_train_config(tmp_path / "config", files)
    ingest = ["ingest", "--config", config, "--cube", tmp_path / "c.zarr"]
    files.csvs["train"].unlink()
    for mistake, message in (
        ("hyperparams.bach_size=3", "hyperparams.bach_size: unknown key. Did you mean batch_size? (--set)"),
        ("modalities.inputs.DEM_ELV=true", "unknown modality 'DEM_ELV'. Did you mean DEM_ELEV?"),
        ("hyperparams.batch_size=many", "hyperparams.batch_size: "),
    ):
        code, shown = failure(capsys, *ingest, "--set", mistake)
        assert (code, "ConfigError: " in shown, message in shown) == (2, True, True)
    path = config / "config_modalities.yaml"
    path.write_text(path.read_text().replace("filter_sentinel2:", "filter_sentinel_2:"))
    code, shown = failure(capsys, *ingest)
    assert code == 2
    assert "pre_processings.filter_sentinel_2: unknown key. Did you mean filter_sentinel2? (config_modalities" in shown
    code, shown = failure(capsys, "ingest", "--config", tmp_path / "nowhere", "--cube", tmp_path / "c.zarr")
    assert (code, "nowhere" in shown) == (2, True)
    assert not (tmp_path / "c.zarr").exists()
