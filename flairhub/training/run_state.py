"""What the folder of a run says about itself: whose it is and what is finished, so that the same command goes on.

`run.jsonl` has one record per phase, `train` and `scores`: the facts that decide its results, and whether it is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flairhub.errors import WeightsError
from flairhub.jobs import Journal, sha256_of
from flairhub.models import MANIFEST, load_model
from flairhub.training.predict import patch_file
from flairhub.training.run_folder import RunFolder
from flairhub.training.training_plan import TrainingPlan

if TYPE_CHECKING:
    from flairhub.cube import Cube
    from flairhub.models import Model

TRAIN, SCORES = "train", "scores"

_NOUNS = {
    "config_sha256": "configuration",
    "weights": "starting weights",
    "cube": "cube",
    "patches": "patches of the splits",
}
"""What decides the results of a run, and its name in messages."""


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        resume: Checkpoint to go on from; None trains from the beginning.
        continues: It is a stopped run of just this configuration.
        model: Of a finished training whose scores are left to make.
        complete: Nothing is left to do.
        skipped_batches: Of a finished training.
    """

    resume: Path | None = None
    continues: bool = False
    model: Model | None = None
    complete: bool = False
    skipped_batches: int = 0


class RunState:
    """The records of a run's folder; only the holder of its lock changes them."""

    def __init__(self, folder: RunFolder):
        """Read what is there."""
        self._journal = Journal(folder.state)
        self._records = {record["phase"]: record for record in self._journal.read() if "phase" in record}

    def begin(self, facts: Mapping[str, str], phases: Iterable[str]) -> None:
        """Note that a run of these facts has begun some phases."""
        self._write({phase: {"phase": phase, **facts, "done": False} for phase in phases})

    def finish(self, phase: str, **more: Any) -> None:
        """Note that a phase is done and all its files are in place."""
        self._write({phase: {**self._records[phase], **more, "done": True}})

    def record(self, phase: str) -> Mapping[str, Any]:
        """Return what is known of a phase, an empty mapping when nothing is."""
        return self._records.get(phase, {})

    def differences(self, phase: str, facts: Mapping[str, str]) -> list[str]:
        """Return what differs between a phase of the folder and a run, in words; empty when it is the same run."""
        record = self.record(phase)
        return [_NOUNS[name] for name, value in facts.items() if record.get(name) != value]

    def _write(self, changed: Mapping[str, dict[str, Any]]) -> None:
        self._records = {**self._records, **changed}
        self._journal.rewrite(self._records[phase] for phase in sorted(self._records))


def configured_facts(plan: TrainingPlan) -> dict[str, str]:
    """Return the facts that are known before the cube is opened."""
    tasks, path = plan.config.tasks, plan.config.paths.ckpt_model_path
    weights = ""
    starts = tasks.train_tasks.init_weights_only_from_ckpt if tasks.trains else tasks.predicts
    if starts and path is not None:
        file = path / MANIFEST if path.is_dir() else path
        weights = sha256_of(file) if file.is_file() else ""
    return {"config_sha256": plan.config_hash, "weights": weights}


def all_facts(plan: TrainingPlan, cube: Cube) -> dict[str, str]:
    """Return all that decides the results of a run."""
    names = ["train", "valid"] if plan.config.tasks.trains else []
    names += ["test"] if plan.config.tasks.predicts else []
    ids = {name: [cube.patch_ids[index] for index in plan.split(cube, name)] for name in names}
    patches = hashlib.sha256(json.dumps(ids, sort_keys=True).encode()).hexdigest()
    return {**configured_facts(plan), "cube": str(cube.attributes["plan"]), "patches": patches}


def phases_of(plan: TrainingPlan) -> list[str]:
    """Return what the configuration asks for, of what is remembered."""
    tasks = plan.config.tasks
    return [*([TRAIN] if tasks.trains else []), *([SCORES] if tasks.predicts else [])]


def starting_point(
    plan: TrainingPlan, facts: Mapping[str, str], overwrite: bool, cube: Cube | None = None, checks: bool = True
) -> Start:
    """Decide where a run begins, from what its folder holds.

    Args:
        plan: The run.
        facts: Of the run; without the cube's ones it is decided only whether it may begin.
        overwrite: Begin anew, whatever is there.
        cube: Where the test patches are.
        checks: Refuse what is not to be replaced; only one of several processes does.

    Raises:
        OutputExistsError: The folder holds results of another run.
    """
    tasks, folder, state = plan.config.tasks, plan.folder, RunState(plan.folder)
    if overwrite or tasks.metrics_only:
        return Start(_resumed(plan))
    if not tasks.trains:
        return _prediction(plan, state, facts, cube, checks)
    different = state.differences(TRAIN, facts)
    if different and tasks.train_tasks.resume_training_from_ckpt:
        return Start(_resumed(plan))
    if different:
        if checks:
            _refuse(folder, state, TRAIN, different)
        return Start()
    model = _trained_model(plan, state)
    if model is None:
        own = folder.last_checkpoint
        return Start(own if own.exists() else _resumed(plan), continues=own.exists())
    start = Start(model=model, continues=True, skipped_batches=int(state.record(TRAIN).get("skipped_batches", 0)))
    if not tasks.predicts:
        return replace(start, complete=True)
    different = state.differences(SCORES, facts)
    if different and checks:
        _refuse(folder, state, SCORES, different)
    return replace(start, complete=_has_scores(plan, state, cube))


def _resumed(plan: TrainingPlan) -> Path | None:
    start = plan.config.tasks.train_tasks
    return plan.config.paths.ckpt_model_path if plan.config.tasks.trains and start.resume_training_from_ckpt else None


def _refuse(folder: RunFolder, state: RunState, phase: str, different: list[str]) -> None:
    record = state.record(phase)
    if not record:
        folder.check_training()
        return
    kind = "a finished run" if record.get("done") else "an unfinished run"
    folder.check_training(f"{kind} with another {' and '.join(different)}")


def _prediction(
    plan: TrainingPlan, state: RunState, facts: Mapping[str, str], cube: Cube | None, checks: bool
) -> Start:
    if not state.differences(SCORES, facts):
        return Start(complete=_has_scores(plan, state, cube))
    if checks and plan.config.tasks.write_files:
        plan.folder.check_prediction(plan.tasks)
    return Start()


def _trained_model(plan: TrainingPlan, state: RunState) -> Model | None:
    """The model of a finished training of this configuration; None when it is not whole."""
    if not state.record(TRAIN).get("done"):
        return None
    try:
        model = load_model(plan.folder.bundle)
    except WeightsError:
        return None
    return model if model.manifest["training"].get("config_sha256") == plan.config_hash else None


def _has_scores(plan: TrainingPlan, state: RunState, cube: Cube | None) -> bool:
    """True when the scores are those of this configuration, and no prediction raster has gone."""
    if not state.record(SCORES).get("done") or cube is None:
        return False
    if read_json(plan.folder.metrics, {}).get("config_sha256") != plan.config_hash:
        return False
    if not plan.config.tasks.write_files:
        return True
    test = plan.split(cube, "test").tolist()
    return all(
        (plan.folder.predictions(task) / patch_file(cube, index, task.label)).is_file()
        for task in plan.tasks
        for index in test
    )


def read_json(path: Path, default: Any) -> Any:
    """Return the content of a JSON file of the run, the default when it is not there or damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return default


def read_history(folder: RunFolder) -> list[dict[str, Any]]:
    """Return `history.json`, undefined values as NaN."""
    entries = read_json(folder.history, [])
    return [{key: np.nan if value is None else value for key, value in entry.items()} for entry in entries]
