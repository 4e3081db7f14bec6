"""``fd-keras evaluate``: what a table saves, what it costs, against whom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import (
    check_directory,
    interruptible,
    parsed_limit,
    print_error,
    quiet_libraries,
    report_skipped,
)
from fd_keras_cli.options import (
    LabelledData,
    Modules,
    Probabilities,
    ProtocolName,
    Strict,
    ValueRange,
    model_argument,
    path_option,
)

if TYPE_CHECKING:
    from fd_keras.evaluation import EvaluationReport


def evaluate(
    model: Annotated[
        Path, model_argument("The classifier without the layer: a .keras or .h5 file.")
    ],
    data: LabelledData,
    out: Annotated[Path, path_option("Directory of the report; made if missing.")],
    table: Annotated[
        list[str] | None,
        typer.Option(help="A preset's name or a table's JSON file; may be given repeatedly."),
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(
            help="A rival: jpeg:75, bits:5, median:2, slq, tvm, quilting; or a family, of which "
            "the best setting is chosen on a tuning split: JPEG, 'bit depth', median, SLQ, TVM, "
            "quilting. May be given repeatedly."
        ),
    ] = None,
    protocol: ProtocolName = "linf-sweep",
    value_range: ValueRange = (0.0, 255.0),
    probabilities: Probabilities = False,
    classes: Annotated[
        Path | None,
        path_option(
            "Text file with one class per line in the model's order, as the "
            "subdirectories of DATA are named."
        ),
    ] = None,
    max_images: Annotated[
        int, typer.Option(min=1, help="Use so many images that the model gets right.")
    ] = 1000,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COUNT",
            help="Fewer images for what is slow: an attack (CW-L2=50), a threat model "
            "(adaptive=100) or a kind of rival (quilting=20). May be given repeatedly.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of random attacks and defences.")] = 1,
    cache: Annotated[
        Path | None,
        path_option(
            "Where what was computed is kept, so that an interrupted run goes on. Default: "
            "~/.keras/fd_keras/evaluation."
        ),
    ] = None,
    modules: Modules = None,
    strict: Strict = False,
) -> None:
    """Attack a classifier with and without knowledge of its defences, and write a report.

    Writes report.html and report.json. Every accuracy names its threat model: gray-box (the
    attacker does not know the defence), adaptive (the attacker differentiates through it) or
    black-box. Interrupt it at any time: the same command goes on where it was.
    """
    check_directory(out)
    limits = dict(map(parsed_limit, limit or []))
    with interruptible():
        report = _report(
            model,
            data,
            [*(table or ["liu2019"]), *(rival or [])],
            protocol,
            classes,
            modules or [],
            strict,
            value_range=value_range,
            from_logits=not probabilities,
            max_images=max_images,
            limits=limits,
            seed=seed,
            cache_dir=cache,
        )
    report.to_json(out / "report.json")
    report.to_html(out / "report.html")
    typer.echo(report.table())
    typer.echo()
    typer.echo(report.verdict)
    for check in report.checks:
        if not check["passed"]:
            print_error(f"failed check on {check['defence']}: {check['name']}: {check['detail']}")
    typer.echo(f"Wrote {out / 'report.html'} and {out / 'report.json'}")


def _report(
    model: Path,
    data: str,
    defences: list[str],
    protocol: str,
    classes: Path | None,
    modules: list[str],
    strict: bool,
    *,
    value_range: tuple[float, float],
    **options: Any,
) -> EvaluationReport:
    with quiet_libraries() as console:
        with console.status("Starting TensorFlow"):
            from fd_keras.data.labelled_sources import open_labelled_images
            from fd_keras.evaluation import evaluate
            from fd_keras_cli.models import image_shape, load_model
        classifier = load_model(model, modules)
        names = None if classes is None else classes.read_text(encoding="utf-8").split("\n")
        names = None if names is None else [name.strip() for name in names if name.strip()]
        source = open_labelled_images(
            data,
            image_shape(classifier),
            value_range=value_range,
            class_names=names,
            strict=strict,
        )
        try:
            report = evaluate(
                classifier,
                source,
                defences,
                protocol,
                value_range=value_range,
                class_names=names,
                console=console,
                **options,
            )
        finally:
            report_skipped(source.skipped, console)
    report.settings["data"] = source.name
    return report
