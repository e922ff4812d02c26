"""Date files of a zone's time series: one acquisition date per image of the raster, in image order."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import ZoneError
from flairhub.written_dates import TIMESTAMP, encoding_problem, parse_date, parse_dates_json

_MAX_BYTES = 10_000_000
_SEPARATORS = re.compile(r"[\s,;:\[\]()\"']+")
_NO_DATES = ("nat", "nan", "none", "null", "na")


def read_dates(path: Path, key: str) -> NDArray[np.datetime64]:
    """Read a date file.

    One date per line as `YYYYMMDD`, `YYYY-MM-DD` or `YYYY/MM/DD`, with or without a time (`2018-01-05T10:50:31Z`; of a
    time with an offset the day in UTC), optionally after its position (`1 20190103`, `1,20190103`, `1: 20190103`;
    counted from 0 as pandas does it, or from 1); or several dates on a line, separated by commas or blanks, with or
    without brackets and quotes; or the JSON object of the published date tables. Empty lines, lines starting with `#`,
    and names of columns in the first line do not count.

    Args:
        path: Text file.
        key: Configuration key that names it, for messages.

    Returns:
        (time,) datetime64[D].

    Raises:
        ZoneError: The file is missing, empty or no UTF-8 text.
        DataError: An entry is no date; the message names file and line.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ZoneError(f"{key}: {path} is larger than {_MAX_BYTES} bytes. Expected a text file of dates.")
        raw = path.read_bytes()
    except OSError as error:
        raise ZoneError(f"{key}: cannot read the dates in {path} ({error}). Expected one YYYYMMDD per line.") from None
    problem = encoding_problem(raw)
    if problem:
        raise ZoneError(f"{key}: cannot read the dates in {path}: {problem}. Expected one YYYYMMDD per line.")
    text = raw.decode("utf-8-sig")
    if text.lstrip().startswith("{"):
        return parse_dates_json(text, str(path))
    dates: list[np.datetime64] = []
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    lines = [(number, line) for number, line in lines if not line.lstrip().startswith("#")]
    if len(lines) > 1 and _names_columns(lines[0][1]):
        del lines[0]
    first = next((_position(line) for _, line in lines), None)
    for number, line in lines:
        where = f"{path}, line {number}"
        position = None if first not in (0, 1) else len(dates) + first
        dates += [parse_date(entry, where) for entry in _entries(line, position)]
    if not dates:
        raise ZoneError(f"{key}: {path} holds no date. Expected one YYYYMMDD per line.")
    return np.array(dates, dtype="datetime64[D]")


def _words(line: str) -> list[str]:
    """What stands in a line besides dates."""
    return [word for word in _SEPARATORS.split(TIMESTAMP.sub(" ", line)) if word]


def _position(line: str) -> int | None:
    """The number before the only date of a line."""
    words = _words(line)
    return int(words[0]) if len(words) == 1 and words[0].isascii() and words[0].isdigit() else None


def _entries(line: str, position: int | None) -> list[str]:
    """Return the dates of a line, and what stands there instead of one."""
    written, words = [match.group() for match in TIMESTAMP.finditer(line)], _words(line)
    if len(written) == 1 and words == [str(position)]:
        return written
    return words or written or [line.strip()]


def _names_columns(line: str) -> bool:
    """True for a first line of names, as `date` or `fid,date`; pandas calls a column without a name 0."""
    if TIMESTAMP.search(line):
        return False
    words = _words(line)
    named = all(
        (word[0].isalpha() or word[0] == "_") and not re.search(r"\d{4}", word) and word.lower() not in _NO_DATES
        for word in words
    )
    return line.strip() == ",0" or (bool(words) and named)
