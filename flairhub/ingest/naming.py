"""The published names: patch ids, and the folders and files of a data set."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flairhub.errors import DataError
from flairhub.modalities import MODALITIES, Modality

logger = logging.getLogger(__name__)

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
    """List the files of a data set in the published layout, by modality.

    Folders of other names and files that are no `.tif` are ignored, the former with a log message.

    Raises:
        DataError: A `.tif` whose name does not fit its folders.
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
    return found


def _scan_roi(folder: Path, domain: str, row: Modality) -> Iterator[FoundFile]:
    prefix = f"{domain}_{row.name}_{folder.name}_"
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.name.lower().endswith((".tif", ".tiff")):
            continue
        stem = entry.name.rsplit(".", 1)[0]
        if not stem.startswith(prefix):
            raise DataError(f"{entry.path}: expected a file named {prefix}<row>-<col>.tif in this folder.")
        yield FoundFile(parse_patch_id(f"{domain}_{folder.name}_{stem[len(prefix) :]}", entry.path), entry.path)


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
