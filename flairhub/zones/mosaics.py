"""VRT mosaics: accepted only as plain lists of local GeoTIFFs beside them; where they cover nothing there is no data.

GDAL gives zeros where no tile lies, and forgets the masks and, often, the nodata of the tiles. The tiles are therefore
asked themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from flairhub.errors import ZoneError
from flairhub.geo import geobox_of
from flairhub.validity import nodata_of, valid_pixels
from flairhub.zones.geotiff import (
    MissingFacts,
    Span,
    borrowed,
    foreign_sidecar,
    missing_facts,
    read_masks,
    window_of,
    written_pixels,
)

_MAX_BYTES = 50_000_000
_TILE_TAGS = ("SimpleSource", "ComplexSource")
_SOURCE_TAGS = {
    *("SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA", "UseMaskBand"),
    *("ScaleOffset", "ScaleRatio", "ColorTableComponent", "LUT", "Exponent", "SrcMin", "SrcMax", "DstMin", "DstMax"),
}
_TAGS = {
    *("VRTDataset", "SRS", "GeoTransform", "Metadata", "MDI", "VRTRasterBand", "Description", "UnitType", "Offset"),
    *("Scale", "CategoryNames", "Category", "ColorTable", "Entry", "ColorInterp", "NoDataValue", "HideNoDataValue"),
    *("MaskBand", "OverviewList", "Histograms", "HistItem", "HistMin", "HistMax", "BucketCount", "IncludeOutOfRange"),
    *("Approximate", "HistCounts", "BlockXSize", "BlockYSize", "GCPList", "GCP"),
    *_TILE_TAGS,
    *_SOURCE_TAGS,
}
"""The elements of a plain mosaic; GDAL takes names in any case, but writes them like this."""
_MOST_CELLS = 4_000_000
"""Irregular mosaics of more cells between the edges of their tiles are not checked for holes when they are opened."""

Rect = tuple[float, float, float, float]
"""Left, top, width, height in pixels."""


@dataclass(frozen=True)
class Tile:
    """A part of a band of a mosaic.

    Attributes:
        path: GeoTIFF.
        band: Which of its bands, from 1.
        source: What of the tile is shown; None = all of it.
        target: Where; None = on the whole mosaic.
        overlay: Its pixels without data let show what lies below.
    """

    path: str
    band: int
    source: Rect | None
    target: Rect | None
    overlay: bool


@dataclass(frozen=True)
class Mosaic:
    """A mosaic as its XML describes it.

    Attributes:
        height: Rows.
        width: Columns.
        bands: Tiles of every band, lowest first.
    """

    height: int
    width: int
    bands: tuple[tuple[Tile, ...], ...]

    @property
    def files(self) -> list[Path]:
        """Its GeoTIFFs."""
        return sorted({Path(tile.path) for tiles in self.bands for tile in tiles})

    def has_gaps(self) -> bool:
        """True when pixels may be without data that GDAL would take for data."""
        if any(facts.nodata is not None or facts.masked or facts.sparse for facts in map(_tile_facts, self.files)):
            return True
        return any(self._has_holes(tiles) for tiles in set(self.bands))

    def _has_holes(self, tiles: Sequence[Tile]) -> bool:
        spans = [tile_spans(self, tile) for tile in tiles]
        rows = np.unique([0, self.height, *(edge for span, _ in spans for edge in span)])
        cols = np.unique([0, self.width, *(edge for _, span in spans for edge in span)])
        if len(rows) * len(cols) > _MOST_CELLS:
            return True
        covered = np.zeros((len(rows) - 1, len(cols) - 1), dtype=bool)
        for (top, bottom), (left, right) in spans:
            y, x = np.searchsorted(rows, (top, bottom)), np.searchsorted(cols, (left, right))
            covered[y[0] : y[1], x[0] : x[1]] = True
        return not covered.all()


def tile_spans(mosaic: Mosaic, tile: Tile) -> tuple[Span, Span]:
    """Rows and columns of a mosaic whose centres lie in a tile."""
    left, top, width, height = tile.target or (0, 0, mosaic.width, mosaic.height)

    def span(first: float, length: float, limit: int) -> Span:
        low, high = int(np.ceil(first - 0.5)), int(np.ceil(first + length - 0.5))
        return min(max(low, 0), limit), min(max(high, 0), limit)

    return span(top, height, mosaic.height), span(left, width, mosaic.width)


def read_mosaic(path: Path, where: str) -> Mosaic:
    """Read and check a VRT mosaic.

    A VRT can name any file, address or program; only GeoTIFFs in the VRT's own folder or below are let through, and
    what is checked is what GDAL opens.

    Args:
        path: The VRT.
        where: Configuration key and path, for messages.

    Raises:
        ZoneError: It is damaged, or names anything else.
    """
    text = path.read_bytes()
    if len(text) > _MAX_BYTES or b"<!" in text.replace(b"<!--", b""):
        raise ZoneError(f"{where}: over {_MAX_BYTES} bytes, or with XML declarations. Expected a plain VRT mosaic.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ZoneError(f"{where}: damaged XML ({error}).") from None
    if root.tag != "VRTDataset" or any("subClass" in element.attrib for element in root.iter()):
        raise ZoneError(f"{where}: no plain mosaic (warped, derived, raw). Expected one as gdalbuildvrt writes.")
    # Whatever else GDAL may know today or tomorrow, or reads without regard to case, could name other files.
    unknown = sorted({element.tag for element in root.iter()} - _TAGS)
    if unknown:
        raise ZoneError(f"{where}: has the element {unknown[0]!r}. Expected a plain mosaic as gdalbuildvrt writes.")
    named = {
        id(name): name
        for element in root.iter()
        if element.tag in _TILE_TAGS
        for name in element.findall("SourceFilename")
    }
    others = [name for name in root.iter("SourceFilename") if id(name) not in named]
    if others or not named or next(root.iter("OpenOptions"), None) is not None:
        raise ZoneError(f"{where}: sources other than plain files, or none. Expected one as gdalbuildvrt writes.")
    folder = path.resolve().parent
    files: dict[str, str] = {}
    for name in named.values():
        key = ElementTree.tostring(name, encoding="unicode").strip()
        if key not in files:
            files[key] = _checked_file(name, folder, where)
    try:
        bands = tuple(
            tuple(_tile(element, files) for element in band if element.tag in _TILE_TAGS)
            for band in root.findall("VRTRasterBand")
        )
        return Mosaic(int(root.attrib["rasterYSize"]), int(root.attrib["rasterXSize"]), bands)
    except (KeyError, ValueError, AttributeError) as error:
        raise ZoneError(f"{where}: damaged mosaic ({type(error).__name__}: {error}).") from None


def _checked_file(name: ElementTree.Element, folder: Path, where: str) -> str:
    text = name.text or ""
    # GDAL takes attributes in any case, the first of several, and a name with all its blanks.
    if len(name) or text != text.strip() or not set(name.attrib) <= {"relativeToVRT", "shared"}:
        raise ZoneError(f"{where}: names {text!r} with blanks, elements or attributes that gdalbuildvrt never writes.")
    beside = name.attrib.get("relativeToVRT", "0") == "1"
    if not beside and not Path(text).is_absolute() and not text.startswith("/vsi") and ":" not in text:
        # GDAL would look for it in the current folder, whatever that is.
        raise ZoneError(
            f'{where}: names {text!r} without relativeToVRT="1". Make the mosaic with gdalbuildvrt in its own folder, '
            f"or set the attribute."
        )
    file = (folder / text).resolve()
    if text.startswith("/vsi") or ":" in text or not file.is_relative_to(folder):
        raise ZoneError(f"{where}: names {text!r}, expected files in {folder} or below. Move them there.")
    try:
        with rasterio.open(file, driver="GTiff", sharing=False) as dataset:
            foreign = foreign_sidecar(str(file), dataset.tags(ns="OVERVIEWS"))
            placed = (dataset.transform.c, dataset.transform.f) != (0.0, 0.0)
            if not placed and dataset.crs and not dataset.transform.is_identity:
                geobox_of(dataset, f"{where}: {file}")
    except RasterioError as error:
        raise ZoneError(f"{where}: {file} does not open as a GeoTIFF ({error}).") from None
    if foreign is not None:
        raise ZoneError(f"{where}: {file} {foreign}. Expected plain GeoTIFFs.")
    return str(file)


def _tile(element: ElementTree.Element, files: dict[str, str]) -> Tile:
    name = element.find("SourceFilename")
    assert name is not None
    path = files[ElementTree.tostring(name, encoding="unicode").strip()]
    overlay = element.find("NODATA") is not None or (element.findtext("UseMaskBand") or "").strip().lower() == "true"
    band = int(element.findtext("SourceBand") or 1)
    return Tile(path, band, _rect(element.find("SrcRect")), _rect(element.find("DstRect")), overlay)


def _rect(element: ElementTree.Element | None) -> Rect | None:
    if element is None:
        return None
    left, top, width, height = (float(element.attrib[key]) for key in ("xOff", "yOff", "xSize", "ySize"))
    return left, top, width, height


@dataclass(frozen=True)
class Coverage:
    """Where a band of a mosaic has data, (y, x) bool.

    Attributes:
        known: A tile lies there, was written, and is not masked.
        numbers: The tile's number there is not its nodata; None = nowhere is.
    """

    known: NDArray[np.bool_]
    numbers: NDArray[np.bool_] | None


def band_coverages(mosaic: Mosaic, rows: Span, cols: Span) -> list[Coverage]:
    """Return where each band of a mosaic has data in a region; bands of the same tiles share one answer.

    Args:
        mosaic: Its tiles.
        rows: First row and one past the last, pixels of the mosaic.
        cols: Likewise for columns.

    Raises:
        RasterioError: A tile cannot be read.
    """
    # Which band of a tile is shown matters only where its numbers do.
    groups = [
        tuple(tile if _tile_facts(Path(tile.path)).nodata is not None else replace(tile, band=0) for tile in tiles)
        for tiles in mosaic.bands
    ]
    by_group = {group: _coverage(mosaic, group, rows, cols) for group in set(groups)}
    return [by_group[group] for group in groups]


def _coverage(mosaic: Mosaic, tiles: Sequence[Tile], rows: Span, cols: Span) -> Coverage:
    shape = rows[1] - rows[0], cols[1] - cols[0]
    known, numbers = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    for tile, y, x in _touched(mosaic, tiles, rows, cols):
        part = slice(y[0] - rows[0], y[1] - rows[0]), slice(x[0] - cols[0], x[1] - cols[0])
        tile_known, tile_numbers = _tile_validity(mosaic, tile, y, x)
        if tile.overlay:
            shown = tile_known & tile_numbers
            known[part] = np.where(shown, True, known[part])
            numbers[part] = np.where(shown, True, numbers[part])
        else:
            known[part], numbers[part] = tile_known, tile_numbers
    return Coverage(known, None if numbers.all() else numbers)


def _touched(mosaic: Mosaic, tiles: Sequence[Tile], rows: Span, cols: Span) -> Iterator[tuple[Tile, Span, Span]]:
    """Tiles that reach into a region, with the rows and columns they share with it."""
    edges = _edges(mosaic, tuple(tiles))
    near = (edges[:, 0] < rows[1]) & (edges[:, 1] > rows[0]) & (edges[:, 2] < cols[1]) & (edges[:, 3] > cols[0])
    for number in np.flatnonzero(near).tolist():
        top, bottom, left, right = edges[number].tolist()
        yield tiles[number], (max(top, rows[0]), min(bottom, rows[1])), (max(left, cols[0]), min(right, cols[1]))


@lru_cache(maxsize=64)
def _edges(mosaic: Mosaic, tiles: tuple[Tile, ...]) -> NDArray[np.int64]:
    """(tile, 4): first row, last, first column, last."""
    spans = [tile_spans(mosaic, tile) for tile in tiles]
    return np.array([(*y, *x) for y, x in spans], dtype=np.int64).reshape(-1, 4)


def _tile_validity(mosaic: Mosaic, tile: Tile, rows: Span, cols: Span) -> tuple[Any, Any]:
    """`known` and `numbers` of a tile for rows and columns of the mosaic that lie in it; True = everywhere."""
    facts = _tile_facts(Path(tile.path))
    if facts.nodata is None and not facts.masked and not facts.sparse:
        return True, True
    with borrowed(tile.path) as dataset:
        left, top, width, height = tile.source or (0, 0, dataset.width, dataset.height)
        x0, y0, x_size, y_size = tile.target or (0, 0, mosaic.width, mosaic.height)
        y = _positions(rows, y0, y_size, top, height, dataset.height)
        x = _positions(cols, x0, x_size, left, width, dataset.width)
        tile_rows, tile_cols = (int(y.min()), int(y.max()) + 1), (int(x.min()), int(x.max()) + 1)
        known = read_masks(dataset, facts.masked, tile_rows, tile_cols)
        written = written_pixels(dataset, tile_rows, tile_cols) if facts.sparse else None
        if written is not None:
            every_band = np.asarray(written.all(axis=0))
            known = every_band if known is None else known & every_band
        numbers = None
        if facts.nodata is not None:
            values = dataset.read([tile.band], window=window_of(tile_rows, tile_cols))
            numbers = valid_pixels(values, nodata_of(facts.nodata, tile.band - 1))
    pick = np.ix_(y - tile_rows[0], x - tile_cols[0])
    return True if known is None else known[pick], True if numbers is None else numbers[pick]


def _positions(
    span: Span, target: float, target_length: float, source: float, source_length: float, limit: int
) -> NDArray[np.int64]:
    """Tile pixels that hold the centres of mosaic pixels."""
    centres = np.arange(*span) + 0.5
    places = np.floor(source + (centres - target) * source_length / target_length).astype(np.int64)
    return np.clip(places, 0, limit - 1)


def _tile_facts(path: Path) -> MissingFacts:
    stat = path.stat()
    return _read_tile_facts(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=65536)
def _read_tile_facts(path: str, size: int, changed_ns: int) -> MissingFacts:
    with rasterio.open(path, driver="GTiff", sharing=False) as dataset:
        return missing_facts(dataset)
