"""Days and text as tables have them: the published `YYYYMMDD`, and what pandas, pystac and QGIS write."""

from __future__ import annotations

import json
import math
import re
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import DataError

TIMESTAMP = re.compile(
    r"(?<![\w.+-])(?P<year>\d{4})(?P<between>[-/]?)(?P<month>\d{2})(?P=between)(?P<day>\d{2})"
    r"(?:(?:T|\s+(?=\d\d:))(?P<time>\d\d:?\d\d(?::?\d\d(?:[.,]\d+)?)?)\s?(?P<zone>Z|UTC|[+-]\d\d(?::?\d\d)?)?|\.0)?"
    r"(?![\w/:+-])(?!\.\d)",
    re.ASCII,
)
"""A day, with or without a time: `20180105`, `2018-01-05`, `2018/01/05 10:50:31+00`, `2018-01-05T10:50:31.024Z`,
`20180105.0` as spreadsheets and pandas make of a whole number."""


def parse_date(value: Any, where: str) -> np.datetime64:
    """Return the day of a written date; with an offset from UTC, the day in UTC.

    Args:
        value: A text (see `TIMESTAMP`), or the number YYYYMMDD.
        where: File and entry, for messages.

    Raises:
        DataError: Not such a day; the message starts with `where`.
    """
    text = value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value) or value != int(value) or not 10_000_000 <= value < 100_000_000:
            raise DataError(f"{where}: date {value!r} is not YYYYMMDD{_number_hint(value)}. {_CORRECT}")
        text = str(int(value))
    match = TIMESTAMP.fullmatch(text.strip()) if isinstance(text, str) and text.isascii() else None
    try:
        if match is None:
            raise ValueError(text)
        return np.datetime64(_day_of(match), "D")
    except (ValueError, OverflowError):
        raise DataError(f"{where}: date {value!r} is not YYYYMMDD. {_CORRECT}") from None


_CORRECT = "Correct the entry; dates are matched to images by position."


def _number_hint(value: float) -> str:
    if math.isfinite(value) and abs(value) >= 1e11:
        return ": it looks like milliseconds since 1970, as pandas' to_json writes them without date_format='iso'"
    if 20_000 <= value <= 80_000:
        return ": it looks like the day number of a spreadsheet; format the cells as text"
    return ""


def _day_of(match: re.Match[str]) -> date:
    """Return the day of a match of `TIMESTAMP`; ValueError: there is no such day or time."""
    day = date(*(int(match[name]) for name in ("year", "month", "day")))
    if match["time"] is None:
        return day
    digits = re.sub(r"[.,].*|:", "", match["time"]).ljust(6, "0")
    hours, minutes, seconds = (int(digits[place : place + 2]) for place in (0, 2, 4))
    # A leap second belongs to its minute.
    moment = datetime(day.year, day.month, day.day, hours, minutes, 59 if seconds == 60 else seconds)
    zone = match["zone"]
    if zone is None or zone in ("Z", "UTC"):
        return day
    shift = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:].lstrip(":") or 0))
    return (moment - shift if zone[0] == "+" else moment + shift).date()


def parse_dates_json(text: Any, where: str) -> NDArray[np.datetime64]:
    """Return the acquisition dates of one patch from the published JSON object.

    Args:
        text: `{"1": "20190103", "2": ...}`; keys are 1-based positions of the images in the file.
        where: File and patch, for messages.

    Returns:
        (time,) datetime64[D], in image order.

    Raises:
        DataError: Not JSON, keys that are not 1..N or given twice, or an entry that is no date.
    """
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
        if not isinstance(pairs, _Pairs):
            raise TypeError
        positions = [_position(key) for key, _ in pairs]
    except (TypeError, ValueError, RecursionError):
        raise DataError(
            f"{where}: acquisition_dates is not a JSON object of position: date, got {str(text)[:80]!r}."
        ) from None
    doubled = sorted({position for position in positions if positions.count(position) > 1})
    if doubled:
        raise DataError(f"{where}: position {', '.join(map(str, doubled[:5]))} is given more than once. Keep one date.")
    if sorted(positions) != list(range(1, len(pairs) + 1)):
        raise DataError(f"{where}: positions must be 1..{len(pairs)}, got {sorted(positions)[:10]}.")
    by_position = dict(zip(positions, (value for _, value in pairs), strict=True))
    dates = [parse_date(by_position[i], f"{where}, entry {i}") for i in sorted(by_position)]
    return np.array(dates, dtype="datetime64[D]")


class _Pairs(list[tuple[str, Any]]):
    """The members of a JSON object in their order, those of one name too."""


def _position(key: str) -> int:
    if not key.isascii() or not key.strip().isdigit() or len(key) > 9:
        raise ValueError(key)
    return int(key)


def plain_dates_json(text: Any) -> NDArray[np.datetime64] | None:
    """Return what `parse_dates_json` returns of plain YYYYMMDD, many times faster, or None when it must look closer."""
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
        if not isinstance(pairs, _Pairs):
            return None
        entries = dict(pairs)
        written = [entries[str(position)] for position in range(1, len(pairs) + 1)]
        joined = "".join(written)
        lengths = {len(day) for day in written}
    except (TypeError, ValueError, KeyError, RecursionError):
        return None
    if not joined.isascii() or not joined.isdigit() or lengths != {8}:
        return None
    digits = np.frombuffer(joined.encode(), dtype=np.uint8).reshape(-1, 8).astype(np.int64) - ord("0")
    number = digits @ 10 ** np.arange(7, -1, -1)
    year, month, day = number // 10_000, number // 100 % 100, number % 100
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days: NDArray[np.datetime64] = months.astype("datetime64[D]") + (day - 1).astype("timedelta64[D]")
    if (year < 1).any() or (month < 1).any() or (month > 12).any() or (days.astype("datetime64[M]") != months).any():
        return None
    days.flags.writeable = False
    return days


def encoding_problem(raw: bytes) -> str:
    """Return why bytes are no UTF-8 text, with the line; empty when they are (with or without a byte order mark)."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "is UTF-16 text, as spreadsheets save `Unicode text`; save it as UTF-8"
    line = raw.count(b"\n", 0, max(raw.find(b"\0"), 0)) + 1
    if b"\0" in raw:
        return f"line {line} holds a NUL byte: it is no text, or UTF-16; save it as UTF-8"
    try:
        raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return f"line {line} is not UTF-8 (byte 0x{raw[error.start]:02x}), perhaps Latin-1; save it as UTF-8"
    return ""
