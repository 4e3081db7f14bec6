"""Progress bars that a library function can show or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# Typing alias: tells a bar how many more of its parts are done.
Advance = Callable[[int], None]


@contextmanager
def progress_bars(console: Console | None, *, unit: str | None = None) -> Iterator[Progress]:
    """Show one bar below the other on ``console``, or nothing when it is ``None``.

    Args:
        console: Where to print.
        unit: What the parts of long work are; shows how many of them are done per second, and
            the time left.

    Example:
        >>> with progress_bars(None) as progress, bar(progress, "Reading", 2) as advance:
        ...     advance(2)
    """
    columns: list[ProgressColumn] = [
        TextColumn("{task.description:<26}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    ]
    if unit is not None:
        columns += [_RateColumn(unit), TimeRemainingColumn()]
    with Progress(*columns, console=console or Console(quiet=True)) as progress:
        yield progress


@contextmanager
def bar(progress: Progress, text: str, total: int | None = None) -> Iterator[Advance]:
    """Show one bar while the block runs.

    Args:
        progress: What ``progress_bars`` yields.
        text: What is being done.
        total: Number of parts; ``None`` for work that cannot say how far it is.

    Example:
        See ``progress_bars``.
    """
    task = progress.add_task(text, total=total)
    yield lambda count: progress.advance(task, count)
    if total is None:
        progress.update(task, total=1, completed=1)


class _RateColumn(ProgressColumn):
    """Parts per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} {self._unit}/s")
