"""How arrays in memory and dask-backed ones enter a graph: chunk by chunk, as edges.

A task gets a zone without those pixels, and the chunks that hold what it reads. So a chunk is computed once, wherever
it is needed, and nothing is computed inside a task.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flairhub.zones.arrays import ArrayRaster, chunks_under, is_edge
from flairhub.zones.raster import Raster, Span
from flairhub.zones.zone import Zone

if TYPE_CHECKING:
    import dask.array as da

Regions = Mapping[str, tuple[Span, Span]]
"""By modality or mask, the rows and columns that a task reads; they may lie outside."""

Chunk = tuple[str, int, int]
"""A modality or mask, and the row and column number of a chunk of it."""


def detach(zone: Zone, names: Sequence[str]) -> tuple[Zone, dict[str, da.Array]]:
    """Part a zone from the pixels that enter graphs.

    Args:
        zone: The zone.
        names: Modalities and masks that tasks read.

    Returns:
        The zone without them, and an array by modality or mask, (time,) band, y, x.
    """
    arrays, bare = {}, {}
    for raster in zone.everything:
        origin = raster.origin
        if not is_edge(raster) or not isinstance(origin, ArrayRaster):
            continue
        if raster.name in names:
            arrays[raster.name] = origin.chunks()
        bare[raster.name] = raster.with_origin(origin.detached())
    return _with(zone, bare), arrays


def needed_chunks(zone: Zone, regions: Regions) -> list[Chunk]:
    """Chunks that a task needs to read some regions; always in the same order.

    Args:
        zone: The rasters.
        regions: What is read, of rasters that are edges (`is_edge`).
    """
    return [(name, *number) for name, region in regions.items() for number in chunks_under(zone.raster(name), *region)]


def attach(zone: Zone, regions: Regions, chunks: Sequence[Any]) -> Zone:
    """Return a zone that reads some regions from the chunks of a task.

    Args:
        zone: As `detach` returns it.
        regions: What is read, of the rasters that were detached.
        chunks: Those of `needed_chunks` in their order.
    """
    pieces: dict[str, dict[tuple[int, int], Any]] = {name: {} for name in regions}
    for (name, *number), values in zip(needed_chunks(zone, regions), chunks, strict=True):
        pieces[name][number[0], number[1]] = values
    complete = {}
    for name, chunks_of_it in pieces.items():
        raster = zone.raster(name)
        assert isinstance(raster.origin, ArrayRaster)
        complete[name] = raster.with_origin(raster.origin.attached(chunks_of_it))
    return _with(zone, complete)


def joined(zones: Sequence[Zone]) -> Zone:
    """Return a zone with the chunks of some parts of it, as `attach` returns them."""
    first, complete = zones[0], {}
    for raster in first.everything:
        origins = [zone.raster(raster.name).origin for zone in zones]
        pieces = [origin.pieces for origin in origins if isinstance(origin, ArrayRaster) and origin.pieces is not None]
        if pieces:
            assert isinstance(raster.origin, ArrayRaster)
            complete[raster.name] = raster.with_origin(raster.origin.attached(dict(ChainMap(*map(dict, pieces)))))
    return _with(first, complete)


def chunk_bytes(zone: Zone) -> int:
    """Return the bytes of the chunks that a zone was given."""
    pieces = [raster.origin.pieces or {} for raster in zone.everything if isinstance(raster.origin, ArrayRaster)]
    return sum(values.nbytes for chunks in pieces for values in chunks.values())


def _with(zone: Zone, rasters: Mapping[str, Raster]) -> Zone:
    return replace(
        zone,
        rasters={name: rasters.get(name, raster) for name, raster in zone.rasters.items()},
        quality={series: rasters.get(mask.name, mask) for series, mask in zone.quality.items()},
    )
