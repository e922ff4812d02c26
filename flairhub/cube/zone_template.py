"""Writing everything of a zone cube but its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flairhub.cube.codecs import ChunkCodec
from flairhub.cube.spec import INGEST
from flairhub.cube.template import consolidate, quiet, write_table
from flairhub.cube.zone_spec import (
    DATA,
    MASK_CODEC,
    VALID,
    ZONE_FORMAT,
    ZONE_KEY,
    Tiling,
    ZoneLayer,
    data_codec,
    tiling_of,
)
from flairhub.geo import GeoBox
from flairhub.validity import Nodata

DAY_ATTRIBUTES = {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian", "standard_name": "time"}


def create_zone_store(folder: Path, layers: Sequence[ZoneLayer], codec: str, plan: str) -> None:
    """Write all metadata and coordinates with status `building`; `folder` must be new.

    Args:
        folder: The store.
        layers: What it will hold.
        codec: Preset.
        plan: Digest of what is to be ingested and how.
    """
    import zarr

    facts = {
        "format": ZONE_FORMAT,
        "status": "building",
        "plan": plan,
        "codec": codec,
        "modalities": [layer.name for layer in layers],
        "crs_wkt": layers[0].geobox.crs_wkt,
    }
    with quiet():
        root = zarr.create_group(str(folder), attributes={ZONE_KEY: facts})
        root.create_group(INGEST, attributes={"holds": "journal of the ingest; no arrays"})
        for layer in layers:
            _create_layer(root, layer, codec)
    consolidate(folder)


def _create_layer(root: Any, layer: ZoneLayer, codec: str) -> None:
    box, tiling = layer.geobox, tiling_of(layer)
    attributes = {
        "modality": layer.name,
        "bands": list(layer.bands),
        "gsd_m": [box.x_res, box.y_res],
        "transform": list(box.transform),
        "crs_wkt": box.crs_wkt,
        "nodata": layer.nodata,
        "has_mask": layer.has_mask,
        **({} if layer.alpha is None else {"alpha": layer.alpha}),
    }
    group = root.create_group(layer.name, attributes=attributes)
    _create_tiled(group, DATA, layer.shape, layer.dims, layer.dtype, tiling, data_codec(codec, layer), layer.nodata)
    if layer.has_mask:
        _create_tiled(group, VALID, layer.mask_shape, layer.mask_dims, "uint8", tiling, MASK_CODEC, None)
    write_table(group, "band", np.array(layer.bands), ("band",))
    if layer.dates is not None:
        days = layer.dates.astype("datetime64[D]").astype(np.int32)
        write_table(group, "time", days, ("time",), DAY_ATTRIBUTES)
    for name, centres in box.coords().items():
        attributes = {"axis": name.upper(), "standard_name": f"projection_{name}_coordinate"}
        write_table(group, name, centres, (name,), attributes)
    write_table(group, "spatial_ref", np.array(0), (), _grid_mapping(box))


def _create_tiled(
    group: Any,
    name: str,
    shape: tuple[int, ...],
    dims: tuple[str, ...],
    dtype: str,
    tiling: Tiling,
    codec: ChunkCodec,
    nodata: Nodata,
) -> None:
    leading = shape[:-2]
    attributes: dict[str, Any] = {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}
    group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(*leading, tiling.chunk_px, tiling.chunk_px),
        shards=(*leading, tiling.shard_px, tiling.shard_px),
        compressors=codec.to_zarr(),
        fill_value=float("nan") if np.dtype(dtype).kind == "f" else 0,
        dimension_names=dims,
        # Under this name rioxarray finds it, and xarray leaves the values as they are.
        attributes={**attributes, "nodata": nodata} if isinstance(nodata, int | float) else attributes,
    )


def _grid_mapping(box: GeoBox) -> dict[str, Any]:
    """Attributes of `spatial_ref`: CF, with the two that GDAL and rioxarray read."""
    import rioxarray  # noqa: F401  (registers .rio)
    import xarray as xr

    written = xr.Dataset().rio.write_crs(box.crs_wkt).rio.write_transform(box.affine())
    return {key: _plain(value) for key, value in written["spatial_ref"].attrs.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value
