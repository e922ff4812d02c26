"""Window arithmetic: every pixel exactly once, whole pixels for every modality."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flairhub.errors import UsageError
from flairhub.geo import lattice_of
from flairhub.inference.resample import apply_taps, output_length, output_ratio, resample, taps
from flairhub.inference.windows import MOST_CHUNKS, block_edges, chunk_length, plan_axis
from flairhub.zones.raster import mirrored


@st.composite
def axes(draw: st.DrawFn):
    lattice = draw(st.integers(1, 12))
    length = lattice * draw(st.integers(1, 40))
    window = lattice * draw(st.integers(1, 12))
    margin = draw(st.integers(0, (window - lattice) // 2))
    return plan_axis(length, window, margin, lattice), margin, lattice


@settings(derandomize=True, max_examples=200, deadline=None)
@given(axes())
def test_every_pixel_is_written_once_with_its_margin(made) -> None:
    axis, margin, lattice = made
    written = np.zeros(axis.length, dtype=int)
    for index in range(axis.count):
        first, last = axis.core(index)
        assert first < last
        written[first:last] += 1
        assert axis.start(index) % lattice == 0
        assert first - axis.start(index) >= margin
        assert axis.start(index) + axis.window - last >= margin
    assert (written == 1).all()
    assert 0 <= axis.phase < lattice
    assert axis.step == (axis.window - 2 * margin) // lattice * lattice


@settings(derandomize=True, max_examples=200, deadline=None)
@given(axes(), st.data())
def test_covering_finds_the_windows_of_a_range(made, data: st.DataObject) -> None:
    axis = made[0]
    first = data.draw(st.integers(0, axis.length - 1))
    last = data.draw(st.integers(first + 1, axis.length))
    expected = [i for i in range(axis.count) if axis.core(i)[0] < last and axis.core(i)[1] > first]
    assert list(axis.covering(first, last)) == expected


@settings(derandomize=True, max_examples=200, deadline=None)
@given(axes(), st.integers(1, 200), st.sampled_from([Fraction(1), Fraction(2), Fraction(5, 2), Fraction(2, 5)]))
def test_blocks_tile_the_output_and_prefer_core_borders(made, block: int, ratio: Fraction) -> None:
    axis = made[0]
    n_out = output_length(axis.length, ratio)
    edges = block_edges(n_out, block, ratio, axis)
    assert edges[0] == 0
    assert edges[-1] == n_out
    assert all(0 < b - a <= block for a, b in pairwise(edges))
    lengths = np.diff(edges)
    chunk = chunk_length(edges)
    assert not any(edge % chunk for edge in edges[1:-1]), "no chunk lies in two blocks"
    assert len(set(lengths[1:-1])) <= 1
    assert (lengths[[0, -1]] <= max(lengths[1:-1], default=n_out)).all()
    assert len(lengths) == 1 or chunk * MOST_CHUNKS >= lengths[:-1].max()
    if ratio == 1 and block >= axis.step and (axis.phase == 0 or axis.phase * MOST_CHUNKS >= block):
        borders = {axis.core(i)[0] for i in range(axis.count)}
        assert set(edges[:-1]) <= borders


@pytest.mark.parametrize(
    ("lattice", "window", "margin", "edges", "chunk"),
    [
        (1, 512, 64, (0, 1920, 3840, 5760), 960),
        (256, 512, 128, (0, 896, 2688, 4480, 6144), 896),
        (256, 1024, 100, (0, 1408, 2944, 4480, 6016, 6144), 128),
        (50, 500, 125, (0, 1225, 2975, 4725, 6000), 175),
        # Cores start 4 px before the zone: chunks that divide their borders would be 20 px long.
        (8, 512, 60, (0, 2048, 4096, 6144), 1024),
    ],
)
def test_chunks_divide_blocks_of_published_pixels(
    lattice: int, window: int, margin: int, edges: tuple[int, ...], chunk: int
) -> None:
    length = edges[-1] // lattice * lattice
    found = block_edges(length, 2048, Fraction(1), plan_axis(length, window, margin, lattice))
    assert found == (*edges[:-1], length)
    assert chunk_length(found) == chunk


def test_published_sizes() -> None:
    """0.2 m aerial beside 1.6 m SPOT and 10.24 m Sentinel-2: 512 px windows, margin 128."""
    lattice = lattice_of([Fraction(1), Fraction(8), Fraction(256, 5)])
    assert lattice == 256
    axis = plan_axis(5120, 512, 128, lattice)
    assert (axis.step, axis.crop, axis.offset, axis.count) == (256, 128, 256, 21)
    assert axis.core(0) == (0, 128)
    assert [axis.start(i) for i in range(3)] == [-256, 0, 256]


@pytest.mark.parametrize(
    ("window", "margin", "lattice", "message"),
    [
        (512, 128, 50, r"multiples of 50 px\. Use 500 or 550"),
        (30, 0, 50, r"Use 50\."),
        (512, 129, 256, r"margin: 129 .* leave 254 of the 512 px .* at least 256.* at most 128 px"),
        (16, 8, 1, "margin: 8 .* leave 0 of the 16 px .* at most 7 px"),
        (0, 0, 1, "img_pixels_detection: 0"),
    ],
)
def test_impossible_windows_name_the_way_out(window: int, margin: int, lattice: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_axis(512, window, margin, lattice)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 30))
def test_mirrored_is_numpy_symmetric_padding(length: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(length), (before, after), mode="symmetric")
    np.testing.assert_array_equal(mirrored(-before, length + after, length), expected)


@pytest.mark.parametrize("ratio", [2, 8])
def test_mirrors_of_coarse_and_fine_pixels_agree(ratio: int) -> None:
    fine = mirrored(-2 * ratio, 7 * ratio, 5 * ratio) // ratio
    np.testing.assert_array_equal(fine, np.repeat(mirrored(-2, 7, 5), ratio))


RATIOS = st.fractions(min_value=Fraction(1, 6), max_value=6, max_denominator=6)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.integers(1, 40), RATIOS, st.data())
def test_resampled_blocks_equal_the_whole_bit_for_bit(length: int, ratio: Fraction, data: st.DataObject) -> None:
    values = np.random.default_rng(length).random((2, length, length), dtype=np.float32)
    n_out = output_length(length, ratio)
    first = data.draw(st.integers(0, n_out - 1))
    last = data.draw(st.integers(first + 1, n_out))
    whole, part = taps(0, n_out, length, ratio), taps(first, last, length, ratio)
    assert 0 <= part.first < part.last <= length
    expected = apply_taps(values[:, whole.first : whole.last, whole.first : whole.last], whole, whole)
    found = apply_taps(values[:, part.first : part.last, part.first : part.last], part, part)
    np.testing.assert_array_equal(found, expected[:, first:last, first:last])


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.integers(1, 30), RATIOS)
def test_constants_stay_constant(length: int, ratio: Fraction) -> None:
    n_out = output_length(length, ratio)
    axis = taps(0, n_out, length, ratio)
    values = np.full((1, axis.last, axis.last), 0.25, dtype=np.float32)
    found, valid = resample(values[:, axis.first :, axis.first :], np.ones_like(values[0], dtype=bool), axis, axis)
    np.testing.assert_allclose(found, 0.25, rtol=1e-5)
    assert valid.all()


def test_coarser_output_is_the_area_mean() -> None:
    values = np.arange(36, dtype=np.float32).reshape(1, 6, 6)
    axis = taps(0, 3, 6, Fraction(2))
    expected = values.reshape(1, 3, 2, 3, 2).mean(axis=(2, 4))
    np.testing.assert_array_equal(apply_taps(values, axis, axis), expected)
    partly = taps(0, 2, 3, Fraction(3, 2))
    np.testing.assert_allclose(partly.weight, [[2 / 3, 1 / 3, 0], [1 / 3, 2 / 3, 0]], rtol=1e-5)


def test_finer_output_is_linear_between_centres() -> None:
    axis = taps(0, 4, 2, Fraction(1, 2))
    values = np.array([[[0.0, 1.0], [0.0, 1.0]]], dtype=np.float32)
    np.testing.assert_allclose(apply_taps(values, axis, axis)[0], np.tile([0, 0.25, 0.75, 1], (4, 1)), atol=1e-5)


def test_half_valid_decides() -> None:
    values = np.ones((1, 2, 4), dtype=np.float32)
    valid = np.array([[True, True, True, False], [False, False, False, False]])
    found, good = resample(values, valid, taps(0, 1, 2, Fraction(2)), taps(0, 2, 4, Fraction(2)))
    np.testing.assert_array_equal(good, [[True, False]])
    np.testing.assert_allclose(found[0, 0], [1, 1], atol=1e-5)


def test_output_ratio() -> None:
    assert output_ratio(None, 0.2) == 1
    assert output_ratio(0.2, 0.2) == 1
    assert output_ratio(1.6, 0.2) == 8
    assert output_ratio(0.25, 0.2) == Fraction(5, 4)
    assert output_length(10, Fraction(3)) == 4
    assert output_length(10, Fraction(2, 5)) == 25
    with pytest.raises(UsageError, match="output_px_meters: got -1"):
        output_ratio(-1, 0.2)
    with pytest.raises(UsageError, match="no usable multiple"):
        output_ratio(0.2 * 0.00000123, 0.2)
