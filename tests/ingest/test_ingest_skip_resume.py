"""An ingest that leaves bad patches out is stopped and continued: the same store, report, messages and exit code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rasterio.transform import from_origin

from flairhub.jobs import Journal
from tests.helpers.breaking import rewrite, set_dates
from tests.helpers.commands import run_command
from tests.helpers.comparisons import same_tree
from tests.helpers.makers import PatchFiles

N_SHARDS, N_AGAIN = 16, 2
"""Shards of one patch each, and shards that are done again because their patch lies elsewhere."""


@pytest.fixture
def bad(files: PatchFiles) -> PatchFiles:
    """A damaged file, a patch without dates, and two files of one patch that lie elsewhere, each at another place."""
    path = files.files["AERIAL_RGBI"][files.patch_ids[1]]
    path.write_bytes(path.read_bytes()[:-200])
    set_dates(None)(files)
    x, y = files.origins[files.patch_ids[0]]
    rewrite(files, "AERIAL_RGBI", 0, transform=from_origin(x + 3.2, y, 6.4, 6.4))
    rewrite(files, "AERIAL_LABEL-COSIA", 0, transform=from_origin(x, y - 6.4, 6.4, 6.4))
    return files


def ingest(files: PatchFiles, cube: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], str]:
    """Exit code, what was skipped, and the complaint about it."""
    arguments = ["--root", files.folder, "--cube", cube, "--shard", 1, "--workers", 0, "--on-error", "skip"]
    code, out, err = run_command(capsys, "ingest", *arguments)
    return code, [line for line in out.split("\n") if line.startswith("skipped")], err


def stop_at_line(number: int, before: bool) -> Callable[[Journal, Mapping[str, Any]], None]:
    """`Journal.append`, interrupted just before or after its n-th line, counted from 0."""
    count = 0
    real = Journal.append

    def append(journal: Journal, record: Mapping[str, Any]) -> None:
        nonlocal count
        count += 1
        if before and count > number:
            raise KeyboardInterrupt
        real(journal, record)
        if not before and count > number:
            raise KeyboardInterrupt

    return append


def test_skipping_is_judged_the_same_however_often_it_is_stopped(
    bad: PatchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole.zarr"
    expected = ingest(bad, whole, capsys)
    code, skipped, complaint = expected
    assert code == 1
    assert "4 of 16 files were bad; their patches are recorded as missing. More than --max-skipped 0.01" in complaint
    named = [tuple(line.split(":")[0].split()[1:]) for line in skipped]
    first, second, third, _ = bad.patch_ids
    assert named == [
        ("AERIAL_RGBI", first),
        ("AERIAL_RGBI", second),
        ("SENTINEL1-ASC_TS", third),
        ("AERIAL_LABEL-COSIA", first),
    ]
    assert ingest(bad, whole, capsys) == expected, "a complete cube is judged as when it was made"
    for number, before in ((3, True), (N_SHARDS - 1, False), (N_SHARDS, True), (N_SHARDS, False)):
        cube = tmp_path / f"{number}-{before}.zarr"
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Journal, "append", stop_at_line(number, before))
            assert ingest(bad, cube, capsys)[0] == 130
        assert ingest(bad, cube, capsys) == expected
        assert same_tree(cube, whole)
    # Stopped again and again, after every line of the second pass.
    cube = tmp_path / "twice.zarr"
    for number in (N_SHARDS, 0):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Journal, "append", stop_at_line(number, before=False))
            assert ingest(bad, cube, capsys)[0] == 130
    assert (cube / "ingest" / "journal.jsonl").read_bytes().count(b"\n") == N_SHARDS + N_AGAIN
    assert ingest(bad, cube, capsys) == expected
    assert same_tree(cube, whole)
