"""What the folder of a run says about it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.config import TrainConfig, label_tasks, load_train_config
from flairhub.errors import DataError
from flairhub.tasks import Task


@dataclass(frozen=True)
class PatchScore:
    """One line of `patches/<task>.csv`.

    Attributes:
        patch_id: The patch.
        domain: Its domain.
        pixels: Pixels that count.
        accuracy: Share of right ones.
    """

    patch_id: str
    domain: str
    pixels: int
    accuracy: float


@dataclass(frozen=True)
class RunFacts:
    """Configuration, scores and history of a run.

    Attributes:
        folder: Of the run, or of an evaluation.
        config: The resolved configuration.
        config_text: The same as YAML.
        metrics: Content of metrics.json.
        history: One entry per epoch; empty when nothing was trained.
        matrices: By task, (class, class) counts, rows = truth.
        patches: By task, scores of the patches that have pixels that count.
    """

    folder: Path
    config: TrainConfig
    config_text: str
    metrics: Mapping[str, Any]
    history: list[dict[str, Any]]
    matrices: Mapping[str, NDArray[np.int64]]
    patches: Mapping[str, list[PatchScore]]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks with scores."""
        return tuple(task for task in label_tasks(self.config) if task.label in self.metrics["tasks"])


def read_run(folder: str | Path) -> RunFacts:
    """Read the folder of a run that was scored.

    Raises:
        DataError: It is no such folder, or a file in it is damaged.
    """
    root = Path(folder)
    missing = [name for name in ("config.yaml", "metrics.json") if not (root / name).is_file()]
    if missing:
        raise DataError(
            f"{root}: holds no {' and no '.join(missing)}. Give the folder of a run with scores: "
            "flairhub train with tasks.predict or tasks.metrics_only, or flairhub evaluate."
        )
    metrics = _json(root / "metrics.json")
    history = _json(root / "history.json") if (root / "history.json").is_file() else []
    if not isinstance(metrics, dict) or metrics.get("format") != 1 or not isinstance(metrics.get("tasks"), dict):
        raise DataError(f"{root / 'metrics.json'}: is not a metrics.json of format 1.")
    try:
        matrices = {name: np.load(root / "confusion" / f"{name}.npy", allow_pickle=False) for name in metrics["tasks"]}
        patches = {name: _patches(root / "patches" / f"{name}.csv") for name in metrics["tasks"]}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{root}: scores are incomplete: {error}. Score the run again.") from error
    config = load_train_config(root / "config.yaml")
    text = (root / "config.yaml").read_text(encoding="utf-8")
    return RunFacts(root, config, text, metrics, history, matrices, patches)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is no JSON: {error}") from error


def _patches(path: Path) -> list[PatchScore]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["accuracy"]]
    return [PatchScore(row["patch_id"], row["domain"], int(row["pixels"]), float(row["accuracy"])) for row in rows]
