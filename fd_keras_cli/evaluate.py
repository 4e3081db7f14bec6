"""``fd-keras evaluate``: attack a classifier and compare defences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import (
    check_directory,
    check_outputs,
    echo,
    interruptible,
    parsed_limits,
    print_error,
    print_next,
    printable,
    quiet_libraries,
    report_source,
)
from fd_keras_cli.options import (
    ATTACK_NAMES,
    BASELINE_NAMES,
    DATASET_NAMES,
    FAMILY_NAMES,
    PROTOCOL_NAMES,
    AllowCode,
    Classes,
    ImageKey,
    LabelKey,
    LabelledData,
    MaxPixels,
    ModelOutput,
    Modules,
    Overwrite,
    Probabilities,
    Scheduler,
    Strict,
    StripLayer,
    ValueRange,
    Workers,
    check_choices,
    check_given,
    check_tables,
    model_argument,
    path_option,
    read_class_names,
    same_options,
)
from fd_keras_cli.words import given

if TYPE_CHECKING:
    from fd_keras.evaluation import Protocol


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
    protocol: Annotated[
        str | None,
        typer.Option(
            help="evademl-imagenet, evademl-cifar10, linf-sweep or autoattack. Default: "
            "linf-sweep, or --attack alone."
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="An attack at each --epsilon instead of a protocol, or beside the one that is "
            "given: fgsm, bim, pgd, square, autoattack; or deepfool, cw-l2, which have no bound. "
            "May be given repeatedly.",
        ),
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(
            min=0, help="Bound of --attack in grey levels of 255. May be given repeatedly."
        ),
    ] = None,
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
    probabilities: Probabilities = None,
    strip_layer: StripLayer = False,
    model_output: ModelOutput = None,
    classes: Classes = None,
    max_images: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of images, taken as a random sample over the classes; in one pass, of "
            "correctly classified ones.",
        ),
    ] = 1000,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COUNT",
            help="Maximum number of images for what is slow: a family of attacks (CW-L2=50), a "
            "threat model (adaptive=100, black-box=4) or a family of defences (quilting=20). May "
            "be given repeatedly.",
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
    scheduler: Scheduler = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
    modules: Modules = None,
    allow_code: AllowCode = False,
    image_key: ImageKey = None,
    label_key: LabelKey = None,
    max_pixels: MaxPixels = None,
    strict: Strict = False,
) -> None:
    """Evaluate defences of a classifier under attack, and write a report.

    Writes report.html and report.json, in place of an earlier report. Every accuracy names its
    threat model: gray-box (the attacker does not know the defence), adaptive (the attacker
    differentiates through it) or black-box. In two passes, certified accuracy and bytes per image
    are reported beside them. After an interruption, the same command resumes. With --scheduler or
    --workers, images are attacked on a Dask cluster, whose workers must see --cache.
    """
    check_directory(out)
    if cache is not None:
        check_directory(cache, option="--cache")
    limits = parsed_limits(limit or [])
    if epsilon and not attack:
        raise ValueError("`--epsilon` is the bound of an --attack, and none is given")
    check_given("MODEL", model)
    check_given("DATA", data, names=DATASET_NAMES)
    check_tables("--table", *(table or []))
    baselines = [*(baseline or []), *(rival or [])]
    known = dict.fromkeys((*BASELINE_NAMES, *FAMILY_NAMES))
    check_choices("--baseline", baselines, known)
    check_choices("--protocol", [protocol] if protocol else None, PROTOCOL_NAMES)
    check_choices("--attack", attack, ATTACK_NAMES)
    names = read_class_names(classes)
    with interruptible(), quiet_libraries() as console:
        with console.status("Starting TensorFlow"):
            from fd_keras import evaluation
            from fd_keras._pages import environment
            from fd_keras.classifier import Classifier
            from fd_keras.data.labelled_sources import open_labelled_images
            from fd_keras.distribution import connected
            from fd_keras_cli.models import image_shape, load_model, without_layer
        environment()  # the report needs it in the end
        for text in baselines:
            _check_baseline(text)
        attacks = chosen_protocol(protocol, attack or [], epsilon or [], limits)
        check_report(out, overwrite)
        loaded, own = without_layer(
            load_model(model, modules or [], console, allow_code=allow_code), strip_layer, console
        )
        settings: dict[str, Any] = {
            "value_range": value_range,
            "from_logits": None if probabilities is None else not probabilities,
            "output": model_output,
        }
        classifier = Classifier(loaded, class_names=names, **settings)
        source = open_labelled_images(
            data,
            image_shape(loaded),
            value_range=value_range,
            class_names=names,
            class_count=classifier.classes,
            strict=strict,
            image_key=image_key,
            label_key=label_key,
            max_pixels=max_pixels,
        )
        if names is None and source.class_names is not None:
            classifier = Classifier(loaded, class_names=source.class_names, **settings)
        default: Any = "liu2019" if own is None else own
        try:
            with connected(scheduler=scheduler, workers=workers) as client:
                report = evaluation.evaluate(
                    classifier,
                    source,
                    [*(map(_own_table, table) if table else [default]), *baselines],
                    attacks,
                    passes=passes,
                    max_images=max_images,
                    seed=seed,
                    cache_dir=cache,
                    client=client,
                    verbose=console,
                )
        finally:
            report_source(source, console)
    report.settings["data"] = source.name
    report.to_json(out / "report.json")
    report.to_html(out / "report.html")
    echo(report.table())
    echo("")
    echo(report.verdict)
    for check in report.checks:
        if not check["passed"]:
            print_error(f"failed check on {check['defence']}: {check['name']}: {check['detail']}")
    echo(f"Wrote {printable(out / 'report.html')} and {printable(out / 'report.json')}")
    chosen = (table or ["liu2019" if own is None else "TABLE"])[0]
    read = same_options(modules, allow_code=allow_code)
    if passes == 2:
        print_next("apply", "IMAGES", "--encode", "--table", chosen, "--out", "encoded")
    elif own is not None and table is None:  # it was evaluated behind its own layer
        print_next("export", model, *read, "--out", "exported")
    else:
        ours = ("--strip-layer",) * (own is not None)
        print_next(
            *("export", model, *ours, *read, "--table", chosen),
            *("--value-range", *value_range, "--out", "exported"),
        )


def _check_baseline(text: str) -> None:
    """Refuse settings that a baseline does not take, before the model is read."""
    from fd_keras.evaluation.defences import defence

    # Families choose their own settings, and quilting needs the images.
    if text not in FAMILY_NAMES and text.partition(":")[0] != "quilting":
        with given("--baseline", text):
            defence(text)


def _own_table(text: str) -> Any:
    """What stands for a table; a codec has the name of the preset that is made of its tables."""
    from fd_keras.presets import table_from_argument

    return table_from_argument(text) if text.partition(":")[0] == "jpeg" else text


def chosen_protocol(
    name: str | None, attacks: list[str], epsilons: list[float], limits: dict[str, int]
) -> Protocol:
    """The protocol of the options.

    Args:
        name: Of ``--protocol``.
        attacks: Of ``--attack``.
        epsilons: Of ``--epsilon``.
        limits: Of ``--limit``.

    Raises:
        ValueError: There is no such protocol or attack, or a limit does not fit.

    Example:
        >>> chosen_protocol(None, ["pgd"], [4.0], {}).name
        'PGD-20 4/255'
    """
    from fd_keras.evaluation import attack_protocol, protocol_named

    named = None if attacks and name is None else protocol_named(name or "linf-sweep")
    return protocol_named(
        attack_protocol(attacks, epsilons, named) if attacks else named or "linf-sweep", limits
    )


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
