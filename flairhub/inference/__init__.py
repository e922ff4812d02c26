"""Zonal inference: windows, lazy prediction over dask, maps on disk."""

from flairhub.inference.check import CheckReport, check
from flairhub.inference.configured import open_zone, run_zonal, zone_model
from flairhub.inference.lazy_map import predict_block, predict_zone
from flairhub.inference.map_plan import Sizes, Style
from flairhub.inference.map_store import checksum_of
from flairhub.inference.map_template import template
from flairhub.inference.outputs import MapSpec, scaled_confidence, write_map
from flairhub.inference.polygons import PolygonFormat
from flairhub.inference.run import MapFile, ZonalResult, write_zone
from flairhub.inference.sidecars import Extras, write_task_polygons
from flairhub.zones import zone

__all__ = [
    "CheckReport",
    "Extras",
    "MapFile",
    "MapSpec",
    "PolygonFormat",
    "Sizes",
    "Style",
    "ZonalResult",
    "check",
    "checksum_of",
    "open_zone",
    "predict_block",
    "predict_zone",
    "run_zonal",
    "scaled_confidence",
    "template",
    "write_map",
    "write_task_polygons",
    "write_zone",
    "zone",
    "zone_model",
]
