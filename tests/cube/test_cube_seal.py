"""The seal of a store: every changed byte is found, and a store that another one has replaced is not read on."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

import flairhub as fh
from flairhub.config import load_train_config
from flairhub.cube import zone_cube
from flairhub.cube.reader import Backend
from flairhub.cube.template import set_status
from flairhub.cube.verify import verify, verify_zone
from flairhub.cube.zone_cube import open_zone_cube
from flairhub.data import BatchLoader
from flairhub.errors import CubeError, FlairhubError
from flairhub.ingest import ingest, ingest_zone
from flairhub.jobs import discard_folder
from flairhub.prepare import ImagePreparation
from flairhub.zones import cubes
from flairhub.zones.cubes import region_rasters, zone_cube_rasters
from tests.helpers.commands import run_command
from tests.helpers.makers import PatchFiles, make_patch_files, write_train_config
from tests.helpers.zone_makers import make_zone

NAMES = ("AERIAL_RGBI", "SENTINEL2_TS", "SENTINEL2_MSK-SC", "AERIAL_LABEL-COSIA")
SIZES = {"AERIAL_RGBI": 16, "AERIAL_LABEL-COSIA": 16}
CHANGED = r"c\.zarr: the store was changed, replaced or removed after it was opened"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    """Four patches in two shards, with masks of clouds and what averages need."""
    return make_patch_files(tmp_path_factory.mktemp("seal"), n_rois=1, modalities=NAMES, sizes_px=SIZES)


@pytest.fixture(scope="module")
def cube_path(files: PatchFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sealed")
    steps = {"filter_sentinel2": True, "temporal_average_sentinel2": "monthly"}
    config = write_train_config(folder, files, modalities={"pre_processings": steps})
    return ingest(load_train_config(config), cube=folder / "made.zarr", shard=2).cube


@pytest.fixture(scope="module")
def zone_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zone")
    made = make_zone(folder, 64, 64, {"AERIAL_RGBI": 1, "SENTINEL2_TS": 8}, n_dates=2)
    return ingest_zone(made.open(32, 8), cube=folder / "made.zarr").cube


@pytest.fixture
def copy(cube_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cube_path, tmp_path / "c.zarr"))


@pytest.fixture
def zone_copy(zone_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(zone_path, tmp_path / "zone/c.zarr"))


def checked(path: Path) -> tuple[str, ...]:
    """What opening and verifying a store finds, empty where nothing is."""
    try:
        if (path / "AERIAL_LABEL-COSIA").exists():
            return verify(fh.open_cube(path)).damage
        return verify_zone(open_zone_cube(path)).damage
    except FlairhubError as error:
        return (str(error),)


@contextmanager
def flipped(path: Path) -> Iterator[None]:
    """Flip the lowest bit in the middle of a file; put it right again at the end."""
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    path.write_bytes(changed)
    yield
    path.write_bytes(content)


def flips(path: Path, number: int, seed: int = 0) -> Iterator[int]:
    """Flip one bit at a time, `number` in a file, yield each place and put it right again."""
    rng, content = random.Random(f"{seed} {path.name} {path.stat().st_size}"), path.read_bytes()
    for place in rng.sample(range(len(content)), min(number, len(content))):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        yield place
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["copy", "zone_copy"])
def test_verify_names_every_file_with_a_flipped_bit(kind: str, request: pytest.FixtureRequest) -> None:
    store: Path = request.getfixturevalue(kind)
    assert checked(store) == ()
    journal = store / "ingest/journal.jsonl"
    files = {path for path in store.rglob("*") if path.is_file()} - {store / "zarr.json", journal}
    assert len(files) > 20
    if kind == "zone_copy":
        (days,) = store.glob("*/time/c/*")
        with flipped(days):
            assert "its metadata is damaged" in checked(store)[0], "when it is opened"
        files -= {days}
    with ExitStack() as stack:
        for path in files:
            stack.enter_context(flipped(path))
        damage = checked(store)
    for path in files:
        name = path.relative_to(store).as_posix().split("/c/")[0]
        named = any(f"{name}{end}" in message for message in damage for end in (":", " ", "/c/"))
        assert named, f"{name} is not named"
    for _ in flips(journal, 4):
        assert any("ingest/journal.jsonl line" in message for message in checked(store))
    assert checked(store) == ()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["copy", "zone_copy"])
def test_verify_finds_many_flipped_bits(kind: str, request: pytest.FixtureRequest) -> None:
    store: Path = request.getfixturevalue(kind)
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        for place in flips(path, 12, seed=1):
            assert checked(store), f"{path.relative_to(store)}, byte {place}"


@pytest.mark.parametrize("kind", ["copy", "zone_copy"])
def test_a_flipped_bit_in_the_root_metadata_is_found_when_the_store_is_opened(
    kind: str, request: pytest.FixtureRequest
) -> None:
    store: Path = request.getfixturevalue(kind)
    opened: Callable[[Path], Any] = fh.open_cube if kind == "copy" else open_zone_cube
    opened(store)
    for place in flips(store / "zarr.json", 120):
        with pytest.raises(CubeError):
            pytest.fail(f"byte {place}: {opened(store)}")
    root = store / "zarr.json"
    text = root.read_text()
    for name in ("digest", "contents", "status", "plan"):
        for old, new in ((f'"{name}"', f'"{name[:-1]}_"'), (f'"{name}": "', f'"{name}": "0')):
            root.write_text(text.replace(old, new))
            with pytest.raises(CubeError, match=r"damaged|not complete"):
                opened(store)


def test_verify_knows_a_lost_line_of_the_journal_and_a_root_that_changed_meanwhile(copy: Path) -> None:
    journal = copy / "ingest/journal.jsonl"
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    metadata = [line for line in lines if b'"job":"metadata"' in line]
    assert len(metadata) == 1
    journal.write_bytes(b"".join(line for line in lines if line not in metadata))
    assert checked(copy) == (f"{copy}: ingest/journal.jsonl is not the one that zarr.json names",)
    # A checksum in capital letters is another byte, too.
    first = next(line for line in lines if line[:8].upper() != line[:8])
    journal.write_bytes(b"".join(line[:8].upper() + line[8:] if line == first else line for line in lines))
    assert f"{copy}: ingest/journal.jsonl line {lines.index(first) + 1} is damaged" in checked(copy)
    journal.write_bytes(content)
    cube = fh.open_cube(copy)
    set_status(copy, "complete")
    (message,) = verify(cube).damage
    assert "changed, replaced or removed" in message


def test_a_cube_without_a_seal_opens_and_verify_says_what_it_could_not_check(
    copy: Path, zone_copy: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for store, key in ((copy, "flairhub"), (zone_copy, "flairhub_zone")):
        set_status(store, "complete", key)
        assert b"digest" not in (store / "zarr.json").read_bytes()
        code, out, _ = run_command(capsys, "cube", "verify", store)
        assert code == 0
        assert "made before stores had a seal: its metadata, small tables and report have no checksums" in out
        shutil.rmtree(store)


Replace = Callable[[], None]


@pytest.fixture(scope="module")
def negative(files: PatchFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files with other pixels."""
    folder = tmp_path_factory.mktemp("negative") / "files"
    shutil.copytree(files.folder, folder)
    for path in folder.rglob("*AERIAL_RGBI_*.tif"):
        with rasterio.open(path, "r+") as dataset:
            dataset.write(255 - dataset.read())
    return folder


@pytest.fixture(scope="module")
def pair(files: PatchFiles, negative: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two cubes of one plan, one patch per shard, with different pixels."""
    folder = tmp_path_factory.mktemp("pair")
    first, second = (
        ingest(root=root, cube=folder / f"{name}.zarr", shard=1).cube
        for root, name in ((files.folder, "first"), (negative, "second"))
    )
    assert fh.open_cube(first).attributes["plan"] == fh.open_cube(second).attributes["plan"]
    return first, second


@pytest.fixture
def place(pair: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Replace]:
    """The first cube, and what puts the second one in its place, step by step as `ingest --overwrite` does."""
    path = tmp_path / "c.zarr"
    shutil.copytree(pair[0], path)

    def replace() -> None:
        discard_folder(path)
        shutil.copytree(pair[1], tmp_path / "new")
        (tmp_path / "new").rename(path)

    return path, replace


@pytest.mark.parametrize("backend", ["direct", "zarr"])
def test_a_cube_that_was_replaced_is_an_error_wherever_something_is_opened(
    place: tuple[Path, Replace], files: PatchFiles, backend: Backend
) -> None:
    path, replace = place
    cube, untouched = fh.open_cube(path, backend), fh.open_cube(path, backend)
    view, region = cube["AERIAL_RGBI"].data, fh.open_roi(untouched, untouched.rois[0])["AERIAL_RGBI"]["data"]
    first = cube.read("AERIAL_RGBI", [0])
    pickled = pickle.dumps(cube)
    replace()
    if backend == "direct":
        # What is open stays what it was.
        np.testing.assert_array_equal(cube.read("AERIAL_RGBI", [0]), first)
    else:
        with pytest.raises(CubeError, match=CHANGED):
            cube.read("AERIAL_RGBI", [0])
    for read in (
        lambda: cube.read("AERIAL_RGBI", [1]),
        lambda: cube.present("SENTINEL2_TS"),
        lambda: cube.series("SENTINEL2_TS"),
        lambda: view.compute(scheduler="synchronous"),
        lambda: region.compute(scheduler="synchronous"),
        lambda: pickle.loads(pickled).read("AERIAL_RGBI", [2]),
        lambda: pickle.loads(pickled).patches,
        lambda: untouched.read("AERIAL_LABEL-COSIA", [0]),
        lambda: fh.open_cube(path, backend, identity=cube.identity),
    ):
        with pytest.raises(CubeError, match=CHANGED):
            read()
    now = fh.open_cube(path, backend)
    assert now.identity != cube.identity
    np.testing.assert_array_equal(now.read("AERIAL_RGBI", [0]), 255 - first)


def test_ingest_overwrites_a_cube_under_an_open_reader(pair: tuple[Path, Path], negative: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(pair[0], tmp_path / "c.zarr"))
    cube = fh.open_cube(path)
    cube.read("AERIAL_RGBI", [0])
    ingest(root=negative, cube=path, shard=1, overwrite=True)
    with pytest.raises(CubeError, match=CHANGED):
        cube.read("AERIAL_RGBI", [1])


def test_a_cube_that_is_gone_or_half_there_is_not_read_on(place: tuple[Path, Replace]) -> None:
    path, _ = place
    for change in (lambda: set_status(path, "building"), lambda: shutil.rmtree(path)):
        cube = fh.open_cube(path)
        cube.read("AERIAL_RGBI", [0])
        change()
        with pytest.raises(CubeError, match=CHANGED):
            cube.read("AERIAL_RGBI", [1])
        if path.exists():
            set_status(path, "complete")


def test_the_same_store_under_a_new_file_of_metadata_is_read_on(place: tuple[Path, Replace]) -> None:
    path, _ = place
    cube = fh.open_cube(path)
    before = cube.read("AERIAL_RGBI", [0, 1])
    content = (path / "zarr.json").read_bytes()
    (path / "zarr.json").unlink()
    (path / "zarr.json").write_bytes(content)
    assert cube.read("AERIAL_RGBI", [2, 3]).shape == before.shape
    np.testing.assert_array_equal(cube.read("AERIAL_RGBI", [0, 1]), before)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_loader_of_a_replaced_cube_names_it(place: tuple[Path, Replace], workers: int) -> None:
    path, replace = place
    loader = BatchLoader(
        fh.open_cube(path), np.arange(4), {"AERIAL_RGBI": ImagePreparation()}, [], batch_size=1, workers=workers
    )
    replace()
    with pytest.raises(CubeError, match=CHANGED):
        list(loader)


def test_zones_of_replaced_cubes_name_them(
    place: tuple[Path, Replace], zone_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = zone_cube_rasters(zone_copy, ["AERIAL_RGBI"], ())["AERIAL_RGBI"]
    values = made.read((0, 8), (0, 8)).values
    later = pickle.loads(pickle.dumps(zone_cube_rasters(zone_copy, ["SENTINEL2_TS"], ())["SENTINEL2_TS"]))
    other = make_zone(tmp_path / "other", 64, 64, {"AERIAL_RGBI": 1, "SENTINEL2_TS": 8}, n_dates=2)
    ingest_zone(other.open(32, 8), cube=zone_copy, overwrite=True)
    for read in (
        lambda: made.read((0, 8), (0, 8)),
        lambda: later.read((0, 1), (0, 1)),
        lambda: later.load((0, 1), (0, 1)),
        lambda: open_zone_cube(zone_copy, later.identity),  # type: ignore[attr-defined]
    ):
        with pytest.raises(FlairhubError, match="changed, replaced or removed after it"):
            read()
    # What is cached is of the cube that was opened; nothing else is taken for it.
    np.testing.assert_array_equal(made.load((0, 8), (0, 8))[0], values)
    monkeypatch.setattr(cubes, "_OPEN", OrderedDict())
    monkeypatch.setattr(zone_cube, "_CACHE", zone_cube.ChunkCache(0))
    with pytest.raises(CubeError, match=CHANGED):
        made.load((0, 8), (0, 8))


def test_regions_of_replaced_cubes_name_them(place: tuple[Path, Replace]) -> None:
    path, replace = place
    roi = fh.open_cube(path).rois[0]
    region = region_rasters(path, roi, ["AERIAL_RGBI"], ())["AERIAL_RGBI"]
    replace()
    with pytest.raises(FlairhubError, match="changed, replaced or removed after it"):
        region.read((0, 8), (0, 8))
    with pytest.raises(CubeError, match=CHANGED):
        region.load((0, 8), (0, 8))


@pytest.mark.parametrize("codec", ["balanced", "none"])
def test_a_shard_that_is_cut_off_while_it_is_open_is_an_error(files: PatchFiles, tmp_path: Path, codec: str) -> None:
    """Mapped, it would have killed the process."""
    path = ingest(root=files.folder, cube=tmp_path / "c.zarr", codec=codec).cube
    cube = fh.open_cube(path, "direct")
    before = cube.read("AERIAL_RGBI", [0, 1])
    os.truncate(path / "AERIAL_RGBI/data/c/0/0/0/0", before[0].nbytes // 4)
    with pytest.raises(CubeError, match=rf"patch {files.patch_ids[1]}\) is damaged: its file was cut off"):
        cube.read("AERIAL_RGBI", [1])


def test_a_shard_that_goes_while_zarr_reads_it_is_no_fill_value(place: tuple[Path, Replace]) -> None:
    path, _ = place
    cube = fh.open_cube(path, "zarr")
    cube.read("AERIAL_RGBI", [0])
    (path / "AERIAL_RGBI/data/c/0/0/0/0").unlink()
    with pytest.raises(CubeError, match=r"is absent: its shard file does not exist"):
        cube.read("AERIAL_RGBI", [0])
