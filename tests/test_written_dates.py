"""Days as tables have them: what other programs write is read, what is ambiguous is named."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pytest

from flairhub.errors import DataError
from flairhub.written_dates import encoding_problem, parse_date, parse_dates_json, plain_dates_json

DAY = np.datetime64("2018-01-05", "D")


def test_dates_are_sorted_by_number_not_by_text() -> None:
    text = '{"10": "20190110", "2": "20190102", "1": "20190101", ' + ", ".join(
        f'"{i}": "2019010{i}"' for i in range(3, 10)
    )
    dates = parse_dates_json(text + "}", "dates.gpkg, patch P")
    assert dates.tolist() == [date(2019, 1, i) for i in range(1, 11)]


@pytest.mark.parametrize(
    "written",
    [
        "20180105",
        "2018-01-05",
        "2018/01/05",
        " 2018-01-05 ",
        "2018-01-05T10:50:31Z",
        "2018-01-05T10:50:31.024000Z",
        "2018-01-05T10:50:31+00:00",
        "2018-01-05 10:50:31",
        "2018-01-05 10:50:31.024000+00:00",
        "2018/01/05 10:50:31",
        "2018/01/05 10:50:31+00",
        "2018-01-05 10:50:31 UTC",
        "2018-01-05T10:50",
        "20180105T105031Z",
        "20180105T105031",
        "20180105.0",
        20180105,
        20180105.0,
        str(pd.Timestamp("2018-01-05T10:50:31.024", tz="UTC")),
        datetime(2018, 1, 5, 10, 50, tzinfo=UTC).isoformat(),
        "2018-01-06T00:30:00+01:00",
        "2018-01-04T23:30:00-05:00",
        "2018-01-05T23:59:60Z",
    ],
)
def test_days_as_others_write_them(written: object) -> None:
    assert parse_date(written, "here") == DAY
    text = json.dumps({"2": "20190101", "1": written})
    assert parse_dates_json(text, "here").tolist() == [date(2018, 1, 5), date(2019, 1, 1)]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("05/01/2018", "date '05/01/2018' is not YYYYMMDD"),
        ("2018-1-5", "is not YYYYMMDD"),
        ("2018-01/05", "is not YYYYMMDD"),
        ("20180230", "is not YYYYMMDD"),
        ("2018-01-05T25:00:00Z", "is not YYYYMMDD"),
        ("2018-01-05T10:50:31Z and more", "is not YYYYMMDD"),
        ("20180105.5", "is not YYYYMMDD"),
        ("201801051", "is not YYYYMMDD"),
        ("\u0662\u0660\u0661\u0668\u0660\u0661\u0660\u0665", "is not YYYYMMDD"),
        ("0000-01-01", "is not YYYYMMDD"),
        ("9999-12-31T23:00:00-05:00", "is not YYYYMMDD"),
        ("", "is not YYYYMMDD"),
        (None, "date None is not YYYYMMDD"),
        (True, "is not YYYYMMDD"),
        (["20180105"], "is not YYYYMMDD"),
        (20180105.5, "date 20180105.5 is not YYYYMMDD"),
        (float("nan"), "date nan is not YYYYMMDD"),
        (1e400, "date inf is not YYYYMMDD"),
        (43105, "looks like the day number of a spreadsheet"),
        (1515149431000, r"milliseconds since 1970, as pandas' to_json writes them without date_format='iso'"),
    ],
)
def test_what_is_no_day_is_named(written: object, message: str) -> None:
    with pytest.raises(DataError, match=f"^here: .*{message}"):
        parse_date(written, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"1": "20190230"}', r"patch P, entry 1: date '20190230'"),
        ('{"1": "20190103", "3": "20190105"}', r"positions must be 1\.\.2, got \[1, 3\]"),
        ('{"0": "20190103", "1": "20190105"}', r"positions must be 1\.\.2, got \[0, 1\]"),
        ('{"1": "20190103", "1": "20190105"}', r"position 1 is given more than once"),
        ('{"1": "20190103", "01": "20190103"}', r"position 1 is given more than once"),
        ('{"1": "20190103", "2": "20190105", "2": "20190105"}', r"position 2 is given more than once"),
        ('{"1_0": "20190103"}', "not a JSON object"),
        ('{"+1": "20190103"}', "not a JSON object"),
        ('{"1": {"1": "20190103"}}', "is not YYYYMMDD"),
        ('[["1", "20190103"]]', "not a JSON object"),
        ("[]", "not a JSON object"),
        ("nan", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('{"1": ' * 100_000, "not a JSON object"),
        ('{"1": ' + "9" * 5_000 + "}", "not a JSON object"),
    ],
)
def test_bad_dates_are_named(text: str, message: str) -> None:
    assert plain_dates_json(text) is None
    with pytest.raises(DataError, match=message):
        parse_dates_json(text, "dates.gpkg, patch P")


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ("été\n".encode(), ""),
        ("\ufeffété\n".encode(), ""),
        ("a\nété\n".encode("latin-1"), r"line 2 is not UTF-8 \(byte 0xe9\), perhaps Latin-1; save it as UTF-8"),
        ("20180105\n".encode("utf-16"), "is UTF-16 text"),
        ("20180105\n".encode("utf-16-be"), "line 1 holds a NUL byte"),
        (b"20180105\n2018\x000105\n", "line 2 holds a NUL byte"),
    ],
)
def test_text_that_is_not_utf_8_is_named_with_its_line(raw: bytes, problem: str) -> None:
    import re

    assert re.match(problem, encoding_problem(raw)) if problem else encoding_problem(raw) == ""
