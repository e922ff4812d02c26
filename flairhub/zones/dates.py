"""Date files of a zone's time series: one acquisition date per image of the raster, in image order."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flairhub.errors import ZoneError
from flairhub.timeseries import parse_date, parse_dates_json

_ISO = re.compile(r"(\d{4})-(\d{2})-(\d{2})$")
_MAX_BYTES = 10_000_000


def read_dates(path: Path, key: str) -> NDArray[np.datetime64]:
    """Read a date file.

    One date per line as `YYYYMMDD` (or `YYYY-MM-DD`), optionally after its position (`1 20190103`, `1,20190103`,
    `1: 20190103`); or several dates on a line, separated by commas or blanks, with or without brackets and quotes;
    or the JSON object of the published date tables. Empty lines and lines starting with `#` do not count.

    Args:
        path: Text file.
        key: Configuration key that names it, for messages.

    Returns:
        (time,) datetime64[D].

    Raises:
        ZoneError: The file is missing, empty or no text.
        DataError: An entry is no date; the message names file and line.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ZoneError(f"{key}: {path} is larger than {_MAX_BYTES} bytes. Expected a text file of dates.")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ZoneError(f"{key}: cannot read the dates in {path} ({error}). Expected one YYYYMMDD per line.") from None
    if text.lstrip().startswith("{"):
        return parse_dates_json(text, str(path))
    dates: list[np.datetime64] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            where = f"{path}, line {number}"
            dates += [parse_date(entry, where) for entry in _entries(line, len(dates) + 1)]
    if not dates:
        raise ZoneError(f"{key}: {path} holds no date. Expected one YYYYMMDD per line.")
    return np.array(dates, dtype="datetime64[D]")


def _entries(line: str, position: int) -> list[str]:
    words = [word.strip("\"'") for word in re.split(r"[\s,;:\[\]()]+", line) if word.strip("\"'")]
    if len(words) == 2 and words[0] == str(position):
        words = words[1:]
    return [_ISO.sub(r"\1\2\3", word) for word in words] or [line.strip()]
