"""The terminal: one console for tables and one progress bar for long work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from flairhub.progress import Progress, silent

console = Console()
"""Standard output."""

error_console = Console(stderr=True)
"""Standard error: progress and notes, so that standard output can be piped."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a `Progress` that draws bars on a terminal and reports nothing elsewhere."""
    if not error_console.is_terminal:
        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=error_console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report
