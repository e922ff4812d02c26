"""Makers of small data sets in the published layout, with everything that was written kept for comparison."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

from flairhub.modalities import MODALITIES, Kind, Modality
from flairhub.tasks import level_sizes
from tests.helpers.config_makers import write_train_config

__all__ = [
    "CRS",
    "FOOTPRINT_M",
    "SIZES_PX",
    "PatchFiles",
    "date_entry",
    "make_patch_files",
    "write_dates",
    "write_patch",
    "write_train_config",
]

CRS = "EPSG:2154"
FOOTPRINT_M = 102.4
SIZES_PX: Mapping[str, int] = {
    "AERIAL_RGBI": 64,
    "AERIAL-RLT_PAN": 32,
    "DEM_ELEV": 64,
    "SPOT_RGBI": 16,
    "SENTINEL2_TS": 10,
    "SENTINEL2_MSK-SC": 10,
    "SENTINEL1-ASC_TS": 10,
    "SENTINEL1-DESC_TS": 10,
    "AERIAL_LABEL-COSIA": 64,
    "ALL_LABEL-LPIS": 64,
}
"""Pixels per side of the made patches: the published footprint, the published 10 px series, coarser images."""

N_DATES: Mapping[str, tuple[int, int]] = {
    "SENTINEL2_TS": (5, 12),
    "SENTINEL1-ASC_TS": (4, 8),
    "SENTINEL1-DESC_TS": (3, 11),
}
"""Least and most dates per patch of each dated series."""


@dataclass(frozen=True)
class PatchFiles:
    """A data set on disk and what was written to it.

    Attributes:
        folder: Root of the data set (the `--root` of `flairhub ingest`).
        mtd_folder: Folder of the GeoPackages, `GLOBAL_ALL_MTD`.
        csvs: CSV files by split: train, valid, test.
        patch_ids: Ids by domain, ROI, row, column: the storage order of a cube.
        modalities: Modalities that were written.
        sizes_px: Pixels per side by modality.
        files: `files[modality][patch_id]`: path of the GeoTIFF; missing ones are left out.
        arrays: `arrays[modality][patch_id]`: images (band, y, x), labels (level, y, x),
            series (time, band, y, x).
        dates: `dates[modality][patch_id]`: datetime64[D] (time,), for the dated series.
        splits: Split by patch id.
        origins: (x_min, y_max) in metres by patch id.
        footprint_m: Width and height of a patch in metres.
    """

    folder: Path
    mtd_folder: Path
    csvs: dict[str, Path]
    patch_ids: list[str]
    modalities: tuple[str, ...]
    sizes_px: dict[str, int]
    files: dict[str, dict[str, Path]] = field(repr=False)
    arrays: dict[str, dict[str, np.ndarray]] = field(repr=False)
    dates: dict[str, dict[str, np.ndarray]] = field(repr=False)
    splits: dict[str, str] = field(repr=False)
    origins: dict[str, tuple[float, float]] = field(repr=False)
    footprint_m: float = FOOTPRINT_M


@dataclass(frozen=True)
class _Patch:
    patch_id: str
    domain: str
    roi: str
    row: int
    col: int
    x_min: float
    y_max: float

    def path(self, row: Modality) -> str:
        domain = self.domain.split("-")[0] + "-195X" if row.undated_domain else self.domain
        name = f"{domain}_{row.name}"
        return f"{name}/{self.roi}/{name}_{self.roi}_{self.row}-{self.col}.tif"


def make_patch_files(
    folder: Path,
    *,
    n_rois: int = 2,
    rows: int = 2,
    cols: int = 2,
    domains: Sequence[str] = ("D012-2019",),
    modalities: Iterable[str] = tuple(MODALITIES),
    sizes_px: Mapping[str, int] | None = None,
    footprint_m: float = FOOTPRINT_M,
    seed: int = 0,
    missing: Iterable[tuple[str, int]] = (),
    holes: Iterable[int] = (),
    n_dates: Mapping[str, tuple[int, int]] | None = None,
    first_cell: tuple[int, int] = (3, 9),
) -> PatchFiles:
    """Write a small data set with random values.

    Args:
        folder: Root of the data set; made when absent.
        n_rois: ROIs per domain.
        rows: Lattice rows per ROI.
        cols: Lattice columns per ROI.
        domains: Domain names, `<department>-<year>`.
        modalities: What to write.
        sizes_px: Pixels per side, replacing entries of `SIZES_PX`.
        footprint_m: Width and height of a patch in metres.
        seed: Seed of all values.
        missing: (modality, index into the patches in storage order) that get no file and an empty CSV cell.
        holes: Indices of lattice cells (before removal, in storage order) at which no patch exists.
        n_dates: (least, most) dates per patch, replacing entries of `N_DATES`.
        first_cell: Row and column of each ROI's upper left cell; the default crosses from one digit to two.
    """
    rng = np.random.default_rng(seed)
    names = tuple(name for name in MODALITIES if name in set(modalities))
    sizes = {name: (sizes_px or {}).get(name, SIZES_PX[name]) for name in names}
    patches = [
        patch
        for index, patch in enumerate(_lattice(domains, n_rois, rows, cols, first_cell, footprint_m))
        if index not in set(holes)
    ]
    absent = {(name, patches[index].patch_id) for name, index in missing}
    dates = _dates(rng, patches, names, {**N_DATES, **(n_dates or {})})
    files: dict[str, dict[str, Path]] = {name: {} for name in names}
    arrays: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    for name in names:
        row = MODALITIES[name]
        for patch in patches:
            count = len(dates[row.dates_of or name][patch.patch_id]) if row.is_series else 0
            values = _values(rng, row, sizes[name], count)
            if (name, patch.patch_id) in absent:
                continue
            path = folder / patch.path(row)
            write_patch(path, values, (patch.x_min, patch.y_max), footprint_m)
            files[name][patch.patch_id], arrays[name][patch.patch_id] = path, values
    splits = _splits([patch.patch_id for patch in patches])
    mtd_folder = folder / "GLOBAL_ALL_MTD"
    _write_metadata(mtd_folder, patches, dates, splits, footprint_m)
    return PatchFiles(
        folder=folder,
        mtd_folder=mtd_folder,
        csvs=_write_csvs(folder, patches, names, files, splits),
        patch_ids=[patch.patch_id for patch in patches],
        modalities=names,
        sizes_px=sizes,
        files=files,
        arrays=arrays,
        dates={name: entry for name, entry in dates.items() if name in names},
        splits=splits,
        origins={patch.patch_id: (patch.x_min, patch.y_max) for patch in patches},
        footprint_m=footprint_m,
    )


def write_patch(
    path: Path,
    values: np.ndarray,
    origin: tuple[float, float],
    footprint_m: float = FOOTPRINT_M,
    **profile: Any,
) -> None:
    """Write one GeoTIFF of the published kind.

    Args:
        path: Where to; folders are made.
        values: (band, y, x) or (time, band, y, x), flattened to band index = date * bands + band.
        origin: (x_min, y_max) in metres.
        footprint_m: Width and height in metres.
        profile: Replaces entries of the rasterio profile (crs, transform, nodata, dtype, ...).
    """
    flat = values.reshape(-1, *values.shape[-2:])
    height, width = flat.shape[-2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "driver": "GTiff",
        "width": width,
        "height": height,
        "count": len(flat),
        "dtype": flat.dtype,
        "crs": CRS,
        "transform": from_origin(*origin, footprint_m / width, footprint_m / height),
        "compress": "lzw",
    }
    with rasterio.open(path, "w", **{**settings, **profile}) as target:
        target.write(flat)


def write_dates(path: Path, entries: Mapping[str, Any], table: str | None = None) -> None:
    """Write a date GeoPackage; an entry is a JSON text or anything `json.dumps` takes."""
    texts = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries.values()]
    _write_geopackage(path, {"patch_id": list(entries), "acquisition_dates": texts}, None, table)


def date_entry(dates: np.ndarray) -> dict[str, str]:
    """Return the published JSON object of (time,) dates, its keys in text order as some writers leave them."""
    entry = {str(i + 1): str(day).replace("-", "") for i, day in enumerate(dates.astype("datetime64[D]"))}
    return {key: entry[key] for key in sorted(entry)}


def _lattice(
    domains: Sequence[str],
    n_rois: int,
    rows: int,
    cols: int,
    first_cell: tuple[int, int],
    footprint_m: float,
) -> list[_Patch]:
    patches = []
    roi_names = sorted(f"{chr(65 + i)}{chr(70 + i)}-S{1 + i % 2}-{27 + i}" for i in range(n_rois))
    for d, domain in enumerate(sorted(domains)):
        for r, roi in enumerate(roi_names):
            left, top = 489_000.0 + 40_000 * d + 5_000 * r, 6_840_000.0 - 7_000 * r
            for i in range(rows):
                for j in range(cols):
                    row, col = first_cell[0] + i, first_cell[1] + j
                    patch_id = f"{domain}_{roi}_{row}-{col}"
                    x_min, y_max = left + col * footprint_m, top - row * footprint_m
                    patches.append(_Patch(patch_id, domain, roi, row, col, x_min, y_max))
    return patches


def _dates(
    rng: np.random.Generator,
    patches: list[_Patch],
    names: tuple[str, ...],
    limits: Mapping[str, tuple[int, int]],
) -> dict[str, dict[str, np.ndarray]]:
    """Sorted days of the patch's year, a different number for each patch."""
    wanted = {MODALITIES[name].dates_of or name for name in names if MODALITIES[name].is_series}
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in sorted(wanted):
        low, high = limits[name]
        found[name] = {}
        for index, patch in enumerate(patches):
            first = date(int(patch.domain.split("-")[1]), 1, 1)
            count = low + index % (high - low + 1)
            days = np.sort(rng.choice(365, count, replace=False))
            found[name][patch.patch_id] = np.array(
                [first + timedelta(days=int(day)) for day in days], dtype="datetime64[D]"
            )
    return found


def _values(rng: np.random.Generator, row: Modality, size_px: int, n_dates: int) -> np.ndarray:
    n_bands, shape = len(row.bands), (size_px, size_px)
    if row.kind is Kind.LABEL:
        sizes = level_sizes(row.name)
        return np.stack([rng.integers(0, count, shape) for count in sizes]).astype(row.dtype)
    if row.is_elevation:
        terrain = rng.normal(250, 20, shape)
        return np.stack([terrain + rng.gamma(1.0, 4.0, shape), terrain]).astype(row.dtype)
    if row.kind is Kind.MASK_SERIES:
        share = rng.choice([0.0, 0.02, 0.6], size=(n_dates, n_bands, 1, 1), p=[0.6, 0.2, 0.2])
        covered = rng.random((n_dates, n_bands, *shape)) < share
        return (covered * rng.integers(2, 101, covered.shape)).astype(row.dtype)
    if row.kind is Kind.SERIES and row.dtype == "float32":
        return rng.normal(-12, 3, (n_dates, n_bands, *shape)).astype(row.dtype)
    leading = (n_dates, n_bands) if row.is_series else (n_bands,)
    top = 256 if row.dtype == "uint8" else 4000
    return rng.integers(0, top, (*leading, *shape)).astype(row.dtype)


def _splits(patch_ids: list[str]) -> dict[str, str]:
    """Half train, a quarter valid, a quarter test, mixed over the ROIs."""
    cycle = ("train", "valid", "train", "test")
    return {patch_id: cycle[index % 4] for index, patch_id in enumerate(patch_ids)}


def _write_csvs(
    folder: Path,
    patches: list[_Patch],
    names: tuple[str, ...],
    files: Mapping[str, Mapping[str, Path]],
    splits: Mapping[str, str],
) -> dict[str, Path]:
    csvs = {split: folder / f"{split}.csv" for split in ("train", "valid", "test")}
    for split, path in csvs.items():
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["patch_id", *names])
            for patch in patches:
                if splits[patch.patch_id] != split:
                    continue
                found = (files[name].get(patch.patch_id) for name in names)
                cells = [file.relative_to(folder).as_posix() if file else "" for file in found]
                writer.writerow([patch.patch_id, *cells])
    return csvs


def _write_metadata(
    mtd_folder: Path,
    patches: list[_Patch],
    dates: Mapping[str, Mapping[str, np.ndarray]],
    splits: Mapping[str, str],
    footprint_m: float,
) -> None:
    mtd_folder.mkdir(parents=True, exist_ok=True)
    ids = [patch.patch_id for patch in patches]
    for name, days in dates.items():
        dates_file = MODALITIES[name].dates_file
        assert dates_file is not None
        texts = [json.dumps(date_entry(days[patch_id])) for patch_id in ids]
        columns = {"patch_id": ids, "acquisition_dates": texts}
        _write_geopackage(mtd_folder / dates_file, columns, (patches, footprint_m))
    columns = {"patch_id": ids, "split_1": [splits[patch_id] for patch_id in ids]}
    _write_geopackage(mtd_folder / "GLOBAL_ALL_MTD_SPLIT.gpkg", columns, (patches, footprint_m))


def _write_geopackage(
    path: Path,
    columns: Mapping[str, list[str]],
    places: tuple[list[_Patch], float] | None,
    table: str | None = None,
) -> None:
    import geopandas
    from shapely.geometry import box

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    count = len(columns["patch_id"])
    geometry = [box(0, 0, 1, 1)] * count
    if places is not None:
        patches, size = places
        geometry = [box(p.x_min, p.y_max - size, p.x_min + size, p.y_max) for p in patches]
    frame = geopandas.GeoDataFrame(dict(columns), geometry=geometry, crs=CRS)
    frame.to_file(path, layer=table or path.stem, driver="GPKG")
