"""Text tables."""

import inspect
import io

import pytest
from rich.console import Console

import fd_keras
from fd_keras._console import (
    Readable,
    bar,
    console_became_verbose,
    console_of,
    overall_progress,
    progress_bars,
    text_table,
)


def test_a_text_table_is_text_in_a_notebook_too(monkeypatch):
    """In Jupyter, rich displays what it is told to print, and the text was empty."""
    expected = text_table(["attack", "kept"], [["FGSM", "93.0"]])
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert text_table(["attack", "kept"], [["FGSM", "93.0"]]) == expected != ""


def test_a_wide_table_is_cut_into_several_that_begin_with_the_same_column():
    columns = ["name", *(f"attack {number}" for number in range(9))]
    rows = [[f"row {r}", *(f"{r}.{c}" for c in range(9))] for r in range(2)]
    text = text_table(columns, rows, width=40)
    assert max(map(len, text.splitlines())) <= 40
    assert text.count("row 1") == text.count("name") > 1
    for cell in (*columns[1:], *rows[0][1:], *rows[1][1:]):
        assert text.count(cell) == 1
    assert text_table(columns[:2], [row[:2] for row in rows], width=5).count("name") == 1


@pytest.mark.parametrize("width", [80, 120])
def test_one_bar_shows_all_steps_and_the_time_left_in_one_line(width):
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=True, color_system=None)
    with overall_progress(console) as progress:
        progress.expect(400)
        for number in range(4):
            title = f"Attacking: PGD-{number} 4/255 through a table with a name of some length"
            with bar(progress, title, 10, weight=10) as advance:
                advance(5)
                progress.refresh()
                advance(5)
        assert progress.tasks[0].completed == progress.tasks[0].total == 400
    lines = [line for line in output.getvalue().replace("\x1b", "\n").splitlines() if "━" in line]
    assert any("left" in line for line in lines)
    # What stands between two escape sequences is at most one line.
    assert max(map(len, lines)) <= width + 8


@pytest.mark.parametrize("bars", [overall_progress, progress_bars])
def test_names_in_bars_are_neither_markup_nor_obeyed(bars):
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=True, color_system="truecolor")
    with bars(console) as progress, bar(progress, "[red]<b>\x1b]0;title\x07", 1) as advance:
        progress.refresh()
        advance(1)
    assert "[red]<b>\\x1b]0;title\\x07" in output.getvalue()
    assert "\x1b]0" not in output.getvalue()


def test_a_bar_in_a_pipe_is_one_line_without_colours(monkeypatch):
    output = io.StringIO()
    with overall_progress(Console(file=output, width=80)) as progress:
        progress.expect(2)
        for _ in range(2):
            with bar(progress, "Attacking", 1) as advance:
                advance(1)
    assert len(output.getvalue().strip().splitlines()) == 1
    assert "\x1b" not in output.getvalue()
    assert "100%" in output.getvalue()


def test_a_bar_in_a_notebook_is_one_output_that_is_replaced(monkeypatch, capsys):
    """rich's needed ipywidgets, and without them showed nothing but a warning."""
    shown = []

    class Handle:
        def update(self, data, raw):
            shown[-1] = data

    def display(data, raw, display_id):
        shown.append(data)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with progress_bars(Console()) as progress, bar(progress, "Reading <b>", 2) as advance:
        advance(1)
        print("from the block")
        progress.refresh()
        assert "50%" in shown[0]["text/plain"]
        advance(1)
    assert len(shown) == 1
    assert "100%" in shown[0]["text/plain"]
    assert "Reading &lt;b&gt;" in shown[0]["text/html"]
    # What is not to be shown takes nothing away either.
    with progress_bars(None) as progress, bar(progress, "Reading", 2) as advance:
        print("and from another")
        advance(2)
        assert progress.tasks[0].completed == 2
    assert len(shown) == 1
    assert capsys.readouterr().out == "from the block\nand from another\n"


def test_verbose_is_a_number_or_a_console():
    console = Console()
    assert console_of(console) is console
    assert console_of(False) is None
    assert console_of(True).stderr
    for wrong in ("yes", 2, -1):
        with pytest.raises(ValueError, match="`verbose` must be 0, 1 or a rich console"):
            console_of(wrong)


def test_results_are_one_line_in_a_list_and_escaped_text_in_a_notebook():
    class Result(Readable):
        def __str__(self):
            return "<b>first</b>\n" + "more " * 2000

    assert len(repr(Result())) < 200
    assert "&lt;b&gt;first" in Result()._repr_html_()


def test_console_still_works_and_says_that_it_is_verbose_now():
    renamed = console_became_verbose(lambda *, verbose=0: verbose)
    with pytest.warns(FutureWarning, match="`console` is now `verbose`") as caught:
        assert renamed(console=7) == 7
    assert caught[0].filename == __file__
    for function in (fd_keras.evaluate, fd_keras.refine, fd_keras.learn_table, fd_keras.harden):
        assert function.__code__ is renamed.__code__
        assert "verbose" in inspect.signature(function).parameters
