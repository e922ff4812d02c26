"""A run as one HTML file that needs nothing else: no network, no scripts, no other files."""

from __future__ import annotations

import base64
import csv
import json
import logging
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flairhub.baselines import find_baseline
from flairhub.config import TrainConfig, label_tasks, load_train_config
from flairhub.errors import DataError, FlairhubError
from flairhub.jobs import locks_around, output_folder, refusals, write_text
from flairhub.report.charts import save_confusion, save_curves
from flairhub.report.patch_panels import example_rows, save_panels
from flairhub.tasks import Task
from flairhub.version import __version__

if TYPE_CHECKING:
    from flairhub.cube import Cube

logger = logging.getLogger(__name__)

N_EXAMPLES = 3
_PACKAGES = ("torch", "lightning", "segmentation-models-pytorch", "timm", "zarr", "numpy", "rasterio")


@dataclass(frozen=True)
class ClassRow:
    """Scores of one class, as fractions; None where undefined.

    Attributes:
        name: Class name.
        colour: CSS colour.
        iou, f_score, precision, recall: Scores.
        interval: Ends of the IoU's interval.
        share: Share of the true pixels that count.
    """

    name: str
    colour: str
    iou: float | None
    f_score: float | None
    precision: float | None
    recall: float | None
    interval: Sequence[float] | None
    share: float


def write_html(
    run: str | Path,
    *,
    cube: str | Path | Cube | None = None,
    output: str | Path | None = None,
    lock: bool = True,
) -> Path:
    """Write the report of a run.

    Args:
        run: Folder of a run with scores.
        cube: Where patches for the pictures are; without it the configuration's. The report has no pictures of
            patches when there is none, and says why.
        output: The file; without it `report.html` in the run's folder.
        lock: Use the locks of the file system; False only where it has none.

    Returns:
        The written file.

    Raises:
        DataError: The folder holds no scores, or the file cannot be written.
        LockError: Another process writes the run that the file goes to, or the file system has no locks.
    """
    folder = Path(run)
    target = Path(output) if output is not None else folder / "report.html"
    with locks_around(target, "run", folder.resolve().__eq__, lock):
        facts = read_run(folder)
        # Tried before anything is drawn.
        with refusals(target):
            if target.exists() and not target.is_file():
                raise DataError(f"{target}: is no file. Give the name of the HTML file.")
            with output_folder(target.parent):
                pass
        text = _html(facts, cube)
        with refusals(target):
            write_text(target, text)
    return target


def _html(facts: RunFacts, cube: str | Path | Cube | None) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("flairhub.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": _percent, "span": _span}
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder)
        return environment.get_template("report.html").render(
            name=facts.config.paths.out_model_name,
            inputs=facts.config.modalities.active,
            arch=facts.config.models.monotemp_model.arch if _has_images(facts) else None,
            metrics=facts.metrics,
            tasks=[_task_section(facts, task, cube, pictures) for task in facts.tasks],
            curves=_curves(facts, pictures),
            best=max(facts.history, key=lambda entry: _number(entry["val_miou"]), default=None),
            epochs=len(facts.history),
            config_text=facts.config_text,
            versions=_versions(facts),
        )


def _has_images(facts: RunFacts) -> bool:
    return any(not name.endswith("_TS") for name in facts.config.modalities.active)


def _task_section(facts: RunFacts, task: Task, cube: str | Path | Cube | None, folder: Path) -> dict[str, Any]:
    entry = facts.metrics["tasks"][task.label]
    inputs = facts.config.modalities.active
    examples, reason = _examples(facts, task, cube, folder)
    matrix = facts.matrices[task.label]
    return {
        "task": task,
        "entry": entry,
        "published": dict(zip(entry["published"]["Avg_metrics_name"], entry["published"]["Avg_metrics"], strict=True)),
        "baseline": find_baseline(task.label, inputs),
        "rows": class_rows(entry, task),
        "confusion": _embedded(save_confusion(folder / f"{task.label}.png", matrix, task.names))
        if matrix.any()
        else None,
        "examples": examples,
        "no_examples": reason,
        "domains": [
            {"name": name, **domain, "published": domain["published"]["Avg_metrics"]}
            for name, domain in entry["domains"].items()
        ],
    }


def class_rows(entry: Mapping[str, Any], task: Task) -> list[ClassRow]:
    """Return the scores of a task's classes, the best IoU first, undefined ones last."""
    colours = {row.name: row.css for row in task.classes}
    scores = entry["strict"]["per_class"]
    total = sum(row["support_px"] for row in scores.values())
    rows = [
        ClassRow(
            name,
            colours[name],
            row["iou"],
            row["f_score"],
            row["precision"],
            row["recall"],
            entry["intervals"]["per_class_iou"].get(name),
            row["support_px"] / total if total else 0.0,
        )
        for name, row in scores.items()
    ]
    return sorted(rows, key=lambda row: (row.iou is None, -(row.iou or 0.0)))


def _curves(facts: RunFacts, folder: Path) -> str | None:
    if not facts.history:
        return None
    names = ("train_loss", "val_loss", "val_miou")
    values = {name: [_number(entry.get(name)) for entry in facts.history] for name in names}
    return _embedded(save_curves(folder / "curves.png", values))


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _examples(
    facts: RunFacts, task: Task, cube: str | Path | Cube | None, folder: Path
) -> tuple[list[dict[str, str]], str]:
    """Pictures of the best and the worst patches, or why there are none."""
    from flairhub.cube import Cube, open_cube

    ranked = sorted(facts.patches[task.label], key=lambda patch: (-patch.accuracy, patch.patch_id))
    place = cube if cube is not None else facts.config.paths.cube
    predictions = facts.folder / "predictions" / task.label
    if not ranked:
        return [], "no patch has a pixel that counts."
    if place is None:
        return [], "the configuration names no cube: pass --cube."
    if not predictions.is_dir():
        return [], "the run kept no predictions (tasks.write_files)."
    count = min(N_EXAMPLES, (len(ranked) + 1) // 2)
    groups = {"Best patches": ranked[:count], "Worst patches": ranked[-count:][::-1]}
    try:
        opened = place if isinstance(place, Cube) else open_cube(place)
        figures = []
        for title, patches in groups.items():
            ids = [patch.patch_id for patch in patches]
            rows = example_rows(opened, ids, facts.config.modalities.active, task, predictions)
            picture = save_panels(folder / f"{task.label}_{title[:4]}.png", rows, task)
            figures.append({"title": title, "picture": _embedded(picture), "alt": f"{title}: {', '.join(ids)}"})
    except FlairhubError as error:
        logger.warning("no pictures of patches: %s", error)
        return [], str(error)
    return figures, ""


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _versions(facts: RunFacts) -> dict[str, str]:
    versions = {
        "flairhub, scores": str(facts.metrics.get("flairhub_version", "unknown")),
        "flairhub, this report": __version__,
        "configuration sha256": str(facts.metrics.get("config_sha256", "unknown")),
        "Python": platform.python_version(),
    }
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _percent(value: float | None, scale: float = 100.0) -> str:
    return "–" if value is None or np.isnan(value) else f"{scale * value:.1f}"


def _span(ends: Sequence[float] | None) -> str:
    return "–" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


# --- what the folder of a run holds


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
