"""VRT mosaics: accepted only as plain lists of local GeoTIFFs beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import rasterio
from rasterio.errors import RasterioError

from flairhub.errors import ZoneError

_MAX_BYTES = 50_000_000
_GDAL_TYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "float32": "Float32",
    "float64": "Float64",
}
_SOURCES = {"SimpleSource", "ComplexSource"}


def mosaic_files(path: Path, key: str) -> list[Path]:
    """Return the GeoTIFFs of a VRT mosaic.

    A VRT can name any file, address or program; only GeoTIFFs in the VRT's own folder or below are let through.

    Args:
        path: The VRT.
        key: Configuration key that names it, for messages.

    Raises:
        ZoneError: It is damaged, or names anything else.
    """
    where = f"{key}: {path}"
    text = path.read_bytes()
    if len(text) > _MAX_BYTES or b"<!" in text.replace(b"<!--", b""):
        raise ZoneError(f"{where}: over {_MAX_BYTES} bytes, or with XML declarations. Expected a plain VRT mosaic.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ZoneError(f"{where}: damaged XML ({error}).") from None
    if root.tag != "VRTDataset" or any("subClass" in element.attrib for element in root.iter()):
        raise ZoneError(f"{where}: no plain mosaic (warped, derived, raw). Expected one as gdalbuildvrt writes.")
    named = {
        id(name): name
        for element in root.iter()
        if element.tag in _SOURCES
        for name in element.findall("SourceFilename")
    }
    others = [name for name in root.iter("SourceFilename") if id(name) not in named]
    if others or not named or next(root.iter("OpenOptions"), None) is not None:
        raise ZoneError(f"{where}: sources other than plain files, or none. Expected one as gdalbuildvrt writes.")
    folder = path.resolve().parent
    return sorted({_source(name, folder, where) for name in named.values()})


def colourless_vrt(dataset: Any) -> str:
    """Return a VRT, as XML text, of an open raster with all its bands and no colour interpretation."""
    height, width = dataset.shape
    nodata = "" if dataset.nodata is None else f"<NoDataValue>{dataset.nodata!r}</NoDataValue>"
    rect = f'xOff="0" yOff="0" xSize="{width}" ySize="{height}"'
    bands = "".join(
        f'<VRTRasterBand dataType="{_GDAL_TYPES[dtype]}" band="{band}">{nodata}<ColorInterp>Undefined</ColorInterp>'
        f"<SimpleSource><SourceFilename>{escape(str(Path(dataset.name).absolute()))}</SourceFilename>"
        f"<SourceBand>{band}</SourceBand><SrcRect {rect}/><DstRect {rect}/></SimpleSource></VRTRasterBand>"
        for band, dtype in enumerate(dataset.dtypes, start=1)
    )
    place = ", ".join(repr(number) for number in dataset.transform.to_gdal())
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{escape(dataset.crs.to_wkt())}</SRS>'
        f"<GeoTransform>{place}</GeoTransform>{bands}</VRTDataset>"
    )


def _source(name: ElementTree.Element, folder: Path, where: str) -> Path:
    text = (name.text or "").strip()
    file = (folder / text).resolve()
    if text.startswith("/vsi") or ":" in text or not file.is_relative_to(folder):
        raise ZoneError(f"{where}: names {text!r}, expected files in {folder} or below. Move them there.")
    try:
        with rasterio.open(file, driver="GTiff", sharing=False):
            return file
    except RasterioError as error:
        raise ZoneError(f"{where}: {file} does not open as a GeoTIFF ({error}).") from None
