"""Tables: the fast way to read dates gives what the careful one gives."""

from __future__ import annotations

import json
from datetime import date

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flairhub.errors import DataError
from flairhub.ingest.tables import _plain_dates
from flairhub.written_dates import parse_dates_json

DAYS = st.dates(date(1, 1, 1), date(9999, 12, 31)).map(lambda day: f"{day:%Y%m%d}".rjust(8, "0"))
ODD = st.sampled_from(
    ["20190229", "20191301", "20190001", "00000101", "2019013", "201901011", "2019-1-1", "", "٢٠١٩٠١٠١"]
)


@settings(max_examples=200, deadline=None)
@given(days=st.lists(DAYS | ODD, max_size=6), first=st.sampled_from([1, 1, 1, 0]), order=st.randoms())
def test_plain_dates_are_the_parsed_dates(days: list[str], first: int, order: object) -> None:
    pairs = [(str(position), day) for position, day in enumerate(days, start=first)]
    order.shuffle(pairs)  # type: ignore[attr-defined]
    text = json.dumps(dict(pairs))
    try:
        expected = parse_dates_json(text, "here")
    except DataError:
        assert _plain_dates(text) is None
        return
    found = _plain_dates(text)
    if found is None:
        assert not len(expected)
        return
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_what_is_no_table_of_days_is_left_to_the_careful_one() -> None:
    for text in ("", "null", "[1]", "3", '{"1": 20190101}', '{"1": ["20190101"]}', '{"one": "20190101"}', "{'1': 1}"):
        assert _plain_dates(text) is None
