"""Test scores as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def scores_table(metrics: Mapping[str, Any]) -> Table:
    """Return the main scores of metrics.json, in percent, with intervals of the mIoU."""
    table = Table(title="Test scores (percent)")
    table.add_column("task", no_wrap=True)
    for heading in ("patches", "mIoU", "95 % interval", "accuracy", "mIoU, published"):
        table.add_column(heading, justify="right")
    for name, entry in metrics["tasks"].items():
        strict, published = entry["strict"], entry["published"]["Avg_metrics"]
        table.add_row(
            name,
            str(entry["n_patches"]),
            percent(strict["miou"]),
            span(entry["intervals"]["miou"]),
            percent(strict["overall_accuracy"]),
            f"{published[0]:.1f}",
        )
    return table


def percent(share: float | None) -> str:
    """A fraction in percent."""
    return "undefined" if share is None else f"{100 * share:.1f}"


def span(ends: Sequence[float] | None) -> str:
    """Both ends of an interval in percent."""
    return "undefined" if ends is None else f"{100 * ends[0]:.1f}-{100 * ends[1]:.1f}"
