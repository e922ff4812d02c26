"""The published zip archives: the same cube as from the unpacked files, and nothing that a bad archive could do."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import flairhub as fh
from flairhub.config import load_train_config
from flairhub.errors import DataError
from flairhub.ingest import archives
from flairhub.ingest.archives import MemberPath, list_members, read_member
from flairhub.modalities import MODALITIES
from tests.helpers.comparisons import assert_equals_files
from tests.helpers.makers import PatchFiles, make_patch_files, write_train_config

NAMES = ("AERIAL_RGBI", "DEM_ELEV", "SENTINEL2_TS", "SENTINEL2_MSK-SC", "AERIAL-RLT_PAN", "AERIAL_LABEL-COSIA")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    return make_patch_files(tmp_path_factory.mktemp("archives"), n_rois=2, rows=1, modalities=NAMES)


def pack(folder: Path, target: Path, top: bool, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent if top else folder))
    return target


@pytest.mark.parametrize(("top", "method"), [(True, zipfile.ZIP_DEFLATED), (False, zipfile.ZIP_STORED)])
def test_archives_give_the_cube_of_the_files(files: PatchFiles, tmp_path: Path, top: bool, method: int) -> None:
    zips = tmp_path / "zips"
    zips.mkdir()
    for folder in files.folder.iterdir():
        if folder.is_dir():
            pack(folder, zips / f"{folder.name}.zip", top, method)
    assert sorted(path.suffix for path in zips.iterdir()) == [".zip"] * 7
    fh.ingest(root=zips, cube=tmp_path / "c.zarr")
    cube = fh.open_cube(tmp_path / "c.zarr")
    assert_equals_files(cube, files, tuple(name for name in MODALITIES if name in NAMES))
    assert cube.patches.split.tolist() == [files.splits[patch_id] for patch_id in cube.patch_ids]
    assert sorted(path.name for path in zips.iterdir()) == sorted(path.name for path in zips.glob("*.zip"))
    # Some modalities packed, some not; and workers read archives too.
    (zips / "D012-2019_DEM_ELEV.zip").unlink()
    (zips / "D012-2019_DEM_ELEV").symlink_to(files.folder / "D012-2019_DEM_ELEV")
    fh.ingest(root=zips, cube=tmp_path / "d.zarr", workers=1 if top else 0)
    assert_equals_files(fh.open_cube(tmp_path / "d.zarr"), files, tuple(name for name in MODALITIES if name in NAMES))


def test_csv_paths_into_archives(files: PatchFiles, tmp_path: Path) -> None:
    for name in NAMES:
        domain = "D012-195X" if MODALITIES[name].undated_domain else "D012-2019"
        pack(files.folder / f"{domain}_{name}", tmp_path / f"{domain}_{name}.zip", top=False)
    csvs = dict(files.csvs)
    for split, path in files.csvs.items():
        text = path.read_text()
        for name in NAMES:
            text = text.replace(f"_{name}/", f"_{name}.zip/")
        files.csvs[split] = tmp_path / path.name
        files.csvs[split].write_text(text)
    config = load_train_config(write_train_config(tmp_path / "config", files))
    fh.ingest(config, cube=tmp_path / "c.zarr")
    assert_equals_files(fh.open_cube(tmp_path / "c.zarr"), files, tuple(name for name in MODALITIES if name in NAMES))
    for old, new, message in (
        (".zip/AF-", ".zip/AG-", r"no such file: \S+\.zip/AG-S1-27/"),
        ("DEM_ELEV.zip/", "DEM_ELEV.zip/../../", "leads to"),
    ):
        path = files.csvs["train"]
        text = path.read_text()
        path.write_text(text.replace(old, new))
        with pytest.raises(DataError, match=message):
            fh.ingest(config, cube=tmp_path / "d.zarr")
        path.write_text(text)
    files.csvs.update(csvs)


def one_member(path: Path, name: str, content: bytes = b"x", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.tif", "/etc/passwd.tif", "AF/../../x.tif", "AF\\..\\x.tif", "C:x.tif"]
)
def test_names_that_lead_out_of_an_archive(tmp_path: Path, name: str) -> None:
    one_member(tmp_path / "D012-2019_DEM_ELEV.zip", name)
    for skip in ("raise", "skip"):
        with pytest.raises(DataError, match=r"DEM_ELEV\.zip: member .* leads out of the archive"):
            fh.ingest(root=tmp_path, cube=tmp_path / "c.zarr", on_error=skip)


def test_symbolic_links_and_doubled_names(tmp_path: Path) -> None:
    path = tmp_path / "D012-2019_DEM_ELEV.zip"
    link = zipfile.ZipInfo("AF/D012-2019_DEM_ELEV_AF_1-1.tif")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="is a symbolic link"):
        list_members(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.tif", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.tif", b"2")
    with pytest.raises(DataError, match=r"holds 'a\.tif' twice"):
        list_members(str(path))


def test_members_that_lie_about_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = one_member(tmp_path / "a.zip", "AF/a.tif", np.zeros(2**20, dtype=np.uint8).tobytes())
    where = MemberPath(str(path), "AF/a.tif")
    assert len(read_member(where)) == 2**20
    monkeypatch.setattr(archives, "RATIO_FREE_BYTES", 2**16)
    with pytest.raises(DataError, match=r"a\.zip/AF/a\.tif: inflates from \d+ to 1048576 bytes; members have at most"):
        read_member(where)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    # The directory says 10 bytes, the data has a million: only 10 are inflated, and they do not fit the checksum.
    data[place + 24 : place + 28] = struct.pack("<I", 10)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"damaged in the archive: Bad CRC-32"):
        read_member(where)
    data[place + 8] |= 1
    path.write_bytes(bytes(data) + b"")
    with pytest.raises(DataError, match="encrypted; expected stored or deflated"):
        read_member(MemberPath(str(one_copy(path)), "AF/a.tif"))
    one_member(path, "AF/a.tif", method=zipfile.ZIP_BZIP2)
    with pytest.raises(DataError, match="compressed by method 12; expected stored or deflated"):
        read_member(where)


def one_copy(path: Path) -> Path:
    copy = path.with_name("copy.zip")
    copy.write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-30], r"not a readable zip archive \(\d+ bytes\)"),
        (lambda data: b"<html></html>", r"not a readable zip archive \(13 bytes\)"),
        (lambda data: data[:300] + bytes([data[300] ^ 255]) + data[301:], r"_3-10\.tif: damaged in the archive"),
    ],
)
def test_damaged_archives(files: PatchFiles, tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = pack(files.folder / "D012-2019_DEM_ELEV", tmp_path / "D012-2019_DEM_ELEV.zip", top=True)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        fh.ingest(root=tmp_path, cube=tmp_path / "c.zarr")


def test_a_damaged_member_can_be_skipped(files: PatchFiles, tmp_path: Path) -> None:
    path = pack(files.folder / "D012-2019_DEM_ELEV", tmp_path / "D012-2019_DEM_ELEV.zip", top=True)
    data = bytearray(path.read_bytes())
    data[300] ^= 255
    path.write_bytes(data)
    report = fh.ingest(root=tmp_path, cube=tmp_path / "c.zarr", on_error="skip")
    assert [entry[:2] for entry in report.skipped] == [("DEM_ELEV", files.patch_ids[1])]


def test_files_and_archives_that_hold_the_same_patch(files: PatchFiles, tmp_path: Path) -> None:
    for name in ("D012-2019_DEM_ELEV", "D012-195X_AERIAL-RLT_PAN"):
        folder = tmp_path / name
        folder.mkdir()
        pack(files.folder / name, folder / f"{name}.zip", top=True)
        (folder / name).symlink_to(files.folder / name)
        with pytest.raises(DataError, match=r"patch D012-\S+_AF-S1-27_3-10 exists already"):
            fh.ingest(root=folder, cube=tmp_path / "c.zarr")


def test_misnamed_members(tmp_path: Path) -> None:
    for name, message in (
        ("a.tif", r"zip/a\.tif: expected a file in a folder <ROI>"),
        ("AF/a.tif", r"zip/AF/a\.tif: expected a file named D012-2019_DEM_ELEV_AF_<row>-<col>\.tif"),
        ("DEM/AF/a.tif", "DEM is not <DOMAIN>_<MODALITY>"),
    ):
        one_member(tmp_path / "D012-2019_DEM_ELEV.zip", name)
        with pytest.raises(DataError, match=message):
            fh.ingest(root=tmp_path, cube=tmp_path / "c.zarr")
