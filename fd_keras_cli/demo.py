"""``fd-keras demo``: train, attack, defend and export on packaged images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fd_keras_cli.console import (
    check_directory,
    check_outputs,
    echo,
    print_error,
    print_next,
    printable,
    quiet_libraries,
)
from fd_keras_cli.evaluate import check_report
from fd_keras_cli.options import OutDirectory, Overwrite


def demo(
    out: OutDirectory = Path("demo-output"),
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the split, the training and the attacks.")
    ] = 1,
    overwrite: Overwrite = False,
) -> None:
    """Train, attack, defend and export a small classifier, and write a report.

    The images are handwritten digits that come with scikit-learn. It takes about a minute. Writes
    OUT/demo.html, a summary, OUT/report.html and OUT/report.json, the same with
    _two_passes, OUT/saved_model/VERSION and OUT/model.tflite, in place of earlier ones.
    """
    check_directory(out, for_tensorflow=True)
    with quiet_libraries() as console:
        with console.status("Starting TensorFlow"):
            from fd_keras.demo import run_demo
            from fd_keras.evaluation import EvaluationReport
            from fd_keras.export.tflite_file import is_export
        for name in ("report", "report_two_passes"):
            check_report(out, overwrite, name)
        check_directory(out / "saved_model")
        figures = out / "report.json"
        ours = {
            "demo.html": lambda _: figures.is_file() and EvaluationReport.is_file(figures),
            "model.tflite": is_export,
        }
        check_outputs(out, ours, overwrite=overwrite)
        result = run_demo(out, seed=seed, console=console)
    for title, report in (("One pass", result.report), ("Two passes", result.two_passes)):
        echo(f"{title}\n\n{report.table()}\n\n{report.verdict}\n")
        for check in report.checks:
            if not check["passed"]:
                what = f"failed check on {check['defence']}"
                print_error(f"{what}: {check['name']}: {check['detail']}")
    echo(f"{result.ranking}\n")
    for proof in result.checks:
        echo(str(proof))
    for path in result.files:
        echo(f"Wrote {printable(path)}")
    print_next("calibrate", "IMAGES", "--epsilon", 4, "--out", "table.json")
