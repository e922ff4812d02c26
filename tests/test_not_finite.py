"""Logits that are no numbers: which pixels, and how many are too many."""

import torch

from flairhub.not_finite import MOST_NOT_FINITE, finite_pixels, too_many_not_finite


def test_one_class_that_is_not_finite_is_enough() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1, 0, 0], logits[0, 2, 0, 1], logits[0, 0, 1, 0] = torch.nan, torch.inf, -torch.inf
    assert finite_pixels(logits, 1).tolist() == [[[False, False], [False, True]]]
    assert finite_pixels(logits.permute(1, 0, 2, 3), 0).tolist() == [[[False, False], [False, True]]]


def test_the_stated_share_is_allowed_and_one_more_is_not() -> None:
    assert MOST_NOT_FINITE == 0.001
    assert too_many_not_finite(0, 0, "map") is None
    assert too_many_not_finite(10, 10_000, "map") is None
    assert "map: the network gives no finite numbers for 11 of 10000 pixels with data (0.1%" in str(
        too_many_not_finite(11, 10_000, "map")
    )
