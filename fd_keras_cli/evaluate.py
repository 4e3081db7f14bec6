"""``fd-keras evaluate``: attack a classifier and compare defences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fd_keras_cli.console import (
    check_directory,
    check_outputs,
    echo,
    interruptible,
    parsed_limit,
    print_error,
    printable,
    quiet_libraries,
    report_source,
    sampled,
)
from fd_keras_cli.options import (
    DATASET_NAMES,
    PRESET_NAMES,
    Classes,
    ImageKey,
    LabelKey,
    LabelledData,
    MaxPixels,
    ModelOutput,
    Modules,
    Overwrite,
    Probabilities,
    ProtocolName,
    Strict,
    ValueRange,
    check_given,
    model_argument,
    path_option,
    read_class_names,
)


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
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="A defence to compare with: jpeg:75, bits:5, median:2, slq, tvm, quilting; or a "
            "family, of which the best setting is chosen on a validation split: JPEG, 'bit depth', "
            "median, SLQ, TVM, quilting. May be given repeatedly."
        ),
    ] = None,
    rival: Annotated[
        list[str] | None, typer.Option(hidden=True, help="Earlier name of --baseline.")
    ] = None,
    protocol: ProtocolName = "linf-sweep",
    passes: Annotated[
        int,
        typer.Option(
            min=1,
            max=2,
            help="2: each defence encodes all images before they are attacked, and distils them "
            "again after. For tables, jpeg and bits.",
        ),
    ] = 1,
    value_range: ValueRange = (0.0, 255.0),
    probabilities: Probabilities = False,
    model_output: ModelOutput = None,
    classes: Classes = None,
    max_images: Annotated[
        int,
        typer.Option(
            min=1,
            help="Maximum number of images, taken as a random sample; in one pass, of correctly "
            "classified ones.",
        ),
    ] = 1000,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COUNT",
            help="Maximum number of images for what is slow: a family of attacks (CW-L2=50), a "
            "threat model (adaptive=100) or a family of defences (quilting=20). May be given "
            "repeatedly.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample, attacks and defences.")] = 1,
    cache: Annotated[
        Path | None,
        path_option(
            "Directory of attacked images and other results, from which an interrupted run "
            "resumes. Default: ~/.keras/fd_keras/evaluation."
        ),
    ] = None,
    overwrite: Overwrite = False,
    modules: Modules = None,
    image_key: ImageKey = None,
    label_key: LabelKey = None,
    max_pixels: MaxPixels = None,
    strict: Strict = False,
) -> None:
    """Evaluate defences of a classifier under attack, and write a report.

    Writes report.html and report.json, in place of an earlier report. Every accuracy names its
    threat model: gray-box (the attacker does not know the defence), adaptive (the attacker
    differentiates through it) or black-box. In two passes, certified accuracy and bytes per image
    are reported beside them. After an interruption, the same command resumes.
    """
    check_directory(out)
    if cache is not None:
        check_directory(cache, option="--cache")
    limits = dict(map(parsed_limit, limit or []))
    defences = [*(table or ["liu2019"]), *(baseline or []), *(rival or [])]
    check_given("MODEL", model)
    check_given("DATA", data, names=DATASET_NAMES)
    check_given("--table", *(table or []), names=PRESET_NAMES)
    names = read_class_names(classes)
    with interruptible(), quiet_libraries() as console:
        with console.status("Starting TensorFlow"):
            from fd_keras import evaluation
            from fd_keras.classifier import Classifier
            from fd_keras.data.labelled_sources import open_labelled_images
            from fd_keras_cli.models import class_count, image_shape, load_model
        check_report(out, overwrite)
        loaded = load_model(model, modules or [], console)
        source = open_labelled_images(
            data,
            image_shape(loaded),
            value_range=value_range,
            class_names=names,
            class_count=class_count(loaded),
            strict=strict,
            image_key=image_key,
            label_key=label_key,
            max_pixels=max_pixels,
        )
        taken = sampled(source, max_images, seed, console)
        try:
            report = evaluation.evaluate(
                Classifier(
                    loaded,
                    value_range=value_range,
                    from_logits=not probabilities,
                    class_names=names,
                    output=model_output,
                ),
                taken,
                defences,
                evaluation.protocol_named(protocol, limits),
                passes=passes,
                max_images=max_images,
                seed=seed,
                cache_dir=cache,
                console=console,
            )
        finally:
            report_source(source, console)
    report.settings["data"] = source.name
    if taken is not source:
        report.settings["sample"] = f"random, spread over the classes, seed {seed}"
    report.to_json(out / "report.json")
    report.to_html(out / "report.html")
    echo(report.table())
    echo("")
    echo(report.verdict)
    for check in report.checks:
        if not check["passed"]:
            print_error(f"failed check on {check['defence']}: {check['name']}: {check['detail']}")
    echo(f"Wrote {printable(out / 'report.html')} and {printable(out / 'report.json')}")


def check_report(out: Path, overwrite: bool, name: str = "report") -> None:
    """Refuse to replace a page or figures that are no report of ours.

    Args:
        out: Directory of the report.
        overwrite: See ``check_outputs``.
        name: Its files' name, without suffix.

    Raises:
        ValueError: See ``check_outputs``.

    Example:
        >>> check_report(Path("no such directory"), overwrite=False)
    """
    from fd_keras.evaluation import EvaluationReport

    def ours(path: Path) -> bool:
        figures = out / f"{name}.json"
        return figures.is_file() and EvaluationReport.is_file(figures)

    check_outputs(out, {f"{name}.json": ours, f"{name}.html": ours}, overwrite=overwrite)
