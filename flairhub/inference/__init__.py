"""Zonal inference: windows, lazy prediction over dask, maps on disk."""

from flairhub.inference.configured import open_zone, run_zonal, zone_model
from flairhub.inference.lazy_map import predict_block, predict_zone, template
from flairhub.inference.map_plan import Sizes, Style
from flairhub.inference.run import MapFile, ZonalResult, write_zone
from flairhub.inference.sidecars import Extras
from flairhub.zones import zone

__all__ = [
    "Extras",
    "MapFile",
    "Sizes",
    "Style",
    "ZonalResult",
    "open_zone",
    "predict_block",
    "predict_zone",
    "run_zonal",
    "template",
    "write_zone",
    "zone",
    "zone_model",
]
