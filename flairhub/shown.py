"""How objects show themselves: one line of text, and in a notebook a small table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_SHOWN = 6


def listed(names: Sequence[Any], most: int = _SHOWN) -> str:
    """The first names, and how many more."""
    more = len(names) - most
    return ", ".join(map(str, names[:most])) + (f", ... ({len(names)} in all)" if more > 0 else "") or "none"


def facts_html(title: str, facts: Mapping[str, Any]) -> str:
    """A heading and a table of two columns; everything is escaped."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(str(name))}</th>'
        f'<td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<div><strong>{escape(title)}</strong><table>{rows}</table></div>"
