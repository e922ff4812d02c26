from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flairhub.errors import DataError, UsageError
from flairhub.timeseries import (
    CloudFilter,
    SeriesPreparation,
    average_series,
    day_offsets,
    fill_published,
    keep_dates,
    period_count,
    period_offsets,
    prepare_series,
)
from flairhub.validity import valid_pixels
from flairhub.written_dates import parse_date

GOLDEN = np.load(Path(__file__).parent / "golden" / "timeseries.npz")
CASES = ("a", "b", "dense")


def days(*texts: str) -> np.ndarray:
    return np.array([parse_date(text, "test") for text in texts])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("key", "rule"),
    [
        ("keep_cloud1_snow1_frac0.05", CloudFilter()),
        ("keep_cloud30_snow1_frac0.05", CloudFilter(max_cloud=30)),
        ("keep_cloud1_snow1_frac0.2", CloudFilter(max_frac=0.2)),
    ],
)
def test_kept_dates_are_the_published_ones(case: str, key: str, rule: CloudFilter) -> None:
    np.testing.assert_array_equal(keep_dates(GOLDEN[f"{case}/mask"], rule), GOLDEN[f"{case}/{key}"])


def test_snow_alone_decides_when_every_date_is_cloudy() -> None:
    expected = GOLDEN["fallback/keep_cloud1_snow1_frac0.05"]
    np.testing.assert_array_equal(keep_dates(GOLDEN["fallback/mask"], CloudFilter()), expected)
    quality = np.zeros((3, 2, 4, 4), np.uint8)
    quality[:, 1] = 100
    quality[1, 0] = 100
    assert keep_dates(quality, CloudFilter()).tolist() == [True, False, True]


def test_nothing_is_kept_under_snow_and_cloud() -> None:
    assert keep_dates(np.full((2, 2, 3, 3), 100, np.uint8), CloudFilter()).tolist() == [False, False]
    assert keep_dates(np.zeros((0, 2, 3, 3), np.uint8), CloudFilter()).tolist() == []


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("average", ["monthly", "semi-monthly"])
def test_averages_are_the_published_ones(case: str, average: str) -> None:
    dates = days(*GOLDEN[f"{case}/dates"])
    filled = fill_published(average_series(GOLDEN[f"{case}/values"], dates, average, "05-15"))
    np.testing.assert_allclose(filled.values, GOLDEN[f"{case}/{average}/mean"], rtol=1e-5)
    np.testing.assert_array_equal(filled.offsets, GOLDEN[f"{case}/{average}/day_offset"])


def brute_average(values: np.ndarray, dates: list[date], average: str) -> tuple[np.ndarray, list[int]]:
    means, counts = [], []
    for month in range(1, 13):
        for half in (None,) if average == "monthly" else (1, 2):
            chosen = [i for i, d in enumerate(dates) if d.month == month and half in (None, 1 if d.day <= 15 else 2)]
            counts.append(len(chosen))
            means.append(values[chosen].mean(axis=0) if chosen else np.zeros(values.shape[1:]))
    return np.array(means), counts


@given(
    offsets=st.lists(st.integers(0, 800), min_size=1, max_size=30),
    average=st.sampled_from(["monthly", "semi-monthly"]),
    seed=st.integers(0, 99),
)
def test_averages_equal_brute_force(offsets: list[int], average: str, seed: int) -> None:
    dates = [date(2018, 11, 3) + timedelta(days=offset) for offset in offsets]
    values = np.random.default_rng(seed).integers(0, 9000, (len(dates), 2, 3, 3)).astype(np.uint16)
    result = average_series(values, np.array(dates, "datetime64[D]"), average, "05-15")
    means, counts = brute_average(values, dates, average)
    assert result.count.tolist() == counts
    np.testing.assert_allclose(result.values, means, rtol=1e-5)


def test_offsets_count_from_the_reference_day_of_the_own_year() -> None:
    dates = days("20190515", "20190101", "20201231", "20200301")
    assert day_offsets(dates, "05-15").tolist() == [0, -134, 230, -75]
    assert day_offsets(np.array(["NaT"], "datetime64[D]"), "05-15").tolist() == [0]


def test_period_offsets_know_leap_years() -> None:
    assert period_offsets("monthly", "05-15", 2019)[:6].tolist() == [-120, -89, -61, -30, 0, 31]
    assert period_offsets("monthly", "05-15", 2020)[:2].tolist() == [-121, -90]
    assert period_offsets("semi-monthly", "05-15", 2019)[:4].tolist() == [-127, -112, -96, -81]


def test_masked_fill_keeps_true_offsets_of_empty_periods() -> None:
    values = np.full((1, 1, 2, 2), 7, np.uint16)
    series = prepare_series(values, days("20190620"), None, SeriesPreparation(average="monthly"))
    assert series.valid.tolist() == [month == 6 for month in range(1, 13)]
    assert series.offsets.tolist() == period_offsets("monthly", "05-15", 2019).tolist()
    assert series.values[5].tolist() == [[[7, 7], [7, 7]]]


def test_published_fill_is_all_valid() -> None:
    values = np.full((1, 1, 2, 2), 7, np.uint16)
    preparation = SeriesPreparation(average="monthly", fill="published")
    series = prepare_series(values, days("20190620"), None, preparation)
    assert series.valid.all()
    assert series.offsets.tolist() == [0] * 5 + [31] * 7


def test_semi_monthly_keeps_dates_of_other_years() -> None:
    values = np.stack([np.full((1, 1, 1), 10), np.full((1, 1, 1), 30)])
    result = average_series(values, days("20181220", "20191220"), "semi-monthly", "05-15")
    assert result.count[23] == 2
    assert result.values[23, 0, 0, 0] == 20


def test_filter_comes_before_the_average_and_channels_are_ordered() -> None:
    values = np.arange(3 * 2 * 1 * 1).reshape(3, 2, 1, 1).astype(np.float32)
    quality = np.zeros((3, 2, 1, 1), np.uint8)
    quality[1, 1] = 90
    preparation = SeriesPreparation(channels=(2, 1), cloud_filter=CloudFilter(), average="monthly")
    series = prepare_series(values, days("20190103", "20190105", "20190107"), quality, preparation)
    assert series.values[0].ravel().tolist() == [3.0, 2.0]


def test_single_dates_stay_native() -> None:
    values = np.ones((2, 1, 2, 2), np.uint16)
    series = prepare_series(values, days("20190515", "20190516"), None, SeriesPreparation())
    assert series.values.dtype == np.uint16
    assert series.offsets.tolist() == [0, 1]


def test_numbers_of_dates_and_images_must_agree() -> None:
    with pytest.raises(DataError, match="2 images but 1 dates"):
        prepare_series(np.ones((2, 1, 1, 1)), days("20190515"), None, SeriesPreparation())
    preparation = SeriesPreparation(cloud_filter=CloudFilter())
    with pytest.raises(DataError, match="needs 1 quality images, found none"):
        prepare_series(np.ones((1, 1, 1, 1)), days("20190515"), None, preparation)


def test_preparation_survives_json() -> None:
    preparation = SeriesPreparation((3, 1), CloudFilter(30, 2, 0.1), "semi-monthly", "published", "06-01")
    assert SeriesPreparation.from_json(preparation.to_json()) == preparation
    assert SeriesPreparation.from_json(SeriesPreparation().to_json()) == SeriesPreparation()


def test_bad_options_are_refused() -> None:
    with pytest.raises(UsageError, match="expected MM-DD"):
        SeriesPreparation(ref_date="15-05")
    with pytest.raises(UsageError, match="02-29"):
        SeriesPreparation(ref_date="02-29")
    with pytest.raises(UsageError, match="average"):
        SeriesPreparation(average="weekly")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"channels \[4\] do not exist"):
        prepare_series(np.ones((1, 3, 1, 1)), days("20190515"), None, SeriesPreparation(channels=(1, 4)))


def ones(n: int, bands: int = 1, size: int = 2) -> np.ndarray:
    return np.ones((n, bands, size, size), np.float32)


SCENES = [("int16", -10000), ("uint16", 65535), ("uint16", 0), ("float32", -9999), ("float32", np.nan)]


@pytest.mark.parametrize(("dtype", "nodata"), SCENES)
def test_a_date_without_data_is_no_observation(dtype: str, nodata: float) -> None:
    values = np.full((3, 2, 4, 4), 1000).astype(dtype)
    values[0] = nodata
    valid = valid_pixels(values, nodata)
    dates = days("20180105", "20180120", "20180622")
    single = prepare_series(values, dates, None, SeriesPreparation(), valid)
    assert single.values.dtype == np.dtype(dtype)
    assert single.values.tolist() == np.full((2, 2, 4, 4), 1000).tolist()
    assert single.offsets.tolist() == [-115, 38]
    assert single.valid.tolist() == [True, True]
    assert single.observed is None
    monthly = prepare_series(values, dates, None, SeriesPreparation(average="monthly"), valid)
    assert monthly.values[0].tolist() == np.full((2, 4, 4), 1000).tolist()
    assert monthly.valid.tolist() == [month in (1, 6) for month in range(1, 13)]
    assert average_series(values, dates, "monthly", "05-15", valid).count.tolist() == [1, 0, 0, 0, 0, 1] + [0] * 6


@pytest.mark.parametrize(("dtype", "nodata"), SCENES)
def test_a_mean_is_of_the_valid_observations_of_the_pixel(dtype: str, nodata: float) -> None:
    values = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]]).reshape(3, 1, 1, 3).astype(dtype)
    values[0, 0, 0, 0] = values[1, 0, 0, 1] = nodata
    values[:2, 0, 0, 2] = nodata
    valid = valid_pixels(values, nodata)
    means = average_series(values, days("20180105", "20180120", "20180622"), "monthly", "05-15", valid)
    assert means.values[0].ravel().tolist() == [40, 20, 0]
    assert means.values[5].ravel().tolist() == [70, 80, 90]
    assert means.count[[0, 5]].tolist() == [2, 1]
    assert means.observed is not None
    assert means.observed[[0, 5]].tolist() == [[[True, True, False]], [[True, True, True]]]


def test_pixels_without_data_of_a_kept_date_are_zero() -> None:
    values = np.arange(1, 9, dtype=np.uint16).reshape(2, 2, 1, 2)
    valid = np.array([[[True, False]], [[True, False]]])
    series = prepare_series(values, days("20190515", "20190516"), None, SeriesPreparation(channels=(2, 1)), valid)
    assert series.values.tolist() == [[[[3, 0]], [[1, 0]]], [[[7, 0]], [[5, 0]]]]
    assert series.values.dtype == np.uint16
    assert series.observed is not None
    assert series.observed.tolist() == [[True, False]]
    assert values.ravel().tolist() == list(range(1, 9))


def test_a_series_without_any_data_has_no_usable_date() -> None:
    nowhere = np.zeros((2, 2, 2), dtype=bool)
    for average in (None, "monthly"):
        preparation = SeriesPreparation(average=average)  # type: ignore[arg-type]
        series = prepare_series(ones(2), days("20190515", "20190516"), None, preparation, nowhere)
        assert not series.valid.any()
        assert not series.values.any()


def test_clouds_are_counted_among_the_valid_pixels() -> None:
    quality = np.zeros((3, 2, 10, 10), np.uint8)
    quality[0, 1, 0] = 100
    quality[1, 1, :, 0] = 100
    valid = np.ones((3, 10, 10), dtype=bool)
    assert keep_dates(quality, CloudFilter(), valid).tolist() == [False, False, True]
    valid[0, 0] = False
    assert keep_dates(quality, CloudFilter(), valid).tolist() == [True, False, True]
    valid[0] = True
    valid[0, 1:] = False
    valid[2] = False
    assert keep_dates(quality, CloudFilter(), valid).tolist() == [True, True, False], "snow alone decides"


def test_what_the_quality_mask_does_not_know_is_not_clear() -> None:
    quality = np.zeros((2, 2, 2, 2), np.uint8)
    known = np.ones((2, 2, 2), dtype=bool)
    known[0, 0, 0] = False
    assert keep_dates(quality, CloudFilter(), None, known).tolist() == [False, True]
    valid = known.copy()
    assert keep_dates(quality, CloudFilter(), valid, known).tolist() == [True, True]


def test_a_quality_mask_of_another_size_is_asked_under_its_own_pixels() -> None:
    quality = np.zeros((1, 2, 2, 2), np.uint8)
    quality[0, 1, 1, 1] = 100
    valid = np.ones((1, 4, 4), dtype=bool)
    assert keep_dates(quality, CloudFilter(max_frac=0.1), valid).tolist() == [True], "no date is clear, none has snow"
    quality[0, 0, 1, 1] = 100
    assert keep_dates(quality, CloudFilter(max_frac=0.1), valid).tolist() == [False]
    valid[0, 2:, 2:] = False
    assert keep_dates(quality, CloudFilter(max_frac=0.1), valid).tolist() == [True]


def test_empty_dates_do_not_decide_the_year() -> None:
    valid = np.ones((2, 2, 2), dtype=bool)
    valid[0] = False
    means = average_series(ones(2), days("20191220", "20200101"), "monthly", "05-15", valid)
    assert means.offsets.tolist() == period_offsets("monthly", "05-15", 2020).tolist()
    series = prepare_series(ones(2), days("20191220", "20200101"), None, SeriesPreparation(average="monthly"), valid)
    assert series.offsets.tolist() == means.offsets.tolist()


@given(
    offsets=st.lists(st.integers(0, 500), min_size=1, max_size=12),
    average=st.sampled_from([None, "monthly", "semi-monthly"]),
    share=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    cloudy=st.booleans(),
    seed=st.integers(0, 99),
)
def test_prepared_series_equal_brute_force(
    offsets: list[int], average: str | None, share: float, cloudy: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    dates = np.array([date(2018, 11, 3) + timedelta(days=offset) for offset in offsets], "datetime64[D]")
    values = rng.integers(1, 9000, (len(dates), 2, 3, 3)).astype(np.float32)
    valid = rng.random((len(dates), 3, 3)) < share
    values[~np.broadcast_to(valid[:, None], values.shape)] = np.nan
    quality = rng.choice([0, 100], (len(dates), 2, 3, 3), p=[0.8, 0.2]).astype(np.uint8)
    rule = CloudFilter(max_frac=0.4) if cloudy else None
    preparation = SeriesPreparation(cloud_filter=rule, average=average)  # type: ignore[arg-type]
    series = prepare_series(values, dates, quality, preparation, valid)

    used = [i for i in range(len(dates)) if valid[i].any()]
    if rule is not None:
        for bands in ((0, 1), (0,)):
            shares = {i: (quality[i, list(bands)] > 1).any(axis=0)[valid[i]].mean() for i in used}
            kept = [i for i in used if shares[i] <= 0.4 + 1e-9]
            if kept:
                break
        used = kept
    if average is None:
        expected = np.nan_to_num(values[used])
        seen = [True] * len(used)
    else:
        expected, seen = np.zeros((period_count(average), 2, 3, 3)), []  # type: ignore[arg-type]
        for period in range(len(expected)):
            month, half = (period, None) if average == "monthly" else divmod(period, 2)
            chosen = [
                i for i in used if (day := dates[i].item()).month == month + 1 and half in (None, int(day.day > 15))
            ]
            seen.append(bool(chosen))
            for y, x in np.ndindex(3, 3):
                having = [i for i in chosen if valid[i, y, x]]
                if having:
                    expected[period, :, y, x] = values[having, :, y, x].mean(axis=0)
    np.testing.assert_allclose(series.values, expected, rtol=1e-5)
    assert series.valid.tolist() == seen
    ever = valid[used].any(axis=0)
    assert (series.observed is None) == bool(ever.all())
    if series.observed is not None:
        np.testing.assert_array_equal(series.observed, ever)


def test_data_everywhere_gives_the_bytes_of_no_mask() -> None:
    dates = days(*GOLDEN["a/dates"])
    values, everywhere = GOLDEN["a/values"], np.ones((len(dates), *GOLDEN["a/values"].shape[-2:]), dtype=bool)
    one = average_series(values, dates, "monthly", "05-15")
    two = average_series(values, dates, "monthly", "05-15", everywhere)
    assert one.values.tobytes() == two.values.tobytes()
    assert one.count.tolist() == two.count.tolist()
    kept = keep_dates(GOLDEN["a/mask"], CloudFilter())
    everywhere = np.ones((len(dates), *GOLDEN["a/mask"].shape[-2:]), dtype=bool)
    assert keep_dates(GOLDEN["a/mask"], CloudFilter(), everywhere).tolist() == kept.tolist()


def test_snow_and_clouds_at_the_limit_are_clear() -> None:
    rule = CloudFilter(max_cloud=20, max_snow=10, max_frac=0.0)
    quality = np.zeros((4, 2, 1, 1), np.uint8)
    quality[:, 0, 0, 0] = 10, 11, 10, 0
    quality[:, 1, 0, 0] = 20, 0, 21, 20
    assert keep_dates(quality, rule).tolist() == [True, False, False, True]
    quality[:, 1] = 100
    assert keep_dates(quality, rule).tolist() == [True, False, True, True], "snow alone decides, at the limit too"


def test_offsets_of_periods_count_in_the_year_of_the_first_date() -> None:
    """A leap year first and an ordinary one last: the middle of March is a day later in the first."""
    values = np.ones((2, 1, 1, 1), np.float32)
    for first, last, expected in (("20200110", "20210310", 74), ("20210110", "20200310", 73)):
        means = average_series(values, days(first, last), "monthly", "01-01")
        assert means.offsets[2] == expected
        assert means.offsets[0] == 14
    valid = np.array([False, True]).reshape(2, 1, 1)
    assert average_series(values, days("20210110", "20200310"), "monthly", "01-01", valid).offsets[2] == 74
