"""Zonal inference: windows, lazy prediction over dask, maps on disk."""

from flairhub.inference.configured import open_zone, run_zonal, zone_model
from flairhub.inference.extras import Extras
from flairhub.inference.forward import Style
from flairhub.inference.lazy import predict_zone
from flairhub.inference.mapped import block_template, predict_block_dataset
from flairhub.inference.plan import Sizes
from flairhub.inference.run import MapFile, ZonalResult, write_zone

__all__ = [
    "Extras",
    "MapFile",
    "Sizes",
    "Style",
    "ZonalResult",
    "block_template",
    "open_zone",
    "predict_block_dataset",
    "predict_zone",
    "run_zonal",
    "write_zone",
    "zone_model",
]
