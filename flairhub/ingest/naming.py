"""The published names: patch ids, and the folders and files of a data set."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flairhub.errors import DataError
from flairhub.ingest.archives import list_members
from flairhub.modalities import MODALITIES, Modality

logger = logging.getLogger(__name__)

_SUFFIXES = (".tif", ".tiff")

_PATCH_ID = re.compile(
    r"(?P<domain>[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)_(?P<roi>[A-Za-z0-9][\w-]*)_(?P<row>\d{1,9})-(?P<col>\d{1,9})"
)


@dataclass(frozen=True, order=True)
class PatchKey:
    """Where a patch stands in a cube; keys sort in storage order.

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


def parse_patch_id(patch_id: str, where: str) -> PatchKey:
    """Take `<DOMAIN>_<ROI>_<row>-<col>` apart.

    Raises:
        DataError: Another form; ids never hold separators of paths.
    """
    found = _PATCH_ID.fullmatch(patch_id) if patch_id.isascii() else None
    if found is None:
        raise DataError(
            f"{where}: patch id {patch_id!r} is not <DOMAIN>_<ROI>_<row>-<col> such as D012-2019_AF-S1-27_5-10 "
            "(letters, digits, '-' and '_' only)."
        )
    return PatchKey(found["domain"], found["roi"], int(found["row"]), int(found["col"]), patch_id)


@dataclass(frozen=True)
class FoundFile:
    """A GeoTIFF of the published layout.

    Attributes:
        key: Its patch; for undated modalities the domain still has the year `195X`.
        path: Absolute path.
    """

    key: PatchKey
    path: str


def scan_folder(root: Path) -> Mapping[str, list[FoundFile]]:
    """List the files of a data set in the published layout, by modality, also inside its zip archives.

    Folders of other names and files that are no `.tif` are ignored, the former with a log message. An archive holds
    `<DOMAIN>_<MODALITY>/<ROI>/...`, or the ROI folders alone when it is named `<DOMAIN>_<MODALITY>.zip`.

    Raises:
        DataError: A `.tif` whose name does not fit its folders, or an archive that cannot be trusted.
    """
    found: dict[str, list[FoundFile]] = {}
    for folder in sorted(_folders(root)):
        domain, _, name = folder.name.partition("_")
        row = MODALITIES.get(name)
        if row is None:
            if not folder.name.startswith("GLOBAL"):
                logger.info("%s: not a folder <DOMAIN>_<MODALITY>, ignored", folder)
            continue
        for roi in sorted(_folders(folder)):
            found.setdefault(name, []).extend(_scan_roi(roi, domain, row))
    for archive in sorted(entry.path for entry in os.scandir(root) if entry.is_file()):
        if archive.lower().endswith(".zip"):
            for name, file in _scan_archive(archive):
                found.setdefault(name, []).append(file)
    return found


def _scan_roi(folder: Path, domain: str, row: Modality) -> Iterator[FoundFile]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.lower().endswith(_SUFFIXES):
            yield _found(entry.path, entry.name, folder.name, domain, row)


def _scan_archive(archive: str) -> Iterator[tuple[str, FoundFile]]:
    """Yield the modality and the file of every `.tif` in an archive."""
    own = os.path.basename(archive)[: -len(".zip")]
    for member in list_members(archive):
        if not member.lower().endswith(_SUFFIXES):
            continue
        parts = member.split("/")
        if len(parts) < 2:
            raise DataError(f"{archive}/{member}: expected a file in a folder <ROI> of the archive.")
        group, roi, file_name = parts[-3] if len(parts) > 2 else own, parts[-2], parts[-1]
        domain, _, name = group.partition("_")
        row = MODALITIES.get(name)
        if row is None:
            raise DataError(
                f"{archive}/{member}: {group} is not <DOMAIN>_<MODALITY>. Expected such a folder in the archive, or "
                "such a name of the archive itself."
            )
        yield name, _found(f"{archive}/{member}", file_name, roi, domain, row)


def _found(path: str, file_name: str, roi: str, domain: str, row: Modality) -> FoundFile:
    prefix = f"{domain}_{row.name}_{roi}_"
    stem = file_name.rsplit(".", 1)[0]
    if not stem.startswith(prefix):
        raise DataError(f"{path}: expected a file named {prefix}<row>-<col>.tif in this folder.")
    return FoundFile(parse_patch_id(f"{domain}_{roi}_{stem[len(prefix) :]}", path), path)


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
