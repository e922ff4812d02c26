"""The folder of a run: where everything lies, who may write it, and how, so that a killed run leaves no half files."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flairhub.errors import OutputExistsError
from flairhub.jobs import locks_around, output_folder, placed, refusals, writer_lock
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
    def state(self) -> Path:
        """Whose run it is and what is finished, see `run_state.py`."""
        return self.root / "run.jsonl"

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

    @contextmanager
    def writing(self, lock: bool = True) -> Iterator[None]:
        """Hold the right to write the folder, which is tried before anything is computed.

        Args:
            lock: Use the locks of the file system; see `flairhub.jobs.writer_lock`.

        Raises:
            LockError: Another process writes it, or the file system has no locks.
            DataError: The system refuses: full disk, no permission, a file of that name, ...
        """
        root = self.root.resolve()
        with ExitStack() as stack:
            stack.enter_context(refusals(self.root, what="cannot be read or written"))
            stack.enter_context(output_folder(root.parent))
            stack.enter_context(writer_lock(root, "run", lock))
            stack.enter_context(output_folder(root))
            yield

    @property
    def _results(self) -> list[Path]:
        """What cannot be made again at once."""
        predictions = self.root / "predictions"
        scores = [self.metrics, self.confusion, self.patch_scores]
        return [self.checkpoints, self.bundle, self.history, *scores, predictions]

    def check_training(self, owner: str = "an earlier run") -> None:
        """Refuse to train where results lie.

        Args:
            owner: Whose results they are, for the message.

        Raises:
            OutputExistsError: The folder holds results.
        """
        present = [path.name for path in self._results if path.exists()]
        if present:
            raise OutputExistsError(
                f"{self.root}: holds results of {owner} ({', '.join(present)}). Choose another "
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
        # First of all: what is half removed must not look like a run to go on with.
        _remove([self.state])
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
    with refusals(path), placed(path) as partial:
        write(partial)


def null_for_undefined(value: Any) -> Any:
    """Return a JSON-ready value with null for the numbers that JSON does not have: NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: null_for_undefined(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [null_for_undefined(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_atomically(path, lambda partial: _write(partial, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@contextmanager
def writing_inside(path: Path, lock: bool = True) -> Iterator[None]:
    """Hold the right to write in all runs that a path lies in; for what adds something to a run.

    Args:
        path: File or folder.
        lock: Use the locks of the file system; see `flairhub.jobs.writer_lock`.

    Raises:
        LockError: Another process writes one of them, or the file system has no locks.
    """
    with refusals(path, what="cannot be read or written"), locks_around(path, "run", _is_run, lock):
        yield


def _is_run(path: Path) -> bool:
    folder = RunFolder(path)
    return folder.config.is_file() and any(
        entry.exists() for entry in (folder.state, folder.checkpoints, folder.metrics)
    )
