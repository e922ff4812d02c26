"""The cube: on-disk format, reader, lazy views. See docs/cube-format.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flairhub.cube.codecs import ChunkCodec, require_little_endian
from flairhub.cube.cube import Cube, is_local, open_cube
from flairhub.cube.export import export_patch, export_roi
from flairhub.cube.reader import ArrayReader
from flairhub.cube.roi import RoiLayer, roi_layers
from flairhub.cube.seal import METADATA_JOB, ROOT_FILE, contents_digest
from flairhub.cube.shards import ShardWriter
from flairhub.cube.spec import (
    FORMAT_VERSION,
    INGEST,
    JOURNAL,
    NO_DAY,
    ROOT_KEY,
    VALID,
    ArraySpec,
    average_spec,
    data_spec,
    valid_spec,
)
from flairhub.cube.table import AverageInfo, PatchTable, SeriesInfo
from flairhub.cube.template import (
    AverageTemplate,
    CubeTemplate,
    GroupResult,
    GroupTemplate,
    create_store,
    fill_store,
    root_attributes,
    set_status,
    side_chunk,
)
from flairhub.cube.verify import verify, verify_zone
from flairhub.cube.zone_cube import ChunkCache, ZoneCube, is_zone_cube, open_zone_cube
from flairhub.cube.zone_spec import (
    DATA,
    MASK_CODEC,
    ZONE_FORMAT,
    ZONE_KEY,
    Tiling,
    ZoneLayer,
    data_codec,
    shard_key,
    tiling_of,
)
from flairhub.cube.zone_template import create_zone_store

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "DATA",
    "FORMAT_VERSION",
    "INGEST",
    "JOURNAL",
    "MASK_CODEC",
    "METADATA_JOB",
    "NO_DAY",
    "ROOT_FILE",
    "ROOT_KEY",
    "VALID",
    "ZONE_FORMAT",
    "ZONE_KEY",
    "ArrayReader",
    "ArraySpec",
    "AverageInfo",
    "AverageTemplate",
    "ChunkCache",
    "ChunkCodec",
    "Cube",
    "CubeTemplate",
    "GroupResult",
    "GroupTemplate",
    "PatchTable",
    "RoiLayer",
    "SeriesInfo",
    "ShardWriter",
    "Tiling",
    "ZoneCube",
    "ZoneLayer",
    "average_spec",
    "contents_digest",
    "create_store",
    "create_zone_store",
    "data_codec",
    "data_spec",
    "export_patch",
    "export_roi",
    "fill_store",
    "is_local",
    "is_zone_cube",
    "open_cube",
    "open_roi",
    "open_zone_cube",
    "require_little_endian",
    "roi_layers",
    "root_attributes",
    "set_status",
    "shard_key",
    "side_chunk",
    "tiling_of",
    "valid_spec",
    "verify",
    "verify_zone",
]


def open_roi(cube: Cube | str | Path, roi: str) -> xr.DataTree:
    """Return one ROI as lazy mosaics over the cube's chunks.

    Args:
        cube: An open cube, its path or URL.
        roi: Name of the ROI, see `flairhub.cube.roi.open_roi`, which says what is returned.

    Raises:
        CubeError: No cube, unknown or ambiguous ROI, or patches that do not lie on one lattice.
    """
    return open_cube(cube).roi(roi)
