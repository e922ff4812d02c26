"""Which files are to be ingested: from the CSVs of a configuration, or from a folder in the published layout."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flairhub.errors import DataError, UsageError
from flairhub.ingest.archives import file_exists, list_members
from flairhub.ingest.naming import FoundFiles, PatchKey, parse_patch_id, scan_folder, storage_order
from flairhub.ingest.tables import CsvTable, read_csv, read_splits
from flairhub.modalities import INPUTS, LABELS, MODALITIES, modality

SPLIT_FILE = "GLOBAL_ALL_MTD_SPLIT.gpkg"
METADATA_FOLDER = "GLOBAL_ALL_MTD"

_DRIVE = re.compile(r"[A-Za-z]:/")


@dataclass(frozen=True)
class Source:
    """Patches and their files.

    Attributes:
        keys: Patches in storage order.
        splits: `train`, `valid`, `test` or empty, by patch id.
        files: By modality one path per patch, None where the patch has none.
        root: Folder that names in digests are relative to.
        metadata: Folder of the date GeoPackages, or None.
    """

    keys: tuple[PatchKey, ...]
    splits: Mapping[str, str]
    files: Mapping[str, tuple[str | None, ...]]
    root: Path
    metadata: Path | None


def source_of_csvs(
    csvs: Mapping[str, Path],
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    data_root: Path | None = None,
    metadata: Path | None = None,
) -> Source:
    """Collect the files that CSVs name.

    Args:
        csvs: CSV by split.
        required: Modalities whose columns must exist.
        optional: Modalities that are taken when every CSV has their column.
        data_root: Folder that no path may leave; None = the CSV's folder for relative paths, none for absolute ones.
        metadata: Folder of the date GeoPackages.

    Raises:
        DataError: A missing CSV or column, a bad or doubled patch id, a path that is none or leaves its root.
    """
    tables = {split: read_csv(path, ["patch_id", *required]) for split, path in csvs.items()}
    extra = [name for name in optional if all(name in table.columns for table in tables.values())]
    names = [name for name in MODALITIES if name in {*required, *extra}]
    keys: dict[str, PatchKey] = {}
    seen: dict[str, str] = {}
    splits: dict[str, str] = {}
    files: dict[str, dict[str, str | None]] = {name: {} for name in names}
    for split, table in tables.items():
        for line, row in table.rows:
            where, patch_id = f"{table.path}, line {line}", row["patch_id"]
            if patch_id in seen:
                raise DataError(
                    f"{where}: patch {patch_id} is listed already in {seen[patch_id]}. A patch has one split."
                )
            keys[patch_id], seen[patch_id], splits[patch_id] = parse_patch_id(patch_id, where), where, split
            for name in names:
                files[name][patch_id] = _cell_path(row[name], table, f"{where}, column {name}", data_root)
    if not keys:
        listed = ", ".join(str(path) for path in csvs.values()) or "none given"
        raise DataError(f"no patches in the CSVs ({listed}).")
    ordered = tuple(sorted(keys.values(), key=storage_order))
    root = data_root or Path(os.path.commonpath([table.path.parent.absolute() for table in tables.values()]))
    by_patch = {name: tuple(entry[key.patch_id] for key in ordered) for name, entry in files.items()}
    return Source(ordered, splits, by_patch, root, metadata)


def _cell_path(cell: str, table: CsvTable, where: str, data_root: Path | None) -> str | None:
    """Absolute path of a CSV cell, checked by its text alone; the file itself is opened later."""
    if not cell:
        return None
    if "://" in cell or cell.startswith("/vsi") or "\x00" in cell:
        raise DataError(f"{where}: {cell!r} is not a path of a local file. URLs and GDAL's /vsi paths are not read.")
    if "\\" in cell or _DRIVE.match(cell):
        raise DataError(
            f"{where}: {cell!r} is a path of Windows. Write paths below the CSV's folder with /, as aerial/x.tif."
        )
    # Plain text: millions of Path objects would take longer than reading the tables.
    base = os.path.abspath(table.path.parent)
    path = os.path.normpath(os.path.join(base, cell))
    allowed = os.path.abspath(data_root) if data_root else (None if os.path.isabs(cell) else base)
    if allowed is not None and not path.startswith(allowed.rstrip(os.sep) + os.sep):
        hint = "paths.data_root" if data_root else "the CSV's folder; set paths.data_root to allow a larger one"
        raise DataError(f"{where}: {cell!r} leads to {path}, outside {allowed} ({hint}).")
    return path


def source_of_folder(root: Path) -> Source:
    """Collect all files of a folder in the published layout, also inside its zip archives.

    Splits come from `GLOBAL_ALL_MTD/GLOBAL_ALL_MTD_SPLIT.gpkg`, else from CSVs in the folder named after their split
    (`train...csv`, `val...csv`, `test...csv`); without either they stay empty.

    Raises:
        DataError: Nothing of the layout in the folder, a badly named file, the same patch twice.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. --root is the folder that holds <DOMAIN>_<MODALITY> folders.")
    root = root.absolute()
    scanned = scan_folder(root)
    if not any(scanned.paths.values()):
        raise DataError(
            f"{root}: no files <DOMAIN>_<MODALITY>/<ROI>/<DOMAIN>_<MODALITY>_<ROI>_<row>-<col>.tif in this folder."
        )
    placed = _date_undated(scanned)
    ids = {patch_id for paths in placed.values() for patch_id in paths}
    ordered = tuple(sorted((scanned.keys[patch_id] for patch_id in ids), key=storage_order))
    files = {name: tuple(placed[name].get(key.patch_id) for key in ordered) for name in MODALITIES if placed.get(name)}
    metadata = _metadata_folder(root)
    return Source(ordered, _folder_splits(root, metadata), files, root, metadata)


def _metadata_folder(root: Path) -> Path | None:
    """The folder of the GeoPackages, or the place of the same in its zip archive."""
    folder, archive = root / METADATA_FOLDER, root / f"{METADATA_FOLDER}.zip"
    if folder.is_dir():
        return folder
    if not archive.is_file():
        return None
    tables = [member for member in list_members(str(archive)) if member.endswith(".gpkg")]
    return archive / os.path.dirname(tables[0]) if tables else archive


def _date_undated(scanned: FoundFiles) -> dict[str, dict[str, str]]:
    """Give files of undated domains (`D012-195X`) the domain of the patch at their department, ROI and cell.

    Those without such a patch are left out, unless there is nothing but undated files.

    Returns:
        Path by modality and patch id.
    """
    placed = {name: paths for name, paths in scanned.paths.items() if not MODALITIES[name].undated_domain}
    dated = set().union(*placed.values())
    cells: dict[tuple[str, str, int, int], list[str]] = {}
    for patch_id in dated:
        cells.setdefault(_cell(scanned.keys[patch_id]), []).append(patch_id)
    for name in scanned.paths.keys() - placed.keys():
        entries = scanned.paths[name].items()
        placed[name] = {
            target: path
            for patch_id, path in entries
            for target in cells.get(_cell(scanned.keys[patch_id]), [] if dated else [patch_id])
        }
    return placed


def _cell(key: PatchKey) -> tuple[str, str, int, int]:
    return key.domain.rsplit("-", 1)[0], key.roi, key.row, key.col


def _folder_splits(root: Path, metadata: Path | None) -> dict[str, str]:
    if metadata is not None and file_exists(str(metadata / SPLIT_FILE)):
        return read_splits(metadata / SPLIT_FILE)
    splits: dict[str, str] = {}
    for path in sorted(root.glob("*.csv")):
        stem = path.stem.lower()
        split = next(
            (name for name, mark in (("train", "train"), ("valid", "val"), ("test", "test")) if mark in stem), ""
        )
        if not split:
            continue
        for line, row in read_csv(path, ["patch_id"]).rows:
            if splits.setdefault(row["patch_id"], split) != split:
                raise DataError(
                    f"{path}, line {line}: patch {row['patch_id']} is both {splits[row['patch_id']]} and {split}."
                )
    return splits


def source_of_config(config: Any, wanted: Sequence[str] | None) -> Source:
    """Collect the files of a training configuration.

    Args:
        config: `TrainConfig`.
        wanted: Modalities, or None = enabled inputs and labels, with the masks that their series use or have.
    """
    paths = config.paths
    csvs = {
        split: Path(path)
        for split, path in (("train", paths.train_csv), ("valid", paths.val_csv), ("test", paths.test_csv))
        if path
    }
    if not csvs:
        raise DataError("paths.train_csv, paths.val_csv and paths.test_csv are empty: nothing to ingest.")
    required, optional = (wanted, ()) if wanted is not None else modalities_of_config(config)
    return source_of_csvs(
        csvs,
        required=required,
        optional=optional,
        data_root=Path(paths.data_root) if paths.data_root else None,
        metadata=Path(paths.global_mtd_folder) if paths.global_mtd_folder else None,
    )


def modalities_of_config(config: Any) -> tuple[Sequence[str], Sequence[str]]:
    """Return what a training configuration uses, and what it takes along where it exists.

    The first are the enabled inputs, the labels, and the quality masks when cloudy dates are dropped; the second are
    the masks otherwise.
    """
    enabled = [name for name in INPUTS if config.modalities.inputs.get(name)]
    labels = [name for name in LABELS if name in config.labels]
    masks = [mask for name in enabled if (mask := MODALITIES[name].quality_mask)]
    if config.modalities.pre_processings.filter_sentinel2:
        return [*enabled, *labels, *masks], ()
    return [*enabled, *labels], masks


def restrict(source: Source, names: Sequence[str] | None, domains: Sequence[str] | None) -> Source:
    """Keep only some modalities and domains.

    Raises:
        UsageError: A name that is unknown or of which the source has nothing.
    """
    if names is not None:
        missing = [name for name in names if modality(name).name not in source.files]
        if missing:
            raise UsageError(f"modalities {', '.join(missing)}: no files. Found {', '.join(source.files)}.")
        source = replace(source, files={name: source.files[name] for name in MODALITIES if name in names})
    if domains is not None:
        known = sorted({key.domain for key in source.keys})
        missing = [name for name in domains if name not in known]
        if missing:
            raise UsageError(f"domains {', '.join(missing)}: no patches. Found {', '.join(known)}.")
        chosen = [index for index, key in enumerate(source.keys) if key.domain in domains]
        source = replace(
            source,
            keys=tuple(source.keys[index] for index in chosen),
            files={name: tuple(paths[index] for index in chosen) for name, paths in source.files.items()},
        )
    empty = [name for name, paths in source.files.items() if not any(paths)]
    if empty:
        raise DataError(f"modality {', '.join(empty)}: none of the {len(source.keys)} patches has a file.")
    return source
