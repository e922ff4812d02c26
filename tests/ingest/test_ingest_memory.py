"""Memory stays the same however many patches there are, and however many a shard holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.makers import PatchFiles, make_patch_files
from tests.helpers.waiting import HANG_S

PEAK = """
import sys
import flairhub as fh
fh.ingest(root=sys.argv[1], cube=sys.argv[2], shard=int(sys.argv[3]))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_mib(files: PatchFiles, cube: Path, shard: int) -> float:
    arguments = [sys.executable, "-c", PEAK, str(files.folder), str(cube), str(shard)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=HANG_S, check=True)
    return int(done.stdout) / 2**10


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_peak_memory_is_flat(tmp_path: Path) -> None:
    """A quarter of a MiB of noise per patch: what is kept in memory shows."""
    peaks = {}
    for rows in (1, 16):
        files = make_patch_files(
            tmp_path / str(rows), n_rois=1, rows=rows, cols=4, modalities=["AERIAL_RGBI"], sizes_px={"AERIAL_RGBI": 256}
        )
        peaks[rows] = peak_mib(files, tmp_path / f"{rows}.zarr", 4)
    large_shard = peak_mib(files, tmp_path / "one.zarr", 64)
    # 60 patches more are 15 MiB.
    assert peaks[16] - peaks[1] < 8, "16 times as many patches"
    assert large_shard - peaks[1] < 8, "16 times as large a shard"
