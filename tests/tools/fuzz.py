"""Change what users bring at random places; the answer is a right result or a clear error, whatever it was.

python -m tests.tools.fuzz KIND [--times N] [--seed N], KIND one of configs, rasters, archives, bundles. Without a seed,
the time decides. Ends with exit code 1 at the first other answer.
"""

from __future__ import annotations

import argparse
import copy
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flairhub.errors import FlairhubError
from tests.helpers.config_values import train_values, zonal_values

HANG_S = 300
"""What takes longer hangs; changed files are read in milliseconds."""

PARTS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 255, 256, 2**31, 2**63, 10**400, 0.0, 0.5, -0.0, 1e308, 1e-320),
    *(float("inf"), float("-inf"), float("nan"), "", " ", "0", "1e5", "yes", "05-15", "13-40", "monthly"),
    *("a/b", "../..", "\0", "\x1b[2J", "é/é", "\u202e", "AERIAL_RGBI", "$HOME", "~", "tcp://x", "None"),
    *([], {}, [[]], [1, 1], [0], [-1], [1e9], ["a"], [None], [float("nan")], {"a": 1}, {1: 2}, {None: None}),
)
"""What a value may become."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all entries of nested mappings and lists."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from places(entry, (*path, key))


def changed(values: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    """Up to three entries replaced, removed, renamed, or moved to another place."""
    result = copy.deepcopy(dict(values))
    for _ in range(chance.choice((1, 1, 2, 3))):
        every = list(places(result))
        if not every:
            break
        *parents, key = chance.choice(every)
        holder: Any = result
        for part in parents:
            holder = holder[part]
        what = chance.random()
        if what < 0.15 and isinstance(holder, dict):
            del holder[key]
        elif what < 0.25 and isinstance(holder, dict):
            holder[chance.choice((f"{key}s", str(key)[:-1], str(key).upper(), 7, ""))] = holder.pop(key)
        elif what < 0.4:
            other: Any = result
            for part in chance.choice(every):
                other = other[part] if isinstance(other, (dict, list)) and _has(other, part) else other
            holder[key] = copy.deepcopy(other)
        else:
            holder[key] = copy.deepcopy(chance.choice(PARTS))
    return result


def _has(holder: Any, part: Any) -> bool:
    return part in holder if isinstance(holder, dict) else isinstance(part, int) and part < len(holder)


def check_configuration(values: Mapping[str, Any], kind: str) -> str:
    """Load it, and derive from it what runs derive.

    Returns:
        `accepted` or `refused`.

    Raises:
        AssertionError: It does not survive being written and read again.
        Exception: Whatever else than an error of flairhub.
    """
    from flairhub import config

    build = config.train_config_from_dict if kind == "train" else config.zonal_config_from_dict
    try:
        result: Any = build(values)
    except FlairhubError as error:
        _check_message(error)
        return "refused"
    config.input_preparations(result)
    for task in config.label_tasks(result):
        if kind == "train":
            assert len(config.class_weights(result, task.label)) == task.n_classes
    from flairhub.config.yaml_file import parse_yaml

    assert build(parse_yaml(config.resolved_yaml(result), "", "").data) == result, "changed by writing it"
    return "accepted"


def fuzz_configs(times: int, chance: random.Random, folder: Path) -> Counter[str]:
    """Change training and zonal configurations."""
    counts: Counter[str] = Counter()
    for number in range(times):
        kind, values = ("train", train_values()) if number % 2 else ("zonal", zonal_values())
        mutated = changed(values, chance)
        with named(f"{kind} configuration {number}: {mutated}"):
            counts[check_configuration(mutated, kind)] += 1
    return counts


def flipped(content: bytes, chance: random.Random, first: int = 0, last: int | None = None) -> bytes:
    """One to four bytes of a range changed, or the rest cut off."""
    result = bytearray(content)
    last = len(result) if last is None else min(last, len(result))
    if chance.random() < 0.1:
        return bytes(result[: chance.randrange(first, last)])
    for _ in range(chance.choice((1, 1, 2, 4))):
        result[chance.randrange(first, last)] = chance.randrange(256)
    return bytes(result)


def _patch_folder(folder: Path) -> Any:
    from tests.helpers.makers import make_patch_files

    return make_patch_files(folder, n_rois=1, rows=1, cols=1, domains=("D012-2019",), modalities=("DEM_ELEV",))


def _ingested(root: Path, cube: Path) -> bytes | None:
    """The heights of the one patch in the cube; None when the data are refused."""
    import flairhub

    try:
        flairhub.ingest(root=root, cube=cube, workers=0)
        return flairhub.open_cube(cube).read("DEM_ELEV", [0]).tobytes()
    except FlairhubError as error:
        _check_message(error)
        return None
    finally:
        for path in cube.parent.glob(f"*{cube.name}*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _check_message(error: FlairhubError) -> None:
    assert str(error)
    assert "\0" not in str(error), "a control character in a message"


def fuzz_rasters(times: int, chance: random.Random, folder: Path) -> Counter[str]:
    """Change the headers of GeoTIFFs that are ingested."""
    files = _patch_folder(folder / "files")
    (path,) = files.folder.rglob("*.tif")
    content, counts = path.read_bytes(), Counter[str]()
    assert _ingested(files.folder, folder / "cube.zarr")
    for number in range(times):
        # The directory and its values lie before the pixels, or behind them.
        range_ = (0, 1024) if chance.random() < 0.7 else (len(content) - 1024, len(content))
        path.write_bytes(flipped(content, chance, max(range_[0], 0), range_[1]))
        with named(f"raster {number}"):
            counts["accepted" if _ingested(files.folder, folder / "cube.zarr") else "refused"] += 1
    return counts


def fuzz_archives(times: int, chance: random.Random, folder: Path) -> Counter[str]:
    """Change zip archives that are ingested; whatever is accepted has the pixels of the unchanged one."""
    files = _patch_folder(folder / "files")
    (part,) = (path for path in files.folder.iterdir() if path.is_dir() and list(path.rglob("*.tif")))
    archive = folder / "zips" / f"{part.name}.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(part.rglob("*")):
            target.write(path, path.relative_to(part))
    content, counts = archive.read_bytes(), Counter[str]()
    whole = _ingested(archive.parent, folder / "cube.zarr")
    assert whole
    for number in range(times):
        archive.write_bytes(flipped(content, chance))
        with named(f"archive {number}"):
            result = _ingested(archive.parent, folder / "cube.zarr")
            assert result in (None, whole), "accepted with other pixels"
            counts["accepted" if result else "refused"] += 1
    return counts


def fuzz_bundles(times: int, chance: random.Random, folder: Path) -> Counter[str]:
    """Change bytes of bundles: each one is refused."""
    from flairhub.models import load_model
    from flairhub.prepare import ImagePreparation
    from tests.helpers.bundle_makers import make_bundle

    bundle = make_bundle(folder / "bundle", {"AERIAL_RGBI": ImagePreparation()})
    paths = sorted(path for path in bundle.rglob("*") if path.is_file())
    counts: Counter[str] = Counter()
    for number in range(times):
        path = chance.choice(paths)
        content = path.read_bytes()
        new = flipped(content, chance)
        path.write_bytes(new)
        with named(f"bundle {number}, {path.name}"):
            try:
                load_model(bundle)
                counts["accepted"] += 1
                assert new == content, "accepted with other bytes"
            except FlairhubError as error:
                _check_message(error)
                counts["refused"] += 1
        path.write_bytes(content)
    return counts


@contextmanager
def named(what: str) -> Iterator[None]:
    """Say what was tried when it goes wrong; end what hangs."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"{HANG_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_S)
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


KINDS: Mapping[str, Callable[[int, random.Random, Path], Counter[str]]] = {
    "configs": fuzz_configs,
    "rasters": fuzz_rasters,
    "archives": fuzz_archives,
    "bundles": fuzz_bundles,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        try:
            counts = KINDS[options.kind](options.times, random.Random(options.seed), Path(folder))
        except AssertionError as error:
            sys.exit(f"{options.kind}, seed {options.seed}: {error}")
    print(f"{options.kind}, seed {options.seed}: {dict(counts)}")  # noqa: T201


if __name__ == "__main__":
    main()
