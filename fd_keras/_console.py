"""Progress bars and text tables on a console, by rich."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
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
from rich.table import Table
from rich.text import Text

# Typing alias: tells a bar how many more of its parts are done.
Advance = Callable[[int], None]


# A rule below the heads and nothing else, so that a table survives any terminal, log or diff.
_RULE = box.Box("    \n    \n----\n    \n    \n    \n    \n    \n", ascii=True)
_WIDE = 10_000


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


def text_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool = False
) -> str:
    r"""A table of plain text or Markdown: the first column to the left, the others to the right.

    Args:
        columns: Heads of the columns; ``"\n"`` starts a second line in plain text.
        rows: One cell for each column.
        markdown: Whether to write Markdown.

    Returns:
        Lines without colours or trailing spaces.

    Example:
        >>> print(text_table(["attack", "kept"], [["FGSM", "93.0"], ["BIM", "9.0"]]))
        attack   kept
        -------------
        FGSM     93.0
        BIM       9.0
        >>> print(text_table(["attack", "kept"], [["a|b", "93.0"]], markdown=True))
        | attack | kept |
        |--------|-----:|
        | a\|b   | 93.0 |
    """
    table = Table(box=box.MARKDOWN if markdown else _RULE, show_edge=markdown, pad_edge=markdown)
    for number, head in enumerate(columns):
        title = head.replace("\n", " ") if markdown else head
        table.add_column(_cell(title, markdown), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(_cell(cell, markdown) for cell in row))
    output = io.StringIO()
    # In a notebook, rich would display the table there instead of writing it.
    Console(file=output, width=_WIDE, color_system=None, force_jupyter=False).print(table)
    lines = [line.rstrip() for line in output.getvalue().splitlines() if line.strip()]
    if markdown:  # rich aligns the text only
        first, *others = lines[1].strip("|").split("|")
        lines[1] = f"|{'|'.join([first, *(f'{other[:-1]}:' for other in others)])}|"
    return "\n".join(lines)


def _cell(text: str, markdown: bool) -> Text:
    return Text(text.replace("|", "\\|") if markdown else text, no_wrap=True)


class _RateColumn(ProgressColumn):
    """Parts per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} {self._unit}/s")
