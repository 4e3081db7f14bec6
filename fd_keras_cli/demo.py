"""``fd-keras demo``: the whole line on packaged images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fd_keras_cli.console import quiet_libraries
from fd_keras_cli.options import OutDirectory

if TYPE_CHECKING:
    from fd_keras.demo import DemoResult


def demo(
    out: OutDirectory = Path("demo-output"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split and the training.")] = 1,
) -> None:
    """Train, attack, defend and export a small classifier, and write a report.

    The images are handwritten digits that come with scikit-learn. It takes about a minute.
    """
    with quiet_libraries() as progress_console:
        with progress_console.status("Starting TensorFlow"):
            from fd_keras.demo import run_demo
        result = run_demo(out, seed=seed, console=progress_console)
    console = Console()
    for results in (_accuracy_table(result), _agreement_table(result)):
        console.print()
        console.print(results)
    console.print()
    for path in (result.saved_model, result.tflite, result.report):
        typer.echo(f"Wrote {path}")


def _accuracy_table(result: DemoResult) -> Table:
    table = Table(
        title="Accuracy in % (gray-box: the attacker knows the network, not the layer)",
        caption=f"{result.test_correct} of {result.test_count} test images: those the network "
        "reads correctly unchanged. x/255: a pixel changes by at most x of 255 grey levels. "
        f"Seed {result.seed}.",
    )
    table.add_column("defence")
    for attack in result.attacks:
        table.add_column(str(attack), justify="right")
    for defence in result.defences:
        rows = (result.accuracy(defence, attack) for attack in result.attacks)
        table.add_row(defence, *(f"{row.percent:.1f}" for row in rows))
    return table


def _agreement_table(result: DemoResult) -> Table:
    table = Table(title=f"Exported with {result.exported}, against Keras on the same images")
    table.add_column("exported as")
    table.add_column("largest difference of a logit", justify="right")
    table.add_column("same class", justify="right")
    for row in result.agreements:
        table.add_row(
            row.runtime, f"{row.largest_difference:.2g}", f"{row.same_class} of {row.count}"
        )
    return table
