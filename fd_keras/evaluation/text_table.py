"""Accuracies as tables of plain text or Markdown."""

from __future__ import annotations

from typing import Literal

from fd_keras.evaluation.accuracies import BENIGN
from fd_keras.evaluation.grid import AccuracyGrid, Row

TableFormat = Literal["text", "markdown"]


def text_table(grid: AccuracyGrid, table_format: TableFormat = "text") -> str:
    """Accuracies in percent, defences down and attacks across, a block per threat model.

    Args:
        grid: The accuracies.
        table_format: ``"text"`` or ``"markdown"``.

    Returns:
        Lines. Every column says its threat model; the first is benign in every block.

    Raises:
        ValueError: There is no such format.

    Example:
        >>> from fd_keras.evaluation.accuracies import accuracy_row
        >>> row = {"defence": "none", "family": "none", "correct": 9, "count": 10}
        >>> rows = [
        ...     accuracy_row(**row, threat_model="benign"),
        ...     accuracy_row(**{**row, "correct": 2}, threat_model="gray-box", attack="FGSM .03"),
        ... ]
        >>> print(text_table(AccuracyGrid(rows)))
        accuracy  benign  gray-box
        in %              FGSM .03
        --------  ------  --------
        none        90.0      20.0
        <BLANKLINE>
        10 images
    """
    if table_format not in ("text", "markdown"):
        raise ValueError(
            f"`format` must be 'text' or 'markdown'. Received: format={table_format!r}"
        )
    draw = _markdown if table_format == "markdown" else _text
    blocks = [draw(*_block(grid, model)) for model in grid.threat_models or [BENIGN]]
    return "\n\n".join([*blocks, _counts(grid)])


def _block(grid: AccuracyGrid, threat_model: str) -> tuple[list[tuple[str, str]], list[list[str]]]:
    columns = [pair for pair in grid.columns if pair[0] in (BENIGN, threat_model)]
    heads = [("accuracy", "in %")]
    heads += [(model, "" if model == BENIGN else attack) for model, attack in columns]
    met = [n for n in grid.defences if threat_model == BENIGN or grid.attacks(threat_model, n)]
    return heads, [[n, *(_cell(grid.row(n, *column)) for column in columns)] for n in met]


def _cell(row: Row | None) -> str:
    return "-" if row is None else f"{100 * row['accuracy']:.1f}"


def _counts(grid: AccuracyGrid) -> str:
    rows = [grid.row(name, *column) for name in grid.defences for column in grid.columns]
    counts = [row["count"] for row in rows if row]
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{high} images" if low == high else f"{low} to {high} images"


def _text(heads: list[tuple[str, str]], body: list[list[str]]) -> str:
    lines = [*map(list, zip(*heads)), *body]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    lines.insert(2, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def _markdown(heads: list[tuple[str, str]], body: list[list[str]]) -> str:
    titles = [" ".join(heads[0]), *(": ".join(filter(None, head)) for head in heads[1:])]
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"
        for line in [titles, rule, *body]
    )
