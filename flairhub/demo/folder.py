"""The demo's output folder: created, or replaced only when an earlier demo made it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from flairhub.errors import OutputExistsError

MARKER = "flairhub-demo.json"
"""File that marks a folder as made by the demo."""


def prepare_folder(folder: str | Path, seed: int, overwrite: bool) -> Path:
    """Return an empty, marked folder.

    Args:
        folder: Path of the folder.
        seed: Noted in the marker.
        overwrite: Remove what an earlier demo left there.

    Raises:
        OutputExistsError: The folder holds something, and overwriting is not asked for or not safe.
    """
    root = Path(folder).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise OutputExistsError(f"{root} is a file; the demo needs a folder. Give another path.")
    if root.is_dir() and any(root.iterdir()):
        if not overwrite:
            raise OutputExistsError(
                f"{root} exists and is not empty. Give another folder, or pass --overwrite to replace an earlier demo."
            )
        if not (root / MARKER).is_file():
            raise OutputExistsError(
                f"{root} was not made by the demo (no {MARKER} in it), so it is not overwritten. Give another folder."
            )
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).write_text(json.dumps({"made_by": "flairhub demo", "seed": seed}) + "\n", encoding="utf-8")
    return root
