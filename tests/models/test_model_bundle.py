"""Bundles: round trip, atomic writing, damage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flairhub.errors import OutputExistsError, WeightsError
from flairhub.modalities import modality
from flairhub.models import Network, load_model, save_bundle
from flairhub.models.bundle import FORMAT, Preparation
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from flairhub.timeseries import CloudFilter, SeriesPreparation
from tests.helpers.model_makers import CLASSES, LC, make_batch, make_network

NAMES = ("AERIAL_RGBI", "SENTINEL2_TS")
PREPARATIONS: dict[str, Preparation] = {
    "AERIAL_RGBI": ImagePreparation((4, 1, 2), None, "custom", (106.59, 105.66, 111.35), (39.8, 52.2, 45.6)),
    "SENTINEL2_TS": SeriesPreparation(None, CloudFilter(1.0, 2.0, 0.05), "monthly", "masked", "05-15"),
}
TASKS = tuple(default_task(label) for label in CLASSES)


def save(path: Path, network: Network, **changes: object) -> Path:
    values = {
        "preparations": PREPARATIONS,
        "tasks": TASKS,
        "ref_date": "05-15",
        "bands": {name: modality(name).bands for name in NAMES},
        "training": {"epoch": 3},
    }
    return save_bundle(path, network, **{**values, **changes})  # type: ignore[arg-type]


def test_a_bundle_gives_back_everything(tmp_path: Path) -> None:
    network = make_network(*NAMES, aux=("SENTINEL2_TS",), modality_dropout={"AERIAL_RGBI": 0.25})
    assert list(network.spec.inputs) == list(NAMES)
    path = save(tmp_path / "deep" / "model", network)
    model = load_model(path)
    assert model.spec == network.spec
    assert model.preparations == PREPARATIONS
    assert model.tasks == TASKS
    assert model.ref_date == "05-15"
    assert model.manifest["inputs"]["SENTINEL2_TS"]["bands"][-1] == "B12"
    assert model.manifest["training"] == {"epoch": 3}
    assert not model.network.training
    batch = make_batch(network.spec)
    with torch.no_grad():
        expected, result = network(*batch, aux=True), model.network(*batch, aux=True)
    for key, values in (expected.logits | expected.aux).items():
        assert torch.equal((result.logits | result.aux)[key], values)


def test_a_bundle_replaces_a_bundle_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save(path, make_network(*NAMES))
    second = make_network(*NAMES)
    with pytest.raises(OutputExistsError, match="exists already"):
        save(path, second, overwrite=False)
    save(path, second)
    result = load_model(path).network.state_dict()
    assert all(torch.equal(result[name], value) for name, value in second.state_dict().items())
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert sorted(entry.name for entry in path.iterdir()) == ["model.json", "weights.safetensors"]
    (tmp_path / "data").mkdir()
    with pytest.raises(OutputExistsError, match="data exists already"):
        save(tmp_path / "data", second)


def test_a_failed_write_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "model", make_network(*NAMES))
    before = (path / "model.json").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("flairhub.models.bundle.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(path, make_network(*NAMES))
    assert (path / "model.json").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    load_model(path)


def test_descriptions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    network = make_network(*NAMES)
    with pytest.raises(WeightsError, match="the preparation gives 2 channels, the network takes 3"):
        save(tmp_path / "a", network, preparations={**PREPARATIONS, "AERIAL_RGBI": ImagePreparation((1, 2))})
    with pytest.raises(WeightsError, match="tasks: got"):
        save(tmp_path / "a", network, tasks=TASKS[:1])
    with pytest.raises(WeightsError, match=r"SENTINEL2_TS: .* needs a preparation"):
        save(tmp_path / "a", network, preparations={"AERIAL_RGBI": PREPARATIONS["AERIAL_RGBI"]})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("bundles") / "model", make_network(*NAMES))


def copy(bundle: Path, folder: Path) -> Path:
    path = folder / "model"
    path.mkdir()
    for file in bundle.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def test_one_changed_byte_anywhere_is_found(bundle: Path, tmp_path: Path) -> None:
    path = copy(bundle, tmp_path)
    weights = path / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights.safetensors: damaged: sha256 .*, expected"):
        load_model(path)
    manifest = path / "model.json"
    manifest.write_text(manifest.read_text().replace("106.59", "106.58"))
    with pytest.raises(WeightsError, match=r"model.json: damaged or edited"):
        load_model(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_broken_description_is_refused(bundle: Path, tmp_path: Path, text: str) -> None:
    path = copy(bundle, tmp_path)
    (path / "model.json").write_text(text)
    with pytest.raises(WeightsError, match=r"model.json: "):
        load_model(path)


def test_missing_parts_are_named(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"not a bundle: no model.json.*flairhub model convert"):
        load_model(tmp_path)
    path = copy(bundle, tmp_path)
    (path / "weights.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"weights.safetensors: no such weights file"):
        load_model(path)


def test_a_newer_format_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = copy(bundle, tmp_path)
    manifest = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps({**manifest, "format": FORMAT + 1}))
    with pytest.raises(WeightsError, match=rf"bundle format {FORMAT + 1}, this version reads up to {FORMAT}"):
        load_model(path)


def test_single_task_networks_keep_their_task(tmp_path: Path) -> None:
    network = make_network(*NAMES, tasks={LC: 19})
    model = load_model(save(tmp_path / "model", network, tasks=TASKS[:1]))
    assert [task.label for task in model.tasks] == [LC]
    assert model.spec == replace(network.spec)
