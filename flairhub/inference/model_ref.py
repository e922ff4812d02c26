"""The network of a zonal run: named by path, loaded once per process, never sent around."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

import torch

from flairhub.data import Preparation
from flairhub.errors import UsageError, WeightsError
from flairhub.jobs import sha256_of
from flairhub.modalities import MODALITIES
from flairhub.tasks import Task

if TYPE_CHECKING:
    from flairhub.models import Model, NetworkSpec

Kind = Literal["bundle", "published", "memory"]


@dataclass(frozen=True)
class ModelRef:
    """A model as graphs and jobs carry it: where it is and what it takes, not its weights.

    Attributes:
        kind: `bundle` folder, `published` weights file, or a model in this process' `memory`.
        path: Bundle or weights file; for `memory` the token.
        identity: sha256 of the weights file, of a bundle, or of the tensors in memory.
        weights_sha256: sha256 of the weights alone.
        preparations: By input modality, in network order.
        tasks: What it predicts.
        spec: Network of published weights, which do not describe themselves.
        device: torch device name.
        bands: By input modality, the names of the bands that its channels count; empty where they are not known.
        in_memory: Network of a model in memory; stays in this process when the reference is pickled.
        sizes: Pixels (height = width) of a training sample by modality; empty where the model does not say.
    """

    kind: Kind
    path: str
    identity: str
    weights_sha256: str
    preparations: Mapping[str, Preparation]
    tasks: tuple[Task, ...]
    spec: NetworkSpec | None = None
    device: str = "cpu"
    bands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    in_memory: Any = field(default=None, repr=False, compare=False)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "in_memory": None}

    def with_choice(self, preparations: Mapping[str, Preparation], tasks: tuple[Task, ...]) -> ModelRef:
        """Return the same model with other preparations or fewer tasks."""
        return replace(self, preparations=preparations, tasks=tasks)

    def select_tasks(self, names: tuple[str, ...]) -> ModelRef:
        """Return the same model, asked for some of its tasks only.

        Raises:
            UsageError: The model has no such task.
        """
        known = {task.label: task for task in self.tasks}
        for name in names:
            if name not in known:
                raise UsageError(f"task {name} is not predicted by {self.path}. Its tasks: {', '.join(known)}.")
        return replace(self, tasks=tuple(known[name] for name in names))


@dataclass(frozen=True)
class LoadedNetwork:
    """A network in evaluation mode; whoever calls it holds `lock`, so that one thread owns the device."""

    network: Any
    device: str
    lock: threading.Lock


_IN_MEMORY: WeakValueDictionary[str, Any] = WeakValueDictionary()
_LOADED: dict[tuple[str, ...], LoadedNetwork] = {}
_LOADING = threading.Lock()
_LOCKS: dict[str, threading.Lock] = {}
_BUNDLES: dict[tuple[str, int, str], ModelRef] = {}
_READING = threading.Lock()


def bundle_ref(path: Path, device: str = "cpu") -> tuple[ModelRef, dict[str, Any]]:
    """Return the reference of a bundle, and how it describes itself (the arguments of `config.with_bundle`).

    Raises:
        WeightsError: No such bundle, or a damaged one.
    """
    from flairhub.config import WEIGHTS_KINDS
    from flairhub.models import load_model

    if not path.is_dir():
        raise WeightsError(
            f"model_weights: no bundle folder {path}. "
            f"Expected one as `flairhub train` writes, or a {WEIGHTS_KINDS} file."
        )
    model = load_model(path, device)
    manifest = model.manifest
    ref = ModelRef(
        kind="bundle",
        path=str(path.resolve()),
        identity=manifest["sha256"],
        weights_sha256=manifest["weights"]["sha256"],
        preparations=model.preparations,
        tasks=tuple(model.tasks),
        device=device,
        bands=_bands_of(model),
        sizes=model.spec.sizes,
    )
    _keep(ref, model.network)
    arch = model.spec.arch if model.spec.images else None
    description = {
        "preparations": model.preparations,
        "tasks": model.tasks,
        "ref_date": model.ref_date,
        "arch": arch,
    }
    return ref, description


def published_ref(
    path: Path,
    spec: NetworkSpec,
    preparations: Mapping[str, Preparation],
    tasks: tuple[Task, ...],
    device: str = "cpu",
) -> ModelRef:
    """Return the reference of a published weights file.

    Raises:
        WeightsError: No such file.
    """
    if not path.is_file():
        raise WeightsError(f"model_weights: no file {path}. Expected published weights or a bundle folder.")
    digest = sha256_of(path)
    bands = {name: MODALITIES[name].bands for name in preparations}
    return ModelRef(
        "published", str(path.resolve()), digest, digest, preparations, tasks, spec, device, bands, spec.sizes
    )


def memory_ref(model: Model, device: str | None = None, *, identify: bool = True) -> ModelRef:
    """Return the reference of a model in this process; it can be used by its threads only.

    Args:
        model: The model. Not changed: its network is copied when it is in training mode or on another device.
        device: None = where the network's weights are.
        identify: Hash the weights, which names what a map was made with.
    """
    network = model.network
    state = network.state_dict()
    present = next((str(tensor.device) for tensor in state.values()), "cpu")
    device = device or present
    if network.training or device != present:
        network = copy.deepcopy(network).to(device).eval()
    token = f"memory:{id(network):x}"
    _IN_MEMORY[token] = network
    identity = _digest(state) if identify else ""
    sizes = model.spec.sizes if hasattr(model, "spec") else {}
    tasks = tuple(model.tasks)
    return ModelRef(
        "memory",
        token,
        identity,
        identity,
        model.preparations,
        tasks,
        device=device,
        bands=_bands_of(model),
        sizes=sizes,
        in_memory=network,
    )


def _digest(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _bands_of(model: Any) -> dict[str, tuple[str, ...]]:
    """Band names of a model's inputs, as its manifest keeps them."""
    inputs = getattr(model, "manifest", {}).get("inputs", {})
    return {name: tuple(facts["bands"]) for name, facts in inputs.items()}


def model_ref(model: Model | ModelRef | str | Path, device: str | None = None) -> ModelRef:
    """Return the reference of a bundle's path or a loaded model."""
    if isinstance(model, ModelRef):
        return model
    if isinstance(model, str | Path):
        return bundle_ref(Path(model), device or "cpu")[0]
    return memory_ref(model, device)


def block_model(model: Model | ModelRef | str | Path, device: str | None = None) -> ModelRef:
    """Return the reference of a model for one of many blocks: a bundle is read once per process, nothing is hashed."""
    if isinstance(model, ModelRef):
        return model
    if not isinstance(model, str | Path):
        return memory_ref(model, device, identify=False)
    path, device = Path(model).resolve(), device or "cpu"
    # A bundle is replaced as a whole folder.
    key = str(path), path.stat().st_mtime_ns if path.is_dir() else 0, device
    with _READING:
        if key not in _BUNDLES:
            _BUNDLES[key] = bundle_ref(path, device)[0]
        return _BUNDLES[key]


def load(ref: ModelRef) -> LoadedNetwork:
    """Return the network of a reference; the first call of a process loads it, the others share it."""
    if ref.kind == "memory":
        return LoadedNetwork(_in_memory(ref), ref.device, _lock(ref.device))
    with _LOADING:
        if _key(ref) not in _LOADED:
            _LOADED[_key(ref)] = LoadedNetwork(_from_disk(ref).to(ref.device).eval(), ref.device, _lock(ref.device))
        return _LOADED[_key(ref)]


def _from_disk(ref: ModelRef) -> Any:
    from flairhub.models import load_model, load_published

    if ref.kind == "bundle":
        return load_model(Path(ref.path), ref.device).network
    assert ref.spec is not None, "published weights come with their network"
    return load_published(Path(ref.path), ref.spec)


def _in_memory(ref: ModelRef) -> Any:
    network = ref.in_memory if ref.in_memory is not None else _IN_MEMORY.get(ref.path)
    if network is None:
        raise UsageError(
            "the model lives in the memory of another process. Save it as a bundle and pass the bundle's path, "
            "so that every process loads it once."
        )
    return network


def _keep(ref: ModelRef, network: Any) -> None:
    with _LOADING:
        _LOADED[_key(ref)] = LoadedNetwork(network.eval(), ref.device, _lock(ref.device))


def _key(ref: ModelRef) -> tuple[str, ...]:
    return ref.kind, ref.path, ref.identity, ref.device


def _lock(device: str) -> threading.Lock:
    # One per device: two models on it take turns as well.
    return _LOCKS.setdefault(device, threading.Lock())


def choose_device(use_gpu: bool | None) -> str:
    """Return `cuda` or `cpu`.

    Args:
        use_gpu: None takes a GPU when there is one.

    Raises:
        UsageError: A GPU is asked for and none is usable.
    """
    available = torch.cuda.is_available()
    if use_gpu and not available:
        raise UsageError("use_gpu: true, but torch finds no CUDA device. Set use_gpu: false, or check the driver.")
    return "cuda" if available and use_gpu is not False else "cpu"
