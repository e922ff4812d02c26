"""What a cube keeps to tell pixels without data: written where needed, never lost in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from flairhub.cube import open_cube, template
from flairhub.cube.template import set_status
from flairhub.cube.verify import verify
from flairhub.data import BatchLoader
from flairhub.errors import CubeError
from flairhub.ingest import ingest
from flairhub.prepare import ImagePreparation
from tests.helpers.comparisons import same_tree
from tests.helpers.lacking import Source, image_files, rewrite
from tests.helpers.makers import write_patch


@pytest.fixture(scope="module")
def masked_cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    files = image_files(folder / "files")
    valid = np.ones((32, 32), dtype=bool)
    valid[0] = False
    rewrite(files, Source("AERIAL_RGBI", mask=True), valid)
    ingest(root=files.folder, cube=folder / "c.zarr", shard=1)
    return folder / "c.zarr"


def test_only_shards_with_a_mask_are_written(masked_cube: Path) -> None:
    shards = [
        path.relative_to(masked_cube).as_posix()
        for path in masked_cube.glob("AERIAL_RGBI/valid/c/**/*")
        if path.is_file()
    ]
    assert shards == ["AERIAL_RGBI/valid/c/0/0/0"]
    assert not (masked_cube / "SPOT_RGBI/valid").exists()


@pytest.mark.parametrize("damage", ["shard gone", "byte flipped", "table gone", "array gone"])
def test_a_mask_that_is_gone_is_never_everywhere(masked_cube: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.zarr"
    shutil.copytree(masked_cube, path)
    shard = path / "AERIAL_RGBI/valid/c/0/0/0"
    if damage == "shard gone":
        shard.unlink()
    elif damage == "byte flipped":
        content = bytearray(shard.read_bytes())
        content[3] ^= 1
        shard.write_bytes(content)
    elif damage == "table gone":
        shutil.rmtree(path / "AERIAL_RGBI/has_mask/c")
    else:
        set_status(path, "complete")  # without a seal, as of an earlier version
        for store in (path, path / "AERIAL_RGBI"):
            document = json.loads((store / "zarr.json").read_text())
            members = document["consolidated_metadata"]["metadata"]
            for key in [key for key in members if key.endswith("valid")]:
                del members[key]
            (store / "zarr.json").write_text(json.dumps(document))
    expected = {"table gone": "AERIAL_RGBI/has_mask", "array gone": "AERIAL_RGBI/valid"}
    where = expected.get(damage, rf"AERIAL_RGBI/valid: chunk 0 \(shard 0, patch {open_cube(path).patch_ids[0]}\)")
    with pytest.raises(CubeError, match=where):
        open_cube(path).read_valid("AERIAL_RGBI", [0, 1])
    assert any("AERIAL_RGBI" in message for message in verify(open_cube(path)).damage)


def test_other_libraries_open_it(masked_cube: Path) -> None:
    dataset = xr.open_zarr(masked_cube, group="AERIAL_RGBI").load()
    assert dataset["has_mask"].values.tolist() == [True, False]
    assert dataset["valid"].values[0].all(axis=1).tolist() == [row > 0 for row in range(32)]
    assert dataset["valid"].values[1].all(), "what is not stored is data"


def test_a_mask_that_goes_away_before_a_run_continues_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, valid = image_files(tmp_path / "files"), np.ones((32, 32), dtype=bool)
    valid[0] = False
    patch, name = files.patch_ids[0], "AERIAL_RGBI"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    rewrite(files, Source(name, mask=True), valid)
    with monkeypatch.context() as patched:
        patched.setattr("flairhub.ingest.run.fill_store", stop)
        with pytest.raises(KeyboardInterrupt):
            ingest(root=files.folder, cube=tmp_path / "c.zarr", shard=1)
    assert (tmp_path / "c.zarr" / name / "valid").is_dir()
    write_patch(files.files[name][patch], files.arrays[name][patch], files.origins[patch])
    for cube in ("c.zarr", "whole.zarr"):
        ingest(root=files.folder, cube=tmp_path / cube, shard=1)
        assert not (tmp_path / cube / name / "valid").exists()
    assert same_tree(tmp_path / "c.zarr", tmp_path / "whole.zarr")
    assert not verify(open_cube(tmp_path / "c.zarr")).damage


@pytest.mark.parametrize("stop_at", ["has_mask", "tables", "complete"])
def test_stopped_while_finishing_a_cube_with_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    files, valid = image_files(tmp_path / "files"), np.ones((32, 32), dtype=bool)
    valid[0] = False
    rewrite(files, Source("AERIAL_RGBI", mask=True), valid)
    rewrite(files, Source("SPOT_RGBI", None, 0, 0), valid)
    ingest(root=files.folder, cube=tmp_path / "whole.zarr", shard=1)
    if stop_at == "has_mask":
        # In the middle of the tables of validity.
        real = template.write_table

        def broken(group: Any, name: str, *rest: Any, **options: Any) -> None:
            real(group, name, *rest, **options)
            if name == "has_mask":
                raise KeyboardInterrupt

        monkeypatch.setattr(template, "write_table", broken)
    else:

        def reached(point: str) -> None:
            if point == stop_at:
                raise KeyboardInterrupt

        monkeypatch.setattr("flairhub.ingest.store.reach", reached)
    with pytest.raises(KeyboardInterrupt):
        ingest(root=files.folder, cube=tmp_path / "c.zarr", shard=1)
    monkeypatch.undo()
    ingest(root=files.folder, cube=tmp_path / "c.zarr", shard=1)
    assert same_tree(tmp_path / "c.zarr", tmp_path / "whole.zarr")


def test_cubes_that_did_not_keep_nodata_are_named(
    masked_cube: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, name = tmp_path / "c.zarr", "AERIAL_RGBI"
    shutil.copytree(masked_cube, path)
    BatchLoader(open_cube(path), np.arange(2), {name: ImagePreparation()}, [], batch_size=1)
    assert caplog.text == ""
    set_status(path, "complete")  # without a seal, as of an earlier version
    for store, key in ((path, f"{name}"), (path / name, None)):
        document = json.loads((store / "zarr.json").read_text())
        members = document["consolidated_metadata"]["metadata"]
        del (document if key is None else members[key])["attributes"]["validity"]
        (store / "zarr.json").write_text(json.dumps(document))
    BatchLoader(open_cube(path), np.arange(2), {name: ImagePreparation()}, [], batch_size=1)
    assert f"{path}: {name} holds pixels without data" in caplog.text
