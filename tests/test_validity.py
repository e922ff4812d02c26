"""The one rule of validity against a loop over pixels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flairhub.validity import resized, stored_nodata, valid_pixels


def brute_force(
    values: np.ndarray,
    nodata: list[float | None],
    mask: np.ndarray | None,
    channels: list[int],
    every_band: bool,
) -> np.ndarray:
    """(time, y, x) bool of (time, band, y, x), pixel by pixel."""
    n_dates, _, height, width = values.shape
    valid = np.ones((n_dates, height, width), dtype=bool)
    for t, y, x in np.ndindex(valid.shape):
        without = []
        for channel in channels:
            number, declared = values[t, channel - 1, y, x].item(), nodata[channel - 1]
            if declared is not None and values.dtype == np.float32:
                declared = float(np.float32(declared))
            without.append(not math.isfinite(number) or (declared is not None and number == declared))
        needs_all = values.dtype.kind == "f" or every_band
        valid[t, y, x] = not (any(without) if needs_all else without and all(without))
        if mask is not None:
            valid[t, y, x] &= mask[t, y, x]
    return valid


NUMBERS = {
    "uint8": [0, 1, 255],
    "uint16": [0, 1, 65535],
    "int16": [0, -1, -10000],
    "float32": [0.0, 1.5, -9999.0, float("nan"), float("inf"), float("-inf"), -3.4028234663852886e38],
}


@given(
    dtype=st.sampled_from(list(NUMBERS)),
    nodata=st.sampled_from([None, 0, 255, 65535, -1, -10000, -9999.0, 1.5, float("nan"), float("inf"), -3.40282347e38]),
    per_band=st.booleans(),
    with_mask=st.booleans(),
    channels=st.sampled_from([None, [1], [3, 1], [2, 3]]),
    every_band=st.booleans(),
    seed=st.integers(0, 200),
)
def test_it_is_what_a_loop_over_pixels_gives(
    dtype: str,
    nodata: float | None,
    per_band: bool,
    with_mask: bool,
    channels: list[int] | None,
    every_band: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice(np.array(NUMBERS[dtype], dtype=dtype), (2, 3, 3, 4))
    mask = rng.random((2, 3, 4)) < 0.8 if with_mask else None
    declared = [nodata, None, nodata] if per_band else [nodata] * 3
    expected = brute_force(values, declared, mask, channels or [1, 2, 3], every_band)
    result = valid_pixels(values, declared if per_band else nodata, mask, channels, every_band)
    assert (result is None) == bool(expected.all())
    if result is not None:
        np.testing.assert_array_equal(result, expected)
    image = valid_pixels(
        values[0], declared if per_band else nodata, None if mask is None else mask[0], channels, every_band
    )
    np.testing.assert_array_equal(np.ones((3, 4), bool) if image is None else image, expected[0])


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", -1), ("uint8", 256), ("uint8", 3.5), ("uint8", np.nan), ("uint16", -9999), ("int16", np.inf)],
)
def test_a_number_that_no_pixel_can_hold_declares_nothing(dtype: str, nodata: float) -> None:
    assert stored_nodata(nodata, np.dtype(dtype)) is None
    limits = np.iinfo(dtype)
    extremes = np.array([limits.min, limits.max], dtype=dtype).reshape(1, 1, 2)
    assert valid_pixels(extremes, nodata) is None
    assert stored_nodata(limits.max, np.dtype(dtype)) == limits.max


def test_a_number_by_chance_in_one_band_is_data() -> None:
    values = np.array([[[0, 0]], [[0, 7]]], dtype=np.uint8)
    result = valid_pixels(values, 0)
    assert result is not None
    assert result.tolist() == [[False, True]]
    heights = valid_pixels(values, 0, every_band=True)
    assert heights is not None
    assert heights.tolist() == [[False, False]]


def test_a_mask_of_all_dates_is_spread() -> None:
    mask = np.array([[True, False]])
    result = valid_pixels(np.ones((2, 1, 1, 2), np.uint8), None, mask)
    assert result is not None
    assert result.tolist() == [[[True, False]], [[True, False]]]
    assert valid_pixels(np.ones((2, 1, 1, 2), np.uint8), None, np.ones((1, 2), dtype=bool)) is None


def test_nothing_is_not_invalid() -> None:
    assert valid_pixels(np.zeros((0, 2, 3, 3), np.float32), 0) is None
    assert valid_pixels(np.zeros((0, 2, 3, 3), np.uint8), 0) is None


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    wanted=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_another_grid_takes_the_pixel_under_its_centre(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    valid = np.random.default_rng(0).random((2, *size)) < 0.5
    result = resized(valid, wanted)
    for y, x in np.ndindex(wanted):
        row, col = int((y + 0.5) * size[0] / wanted[0]), int((x + 0.5) * size[1] / wanted[1])
        assert result[:, y, x].tolist() == valid[:, row, col].tolist()
