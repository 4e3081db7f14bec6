"""Progress bars and text tables on a console, by rich."""

from __future__ import annotations

import functools
import html
import io
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
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
from rich.table import Column, Table
from rich.text import Text

from fd_keras._checks import printable, shown

# Typing alias: tells a bar how many more of its parts are done.
Advance = Callable[[int], None]

Function = TypeVar("Function", bound=Callable[..., Any])
Bars = TypeVar("Bars", bound=Progress)


# A rule below the heads and nothing else, so that a table survives any terminal, log or diff.
_RULE = box.Box("    \n    \n----\n    \n    \n    \n    \n    \n", ascii=True)
_WIDE = 10_000
_GAP = "   "
_LONGEST_REPR = 160
_CELL_WIDTH = 100
_REFRESH_PERIOD = 0.25

# Seconds over which the speed of an overall bar is measured: its steps differ.
_SPEED_PERIOD = 600.0


def console_became_verbose(function: Function) -> Function:
    """Let a function take ``console`` as well, the name that ``verbose`` had.

    Args:
        function: Takes ``verbose`` by name.

    Warns:
        FutureWarning: ``console`` is used.

    Example:
        >>> console_became_verbose(lambda *, verbose=0: verbose)(verbose=1)
        1
    """

    @functools.wraps(function)
    def renamed(*arguments: Any, **named: Any) -> Any:
        if "console" in named:
            message = "`console` is now `verbose`, which takes a rich console as well as 0 and 1"
            warnings.warn(message, FutureWarning, stacklevel=2)
            named["verbose"] = named.pop("console")
        return function(*arguments, **named)

    return cast(Function, renamed)


def console_of(verbose: int | Console | None) -> Console | None:
    """The console that an argument ``verbose`` asks for.

    Args:
        verbose: 0, ``False`` or ``None``: none. 1 or ``True``: standard error, or the notebook. Or
            a rich console.

    Raises:
        ValueError: ``verbose`` is anything else.

    Example:
        >>> console_of(0) is None, console_of(1).stderr
        (True, True)
    """
    if isinstance(verbose, Console):
        return verbose
    if verbose is None or (isinstance(verbose, int) and verbose in (0, 1)):
        return Console(stderr=True) if verbose else None
    raise ValueError(
        f"`verbose` must be 0, 1 or a rich console. Received: verbose={shown(verbose)}"
    )


class OverallProgress(Progress):
    """One bar for a long work of several steps, which names the step that runs.

    Args:
        *columns: As for rich.
        **options: As for rich.

    Example:
        >>> with overall_progress(None) as progress:
        ...     progress.expect(3)
        ...     with bar(progress, "Reading", 2) as advance:
        ...         advance(2)
        ...     progress.tasks[0].completed
        2
    """

    def __init__(self, *columns: ProgressColumn, **options: Any) -> None:
        super().__init__(*columns, **options)
        self.overall = self.add_task("", total=0)

    def expect(self, amount: float) -> None:
        """Add to what there is to do.

        Args:
            amount: In the unit of what steps advance by.
        """
        total = self.tasks[self.overall].total or 0
        self.update(self.overall, total=total + amount)

    def finish(self) -> None:
        """Fill the bar: what was expected may have been less."""
        task = self.tasks[self.overall]
        self.update(self.overall, total=task.completed or 1, completed=task.completed or 1)


class Readable:
    """A result that a notebook shows as its text, and a list by the first line of it.

    Example:
        >>> class Result(Readable):
        ...     def __str__(self):
        ...         return "90 % <benign>"
        >>> Result(), Result()._repr_html_()
        (<Result: 90 % <benign>>, '<pre>90 % &lt;benign&gt;</pre>')
    """

    def __repr__(self) -> str:
        first = str(self).partition("\n")[0]
        return f"<{type(self).__name__}: {textwrap.shorten(first, _LONGEST_REPR)}>"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


@contextmanager
def overall_progress(console: Console | None) -> Iterator[OverallProgress]:
    """Show one bar over all that the block does, or nothing when ``console`` is ``None``.

    Args:
        console: Where to print.

    Example:
        See ``OverallProgress``.
    """
    # A step is named in what is left of the line, so that 80 columns suffice.
    step = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = [
        TextColumn("{task.description}", table_column=step, markup=False),
        BarColumn(bar_width=16),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        _TimeLeftColumn(),
    ]
    options = {**_console_options(console), "speed_estimate_period": _SPEED_PERIOD}
    with _in_cell(OverallProgress(*columns, expand=True, **options)) as progress:
        yield progress
        progress.update(progress.overall, description="Done")
        progress.finish()


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
    text = Column(no_wrap=True, overflow="ellipsis", ratio=1 if unit else None)
    columns: list[ProgressColumn] = [
        TextColumn("{task.description:<26}", table_column=text, markup=False),
        BarColumn(bar_width=16 if unit else 40),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    ]
    if unit is not None:
        columns += [_RateColumn(unit), _TimeLeftColumn()]
    options = _console_options(console)
    with _in_cell(Progress(*columns, expand=unit is not None, **options)) as progress:
        yield progress


@contextmanager
def bar(
    progress: Progress, text: str, total: int | None = None, *, weight: float = 1
) -> Iterator[Advance]:
    """Show one bar while the block runs, or the step as part of an overall bar.

    Args:
        progress: What ``progress_bars`` or ``overall_progress`` yields.
        text: What is being done; names in it are shown as they are, control characters escaped.
        total: Number of parts; ``None`` for work that cannot say how far it is.
        weight: What a part is worth in an overall bar.

    Example:
        See ``progress_bars``.
    """
    text = printable(text)
    if isinstance(progress, OverallProgress):
        overall = progress
        overall.update(overall.overall, description=text)
        yield lambda count: overall.advance(overall.overall, weight * count)
        return
    task = progress.add_task(text, total=total)
    yield lambda count: progress.advance(task, count)
    if total is None:
        progress.update(task, total=1, completed=1)


def text_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    markdown: bool = False,
    width: int | None = None,
) -> str:
    r"""A table of plain text or Markdown: the first column to the left, the others to the right.

    Args:
        columns: Heads of the columns; ``"\n"`` starts a second line in plain text.
        rows: One cell for each column.
        markdown: Whether to write Markdown.
        width: A wider table of plain text is cut into several, one below the other, each with the
            first column.

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
    if width is not None and not markdown and len(columns) > 2:
        fitting = _fitting(columns, rows, width)
        if fitting < len(columns):
            parts = (slice(1, fitting), slice(fitting, None))
            first, rest = (
                text_table(
                    [columns[0], *columns[part]],
                    [[row[0], *row[part]] for row in rows],
                    width=width if part.stop is None else None,
                )
                for part in parts
            )
            return f"{first}\n\n{rest}"
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


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a notebook, with what the cells hold as text.

    Args:
        columns: Heads of the columns.
        rows: One cell for each column.

    Example:
        >>> html_table(["name", "%"], [["<b>", "90.0"]])[-48:]
        '<tr><th>&lt;b&gt;</th><td>90.0</td></tr></table>'
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><th>{html.escape(first)}</th>"
        f"{''.join(f'<td>{html.escape(cell)}</td>' for cell in others)}</tr>"
        for first, *others in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _fitting(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> int:
    """Number of columns, two at least, that a line of this width holds."""
    taken = 0
    for number, cells in enumerate(zip(columns, *rows)):
        lines = [line for cell in cells for line in cell.split("\n")]
        taken += max(map(cell_len, lines)) + (len(_GAP) if number else 0)
        if taken > width and number > 1:
            return number
    return len(columns)


def _cell(text: str, markdown: bool) -> Text:
    return Text(text.replace("|", "\\|") if markdown else text, no_wrap=True)


def _console_options(console: Console | None) -> dict[str, Any]:
    # A bar that is merely quiet would still take what the block prints away.
    return {"console": console or Console(quiet=True), "disable": console is None}


def _in_cell(progress: Bars) -> Bars:
    """Show bars in the output of the cell where the console is a notebook."""
    if progress.console.is_jupyter:
        progress.live = cast(Live, _CellOutput(progress))
    return progress


class _CellOutput:
    """An output of a notebook's cell that is replaced as bars go on; stands for ``rich.live.Live``.

    rich's own needs ipywidgets, and what it shows is not kept in the notebook.
    """

    auto_refresh = True

    def __init__(self, progress: Progress) -> None:
        self.console = progress.console
        self._progress = progress
        self._output: Any = None
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def is_started(self) -> bool:
        return self._thread.is_alive()

    def start(self, refresh: bool = False) -> None:
        self.refresh()
        self._thread.start()

    def stop(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self.refresh()

    def refresh(self) -> None:
        import IPython.display

        display: Any = IPython.display.display
        # The notebook's own console would make another output.
        page = Console(file=io.StringIO(), record=True, width=_CELL_WIDTH, force_jupyter=False)
        with self._lock:
            page.print(self._progress.get_renderable())
            text = page.export_text(clear=False).rstrip()
            code = page.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
            shown_as = {"text/html": code, "text/plain": text}
            if self._output is None:
                self._output = display(shown_as, raw=True, display_id=True)
            else:
                self._output.update(shown_as, raw=True)

    def _run(self) -> None:
        while not self._over.wait(_REFRESH_PERIOD):
            self.refresh()


class _TimeLeftColumn(TimeRemainingColumn):
    """Time left, and it says so."""

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text("")
        return Text(f"{super().render(task).plain} left")


class _RateColumn(ProgressColumn):
    """Parts per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None or task.finished:
            return Text("")
        return Text(f"{speed:.3g} {self._unit}/s", no_wrap=True)
