"""The whole chain on a tiny data set, and the command."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio

from flairhub.cli import main
from flairhub.confusion import confusion_matrix, strict_scores
from flairhub.demo import DemoData, DemoPlan, make_demo_data
from flairhub.demo.walkthrough import DemoResult, run_demo, score
from flairhub.modalities import MODALITIES

TINY = DemoPlan(
    roi_splits=(("train", "valid", "test"),),
    roi_grid=(1, 3),
    zone_grid=(1, 2),
    arch="tu-lcnet_050-linknet",
    epochs=1,
    batch_size=2,
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """One epoch on two patches: everything runs, nothing is learnt."""
    return run_demo(tmp_path_factory.mktemp("run") / "demo", seed=1, plan=TINY)


def test_the_cube_holds_every_modality_of_every_patch(result: DemoResult) -> None:
    from flairhub.cube import open_cube

    cube = open_cube(result.cube)
    assert sorted(cube.patch_ids) == sorted(result.data.patch_ids)
    assert set(cube.modalities) == set(MODALITIES)
    assert result.n_patches == 6
    assert all(cube.present(name).all() for name in MODALITIES)


def test_maps_lie_on_the_aerial_grid_and_cover_the_zone(result: DemoResult) -> None:
    with rasterio.open(result.data.zone / "AERIAL_RGBI.tif") as source:
        grid = (source.transform, source.shape, source.crs)
    assert set(result.maps) == {"AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS"}
    for path in result.maps.values():
        with rasterio.open(path) as source:
            assert (source.transform, source.shape, source.crs) == grid
            assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert source.nodata == 255
            assert (source.read(1) != 255).all()


def test_scores_are_those_of_the_files(result: DemoResult) -> None:
    for task, path in result.maps.items():
        with rasterio.open(path) as source, rasterio.open(result.data.zone_labels[task]) as labels:
            truth, prediction = labels.read(1), source.read(1)
        assert result.zone[task].accuracy == pytest.approx(float((truth == prediction).mean()))
        entry = json.loads(result.metrics.read_text())["tasks"][task]["strict"]
        assert result.test[task].miou == pytest.approx(entry["miou"])
        assert result.test[task].accuracy == pytest.approx(entry["overall_accuracy"])


def test_everything_that_is_named_exists(result: DemoResult) -> None:
    assert (result.bundle / "model.json").is_file()
    assert result.bundle == result.data.bundle
    assert len(result.pictures) == 7
    assert all(path.suffix == ".png" and path.stat().st_size > 5000 for path in result.pictures.values())
    assert set(result.seconds) == {"make data", "ingest", "train, predict, score", "map the zone", "pictures"}
    assert result.sizes["files"] + result.sizes["cube"] < result.sizes["all"]


def test_chance_is_what_guessing_gives() -> None:
    """Brute force: guess at random with the true shares."""
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 400_000, p=(0.6, 0.3, 0.1)).astype(np.uint8)
    guess = rng.permutation(truth)
    guessed = strict_scores(confusion_matrix(truth, guess, 4))
    expected = score(confusion_matrix(truth, truth, 4), ())
    assert expected.chance_miou == pytest.approx(guessed.mean("iou"), abs=2e-3)
    assert expected.chance_accuracy == pytest.approx(0.6, abs=5e-3)
    assert (expected.miou, expected.accuracy, expected.n_classes) == (1.0, 1.0, 3)


def test_command_makes_data_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flairhub.demo.make_demo_data", partial(make_demo_data, plan=TINY))
    folder = tmp_path / "demo"
    main(["demo", str(folder), "--data-only"])
    assert "6 patches and a zone" in capsys.readouterr().out
    assert (folder / "configs" / "config_task.yaml").is_file()
    assert not (folder / "hub.zarr").exists()
    main(["demo", str(folder), "--data-only"])
    assert "6 patches and a zone" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["demo", str(folder), "--data-only", "--seed", "2"])
    assert stopped.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    main(["demo", str(folder), "--data-only", "--overwrite", "--seed", "2"])
    assert "seed 2" in capsys.readouterr().out


def test_the_same_demo_again_changes_nothing(result: DemoResult) -> None:
    """Every step knows that it is finished; only the pictures are drawn anew."""
    kept = [result.cube, result.bundle, result.metrics, *result.maps.values(), *result.data.data.rglob("*.tif")]
    before = [path.stat().st_mtime_ns for path in kept]
    again = run_demo(result.data.folder, seed=1, plan=TINY)
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert (again.test, again.zone, again.maps) == (result.test, result.zone, result.maps)


def test_command_prints_scores_and_paths(
    result: DemoResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flairhub.demo.run_demo", lambda *_, **__: result)
    main(["demo", "anywhere"])
    out = capsys.readouterr().out
    for path in (*result.pictures.values(), *result.maps.values(), result.bundle, result.metrics, result.cube):
        assert str(path) in out
    assert f"{result.test['ALL_LABEL-LPIS'].miou:.1%}" in out


def test_running_into_an_existing_folder_changes_nothing(demo_data: DemoData) -> None:
    from flairhub.errors import OutputExistsError

    before = sorted(demo_data.folder.rglob("*"))
    with pytest.raises(OutputExistsError, match="holds a demo of other data"):
        run_demo(demo_data.folder)
    assert sorted(demo_data.folder.rglob("*")) == before
