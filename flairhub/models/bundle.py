"""Bundles: a folder with the weights and all that is needed to use them.

`model.json` holds the network, the preparation of every input, bands, date convention, classes and colours, and the
sha256 of `weights.safetensors` and of itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from flairhub.errors import FlairhubError, OutputExistsError, WeightsError
from flairhub.jobs import place_folder, sha256_of, write_text
from flairhub.modalities import LABELS, modality
from flairhub.models.network import Network
from flairhub.models.network_spec import NetworkSpec
from flairhub.models.weights_files import read_tensors
from flairhub.prepare import ImagePreparation
from flairhub.shown import facts_html
from flairhub.tasks import LabelClass, Task, level_sizes, name_problem
from flairhub.timeseries import SeriesPreparation, parse_ref_date
from flairhub.version import __version__

FORMAT = 1
MANIFEST = "model.json"
WEIGHTS = "weights.safetensors"

_LARGEST_COUNT = 10**6
_LARGEST_SIZE = 2**14
"""Channels, classes, pixels of a sample."""

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
    described = _described(manifest, path / MANIFEST)
    tensors = bundle_tensors(path)
    network = _filled(described.spec, tensors, path / WEIGHTS)
    spec, preparations, tasks, ref_date = described.spec, described.preparations, described.tasks, described.ref_date
    return Model(network.to(device).eval(), spec, preparations, tasks, ref_date, manifest)


def bundle_spec(path: Path) -> NetworkSpec:
    """Return what the network of a bundle is, without its weights.

    Raises:
        WeightsError: The bundle is missing, damaged, or describes no network.
    """
    return _described(read_manifest(path), path / MANIFEST).spec


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
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{file}: damaged: {error}.") from error
    version = manifest.get("format")
    if not _is_count(version):
        raise WeightsError(f"{file}: bundle format {version!r}, expected {FORMAT}.")
    if version > FORMAT:
        raise WeightsError(f"{file}: bundle format {version}, this version reads up to {FORMAT}. Update flairhub.")
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


# --- from a manifest, which anybody may have written: every field is looked at


@dataclass(frozen=True)
class _Described:
    """What `model.json` says."""

    spec: NetworkSpec
    preparations: dict[str, Preparation]
    tasks: tuple[Task, ...]
    ref_date: str


def _described(manifest: Mapping[str, Any], file: Path) -> _Described:
    """Turn a manifest into objects.

    Raises:
        WeightsError: A field is missing or does not fit; names it.
    """
    try:
        spec = NetworkSpec.from_json(_network_fields(manifest["network"]))
        ref_date = manifest["ref_date"]
        parse_ref_date(ref_date)
        inputs = manifest["inputs"]
        _expect(set(inputs) == set(spec.inputs), "inputs", list(inputs), f"those of the network, {list(spec.inputs)}")
        bands = {name: _bands(name, inputs[name]["bands"]) for name in spec.inputs}
        preparations = {
            name: _preparation(name, inputs[name]["preparation"], len(bands[name]), ref_date) for name in spec.inputs
        }
        rows = manifest["tasks"]
        _expect(isinstance(rows, list) and len(rows) == len(spec.tasks), "tasks", rows, "one entry per task")
        tasks = tuple(map(_task, rows))
        _expect(isinstance(manifest.get("training", {}), dict), "training", manifest.get("training"), "a mapping")
        _check_fit(spec, preparations, tasks, bands)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, FlairhubError) as error:
        text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise WeightsError(f"{file}: not a usable model description: {text}") from error
    return _Described(spec, preparations, tasks, ref_date)


def _expect(fits: bool, field: str, got: Any, wanted: str) -> None:
    if not fits:
        raise ValueError(f"{field}: got {got!r}, expected {wanted}.")


def _is_count(value: Any, low: int = 1, high: int = _LARGEST_COUNT) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and low <= value <= high


def _network_fields(fields: Any) -> Mapping[str, Any]:
    """Check the types that `NetworkSpec` would convert."""
    for key in ("inputs", "sizes", "tasks"):
        for name, count in fields.get(key, {}).items():
            _expect(_is_count(count, high=_LARGEST_SIZE), f"network.{key}.{name}", count, "a small whole number")
    for name, share in fields.get("modality_dropout", {}).items():
        _expect(_is_number(share, 0, 1), f"network.modality_dropout.{name}", share, "a share between 0 and 1")
    other, arch, aux = fields.get("other_classes", 0), fields.get("arch", ""), fields.get("aux", [])
    _expect(_is_count(other, 0, _LARGEST_SIZE), "network.other_classes", other, "a small whole number")
    _expect(isinstance(arch, str), "network.arch", arch, "text")
    _expect(isinstance(aux, list), "network.aux", aux, "a list of modalities")
    return fields


def _bands(name: str, values: Any) -> list[str]:
    texts = isinstance(values, list) and all(isinstance(value, str) and value.strip() for value in values)
    different = texts and len(set(values)) == len(values) > 0
    _expect(different, f"inputs.{name}.bands", values, "a list of different names")
    return list(values)


def _preparation(name: str, fields: Mapping[str, Any], n_bands: int, ref_date: str) -> Preparation:
    row, where = modality(name), f"inputs.{name}.preparation"
    channels = fields.get("channels")
    if channels is not None:
        fit = isinstance(channels, list) and channels and all(_is_count(value, 1, n_bands) for value in channels)
        fit = fit and len(set(channels)) == len(channels)
        _expect(bool(fit), f"{where}.channels", channels, f"different numbers of the {n_bands} bands")
    if row.is_series:
        return _series_preparation(where, fields, bool(row.quality_mask), ref_date)
    for key in ("means", "stds"):
        numbers = fields.get(key, [])
        fit = isinstance(numbers, list) and all(map(_is_number, numbers))
        _expect(fit, f"{where}.{key}", numbers, "a list of finite numbers")
    preparation = ImagePreparation.from_json(fields)
    if preparation.elevation is not None:
        heights = row.is_elevation and n_bands == 2 and channels is None
        _expect(heights, f"{where}.elevation", preparation.elevation, "null: these are no surface and terrain heights")
    if preparation.normalisation == "custom":
        n_channels = preparation.n_channels(n_bands)
        _expect(len(preparation.means) == n_channels, f"{where}.means", preparation.means, f"{n_channels} numbers")
    return preparation


def _series_preparation(where: str, fields: Mapping[str, Any], has_mask: bool, ref_date: str) -> SeriesPreparation:
    rule = fields.get("cloud_filter")
    if rule is not None:
        _expect(has_mask, f"{where}.cloud_filter", rule, "null: the modality has no quality mask")
        for key, high in (("max_cloud", 100), ("max_snow", 100), ("max_frac", 1)):
            _expect(_is_number(rule[key], 0, high), f"{where}.cloud_filter.{key}", rule[key], f"0 to {high}")
    own = fields.get("ref_date", ref_date)
    _expect(own == ref_date, f"{where}.ref_date", own, f"that of the bundle, {ref_date}")
    return SeriesPreparation.from_json(fields)


def _task(row: Mapping[str, Any]) -> Task:
    label, level, where = row["label"], row["level"], f"tasks.{row['label']}"
    _expect(label in LABELS, "tasks.label", label, f"one of {', '.join(LABELS)}")
    _expect(_is_count(level, 1, len(level_sizes(label))), f"{where}.level", level, "a level of the label set")
    classes = []
    for entry in row["classes"]:
        index, colour = entry["index"], entry["colour"]
        _expect(_is_count(index, 0), f"{where}.index", index, "a whole number")
        fit = isinstance(colour, list) and len(colour) == 3 and all(_is_count(part, 0, 255) for part in colour)
        _expect(fit, f"{where}.{index}.colour", colour, "three whole numbers from 0 to 255")
        french = name_problem({index: entry["name_fr"]})
        _expect(not french, f"{where}.{index}.name_fr", entry["name_fr"], french)
        classes.append(LabelClass(**{**entry, "colour": tuple(colour)}))
    problem = name_problem({entry.index: entry.name for entry in classes})
    _expect(not problem, f"{where}.classes", [entry.name for entry in classes], f"other names: {problem}")
    return Task(label, level, tuple(classes))


def _filled(spec: NetworkSpec, tensors: Mapping[str, Tensor], weights: Path) -> Network:
    """Build the network with its weights.

    Raises:
        WeightsError: It cannot be built, or other tensors belong to it.
    """
    try:
        # Shapes first: what a wrong description asks for may not fit into memory.
        with torch.device("meta"):
            wanted = {name: value.shape for name, value in Network(spec).state_dict().items()}
    except Exception as error:
        raise WeightsError(
            f"{weights.parent / MANIFEST}: no network can be built of it ({type(error).__name__}: {error})."
        ) from error
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    if missing or unexpected:
        raise WeightsError(f"{weights}: missing tensors {missing[:5]}, unexpected {unexpected[:5]}.")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name]:
            got, expected = list(tensor.shape), list(wanted[name])
            raise WeightsError(f"{weights}: {name}: has the shape {got}, the network of {MANIFEST} {expected}.")
    network = Network(spec)
    for name, value in network.state_dict().items():
        if value.is_floating_point() != tensors[name].is_floating_point():
            raise WeightsError(f"{weights}: {name}: holds {tensors[name].dtype} numbers, expected {value.dtype}.")
    network.load_state_dict(tensors)
    return network


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
