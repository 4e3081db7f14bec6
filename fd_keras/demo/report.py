"""The page that shows what a run of the demo found."""

from __future__ import annotations

import html
import importlib.metadata
from collections.abc import Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from fd_keras._pages import picture_uri, write_page
from fd_keras.demo.figures import difference_picture, heat_map
from fd_keras.demo.result import GRAY_BOX, Attack, DemoResult, Example
from fd_keras.tables import QuantizationTable


def write_report(
    result: DemoResult,
    tables: Iterable[QuantizationTable],
    shown: Attack,
    examples: Sequence[Example],
) -> None:
    """Write ``result.report``: one HTML file that needs no network and no other file.

    Args:
        result: The figures.
        tables: The quantisation tables to show.
        shown: The attack on the examples.
        examples: The images to show.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The file cannot be written.

    Example:
        >>> from fd_keras.demo import run_demo
        >>> run_demo("demo-output").report.name  # doctest: +SKIP
        'report.html'
    """
    fields = {
        "threat_model": GRAY_BOX,
        "correct": result.test_correct,
        "count": result.test_count,
        "defence": html.escape(result.exported),
        "summary": _summary(result),
        "attacks": _attack_parameters(result),
        "accuracies": _accuracy_table(result),
        "shown": shown,
        "examples": "\n".join(_example_row(example, shown.epsilon) for example in examples),
        "heat_maps": "\n".join(_heat_map(table) for table in tables),
        "agreements": _agreement_rows(result),
        "seed": result.seed,
        "versions": f"fd-keras {importlib.metadata.version('fd-keras')}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}, "
        f"ART {importlib.metadata.version('adversarial-robustness-toolbox')}",
    }
    write_page(result.report, "fd_keras.demo", "report.html", fields)


def _summary(result: DemoResult) -> str:
    lines = []
    for attack in result.attacks:
        without = result.accuracy("none", attack).percent
        with_layer = result.accuracy(result.exported, attack).percent
        lines.append(
            f"<li><b>{attack}</b>: {without:.1f}&nbsp;% right without the layer, "
            f"{with_layer:.1f}&nbsp;% with it</li>"
        )
    return "\n".join(lines)


def _attack_parameters(result: DemoResult) -> str:
    return "; ".join(
        f"{attack}: at most {attack.epsilon} of 255 grey levels per pixel, "
        f"{attack.iterations} step{'s' if attack.iterations > 1 else ''} of {attack.step}"
        for attack in result.attacks
        if attack.epsilon
    )


def _accuracy_table(result: DemoResult) -> str:
    head = "".join(f'<th scope="col">{attack}</th>' for attack in result.attacks)
    rows = [f'<thead><tr><th scope="col">defence</th>{head}</tr></thead><tbody>']
    for defence in result.defences:
        cells = [f'<th scope="row">{html.escape(defence)}</th>']
        for attack in result.attacks:
            row = result.accuracy(defence, attack)
            cells.append(
                f'<td style="--share:{row.percent:.1f}%">{row.percent:.1f}'
                f"<small>{row.correct}/{row.count}</small></td>"
            )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*rows, "</tbody>"])


def _example_row(example: Example, epsilon: int) -> str:
    read = [
        f'<span class="{"right" if digit == example.label else "wrong"}">reads {digit} '
        f"{'✓' if digit == example.label else '✗'}</span>"
        for digit in example.classes
    ]
    added = example.attacked - example.before
    left = example.distilled - example.distilled_before
    cells = [
        (picture_uri(example.before), "before", read[0]),
        (picture_uri(example.attacked), "attacked", read[1]),
        (picture_uri(example.distilled), "distilled", read[2]),
        (difference_picture(added, epsilon), "change by the attack", _size_of(added)),
        (difference_picture(left, epsilon), "change after distilling", _size_of(left)),
    ]
    return "".join(
        f'<td><img src="{uri}" alt="digit {example.label}, {what}">{caption}</td>'
        for uri, what, caption in cells
    ).join(("<tr>", "</tr>"))


def _size_of(difference: np.ndarray) -> str:
    return f"mean {np.abs(difference).mean():.1f}"


def _heat_map(table: QuantizationTable) -> str:
    name = html.escape(table.name)
    note = "luma" if table.color_space == "ycbcr" else "each channel"
    return (
        f'<figure><img src="{heat_map(table.steps_for(1)[0])}" '
        f'alt="quantisation steps of {name}">'
        f"<figcaption><b>{name}</b>, {note}</figcaption></figure>"
    )


def _agreement_rows(result: DemoResult) -> str:
    return "\n".join(
        f'<tr><th scope="row">{html.escape(row.runtime)}</th><td>{row.largest_difference:.2g}</td>'
        f"<td>{row.same_class} of {row.count}</td></tr>"
        for row in result.agreements
    )
