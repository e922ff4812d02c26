"""Killed at random times, fed with changed files: a fixed seed of what `tests.tools` does with any."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from flairhub.errors import FlairhubError
from tests.tools import fuzz, kills


@pytest.mark.parametrize(("kind", "times"), [("configs", 150), ("rasters", 8), ("archives", 8), ("bundles", 3)])
def test_changed_files_are_refused_or_right(kind: str, times: int, tmp_path: Path) -> None:
    counts = fuzz.KINDS[kind](times, random.Random(4), tmp_path)
    assert sum(counts.values()) == times
    assert counts["refused"] > times // 4


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "times"), [("configs", 2000), ("rasters", 300), ("archives", 300), ("bundles", 200)])
def test_many_changed_files_are_refused_or_right(kind: str, times: int, tmp_path: Path) -> None:
    assert sum(fuzz.KINDS[kind](times, random.Random(5), tmp_path).values()) == times


@pytest.mark.slow
@pytest.mark.parametrize("name", list(kills.STAGES))
def test_killed_at_random_times_ends_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    counts = kills.kill_at_random(kills.STAGES[name](tmp_path), tmp_path, kills=25, seed=6)
    assert counts.killed == 25
    assert counts.compared >= 1


def test_a_difference_is_named() -> None:
    with pytest.raises(AssertionError, match=r"\['b', 'c'\]"):
        kills.assert_equal({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"})


def test_a_wrong_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An exception that is none of flairhub's; bytes that are accepted although they were changed."""
    with pytest.raises(AssertionError, match=r"raster 3: KeyError"), fuzz.named("raster 3"):
        raise KeyError("x")
    monkeypatch.setattr("flairhub.models.load_model", lambda path: None)
    with pytest.raises(AssertionError, match=r"bundle 0, .*accepted with other bytes"):
        fuzz.fuzz_bundles(1, random.Random(0), tmp_path)


def test_messages_have_no_control_characters() -> None:
    with pytest.raises(AssertionError, match="control character"):
        fuzz._check_message(FlairhubError("a\0b"))
