"""Whole runs on a small cube: learning, resuming, predicting, scoring, files, errors."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from flairhub.confusion import strict_scores
from flairhub.cube import open_cube
from flairhub.data import BatchLoader, prepare_batch
from flairhub.errors import (
    ConfigError,
    CubeError,
    DataError,
    OutputExistsError,
    TrainingError,
    WeightsError,
)
from flairhub.models import build_network, load_model
from flairhub.training import TrainResult, train
from flairhub.training.checkpoints import read_checkpoint
from flairhub.training.logits import network_output
from tests.helpers.makers import PatchFiles

LAND, CROP = "AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS"
Configure = Callable[..., object]


@dataclass(frozen=True)
class Run:
    result: TrainResult
    stages: list[str]
    folder: Path


MULTIMODAL = {
    "modalities": {
        "pre_processings": {"use_augmentation": True},
        "aux_loss": {"AERIAL_RGBI": True, "SENTINEL2_TS": True},
        "aux_loss_weight": 0.5,
        "modality_dropout": {"SENTINEL2_TS": 0.2},
    },
    "saving": {"ckpt_save_also_last": True, "progress_rate": 1, "enable_progress_bar": True},
}


@pytest.fixture(scope="module")
def run(configure: Configure, learnable_cube: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run with two tasks, auxiliary heads, augmentation and modality dropout."""
    folder = tmp_path_factory.mktemp("run")
    stages: list[str] = []
    result = train(
        configure(folder, **MULTIMODAL),
        cube=learnable_cube,
        progress=lambda stage, done, total: stages.append(f"{stage} {done}/{total}"),
    )
    return Run(result, stages, folder)


def test_training_lowers_the_loss(run: Run) -> None:
    history = run.result.history
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3]
    assert [entry["step"] for entry in history] == [2, 4, 6, 8]
    assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"]
    assert json.loads((run.result.folder / "history.json").read_text()) == history
    assert run.result.skipped_batches == 0


def test_progress_is_reported(run: Run) -> None:
    assert [stage for stage in run.stages if stage.startswith("train")] == [f"train {step}/8" for step in range(1, 9)]
    assert run.stages[-1] == "predict 4/4"


class Stop(Exception):
    """Stands for a kill: nothing in the library expects it."""


def test_a_resumed_run_is_the_uninterrupted_run(
    run: Run, configure: Configure, learnable_cube: Path, tmp_path: Path
) -> None:
    def stop_in_epoch_3(stage: str, done: int, total: int) -> None:
        if stage == "train" and done == 5:
            raise Stop

    config = configure(tmp_path, **MULTIMODAL)
    with pytest.raises(Stop):
        train(config, cube=learnable_cube, progress=stop_in_epoch_3)
    folder = tmp_path / "out" / "test_model"
    last = folder / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["epoch"] == 1
    assert not (folder / "best.bundle").exists()
    resumed = configure(
        tmp_path,
        **MULTIMODAL,
        paths={"ckpt_model_path": str(last)},
        tasks={"train_tasks": {"init_weights_only_from_ckpt": False, "resume_training_from_ckpt": True}},
    )
    result = train(resumed, cube=learnable_cube)
    assert result.history == run.result.history
    assert result.metrics["tasks"] == run.result.metrics["tasks"]
    expected = load_model(run.result.bundle).network.state_dict()
    actual = load_model(result.bundle).network.state_dict()
    assert all(torch.equal(actual[name], values) for name, values in expected.items())


def test_the_bundle_is_the_best_epoch(run: Run) -> None:
    best = max(run.result.history, key=lambda entry: entry["val_miou"])
    model = load_model(run.result.bundle)
    assert model.manifest["training"]["epoch"] == best["epoch"]
    assert model.manifest["training"]["val_miou"] == best["val_miou"]
    assert model.manifest["inputs"]["AERIAL_RGBI"]["bands"] == ["R", "G", "B", "NIR"]
    assert model.ref_date == "05-15"
    weights = read_checkpoint(run.result.folder / "checkpoints" / "best.ckpt")["state_dict"]
    state = model.network.state_dict()
    assert {f"model.{name}" for name in state} == set(weights)
    assert all(torch.equal(weights[f"model.{name}"], values) for name, values in state.items())


def test_validation_scores_are_those_of_single_patches(run: Run, learnable_cube: Path, learnable: PatchFiles) -> None:
    """One patch at a time, without padding: the same scores as in the run's batches."""
    cube, model = open_cube(learnable_cube), load_model(run.result.bundle)
    indices = cube.indices([patch_id for patch_id in learnable.patch_ids if learnable.splits[patch_id] == "valid"])
    totals: dict[tuple[str, str], float] = {}
    matrices = {LAND: np.zeros((19, 19), dtype=np.int64), CROP: np.zeros((23, 23), dtype=np.int64)}
    for batch in BatchLoader(cube, indices, model.preparations, model.tasks, batch_size=1):
        with torch.inference_mode():
            logits, aux = network_output(model.network, prepare_batch(batch, model.preparations, "cpu"), aux=True)
        for task, target in batch.targets.items():
            for head, values in (("main", logits[task]), *((name, aux[name, t]) for name, t in aux if t == task)):
                shares = torch.log_softmax(values[0].double(), dim=0).gather(0, target.long())
                totals[task, head] = totals.get((task, head), 0.0) - float(shares.mean()) / len(indices)
            np.add.at(matrices[task], (target.numpy().ravel(), logits[task].argmax(1).numpy().ravel()), 1)
    best = run.result.history[model.manifest["training"]["epoch"]]
    expected = sum(
        totals[task, "main"] + 0.5 * (totals[task, "AERIAL_RGBI"] + totals[task, "SENTINEL2_TS"]) / 2
        for task in (LAND, CROP)
    )
    assert best["val_loss"] == pytest.approx(expected, rel=1e-3)
    mious = [strict_scores(matrix).mean("iou") for matrix in matrices.values()]
    assert best["val_miou"] == pytest.approx(np.mean(mious), abs=0.02)  # a few pixels between two classes


def test_auxiliary_heads_learn(run: Run, configure: Configure, tmp_path: Path) -> None:
    spec = load_model(run.result.bundle).spec
    torch.manual_seed(2025)
    start = build_network(spec).state_dict()
    trained = read_checkpoint(run.result.folder / "checkpoints" / "last.ckpt")["state_dict"]
    heads = [name for name in start if name.startswith("aux_decoders") and name.endswith("weight")]
    assert {name.split(".")[1] for name in heads} == {
        f"{modality}__{task}" for modality in ("AERIAL_RGBI", "SENTINEL2_TS") for task in (LAND, CROP)
    }
    # Far more than weight decay does in eight steps.
    for name in heads:
        assert (trained[f"model.{name}"] - start[name]).abs().max() > 1e-3, name


def test_predictions_lie_on_their_labels(run: Run, learnable: PatchFiles) -> None:
    test_ids = [patch_id for patch_id in learnable.patch_ids if learnable.splits[patch_id] == "test"]
    for task in (LAND, CROP):
        folder = run.result.predictions[task]
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            f"PRED_{learnable.files[task][patch_id].name}" for patch_id in test_ids
        )
        for patch_id in test_ids:
            with rasterio.open(learnable.files[task][patch_id]) as label:
                expected = (label.crs, label.transform, label.shape)
            with rasterio.open(folder / f"PRED_{learnable.files[task][patch_id].name}") as prediction:
                assert prediction.crs == expected[0]
                assert prediction.transform.almost_equals(expected[1])
                assert prediction.shape == expected[2]
                assert prediction.dtypes == ("uint8",)
                assert prediction.nodata == 255
                colours = prediction.colormap(1)
        if task == LAND:
            assert colours[0] == (0xDB, 0x0E, 0x9A, 255)


def test_metrics_are_those_of_the_files(run: Run, learnable: PatchFiles) -> None:
    metrics = json.loads((run.result.folder / "metrics.json").read_text())
    test_ids = [patch_id for patch_id in learnable.patch_ids if learnable.splits[patch_id] == "test"]
    for task, n_classes in ((LAND, 19), (CROP, 23)):
        matrices = {}
        for patch_id in test_ids:
            with rasterio.open(run.result.predictions[task] / f"PRED_{learnable.files[task][patch_id].name}") as source:
                prediction = source.read(1)
            truth = learnable.arrays[task][patch_id][0]
            matrix = matrices.setdefault(patch_id.split("_")[0], np.zeros((n_classes, n_classes), dtype=np.int64))
            np.add.at(matrix, (truth.ravel(), prediction.ravel()), 1)
        whole = sum(matrices.values())
        np.testing.assert_array_equal(np.load(run.result.folder / "confusion" / f"{task}.npy"), whole)
        with (run.result.folder / "confusion" / f"{task}.csv").open() as stream:
            rows = list(csv.reader(stream))
        np.testing.assert_array_equal(np.array([row[1:] for row in rows[1:]], dtype=int), whole)
        entry = metrics["tasks"][task]
        assert entry["n_patches"] == len(test_ids)
        assert entry["strict"]["miou"] == pytest.approx(strict_scores(whole).mean("iou"))
        assert entry["published"]["Avg_metrics"][1] == pytest.approx(100 * np.trace(whole) / whole.sum())
        assert set(entry["domains"]) == {"D012-2019", "D033-2018"}
        for domain, matrix in matrices.items():
            assert entry["domains"][domain]["strict"]["miou"] == pytest.approx(strict_scores(matrix).mean("iou"))
    assert run.result.metrics["tasks"][LAND]["strict"]["miou"] == metrics["tasks"][LAND]["strict"]["miou"]


def test_the_folder_explains_itself(run: Run, configure: Configure) -> None:
    from flairhub.config import load_train_config

    folder = run.result.folder
    assert load_train_config(folder / "config.yaml") == configure(
        run.folder / "again", **MULTIMODAL, paths={"out_folder": str(run.folder / "out")}
    )
    assert sorted(path.name for path in (folder / "inputs").iterdir()) == ["test.csv", "train.csv", "valid.csv"]
    assert list(folder.rglob("*.partial")) == []
    assert any((folder / "logs").iterdir())


def test_the_log_holds_scores_and_waiting_time(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run.result.folder / "logs"))
    log.Reload()
    tags = set(log.Tags()["scalars"])
    assert {"train_loss", "val_loss", "val_miou", "lr", "loader_wait", "samples_per_s"} <= tags
    assert f"val_iou/{LAND}/building" in tags
    assert f"val_loss/{LAND}/building" in tags
    assert f"train/{LAND}/aux_AERIAL_RGBI" in tags
    assert len(log.Scalars("lr")) == 8
    assert log.Scalars("val_miou")[-1].value == pytest.approx(run.result.history[-1]["val_miou"])


def test_an_existing_run_is_kept(run: Run, configure: Configure, learnable_cube: Path) -> None:
    before = (run.result.folder / "history.json").stat().st_mtime_ns
    assert train(configure(run.folder, **MULTIMODAL), cube=learnable_cube).already_complete
    with pytest.raises(OutputExistsError, match="holds results of a finished run with another configuration") as caught:
        train(configure(run.folder, **{**MULTIMODAL, "hardware": {"precision": "bf16-mixed"}}), cube=learnable_cube)
    assert caught.value.exit_code == 2
    assert "--overwrite" in str(caught.value)
    assert "resume_training_from_ckpt" in str(caught.value)
    assert (run.result.folder / "history.json").stat().st_mtime_ns == before


def predict_config(run: Run, configure: Configure, folder: Path, **sections):
    tasks = {"train": False, "predict": True, **sections.pop("tasks", {})}
    paths = {"ckpt_model_path": str(run.result.bundle), **sections.pop("paths", {})}
    return configure(folder, **{**MULTIMODAL, **sections}, tasks=tasks, paths=paths)


def test_predicting_again_gives_the_same_scores(
    run: Run, configure: Configure, learnable_cube: Path, tmp_path: Path
) -> None:
    config = predict_config(
        run, configure, tmp_path, tasks={"georeferencing_output": False}, hyperparams={"batch_size": 3}
    )
    result = train(config, cube=learnable_cube)
    assert result.metrics["tasks"] == run.result.metrics["tasks"]
    assert result.bundle is None
    path = next(result.predictions[LAND].iterdir())
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(path) as source:
        assert source.crs is None
    assert train(config, cube=learnable_cube).already_complete
    other = predict_config(run, configure, tmp_path, hyperparams={"batch_size": 3})
    with pytest.raises(OutputExistsError, match="holds predictions already"):
        train(other, cube=learnable_cube)
    # Weights of our own checkpoints load like published ones.
    checkpoint = run.result.folder / "checkpoints" / "best.ckpt"
    again = predict_config(
        run, configure, tmp_path / "ckpt", tasks={"write_files": False}, paths={"ckpt_model_path": str(checkpoint)}
    )
    result = train(again, cube=learnable_cube)
    assert result.metrics["tasks"] == run.result.metrics["tasks"]
    assert result.predictions == {}
    assert not (result.folder / "predictions").exists()


def test_a_bundle_of_another_preparation_is_refused(
    run: Run, configure: Configure, learnable_cube: Path, tmp_path: Path
) -> None:
    normalization = {"norm_type": "scaling"}
    config = predict_config(run, configure, tmp_path, modalities={"normalization": normalization})
    with pytest.raises(WeightsError, match="another preparation than the configured one: AERIAL_RGBI"):
        train(config, cube=learnable_cube)


def test_metrics_only_scores_existing_files(
    run: Run, configure: Configure, learnable_cube: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "out" / "test_model"
    shutil.copytree(run.result.folder / "predictions", folder / "predictions")
    config = configure(tmp_path, **MULTIMODAL, tasks={"metrics_only": True})
    result = train(config, cube=learnable_cube)
    assert result.metrics["tasks"] == run.result.metrics["tasks"]
    rasters = sorted((folder / "predictions" / LAND).iterdir())
    rasters[0].unlink()
    rasters[1].write_bytes(rasters[1].read_bytes()[:100])
    (folder / "metrics.json").unlink()
    with pytest.raises(DataError) as caught:
        train(config, cube=learnable_cube)
    message = str(caught.value)
    assert message.startswith("2 of 8 prediction rasters cannot be scored")
    assert f"{rasters[0]}: is missing" in message
    assert f"{rasters[1]}: cannot be read" in message
    assert caught.value.exit_code == 1
    assert not (folder / "metrics.json").exists()


def test_weights_that_are_not_there(configure: Configure, learnable_cube: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.bundle"
    for tasks in (
        {"train": False, "predict": True},
        {"train_tasks": {"init_weights_only_from_ckpt": True}},
        {"train_tasks": {"resume_training_from_ckpt": True}},
    ):
        config = configure(tmp_path, tasks=tasks, paths={"ckpt_model_path": str(nowhere)})
        with pytest.raises(WeightsError, match=r"paths.ckpt_model_path: .*nowhere.bundle does not exist") as caught:
            train(config, cube=learnable_cube)
        assert caught.value.exit_code == 1


def test_only_full_checkpoints_of_the_same_network_resume(
    run: Run, configure: Configure, learnable_cube: Path, tmp_path: Path
) -> None:
    last = run.result.folder / "checkpoints" / "last.ckpt"
    resume = {"train_tasks": {"resume_training_from_ckpt": True}}
    config = configure(tmp_path, **MULTIMODAL, tasks=resume, paths={"ckpt_model_path": str(last)})
    with pytest.raises(TrainingError, match=r"has finished epoch 4 and hyperparams.num_epochs is 4"):
        train(config, cube=learnable_cube)
    other = configure(tmp_path / "other", tasks=resume, paths={"ckpt_model_path": str(last)})
    with pytest.raises(TrainingError, match=r"belongs to another network .*aux"):
        train(other, cube=learnable_cube)
    content = read_checkpoint(last)
    del content["optimizer_states"]
    torch.save(content, tmp_path / "weights.ckpt")
    config = configure(tmp_path, **MULTIMODAL, tasks=resume, paths={"ckpt_model_path": str(tmp_path / "weights.ckpt")})
    with pytest.raises(TrainingError, match="no optimizer state"):
        train(config, cube=learnable_cube)
    (tmp_path / "damaged.ckpt").write_bytes(last.read_bytes()[:5000])
    config = configure(tmp_path, **MULTIMODAL, tasks=resume, paths={"ckpt_model_path": str(tmp_path / "damaged.ckpt")})
    with pytest.raises(WeightsError, match=r"damaged.ckpt: cannot be read"):
        train(config, cube=learnable_cube)


def test_starting_from_weights(run: Run, configure: Configure, learnable_cube: Path, tmp_path: Path) -> None:
    config = configure(
        tmp_path,
        **{**MULTIMODAL, "saving": {"ckpt_weights_only": True, "ckpt_save_also_last": True}},
        tasks={"predict": False, "train_tasks": {"init_weights_only_from_ckpt": True}},
        paths={"ckpt_model_path": str(run.result.bundle)},
        hyperparams={"num_epochs": 1, "batch_size": 4, "learning_rate": 1e-9, "scheduler": "one_cycle_lr"},
    )
    result = train(config, cube=learnable_cube)
    # With a rate of almost nothing the weights stay those it started from.
    start = load_model(run.result.bundle).network
    actual = load_model(result.bundle).network
    for (name, a), (_, b) in zip(start.named_parameters(), actual.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name
    for name in ("best.ckpt", "last.ckpt"):
        content = read_checkpoint(result.folder / "checkpoints" / name)
        assert "optimizer_states" not in content
    assert result.metrics == {}


def test_without_a_cube_it_ingests_first(
    configure: Configure, learnable_cube: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(
        tmp_path,
        modalities={"inputs": {"AERIAL_RGBI": False, "SENTINEL2_TS": True}},
        hyperparams={"num_epochs": 1, "batch_size": 8},
        labels=[CROP],
        tasks={"predict": False},
        saving={"ckpt_save_also_last": False, "ckpt_monitor": "val_loss", "ckpt_monitor_mode": "min"},
    )
    result = train(config)
    assert "ingesting first" in caplog.text
    assert open_cube(result.cube).n_patches == 16
    assert sorted(path.name for path in (result.folder / "checkpoints").iterdir()) == ["best.ckpt"]
    caplog.clear()
    train(config, overwrite=True)
    assert "ingesting" not in caplog.text
    with pytest.raises(CubeError, match=r"nowhere.zarr: does not exist"):
        train(config, cube=tmp_path / "nowhere.zarr", overwrite=True)


def test_an_unknown_monitor_is_refused(configure: Configure, tmp_path: Path) -> None:
    sections = {"modalities": {"inputs": {"AERIAL_RGBI": False, "SENTINEL2_TS": True}}, "labels": [CROP]}
    text = rf"saving\.ckpt_monitor: got 'val_beauty', expected one of val_miou, .*, val_miou/{CROP}\."
    with pytest.raises(ConfigError, match=text) as caught:
        configure(tmp_path, **sections, saving={"ckpt_monitor": "val_beauty"})
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match=rf"got 'min', but the largest val_miou/{CROP} is the best"):
        configure(tmp_path, **sections, saving={"ckpt_monitor": f"val_miou/{CROP}", "ckpt_monitor_mode": "min"})
