"""The folder of a run: where everything lies, and how it is written so that a killed run leaves no half files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from flairhub.errors import DataError, OutputExistsError
from flairhub.jobs import placed
from flairhub.tasks import Task


@dataclass(frozen=True)
class RunFolder:
    """Layout of `<out_folder>/<out_model_name>`; docs/training.md describes it.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def config(self) -> Path:
        """Resolved configuration."""
        return self.root / "config.yaml"

    @property
    def inputs(self) -> Path:
        """Copies of the split CSVs."""
        return self.root / "inputs"

    @property
    def checkpoints(self) -> Path:
        """Lightning checkpoints, `best.ckpt` and `last.ckpt`."""
        return self.root / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """Checkpoint of the best epoch."""
        return self.checkpoints / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        """Checkpoint of the last finished epoch, to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def bundle(self) -> Path:
        """Model of the best epoch."""
        return self.root / "best.bundle"

    @property
    def logs(self) -> Path:
        """TensorBoard events."""
        return self.root / "logs"

    @property
    def history(self) -> Path:
        """Scores per epoch, JSON."""
        return self.root / "history.json"

    @property
    def metrics(self) -> Path:
        """Test scores, JSON."""
        return self.root / "metrics.json"

    @property
    def confusion(self) -> Path:
        """Confusion matrices, `<task>.npy` and `<task>.csv`."""
        return self.root / "confusion"

    @property
    def patch_scores(self) -> Path:
        """Scores by test patch, `<task>.csv`."""
        return self.root / "patches"

    def predictions(self, task: Task | str) -> Path:
        """Folder of a task's prediction rasters."""
        return self.root / "predictions" / (task if isinstance(task, str) else task.label)

    @property
    def _results(self) -> list[Path]:
        """What cannot be made again at once."""
        predictions = self.root / "predictions"
        scores = [self.metrics, self.confusion, self.patch_scores]
        return [self.checkpoints, self.bundle, self.history, *scores, predictions]

    def check_training(self) -> None:
        """Refuse to train where results lie.

        Raises:
            OutputExistsError: The folder holds results.
        """
        present = [path.name for path in self._results if path.exists()]
        if present:
            raise OutputExistsError(
                f"{self.root}: holds results of an earlier run ({', '.join(present)}). Choose another "
                "paths.out_model_name, pass --overwrite to replace it, or resume with "
                f"tasks.train_tasks.resume_training_from_ckpt and paths.ckpt_model_path: {self.last_checkpoint}."
            )

    def check_prediction(self, tasks: Iterable[Task]) -> None:
        """Refuse to predict where prediction rasters lie.

        Raises:
            OutputExistsError: There are some.
        """
        for task in tasks:
            folder = self.predictions(task)
            if folder.exists() and any(folder.iterdir()):
                raise OutputExistsError(
                    f"{folder}: holds predictions already. Pass --overwrite to replace them, or set "
                    "tasks.metrics_only: true to score them."
                )

    def clear(self) -> None:
        """Remove what an earlier run wrote; anything else in the folder stays."""
        _remove([*self._results, self.config, self.inputs, self.logs])

    def clear_predictions(self, tasks: Iterable[Task]) -> None:
        """Remove prediction rasters of an earlier run."""
        _remove([self.predictions(task) for task in tasks])


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under a temporary name and rename it when it is complete.

    Args:
        path: Final name; its folder is made.
        write: Writes to the path it is given.

    Raises:
        DataError: The file system refuses.
    """
    try:
        with placed(path) as partial:
            write(partial)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_atomically(path, lambda partial: _write(partial, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
