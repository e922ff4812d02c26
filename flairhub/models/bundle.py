"""Bundles: a folder with the weights and all that is needed to use them.

`model.json` holds the network, the preparation of every input, bands, date convention, classes and colours, and the
sha256 of `weights.safetensors` and of itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from flairhub.errors import FlairhubError, OutputExistsError, WeightsError
from flairhub.jobs import place_folder, sha256_of, write_text
from flairhub.modalities import modality
from flairhub.models.network import Network
from flairhub.models.network_spec import NetworkSpec
from flairhub.models.weights_files import read_tensors
from flairhub.prepare import ImagePreparation
from flairhub.shown import facts_html
from flairhub.tasks import LabelClass, Task
from flairhub.timeseries import SeriesPreparation
from flairhub.version import __version__

FORMAT = 1
MANIFEST = "model.json"
WEIGHTS = "weights.safetensors"

Preparation = ImagePreparation | SeriesPreparation


@dataclass(repr=False)
class Model:
    """A network with all that is needed to feed it and to read its logits.

    Attributes:
        network: In evaluation mode.
        spec: What the network is.
        preparations: How each input is prepared, by modality.
        tasks: What the logits mean.
        ref_date: Day that day offsets count from, `MM-DD`.
        manifest: The whole content of `model.json` (bands under `inputs.<modality>.bands`).
    """

    network: Network
    spec: NetworkSpec
    preparations: dict[str, Preparation]
    tasks: tuple[Task, ...]
    ref_date: str
    manifest: dict[str, Any]

    def __repr__(self) -> str:
        facts = self._facts()
        return f"<Model {facts['network']}: {facts['inputs']} -> {facts['tasks']}, {facts['parameters']} parameters>"

    def _repr_html_(self) -> str:
        return facts_html("Model", self._facts())

    def _facts(self) -> dict[str, Any]:
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        return {
            "network": self.spec.arch,
            "inputs": ", ".join(f"{name} ({channels})" for name, channels in self.spec.inputs.items()),
            "tasks": ", ".join(f"{task.label} ({task.n_classes} classes)" for task in self.tasks),
            "parameters": f"{parameters / 1e6:.1f} M",
            "reference date": self.ref_date,
        }


def save_bundle(
    path: str | Path,
    network: Network,
    *,
    preparations: Mapping[str, Preparation],
    tasks: Sequence[Task],
    ref_date: str,
    bands: Mapping[str, Sequence[str]],
    training: Mapping[str, Any] | None = None,
    overwrite: bool = True,
) -> Path:
    """Write a bundle: to a temporary name first, so that a bundle is always whole.

    Args:
        path: Folder to make.
        network: The network; it is not changed.
        preparations: How each input is prepared, one per input of the network.
        tasks: What the logits mean, one per task of the network.
        ref_date: Day that day offsets count from, `MM-DD`.
        bands: Band names of the files, by modality (before any selection of channels).
        training: Anything JSON-ready to keep along (configuration, scores).
        overwrite: Replace an existing bundle.

    Returns:
        The folder.

    Raises:
        OutputExistsError: Something else is there, or a bundle and `overwrite` is off.
        WeightsError: Preparations or tasks do not fit the network.
    """
    path = Path(path)
    if path.exists() and not (overwrite and (path / MANIFEST).is_file()):
        raise OutputExistsError(f"{path} exists already. Choose another place, or ask for overwriting a bundle.")
    _check_fit(network.spec, preparations, tasks, bands)

    def write(folder: Path) -> None:
        folder.mkdir()
        tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        save_file(tensors, folder / WEIGHTS)
        manifest = {
            "format": FORMAT,
            "flairhub": __version__,
            "network": network.spec.to_json(),
            "inputs": {
                name: {"bands": list(bands[name]), "preparation": preparations[name].to_json()}
                for name in network.spec.inputs
            },
            "tasks": [asdict(task) for task in sorted(tasks, key=lambda t: list(network.spec.tasks).index(t.label))],
            "ref_date": ref_date,
            "weights": {"file": WEIGHTS, "sha256": sha256_of(folder / WEIGHTS)},
            "training": dict(training or {}),
        }
        manifest["sha256"] = _digest(manifest)
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))

    place_folder(path, write)
    return path


def load_model(path: str | Path | Model, device: str | torch.device = "cpu") -> Model:
    """Load a bundle.

    Args:
        path: The bundle's folder; a loaded model is returned as it is.
        device: Where the network of a bundle goes.

    Raises:
        WeightsError: The bundle is missing, damaged, or of a newer format.
    """
    if isinstance(path, Model):
        return path
    path = Path(path)
    manifest = read_manifest(path)
    try:
        spec = NetworkSpec.from_json(manifest["network"])
        preparations = {name: _preparation(name, manifest["inputs"][name]["preparation"]) for name in spec.inputs}
        tasks = tuple(_task(row) for row in manifest["tasks"])
        ref_date = manifest["ref_date"]
    except (KeyError, TypeError, ValueError, AttributeError, FlairhubError) as error:
        raise WeightsError(f"{path / MANIFEST}: not a usable model description ({error!r}).") from error
    tensors = bundle_tensors(path)
    network = Network(spec)
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    if missing or unexpected:
        raise WeightsError(f"{path / WEIGHTS}: missing tensors {missing[:5]}, unexpected {unexpected[:5]}.")
    return Model(network.to(device).eval(), spec, preparations, tasks, ref_date, manifest)


def bundle_tensors(path: Path) -> dict[str, Tensor]:
    """Read the weights of a bundle, whose sha256 is the one that its `model.json` has.

    Raises:
        WeightsError: The bundle is missing or damaged.
    """
    entry = read_manifest(path).get("weights")
    if not isinstance(entry, Mapping) or entry.get("file") != WEIGHTS:
        raise WeightsError(f"{path / MANIFEST}: the weights must lie in the bundle as {WEIGHTS}, got {entry!r}.")
    weights, expected = path / WEIGHTS, entry.get("sha256")
    if weights.is_file() and (digest := sha256_of(weights)) != expected:
        raise WeightsError(f"{weights}: damaged: sha256 {digest}, expected {expected}. Copy the bundle again.")
    return read_tensors(weights)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check a bundle's `model.json`.

    Raises:
        WeightsError: Missing, damaged, or of a newer format.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise WeightsError(
            f"{path}: not a bundle: no {MANIFEST} in it. `flairhub model convert` makes a bundle of published weights."
        )
    try:
        manifest = json.loads(file.read_text("utf-8"))
        digest, expected = _digest({k: v for k, v in manifest.items() if k != "sha256"}), manifest.get("sha256")
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{file}: damaged: {error}.") from error
    if not isinstance(manifest.get("format"), int) or manifest["format"] > FORMAT:
        raise WeightsError(
            f"{file}: bundle format {manifest.get('format')}, this version reads up to {FORMAT}. Update flairhub."
        )
    if digest != expected:
        raise WeightsError(f"{file}: damaged or edited: sha256 {digest}, expected {expected}. Copy the bundle again.")
    return manifest


def _check_fit(
    spec: NetworkSpec,
    preparations: Mapping[str, Preparation],
    tasks: Sequence[Task],
    bands: Mapping[str, Sequence[str]],
) -> None:
    predicted = {task.label: task.n_classes for task in tasks}
    if predicted != dict(spec.tasks):
        raise WeightsError(f"tasks: got {predicted}, the network predicts {dict(spec.tasks)}.")
    for name, channels in spec.inputs.items():
        if name not in preparations or name not in bands:
            raise WeightsError(f"{name}: the network's input needs a preparation and band names.")
        if (got := preparations[name].n_channels(len(bands[name]))) != channels:
            raise WeightsError(f"{name}: the preparation gives {got} channels, the network takes {channels}.")


def _preparation(name: str, fields: Mapping[str, Any]) -> Preparation:
    kind = SeriesPreparation if modality(name).is_series else ImagePreparation
    return kind.from_json(fields)


def _task(row: Mapping[str, Any]) -> Task:
    classes = tuple(LabelClass(**{**entry, "colour": tuple(entry["colour"])}) for entry in row["classes"])
    return Task(row["label"], row["level"], classes)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
