"""A zone from what is at hand: xarray objects and files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import UsageError, ZoneError
from flairhub.geo import same_grid
from flairhub.modalities import INPUTS, MODALITIES, Modality, modality
from flairhub.validity import Nodata
from flairhub.written_dates import parse_date
from flairhub.zones.area_source import with_area
from flairhub.zones.arrays import ArrayRaster, Member, file_facts, is_in_memory, one_chunk_deep
from flairhub.zones.dates import read_dates
from flairhub.zones.files import open_file
from flairhub.zones.raster import Raster
from flairhub.zones.xarray_facts import (
    Dims,
    Grid,
    Packing,
    bands_by_label,
    bands_of,
    crs_of,
    dates_of,
    dims_of,
    grid_of,
    nodata_of_array,
    packing_of,
)
from flairhub.zones.zone import Zone, fit

if TYPE_CHECKING:
    import xarray as xr


def zone(
    sources: Mapping[str, Any] | None = None,
    /,
    *,
    quality: Mapping[str, Any] | None = None,
    dates: Mapping[str, Any] | None = None,
    align: Literal["strict", "resample"] = "strict",
    aoi: Any = None,
    **named: Any,
) -> Zone:
    """Make a zone of xarray objects: metadata and coordinates are read, no pixel.

        zone = fh.zone(AERIAL_RGBI=ortho, SENTINEL2_TS=s2, quality={"SENTINEL2_TS": clouds})

    A source is a DataArray or a Dataset of (time,) band, y, x in any order (a Dataset may have a variable per band), or
    the path of a GeoTIFF or VRT mosaic. Bands go by name where there are names, published ones or STAC common names.

    Args:
        sources: By modality; for names that are no keywords (`SENTINEL1-ASC_TS`).
        quality: Snow and cloud probabilities by the series they belong to.
        dates: By series, the date of each image (dates, `YYYY-MM-DD`, `YYYYMMDD`, or a date file), instead of the time
            coordinate; needed for files.
        align: `resample` warps rasters of another CRS, extent or pixel onto the finest one's grid while they are read;
            otherwise they must fit.
        aoi: Only this area is mapped: the path of a vector file, a geometry, a GeoDataFrame, GeoJSON, a bbox, or a
            mapping that says more (`path`, `layer`, `where`, `bbox`, `geometry`, `crs`); see docs/zonal.md.
        **named: Sources by modality.

    Returns:
        The same `Zone` as `open_zone` returns.

    Raises:
        UsageError: An unknown modality or keyword.
        ZoneError: What a source says about itself is missing or does not fit, or the area does not.
        DataError: A file without georeferencing, or a damaged date file.
    """
    given = {**(sources or {}), **named}
    _check_names(given, quality or {}, dates or {})
    if align not in ("strict", "resample"):
        raise UsageError(f"align: got {align!r}, expected strict or resample.")
    days = {name: _given_dates(value, f"dates[{name!r}]") for name, value in (dates or {}).items()}
    rasters = {name: _opened(given[name], name, name, days.get(name)) for name in sorted(given, key=INPUTS.index)}
    masks = {}
    for series, source in (quality or {}).items():
        mask_name = MODALITIES[series].quality_mask
        assert mask_name is not None, "checked"
        masks[series] = _mask(source, mask_name, series, rasters[series])
    return with_area(fit(rasters, masks, resample=align == "resample"), aoi)


def _check_names(sources: Mapping[str, Any], quality: Mapping[str, Any], dates: Mapping[str, Any]) -> None:
    if not sources:
        raise UsageError(f"zone: got no source, expected at least one of {', '.join(INPUTS)}.")
    for name in sources:
        if not modality(name).is_input:
            raise UsageError(f"{name} is no input of a network. Expected some of {', '.join(INPUTS)}.")
    for key, names in (("quality", quality), ("dates", dates)):
        for name in names:
            if name not in sources or not MODALITIES[name].is_series:
                raise UsageError(f"{key}: {name} is no series among the sources ({', '.join(sources)}).")
    for name in quality:
        if MODALITIES[name].quality_mask is None:
            raise UsageError(f"quality: {name} has no quality mask.")


def _opened(source: Any, name: str, key: str, dates: NDArray[np.datetime64] | None) -> Raster:
    if not isinstance(source, str | Path):
        return open_array(source, name, key, dates)
    if MODALITIES[name].is_series and dates is None:
        raise ZoneError(f"{key}: {source} is a file: give the date of each image, dates={{...}}.")
    return open_file(Path(source), name, key, dates, Path("dates"))


def _mask(source: Any, name: str, series: str, raster: Raster) -> Raster:
    key = f"quality[{series!r}]"
    if isinstance(source, str | Path):
        return _opened(source, name, key, raster.dates)
    mask = open_array(source, name, key, _dates_of_mask(source, raster))
    if mask.n_dates != raster.n_dates or not np.array_equal(mask.dates, raster.dates):  # type: ignore[arg-type]
        raise ZoneError(
            f"{key}: has {mask.n_dates} dates, and {series} {raster.n_dates}, or others. Every image needs its mask: "
            f"select the same dates of both."
        )
    return mask


def _dates_of_mask(source: Any, raster: Raster) -> NDArray[np.datetime64] | None:
    """The dates of the series, for a mask without dates."""
    coords = getattr(source, "coords", {})
    return None if any(name in coords for name in ("time", "t", "Time", "T")) else raster.dates


def _given_dates(given: Any, key: str) -> NDArray[np.datetime64]:
    if isinstance(given, str | Path):
        return read_dates(Path(given), key)
    days = []
    for day in given:
        text = str(day)[:10].replace("-", "")
        days.append(parse_date(text, key))
    if not days:
        raise ZoneError(f"{key}: holds no date. Expected one per image.")
    return np.array(days, dtype="datetime64[D]")


def open_array(
    source: xr.DataArray | xr.Dataset,
    name: str,
    key: str,
    dates: NDArray[np.datetime64] | None = None,
) -> ArrayRaster:
    """Take an xarray object as a raster: its metadata are read, no pixel.

    Args:
        source: (time,) band, y, x in any order, or a Dataset with a variable per band.
        name: Modality or quality-mask name.
        key: What names it in messages.
        dates: (time,) datetime64[D] instead of its time coordinate.

    Raises:
        ZoneError: What it says about itself is missing or does not fit.
    """
    row = MODALITIES[name]
    selected = _members(source, row, key)
    first, dims, _ = selected[0]
    where = _named(first, key)
    grids = [
        grid_of(array, dims, crs_of(array, source.attrs, _named(array, key)), _named(array, key))
        for array, dims, _ in selected
    ]
    for (array, _, _), grid in zip(selected, grids, strict=True):
        if not _same_grid(grid, grids[0]):
            raise ZoneError(
                f"{key}: {array.name} lies on another grid than {first.name}: {grid.geobox.width} x "
                f"{grid.geobox.height} px of {grid.geobox.x_res:g} instead of {grids[0].geobox.width} x "
                f"{grids[0].geobox.height} px of {grids[0].geobox.x_res:g}. Put its bands on one grid."
            )
    kinds = {array.dtype.kind for array, _, _ in selected}
    if not kinds <= set("iuf"):
        raise ZoneError(f"{where}: has dtype {first.dtype}, expected real numbers.")
    members = tuple(
        Member(array.variable, dims, tuple(position for _, position in bands)) for array, dims, bands in selected
    )
    packing = tuple(packing for array, _, bands in selected for packing in [packing_of(array)] * len(bands))
    nodata = tuple(value for array, _, bands in selected for value in [nodata_of_array(array)] * len(bands))
    in_memory = all(is_in_memory(member.variable) for member in members)
    files = _files_of([*(array for array, _, _ in selected), source])
    raster = ArrayRaster(
        name=name,
        geobox=grids[0].geobox,
        bands=tuple(band for _, _, bands in selected for band, _ in bands),
        dates=_dates(first, dims, row, dates, where),
        dtype=_dtype([array.dtype for array, _, _ in selected], packing),
        nodata=_nodata(nodata, packing),
        source=where,
        members=members,
        flips=(grids[0].south_up, grids[0].mirrored),
        packing=packing,
        stamp=None if in_memory else _stamp_of(selected, files),
        files=() if in_memory else files,
    )
    return _dask_backed(raster, grids[0]) if any(member.variable.chunks is not None for member in members) else raster


def _same_grid(one: Grid, other: Grid) -> bool:
    return (one.south_up, one.mirrored) == (other.south_up, other.mirrored) and same_grid(one.geobox, other.geobox)


def _dask_backed(raster: ArrayRaster, grid: Grid) -> ArrayRaster:
    array = one_chunk_deep([member.chunked() for member in raster.members], raster.dates is not None)
    if any(np.isnan(length) for lengths in array.chunks for length in lengths):
        raise ZoneError(f"{raster.source}: dask does not know the sizes of its chunks. Call compute_chunk_sizes.")
    if grid.south_up or grid.mirrored:
        array = array[..., :: -1 if grid.south_up else 1, :: -1 if grid.mirrored else 1]
    return replace(raster, members=(), flips=(False, False), array=array, stamp=array.name)


_Selected = list[tuple[Any, Dims, list[tuple[str, int]]]]
"""Arrays with their dimensions, and the bands taken from each with their positions."""


def _members(source: Any, row: Modality, key: str) -> _Selected:
    import xarray as xr

    if isinstance(source, xr.DataArray):
        return [_whole(source, row, _named(source, key))]
    if not isinstance(source, xr.Dataset):
        raise ZoneError(f"{key}: got {type(source).__name__}, expected a DataArray, a Dataset or a path.")
    mappings = {source[name].encoding.get("grid_mapping", source[name].attrs.get("grid_mapping")) for name in source}
    source = source.set_coords([name for name in {*mappings, "spatial_ref"} if name in source.data_vars])
    arrays = {str(name): array for name, array in source.data_vars.items() if array.ndim >= 2}
    stacked = [array for array in arrays.values() if array.ndim >= 3 and not _is_band(array, row)]
    if len(arrays) == 1 and (stacked or len(row.bands) == 1):
        return [_whole(next(iter(arrays.values())), row, key)]
    if not arrays:
        raise ZoneError(f"{key}: the Dataset has no variable with y and x.")
    labels = list(arrays)
    selected = []
    for band, position in bands_by_label(labels, row, key):
        array = arrays[labels[position]]
        dims = dims_of(array, row, _named(array, key))
        if "band" in dims:
            raise ZoneError(f"{_named(array, key)}: a variable per band, or one with a dimension band; not both.")
        selected.append((array, dims, [(band, 0)]))
    if len({array.sizes.get(dims.get("time"), 1) for array, dims, _ in selected}) > 1:
        raise ZoneError(f"{key}: its bands differ in their number of dates.")
    return selected


def _is_band(array: xr.DataArray, row: Modality) -> bool:
    return row.published_band(array.name) is not None


def _whole(array: xr.DataArray, row: Modality, where: str) -> tuple[Any, Dims, list[tuple[str, int]]]:
    dims = dims_of(array, row, where)
    return array, dims, bands_of(array, dims, row, where)


def _named(array: xr.DataArray, key: str) -> str:
    path = array.encoding.get("source")
    return f"{key} ({path})" if path else key


def _dates(
    array: xr.DataArray, dims: Dims, row: Modality, given: NDArray[np.datetime64] | None, where: str
) -> NDArray[np.datetime64] | None:
    if not row.is_series:
        return None
    n_images = array.sizes[dims["time"]] if "time" in dims else 1
    dates = dates_of(array, dims, where) if given is None else given
    if dates is None:
        raise ZoneError(
            f"{where}: has no time coordinate. {row.name} is a time series: its network needs the date of each image. "
            f"Give the coordinate, or dates={{...}}."
        )
    if len(dates) != n_images:
        raise ZoneError(f"{where}: has {n_images} images, but {len(dates)} dates. Every image needs its date.")
    return dates


def _dtype(dtypes: Sequence[np.dtype[Any]], packing: Sequence[Packing | None]) -> str:
    dtype = np.result_type(*dtypes)
    if any(packing) and dtype.kind != "f":
        dtype = np.dtype("float32" if dtype.itemsize <= 2 else "float64")
    return str(dtype.newbyteorder("=").name)


def _nodata(values: Sequence[float | None], packing: Sequence[Packing | None]) -> Nodata:
    # Where numbers were packed, what has no data is NaN.
    kept = tuple(None if packed else value for value, packed in zip(values, packing, strict=True))
    return kept[0] if len(set(kept)) == 1 else kept


def _files_of(sources: Sequence[Any]) -> tuple[tuple[str, int, int], ...]:
    """Path, size and time of change in ns of the files that arrays are read from, where they say so."""
    named = [source.encoding.get("source") for source in sources]
    paths = dict.fromkeys(str(path) for path in named if path is not None)
    return tuple((path, *file_facts(path)) for path in paths if os.path.exists(path))  # type: ignore[misc]


def _stamp_of(selected: _Selected, files: Sequence[tuple[str, int, int]]) -> str:
    """Tell lazily indexed pixels from others without reading them: their file, its time of change, what is selected."""
    from dask.base import tokenize

    facts = []
    known = {path: changed for path, *changed in files}
    for array, _, bands in selected:
        path = str(array.encoding.get("source"))
        if path not in known:
            return uuid4().hex
        corners = [array[name].values[[0, -1]].tolist() for name in array.dims if name in array.coords]
        facts.append((path, *known[path], str(array.name), array.shape, str(corners), bands))
    return str(tokenize(facts))
