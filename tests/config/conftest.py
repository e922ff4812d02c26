"""A complete configuration of each kind, with the published keys, and files made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.config_values import train_values, zonal_values


@pytest.fixture
def train() -> dict[str, Any]:
    return train_values()


@pytest.fixture
def zonal() -> dict[str, Any]:
    return zonal_values()


@pytest.fixture
def train_folder(tmp_path: Path, train: dict[str, Any]) -> Path:
    """The four published files."""
    folder = tmp_path / "configs"
    folder.mkdir()
    files = {
        "config_task.yaml": ("paths", "tasks", "hyperparams", "hardware", "saving"),
        "config_modalities.yaml": ("modalities",),
        "config_models.yaml": ("models",),
        "config_supervision.yaml": ("labels", "labels_configs"),
    }
    for name, sections in files.items():
        text = yaml.safe_dump({section: train[section] for section in sections}, sort_keys=False)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Write text or bytes to a YAML file and return its path."""

    def _write(content: str | bytes, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return _write
