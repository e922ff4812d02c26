"""Training, prediction and evaluation on patches of a cube."""

from __future__ import annotations

from flairhub.training.evaluation import evaluate
from flairhub.training.loaders import loader, patches
from flairhub.training.phases import train
from flairhub.training.train_result import TrainResult

__all__ = ["TrainResult", "evaluate", "loader", "patches", "train"]
