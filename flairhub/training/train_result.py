"""What a run left, for whoever called it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flairhub.shown import facts_html


@dataclass(frozen=True, repr=False)
class TrainResult:
    """What a run left.

    Attributes:
        folder: The run's folder.
        cube: The cube that was used.
        bundle: Model of the best epoch; None when nothing was trained.
        history: One entry per epoch: losses, scores, learning rate.
        metrics: Content of metrics.json; empty without prediction or scoring.
        metrics_path: metrics.json, None without.
        predictions: By task, folder of the prediction rasters, where they were written.
        skipped_batches: Training batches without any pixel that counts.
        seconds: Wall time by phase: ingest, train, predict, score.
        rank: Process of a distributed run; only rank 0 has scores and files.
        already_complete: Nothing had to be done: an earlier call of the same configuration did it all.
    """

    folder: Path
    cube: Path
    bundle: Path | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    metrics_path: Path | None = None
    predictions: Mapping[str, Path] = field(default_factory=dict)
    skipped_batches: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    rank: int = 0
    already_complete: bool = False

    def __repr__(self) -> str:
        facts = self._facts()
        return f"<TrainResult {facts.pop('folder')}: {', '.join(f'{name} {value}' for name, value in facts.items())}>"

    def _repr_html_(self) -> str:
        return facts_html("TrainResult", self._facts())

    def _facts(self) -> dict[str, Any]:
        scores = {
            f"test mIoU {task}": "undefined" if (miou := entry["strict"]["miou"]) is None else f"{miou:.4f}"
            for task, entry in self.metrics.get("tasks", {}).items()
        }
        facts = {"folder": self.folder, "epochs": len(self.history), **scores}
        return facts | {f"seconds {phase}": f"{value:.1f}" for phase, value in self.seconds.items()}
