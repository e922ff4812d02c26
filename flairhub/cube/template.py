"""Writing everything of a cube but its pixels: the template first, the results of the jobs last."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.cube.seal import ROOT_FILE, sealed, unsealed
from flairhub.cube.spec import (
    DATE_ATTRIBUTES,
    FORMAT_VERSION,
    HAS_MASK,
    INGEST,
    NO_DAY,
    NODATA,
    PATCHES,
    ROOT_KEY,
    SMALL_CODEC,
    VALID,
    ArraySpec,
    valid_spec,
)
from flairhub.jobs import write_file
from flairhub.modalities import modality
from flairhub.timeseries import CloudFilter, period_count

_TABLE_FILLS: Mapping[str, Any] = {"U": "", "i": 0, "f": float("nan"), "b": False}


@dataclass(frozen=True)
class AverageTemplate:
    """Period means stored beside a series.

    Attributes:
        average: `monthly` or `semi-monthly`; also the name of the group.
        cloud_filter: Filter that chooses the dates, None = all.
        spec: Its `data` array.
    """

    average: str
    cloud_filter: CloudFilter | None
    spec: ArraySpec


@dataclass(frozen=True)
class GroupTemplate:
    """One modality of a cube before any pixel is read.

    Attributes:
        name: Modality.
        spec: Its `data` array.
        gsd: (x, y) pixel size in CRS units.
        days: (patch, time) int32 days since 1970-01-01, `NO_DAY` beyond a patch's dates; None for images and labels.
        averages: Period means to store.
        attributes: More attributes of the group.
    """

    name: str
    spec: ArraySpec
    gsd: tuple[float, float]
    days: NDArray[np.int32] | None
    averages: tuple[AverageTemplate, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class CubeTemplate:
    """A whole cube before any pixel is read.

    Attributes:
        columns: Patch table by column, without `x_min` and `y_max`, which come from the files.
        crs_wkt: CRS of all patches.
        footprint_m: (width, height) of a patch in CRS units.
        codec: Preset.
        plan: Digest of what is to be ingested and how.
        groups: The modalities.
    """

    columns: Mapping[str, NDArray[Any]]
    crs_wkt: str
    footprint_m: tuple[float, float]
    codec: str
    plan: str
    groups: tuple[GroupTemplate, ...]


@dataclass(frozen=True)
class GroupResult:
    """What reading the files of a modality told.

    Attributes:
        present: (patch,) bool.
        attributes: Statistics and counts for the group's attributes.
        nodata: (patch,) float64, the number that stands for no data in the patch's values, NaN = none.
        has_mask: (patch,) bool, which patches have a chunk in `valid`.
    """

    present: NDArray[np.bool_]
    attributes: Mapping[str, Any]
    nodata: NDArray[np.float64]
    has_mask: NDArray[np.bool_]


def create_store(folder: Path, template: CubeTemplate) -> None:
    """Write all metadata and tables with status `building`, not yet consolidated; `folder` must be new."""
    import zarr

    n_patches = len(template.columns["patch_id"])
    facts = {
        "format": FORMAT_VERSION,
        "status": "building",
        "plan": template.plan,
        "codec": template.codec,
        "n_patches": n_patches,
        "modalities": [group.name for group in template.groups],
        "crs_wkt": template.crs_wkt,
        "footprint_m": list(template.footprint_m),
    }
    with quiet():
        root = zarr.create_group(str(folder), attributes={ROOT_KEY: facts})
        root.create_group(INGEST, attributes={"holds": "journal of the ingest; no arrays"})
        patches = root.create_group(PATCHES)
        for name, values in template.columns.items():
            write_table(patches, name, values, ("patch",))
        for name in ("x_min", "y_max"):
            write_table(patches, name, np.full(n_patches, np.nan), ("patch",), {"units": "CRS units"})
        for group in template.groups:
            _create_group(root, group, template)


def fill_store(
    folder: Path, template: CubeTemplate, origins: NDArray[np.float64], results: Mapping[str, GroupResult]
) -> None:
    """Write what the jobs gave and consolidate the metadata; safe to repeat.

    Args:
        folder: The store.
        template: What it was made from.
        origins: (patch, 2) x_min and y_max.
        results: By modality.
    """
    import zarr

    with quiet():
        root = zarr.open_group(str(folder), mode="r+", use_consolidated=False)
        patches = root[PATCHES]
        patches["x_min"][:], patches["y_max"][:] = origins[:, 0], origins[:, 1]  # type: ignore[index]
        for group in template.groups:
            result, stored = results[group.name], root[group.name]
            stored["present"][:] = result.present  # type: ignore[index]
            if group.days is not None:
                days = np.where(result.present[:, None], group.days, NO_DAY).astype(np.int32)
                stored["date"][:] = days  # type: ignore[index]
                stored["n_dates"][:] = (days != NO_DAY).sum(axis=1).astype(np.int32)  # type: ignore[index]
            if not result.has_mask.any():
                # Of a stopped run, before the files changed.
                shutil.rmtree(folder / group.name / VALID, ignore_errors=True)
            validity = {} if group.spec.dims[-3] == "level" else {"validity": _write_validity(stored, group, result)}
            stored.attrs.update({**result.attributes, **validity})
    consolidate(folder)


def _write_validity(stored: Any, group: GroupTemplate, result: GroupResult) -> list[str]:
    """Write what says where pixels hold data, as far as it is needed; return the arrays. Safe to repeat."""
    names = []
    if not np.isnan(result.nodata).all():
        write_table(stored, NODATA, result.nodata, ("patch",), overwrite=True)
        names.append(NODATA)
    if result.has_mask.any():
        if VALID not in stored:
            # Its shards are there already: nothing below it may be removed.
            _create_data(stored, valid_spec(group.spec), VALID)
        write_table(stored, HAS_MASK, result.has_mask, ("patch",), overwrite=True)
        names += [VALID, HAS_MASK]
    return names


def root_attributes(folder: Path, key: str = ROOT_KEY) -> Mapping[str, Any] | None:
    """Return the cube attributes of a local store in any state, or None when it is no cube."""
    try:
        document = json.loads((folder / "zarr.json").read_text())
        attributes = document["attributes"][key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return attributes if isinstance(attributes, dict) else None


def side_chunk(values: NDArray[Any], patches: int, fill: Any) -> bytes:
    """Return the stored bytes of one chunk of a per-patch table beside the averages.

    Args:
        values: (n, period) int32, n <= patches.
        patches: Patches per chunk.
        fill: Value of the rows that do not exist.
    """
    chunk = np.full((patches, *values.shape[1:]), fill, dtype=np.int32)
    chunk[: len(values)] = values
    return SMALL_CODEC.encode(chunk)


def consolidate(folder: Path) -> None:
    """Copy all metadata into each group's own, so that one read opens any of them; the root last.

    zarr-python replaces every file in one step: whoever reads the root sees the old or the new whole.
    """
    import zarr

    with quiet():
        for group in _groups(folder):
            zarr.consolidate_metadata(str(group), zarr_format=3)


def _groups(folder: Path) -> Iterator[Path]:
    """Yield the groups of a store, each after those inside it; arrays, with their many chunks, are not looked into."""
    if json.loads((folder / "zarr.json").read_text())["node_type"] == "group":
        for entry in sorted(folder.iterdir()):
            if (entry / "zarr.json").is_file():
                yield from _groups(entry)
        yield folder


def _create_group(root: Any, group: GroupTemplate, template: CubeTemplate) -> None:
    row = modality(group.name)
    spec = group.spec
    attributes = {
        "modality": group.name,
        "kind": row.kind.value,
        "bands": list(row.bands),
        "gsd_m": list(group.gsd),
        "size_px": list(spec.shape[-2:]),
        "crs_wkt": template.crs_wkt,
        "averages": [average.average for average in group.averages],
        **group.attributes,
    }
    created = root.create_group(group.name, attributes=attributes)
    _create_data(created, spec)
    ids = template.columns["patch_id"]
    names = np.array(row.bands)
    write_table(created, "patch_id", ids, ("patch",))
    write_table(created, spec.dims[-3], names, (spec.dims[-3],))
    write_table(created, "present", np.zeros(len(ids), dtype=bool), ("patch",))
    if group.days is not None:
        counts = (group.days != NO_DAY).sum(axis=1).astype(np.int32)
        write_table(created, "n_dates", counts, ("patch",))
        write_table(created, "date", group.days, ("patch", "time"), DATE_ATTRIBUTES, fill=NO_DAY)
    for average in group.averages:
        rule = average.cloud_filter
        beside = created.create_group(
            average.average,
            attributes={
                "modality": group.name,
                "average": average.average,
                "cloud_filter": None if rule is None else asdict(rule),
                "bands": list(row.bands),
                "gsd_m": list(group.gsd),
                "crs_wkt": template.crs_wkt,
            },
        )
        _create_data(beside, average.spec)
        write_table(beside, "patch_id", ids, ("patch",))
        write_table(beside, "band", names, ("band",))
        periods = period_count(average.average)  # type: ignore[arg-type]
        write_table(beside, "period", np.arange(1, periods + 1, dtype=np.int32), ("period",))
        shape, chunk = (len(ids), periods), (average.spec.shard_patches, periods)
        create_array(beside, "n_observations", shape, chunk, "int32", ("patch", "period"), {}, 0)
        create_array(beside, "date", shape, chunk, "int32", ("patch", "period"), DATE_ATTRIBUTES, NO_DAY)


def _create_data(group: Any, spec: ArraySpec, name: str = "data") -> None:
    group.create_array(
        name,
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=spec.chunk,
        shards=spec.shard,
        compressors=spec.codec.to_zarr(),
        fill_value=spec.fill,
        dimension_names=spec.dims,
        attributes={"coordinates": "patch_id"},
    )


def write_table(
    group: Any,
    name: str,
    values: NDArray[Any],
    dims: tuple[str, ...],
    attributes: Mapping[str, Any] | None = None,
    fill: Any = None,
    overwrite: bool = False,
) -> None:
    """Write a small array whole, as one chunk; `overwrite` one that exists already."""
    kind = values.dtype.kind
    dtype = str if kind == "U" else values.dtype
    fill = _TABLE_FILLS[kind] if fill is None else fill
    array = create_array(group, name, values.shape, values.shape, dtype, dims, attributes or {}, fill, overwrite)
    array[...] = values.astype(object) if kind == "U" else values


def create_array(
    group: Any,
    name: str,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: Any,
    dims: tuple[str, ...],
    attributes: Mapping[str, Any],
    fill: Any,
    overwrite: bool = False,
) -> Any:
    """Create an unsharded array with the chain of tables."""
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=tuple(max(1, size) for size in chunk),
        compressors=SMALL_CODEC.to_zarr(),
        fill_value=fill,
        dimension_names=dims,
        attributes=dict(attributes),
        config={"write_empty_chunks": True},
        overwrite=overwrite,
    )


def set_status(folder: Path, status: str, key: str = ROOT_KEY, contents: str | None = None) -> None:
    """Change the status of a store in one step.

    Args:
        folder: The store.
        status: `building` or `complete`.
        key: Its root attribute.
        contents: Of a complete store, from `contents_digest`: it is sealed.
    """
    path = folder / ROOT_FILE
    document = unsealed(json.loads(path.read_text()), key)
    document["attributes"][key]["status"] = status
    raw = json.dumps(document, indent=2).encode() if contents is None else sealed(document, key, contents)
    write_file(path, [raw], durable=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence zarr-python's notes that strings and consolidated metadata are conventions of zarr v3, not its core."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
