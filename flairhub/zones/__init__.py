"""Zones: rasters of one area behind one protocol. See docs/zonal.md."""

from flairhub.zones.files import FileRaster, open_file
from flairhub.zones.geotiff import close_all
from flairhub.zones.raster import Pixels, Raster, Span, identity
from flairhub.zones.warped import WarpedRaster
from flairhub.zones.zone import RasterRequest, Zone, build_zone, fit, zone_of_cube

__all__ = [
    "FileRaster",
    "Pixels",
    "Raster",
    "RasterRequest",
    "Span",
    "WarpedRaster",
    "Zone",
    "build_zone",
    "close_all",
    "fit",
    "identity",
    "open_file",
    "zone_of_cube",
]
