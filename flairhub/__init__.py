"""flairhub: multi-sensor Earth observation data to land-cover and crop maps.

The public functions are loaded on first use, so that `import flairhub` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flairhub.accessors import register
from flairhub.version import __version__

_PUBLIC = {
    "open_cube": "flairhub.cube",
    "open_roi": "flairhub.cube",
    "loader": "flairhub.training",
    "patches": "flairhub.training",
    "open_zone": "flairhub.inference",
    "load_model": "flairhub.models",
    "load_config": "flairhub.config",
    "predict_zone": "flairhub.inference",
    "predict_block": "flairhub.inference",
    "write_zone": "flairhub.inference",
    "check": "flairhub.inference",
    "ingest": "flairhub.ingest",
    "ingest_zone": "flairhub.ingest",
    "train": "flairhub.training",
    "evaluate": "flairhub.training",
    "zone": "flairhub.inference",
}
"""Room of each public name."""

__all__ = ["__version__", *_PUBLIC]

register()

if TYPE_CHECKING:
    from flairhub.config import load_config as load_config
    from flairhub.cube import open_cube as open_cube
    from flairhub.cube import open_roi as open_roi
    from flairhub.inference import check as check
    from flairhub.inference import open_zone as open_zone
    from flairhub.inference import predict_block as predict_block
    from flairhub.inference import predict_zone as predict_zone
    from flairhub.inference import write_zone as write_zone
    from flairhub.ingest import ingest as ingest
    from flairhub.ingest import ingest_zone as ingest_zone
    from flairhub.models import load_model as load_model
    from flairhub.training import evaluate as evaluate
    from flairhub.training import loader as loader
    from flairhub.training import patches as patches
    from flairhub.training import train as train
    from flairhub.zones import zone as zone


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'flairhub' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
