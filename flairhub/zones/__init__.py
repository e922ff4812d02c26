"""Zones: rasters of one area behind one protocol. See docs/zonal.md."""

from flairhub.zones.area import Area
from flairhub.zones.area_source import with_area
from flairhub.zones.arrays import ArrayRaster, is_edge
from flairhub.zones.configured_zone import zone_of_config
from flairhub.zones.edges import Chunk, Regions, attach, chunk_bytes, detach, joined, needed_chunks
from flairhub.zones.files import FileRaster, open_file
from flairhub.zones.geotiff import close_all
from flairhub.zones.raster import Pixels, Raster, Span, identity
from flairhub.zones.sources import open_array, zone
from flairhub.zones.warped import WarpedRaster
from flairhub.zones.zone import RasterRequest, Zone, build_zone, fit, zone_of_cube

__all__ = [
    "Area",
    "ArrayRaster",
    "Chunk",
    "FileRaster",
    "Pixels",
    "Raster",
    "RasterRequest",
    "Regions",
    "Span",
    "WarpedRaster",
    "Zone",
    "attach",
    "build_zone",
    "chunk_bytes",
    "close_all",
    "detach",
    "fit",
    "identity",
    "is_edge",
    "joined",
    "needed_chunks",
    "open_array",
    "open_file",
    "with_area",
    "zone",
    "zone_of_config",
    "zone_of_cube",
]
