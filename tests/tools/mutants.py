"""Mutants: one small change to a file that decides values, and its tests must fail. Run by hand.

    python -m tests.tools.mutants                              # all files of the table below (hours)
    python -m tests.tools.mutants flairhub/timeseries.py       # one file
    python -m tests.tools.mutants --sample 40 --seed 1 flairhub/validity.py flairhub/confusion.py

A copy of the working tree is changed, never the tree itself. A mutant that hangs counts as killed. The survivors are
listed with the line and what it became; the share that was killed comes last.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

_EXACTNESS = "tests/inference/test_zonal_exactness.py"

TESTS: dict[str, tuple[str, ...]] = {
    "flairhub/validity.py": ("tests/test_validity.py", "tests/data/test_validity.py"),
    "flairhub/timeseries.py": ("tests/test_timeseries.py",),
    "flairhub/written_dates.py": ("tests/test_written_dates.py", "tests/ingest/test_ingest_tables.py"),
    "flairhub/prepare.py": ("tests/test_prepare.py", "tests/data/test_batches.py"),
    "flairhub/confusion.py": ("tests/test_confusion.py",),
    "flairhub/geo.py": ("tests/zones/test_zone.py", "tests/zones/test_align.py"),
    "flairhub/class_raster.py": ("tests/test_class_raster.py",),
    "flairhub/cube/codecs.py": ("tests/cube/test_cube_codecs.py", "tests/cube/test_cube_reader.py"),
    "flairhub/cube/shards.py": ("tests/cube/test_cube_codecs.py", "tests/cube/test_cube_reader.py"),
    "flairhub/cube/seal.py": ("tests/cube/test_cube_seal.py",),
    "flairhub/cube/roi.py": ("tests/cube/test_cube_roi.py",),
    "flairhub/ingest/statistics.py": ("tests/ingest/test_ingest_values.py", "tests/cube/test_cube_open.py"),
    "flairhub/ingest/patch_shards.py": ("tests/ingest/test_ingest_values.py", "tests/cube/test_cube_validity.py"),
    "flairhub/data/augment.py": ("tests/data/test_augment.py",),
    "flairhub/data/sampler.py": ("tests/data/test_sampler.py",),
    "flairhub/data/preparation.py": ("tests/data/test_batches.py", "tests/data/test_validity_paths.py"),
    "flairhub/data/batch_reader.py": ("tests/data/test_batches.py", "tests/data/test_validity_paths.py"),
    "flairhub/zones/raster.py": ("tests/zones/test_validity_matrix.py", "tests/zones/test_arrays.py"),
    "flairhub/zones/warped.py": ("tests/zones/test_align.py",),
    "flairhub/inference/windows.py": (
        "tests/inference/test_zonal_windows.py",
        "tests/inference/test_zonal_exactness.py",
    ),
    "flairhub/inference/resample.py": (
        "tests/inference/test_zonal_sizes.py",
        "tests/inference/test_zonal_exactness.py",
    ),
    "flairhub/inference/block.py": (_EXACTNESS, "tests/inference/test_zonal_blend.py"),
    "flairhub/training/losses.py": ("tests/training/test_losses.py", "tests/training/test_region_losses.py"),
    "flairhub/training/metrics.py": ("tests/training/test_intervals.py", "tests/test_confusion.py"),
    "flairhub/training/optimizers.py": ("tests/training/test_schedules.py",),
}
"""Files that decide values, and the tests that should notice."""

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """A changed file: `line` (1-based) read `before`, now `after`; `source` is all of it."""

    line: int
    before: str
    after: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module, in the order of its lines; texts, annotations and imports are left alone."""
    tree = ast.parse(source)
    skipped = {id(inner) for node in ast.walk(tree) for part in _without_values(node) for inner in ast.walk(part)}
    places = [node for node in ast.walk(tree) if id(node) not in skipped]
    for node in sorted(places, key=lambda node: (getattr(node, "lineno", 0), getattr(node, "col_offset", 0))):
        before = ast.unparse(node)
        for field, value in _changes(node):
            original = getattr(node, field)
            setattr(node, field, value)
            yield Mutant(getattr(node, "lineno", 0), before, ast.unparse(node), ast.unparse(tree))
            setattr(node, field, original)


def _without_values(node: ast.AST) -> list[ast.AST]:
    """Parts of a node that decide no value at run time."""
    if isinstance(node, ast.AnnAssign):
        return [node.annotation]
    if isinstance(node, ast.FunctionDef):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        return [
            part for part in (node.returns, *(a.annotation for a in arguments if a is not None)) if part is not None
        ]
    # What a message says is no value.
    return [node.exc] if isinstance(node, ast.Raise) and node.exc is not None else []


def _changes(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """Yield fields of a node with another value: each is a mutant."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            if type(operator) in _COMPARISONS:
                yield "ops", [*node.ops[:place], _COMPARISONS[type(operator)](), *node.ops[place + 1 :]]
    elif isinstance(node, ast.BoolOp):
        yield "op", ast.Or() if isinstance(node.op, ast.And) else ast.And()
        for place in range(len(node.values)):
            # A part that is never asked for.
            yield "values", [value for other, value in enumerate(node.values) if other != place]
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        if type(node.op) in _ARITHMETIC:
            yield "op", _ARITHMETIC[type(node.op)]()
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield "value", not node.value
        elif isinstance(node.value, int | float):
            yield "value", node.value + 1
            yield "value", node.value - 1
    elif isinstance(node, ast.UnaryOp):
        if isinstance(node.op, ast.USub):
            yield "op", ast.UAdd()
        elif isinstance(node.op, ast.Not | ast.Invert):
            # Twice is not at all.
            yield "operand", ast.UnaryOp(node.op, node.operand)
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "test", ast.UnaryOp(ast.Not(), node.test)


def survives(copy: Path, file: str, mutant: Mutant, tests: tuple[str, ...], timeout_s: float) -> bool:
    """True when the tests pass although the file in the copied tree is the mutant."""
    target = copy / file
    original = target.read_text()
    target.write_text(mutant.source)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return False
    finally:
        target.write_text(original)
    return done.returncode == 0


def main() -> None:
    """Read the command line, run the mutants, print the survivors and the share killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=list(TESTS), help="of the table in this file; default: all")
    parser.add_argument("--sample", type=int, help="at most so many mutants per file")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for the tests of one mutant")
    options = parser.parse_args()
    unknown = [file for file in options.files if file not in TESTS]
    if unknown:
        parser.error(f"no tests are named for {', '.join(unknown)}; known: {', '.join(TESTS)}")
    total = killed = 0
    with tempfile.TemporaryDirectory(prefix="flairhub-mutants-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "*.zarr.lock", "__pycache__", ".*cache"))
        for file in options.files:
            source = (copy / file).read_text()
            if not survives(copy, file, Mutant(0, "", "", source), TESTS[file], options.timeout):
                sys.exit(f"{file}: its tests fail without any change, or take longer than --timeout.")
            chosen = list(mutants(source))
            if options.sample is not None and options.sample < len(chosen):
                chosen = random.Random(options.seed).sample(chosen, options.sample)
            alive = []
            for mutant in chosen:
                if survives(copy, file, mutant, TESTS[file], options.timeout):
                    alive.append(mutant)
                    _say(f"{file}:{mutant.line}: {_short(mutant.before)}  ->  {_short(mutant.after)}")
            total, killed = total + len(chosen), killed + len(chosen) - len(alive)
            _say(f"{file}: {len(chosen) - len(alive)} of {len(chosen)} killed")
    _say(f"{killed} of {total} killed ({killed / max(total, 1):.0%})")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _short(code: str) -> str:
    """The first line: that of a whole `if` is enough."""
    return code.split("\n", 1)[0][:100]


if __name__ == "__main__":
    main()
