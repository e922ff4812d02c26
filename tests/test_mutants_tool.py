"""The mutation script changes what decides values, one thing at a time, and nothing else."""

from __future__ import annotations

import ast

from tests.tools.mutants import ROOT, TESTS, mutants

SOURCE = '''
def f(x: int = 3) -> int:
    """Text 1."""
    if x < 2 and not x == 5:
        raise ValueError(f"got {x + 1}")
    return -x + 1
'''


def test_every_kind_of_change_once() -> None:
    made = {(mutant.line, mutant.before.split("\n")[0], mutant.after.split("\n")[0]) for mutant in mutants(SOURCE)}
    assert made == {
        (2, "3", "4"),
        (2, "3", "2"),
        (4, "if x < 2 and (not x == 5):", "if not (x < 2 and (not x == 5)):"),
        (4, "x < 2 and (not x == 5)", "x < 2 or not x == 5"),
        (4, "x < 2 and (not x == 5)", "x < 2"),
        (4, "x < 2 and (not x == 5)", "not x == 5"),
        (4, "x < 2", "x <= 2"),
        (4, "2", "3"),
        (4, "2", "1"),
        (4, "not x == 5", "not not x == 5"),
        (4, "x == 5", "x != 5"),
        (4, "5", "6"),
        (4, "5", "4"),
        (6, "-x + 1", "-x - 1"),
        (6, "-x", "+x"),
        (6, "1", "2"),
        (6, "1", "0"),
    }
    plain = ast.unparse(ast.parse(SOURCE))
    assert all(mutant.source != plain and ast.parse(mutant.source) for mutant in mutants(SOURCE))


def test_the_table_names_files_that_exist() -> None:
    for file, tests in TESTS.items():
        assert (ROOT / file).is_file(), file
        assert all((ROOT / test).is_file() for test in tests), file
