"""The published names: patch ids, and the folders and files of a data set."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flairhub.errors import DataError
from flairhub.ingest.archives import list_members
from flairhub.modalities import MODALITIES

logger = logging.getLogger(__name__)

_SUFFIXES = (".tif", ".tiff")

_OF_MACS = "__MACOSX/"
"""Folder that some systems add to an archive; like hidden files, it holds no images."""

_PATCH_ID = re.compile(
    r"(?P<domain>[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)_(?P<roi>[A-Za-z0-9][\w-]*)_(?P<row>\d{1,9})-(?P<col>\d{1,9})"
)


@dataclass(frozen=True, slots=True)
class PatchKey:
    """Where a patch stands in a cube; see `storage_order`.

    Attributes:
        domain: `<department>-<year>`.
        roi: Region of interest.
        row: Lattice row.
        col: Lattice column.
        patch_id: The id as written.
    """

    domain: str
    roi: str
    row: int
    col: int
    patch_id: str


def storage_order(key: PatchKey) -> tuple[str, str, int, int, str]:
    """Sort key: domain, ROI, row, column."""
    return key.domain, key.roi, key.row, key.col, key.patch_id


def parse_patch_id(patch_id: str, where: str) -> PatchKey:
    """Take `<DOMAIN>_<ROI>_<row>-<col>` apart.

    Raises:
        DataError: Another form; ids never hold separators of paths.
    """
    match = _PATCH_ID.fullmatch(patch_id) if patch_id.isascii() else None
    if match is None:
        raise DataError(
            f"{where}: patch id {patch_id!r} is not <DOMAIN>_<ROI>_<row>-<col> such as D012-2019_AF-S1-27_5-10 "
            "(letters, digits, '-' and '_' only)."
        )
    return PatchKey(match["domain"], match["roi"], int(match["row"]), int(match["col"]), patch_id)


@dataclass(frozen=True)
class FoundFiles:
    """The GeoTIFFs of a data set in the published layout.

    Attributes:
        keys: Patches by id; those of undated modalities still have the year `195X`.
        paths: Absolute path by modality and patch id.
    """

    keys: dict[str, PatchKey]
    paths: dict[str, dict[str, str]]


def scan_folder(root: Path) -> FoundFiles:
    """List the files of a data set in the published layout, by modality, also inside its zip archives.

    Folders of other names, hidden files and files that are no `.tif` are ignored, folders with a log message. An
    archive holds `<DOMAIN>_<MODALITY>/<ROI>/...`, or the ROI folders alone when it is named
    `<DOMAIN>_<MODALITY>.zip`.

    Raises:
        DataError: A `.tif` whose name does not fit its folders, a patch twice, or an archive that cannot be trusted.
    """
    files = FoundFiles({}, {})
    for folder in sorted(_folders(root)):
        domain, _, name = folder.name.partition("_")
        if name not in MODALITIES:
            if not folder.name.startswith("GLOBAL"):
                logger.info("%s: not a folder <DOMAIN>_<MODALITY>, ignored", folder)
            continue
        for roi in sorted(_folders(folder)):
            names = sorted(entry.name for entry in os.scandir(roi))
            _add(files, str(roi), names, domain, name, roi.name)
    for archive in sorted(entry.path for entry in os.scandir(root) if entry.is_file()):
        if archive.lower().endswith(".zip"):
            _add_archive(files, archive)
    return files


def _add_archive(files: FoundFiles, archive: str) -> None:
    archive_name = os.path.basename(archive)[: -len(".zip")]
    folders: dict[str, list[str]] = {}
    for member in list_members(archive):
        if member.lower().endswith(_SUFFIXES) and not member.startswith(_OF_MACS):
            folder, _, file_name = member.rpartition("/")
            folders.setdefault(folder, []).append(file_name)
    for folder, names in folders.items():
        if not folder:
            raise DataError(f"{archive}/{names[0]}: expected a file in a folder <ROI> of the archive.")
        parts = folder.split("/")
        group = parts[-2] if len(parts) > 1 else archive_name
        domain, _, name = group.partition("_")
        if name not in MODALITIES:
            raise DataError(
                f"{archive}/{folder}: {group} is not <DOMAIN>_<MODALITY>. Expected such a folder in the archive, or "
                "such a name of the archive itself."
            )
        _add(files, f"{archive}/{folder}", names, domain, name, parts[-1])


def _add(files: FoundFiles, folder: str, names: Iterable[str], domain: str, modality: str, roi: str) -> None:
    """Add the `.tif` files of one ROI; a patch met before, in another modality, is not taken apart again."""
    prefix, patch = f"{domain}_{modality}_{roi}_", f"{domain}_{roi}_"
    paths = files.paths.setdefault(modality, {})
    for file_name in names:
        if not file_name.lower().endswith(_SUFFIXES) or file_name.startswith("."):
            continue
        path = f"{folder}/{file_name}"
        if not file_name.startswith(prefix):
            raise DataError(f"{path}: expected a file named {prefix}<row>-<col>.tif in this folder.")
        patch_id = patch + file_name[len(prefix) :].rpartition(".")[0]
        if patch_id not in files.keys:
            files.keys[patch_id] = parse_patch_id(patch_id, path)
        if patch_id in paths:
            raise DataError(f"{path}: patch {patch_id} exists already: {paths[patch_id]}.")
        paths[files.keys[patch_id].patch_id] = path


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
