"""Reading: the direct and the zarr back-end agree, and damage is named."""

from __future__ import annotations

import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import flairhub as fh
from flairhub.cube import backends
from flairhub.cube.reader import ArrayReader
from flairhub.cube.seal import OpenedStore, identity_of
from flairhub.cube.shards import ShardWriter
from flairhub.cube.spec import PRESETS, codec_for
from flairhub.errors import CubeError, UsageError
from flairhub.modalities import LABELS, MODALITIES
from tests.helpers.makers import PatchFiles, make_patch_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    return make_patch_files(
        tmp_path_factory.mktemp("reader"),
        n_rois=1,
        rows=2,
        cols=3,
        sizes_px={"AERIAL_RGBI": 32, "DEM_ELEV": 32, "AERIAL_LABEL-COSIA": 32, "ALL_LABEL-LPIS": 32},
        missing=[("SPOT_RGBI", 2), ("SENTINEL2_TS", 0)],
    )


@pytest.fixture(scope="module")
def cube_path(files: PatchFiles, make_cube: Callable[..., Path]) -> Path:
    return make_cube(files, shard=2)


def test_backends_agree_for_every_modality(cube_path: Path, files: PatchFiles) -> None:
    direct, fallback = fh.open_cube(cube_path, "direct"), fh.open_cube(cube_path, "zarr")
    assert direct.modalities == fallback.modalities == tuple(MODALITIES)
    for name in direct.modalities:
        present = np.flatnonzero(direct.present(name))
        order = present[::-1]
        assert direct.array(name).backend == "direct"
        assert fallback.array(name).backend == "zarr"
        one, two = direct.read(name, order), fallback.read(name, order)
        assert one.dtype == two.dtype == MODALITIES[name].dtype
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, zarr.open_array(str(cube_path / name / "data"), mode="r")[:][order])


@settings(max_examples=25, deadline=None)
@given(
    preset=st.sampled_from(PRESETS),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    n_patches=st.integers(1, 7),
    shard=st.integers(1, 4),
    levels=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_backends_agree_for_any_array(
    tmp_path_factory: pytest.TempPathFactory,
    preset: str,
    dtype: str,
    n_patches: int,
    shard: int,
    levels: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("array")
    codec = codec_for(preset, dtype, False)
    values = rng.integers(0, 200, (n_patches, levels, 5, 5)).astype(dtype)
    absent = rng.random(n_patches) < 0.3
    array = zarr.create_array(
        str(folder / "data"),
        shape=values.shape,
        dtype=dtype,
        chunks=(1, 1, 5, 5),
        shards=(shard, levels, 5, 5),
        compressors=codec.to_zarr(),
        fill_value=0,
        dimension_names=("patch", "level", "y", "x"),
    )
    for number in range(-(-n_patches // shard)):
        chunks = [
            None if patch >= n_patches or absent[patch] else codec.encode(values[patch, level])
            for patch in range(number * shard, (number + 1) * shard)
            for level in range(levels)
        ]
        with ShardWriter(folder / f"data/c/{number}/0/0/0", len(chunks)) as writer:
            for chunk in chunks:
                writer.add(None if chunk is None else [chunk])
    ids = [f"D_R_0-{i}" for i in range(n_patches)]
    everyone = np.ones(n_patches, dtype=bool)
    for backend in ("direct", "zarr"):
        place: dict[str, Any] = {
            "folder": folder / "data",
            "opened": OpenedStore("s", identity_of(b""), lambda: b"", None),
        }
        reader = ArrayReader(array, name="M/data", store="s", patch_ids=ids, present=everyone, backend=backend, **place)
        for patch in range(n_patches):
            if absent[patch]:
                with pytest.raises(CubeError, match=rf"M/data: chunk {patch}.* patch D_R_0-{patch}\) is absent"):
                    reader.read([patch])
                continue
            np.testing.assert_array_equal(reader.read([patch])[0], values[patch])
            np.testing.assert_array_equal(reader.read([patch], level=levels)[0], values[patch, -1])


def test_threads_share_a_reader(cube_path: Path) -> None:
    cube = fh.open_cube(cube_path)
    reader = cube.array("AERIAL_RGBI")
    whole = reader.read(range(6))
    found: list[np.ndarray] = []

    def work(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(6)
        for _ in range(20):
            out = np.empty_like(whole)
            reader.read_into(order, out)
            found.append(out[np.argsort(order)])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all((out == whole).all() for out in found)


def test_one_level_of_a_label(cube_path: Path, files: PatchFiles) -> None:
    cube = fh.open_cube(cube_path)
    reader = cube.array("ALL_LABEL-LPIS")
    assert reader.n_levels == 3
    for level in (1, 2, 3):
        out = np.empty((2, 32, 32), dtype=np.uint8)
        reader.read_into([4, 1], out, level=level)
        for row, position in enumerate((4, 1)):
            expected = files.arrays["ALL_LABEL-LPIS"][files.patch_ids[position]][level - 1]
            np.testing.assert_array_equal(out[row], expected)
    with pytest.raises(UsageError, match=r"level 4 does not exist, the array has levels 1\.\.3"):
        reader.read([0], level=4)
    with pytest.raises(UsageError, match="no levels"):
        cube.array("AERIAL_RGBI").read([0], level=1)


def test_a_wrong_buffer_is_refused(cube_path: Path) -> None:
    reader = fh.open_cube(cube_path).array("AERIAL_RGBI")
    for out in (
        np.empty((1, 4, 32, 32), dtype=np.uint8),
        np.empty((2, 4, 32, 32), dtype=np.float32),
        np.empty((2, 4, 32, 64), dtype=np.uint8)[..., ::2],
    ):
        with pytest.raises(UsageError, match=r"expected C-contiguous uint8 \(2, 4, 32, 32\)"):
            reader.read_into([0, 1], out)


def test_missing_patches_are_recorded_and_never_fill(cube_path: Path, files: PatchFiles) -> None:
    cube = fh.open_cube(cube_path)
    assert cube.present("SPOT_RGBI").tolist() == [True, True, False, True, True, True]
    with pytest.raises(CubeError, match=rf"SPOT_RGBI/data: patch {files.patch_ids[2]} is recorded as missing"):
        cube.read("SPOT_RGBI", [1, 2])
    assert cube.series("SENTINEL2_TS").n_dates[0] == 0
    assert np.isnat(cube.series("SENTINEL2_TS").dates[0]).all()
    with pytest.raises(CubeError, match=r"no patch 6, the cube has 0\.\.5"):
        cube.read("SPOT_RGBI", [6])


@pytest.fixture
def copy(cube_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cube_path, tmp_path / "copy.zarr"))


@pytest.mark.parametrize("backend", ["direct", "zarr"])
@pytest.mark.parametrize("name", ["AERIAL_RGBI", "DEM_ELEV", "SENTINEL2_TS", *LABELS])
def test_damage_names_store_array_chunk_and_patch(copy: Path, files: PatchFiles, backend: str, name: str) -> None:
    shard = next((copy / name / "data" / "c" / "1").rglob("0"))
    while shard.is_dir():
        shard = next(shard.iterdir())
    data = bytearray(shard.read_bytes())
    data[20] ^= 0xFF
    shard.write_bytes(data)
    message = rf"copy\.zarr: {name}/data: chunk 2\S* \(shard 1, patch {files.patch_ids[2]}\) is damaged"
    cube = fh.open_cube(copy, backend)
    with pytest.raises(CubeError, match=message):
        cube.read(name, [2])
    cube.read(name, [3])
    # The index of the shard itself.
    data[20] ^= 0xFF
    data[-10] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(CubeError, match=message):
        fh.open_cube(copy, backend).read(name, [2])
    shard.write_bytes(data[:30])
    with pytest.raises(CubeError, match=message):
        fh.open_cube(copy, backend).read(name, [2])
    shard.unlink()
    with pytest.raises(CubeError, match=rf"patch {files.patch_ids[2]}\) is absent: its shard file"):
        fh.open_cube(copy, backend).read(name, [2])
    shard.mkdir()
    with pytest.raises(CubeError, match=rf"patch {files.patch_ids[2]}\) (cannot be read: Is a directory|is absent)"):
        fh.open_cube(copy, backend).read(name, [2])


def test_few_shards_stay_open(
    files: PatchFiles, make_cube: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "MOST_OPEN_SHARDS", 2)
    cube = fh.open_cube(make_cube(files, shard=1), "direct")
    reader = cube.array("AERIAL_RGBI")
    for order in (range(6), range(5, -1, -1), (0, 3, 0, 5, 3, 0)):
        for position, values in zip(order, reader.read(list(order)), strict=True):
            np.testing.assert_array_equal(values, files.arrays["AERIAL_RGBI"][files.patch_ids[position]])
        assert len(reader._backend._open) == 2  # type: ignore[attr-defined]


def test_cube_survives_pickling(cube_path: Path) -> None:
    cube = fh.open_cube(cube_path)
    again = pickle.loads(pickle.dumps(cube))
    np.testing.assert_array_equal(again.read("DEM_ELEV", [3]), cube.read("DEM_ELEV", [3]))
