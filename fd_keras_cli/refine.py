"""``fd-keras refine``: search a quantisation table for a model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import (
    check_budget,
    check_directory,
    check_outputs,
    echo,
    parsed_limits,
    print_next,
    printable,
    quiet_libraries,
    report_source,
    resumable,
)
from fd_keras_cli.options import (
    DATASET_NAMES,
    PROTOCOL_NAMES,
    AllowCode,
    Classes,
    ImageKey,
    LabelKey,
    LabelledData,
    MaxPixels,
    ModelOutput,
    Modules,
    Probabilities,
    ProtocolName,
    QuantizerName,
    Strict,
    StripLayer,
    ValueRange,
    check_choices,
    check_given,
    model_argument,
    path_option,
    read_class_names,
    same_options,
)
from fd_keras_cli.words import called

if TYPE_CHECKING:
    from fd_keras import RefineResult


class OracleName(str, Enum):
    """Choices of ``--oracle``."""

    BAYESIAN = "bayesian"
    RANDOM = "random"
    HYPERBAND = "hyperband"
    GRID = "grid"


_ADAPTIVE_ITERATIONS = 20
_BAYESIAN = OracleName.BAYESIAN
_PLOTS = ("front", "trials", "importance", "table")
_OUTPUTS = ("table.json", "result.json", "report.md", *(f"{name}.png" for name in _PLOTS))


def refine(
    model: Annotated[
        Path, model_argument("The classifier without the layer, as Keras saves it (.keras, .h5).")
    ],
    data: LabelledData,
    out: Annotated[Path, path_option("Directory of the search; made if missing.")],
    protocol: ProtocolName = "linf-sweep",
    max_benign_loss: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the benign images that a table may cost.")
    ] = 0.01,
    max_trials: Annotated[
        int, typer.Option(min=1, help="Number of tables to try, those of earlier runs included.")
    ] = 60,
    oracle: Annotated[
        OracleName, typer.Option(help="How Keras Tuner proposes tables.")
    ] = _BAYESIAN,
    quantizer: Annotated[
        list[QuantizerName] | None,
        typer.Option(
            help="Search among tables that round (the default) or soft-threshold coefficients; "
            "give it twice for both."
        ),
    ] = None,
    cycle_spins: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=64,
            help="Search among these numbers of block grids; 1, 2 and 4 if none is given. May be "
            "given repeatedly.",
        ),
    ] = None,
    adaptive: Annotated[
        list[float] | None,
        typer.Option(
            metavar="EPSILON",
            help="Score tables by attacks that know them instead: PGD-20 of EPSILON grey levels "
            "through each. May be given repeatedly. Slow.",
        ),
    ] = None,
    adaptive_images: Annotated[
        int, typer.Option(min=1, help="Number of images of each split for --adaptive.")
    ] = 32,
    value_range: ValueRange = (0.0, 255.0),
    probabilities: Probabilities = None,
    strip_layer: StripLayer = False,
    model_output: ModelOutput = None,
    classes: Classes = None,
    max_images: Annotated[
        int,
        typer.Option(
            min=2,
            help="Number of images, taken as a random sample: half of them are the validation "
            "split, half the test split.",
        ),
    ] = 1000,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COUNT",
            help="Attack at most COUNT images of each split with attack NAME, such as CW-L2=50. "
            "May be given repeatedly.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search and of random attacks.")] = 1,
    cache: Annotated[
        Path | None,
        path_option("Where attacked images are kept. Default: ~/.keras/fd_keras/evaluation."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the search in --out; other files stay.")
    ] = False,
    modules: Modules = None,
    allow_code: AllowCode = False,
    image_key: ImageKey = None,
    label_key: LabelKey = None,
    max_pixels: MaxPixels = None,
    strict: Strict = False,
) -> None:
    """Search the quantisation table with the best accuracy under attack.

    Tables are chosen on a validation split of DATA and reported on a test split. Attacks are
    gray-box, they know the model, not the table, unless --adaptive is given. A search that was
    interrupted continues with the same command. Writes table.json, result.json, report.md, its
    plots, and TensorBoard's logs.
    """
    check_directory(out, for_tensorflow=True)
    if cache is not None:
        check_directory(cache, option="--cache")
    check_given("MODEL", model)
    check_choices("--protocol", [protocol], PROTOCOL_NAMES)
    check_given("DATA", data, names=DATASET_NAMES)
    with resumable(overwrite):
        result = _result(
            model,
            data,
            protocol,
            {
                "class_names": read_class_names(classes),
                "strict": strict,
                "image_key": image_key,
                "label_key": label_key,
                "max_pixels": max_pixels,
            },
            parsed_limits(limit or []),
            value_range,
            {
                "from_logits": None if probabilities is None else not probabilities,
                "output": model_output,
            },
            {
                "max_trials": max_trials,
                "oracle": oracle.value,
                "quantizers": [name.value for name in quantizer or [QuantizerName.ROUND]],
                "cycle_spins": cycle_spins or (1, 2, 4),
                "adaptive": adaptive or [],
                "adaptive_images": adaptive_images,
            },
            max_benign_loss=max_benign_loss,
            max_images=max_images,
            directory=out,
            overwrite=overwrite,
            seed=seed,
            cache_dir=cache,
            strip_layer=strip_layer,
            modules=modules or [],
            allow_code=allow_code,
        )
    if result is None:
        echo("This worker has ended; the chief writes the result")
        return
    echo(str(result))
    for path in _written(result, out):
        echo(f"Wrote {printable(path)}")
    check_budget(
        result.feasible,
        f"no table kept within --max-benign-loss {max_benign_loss:g}: the result is the one that "
        "lost least. Search with more --max-trials or permit a larger loss",
    )
    print_next(
        *("export", model, *("--strip-layer",) * strip_layer, "--table", out / "table.json"),
        *same_options(modules, allow_code=allow_code),
        *("--value-range", *value_range, "--out", "exported"),
    )


def _result(
    path: Path,
    data: str,
    protocol: str,
    reading: dict[str, Any],
    limits: dict[str, int],
    value_range: tuple[float, float],
    outputs: dict[str, Any],
    search: dict[str, Any],
    *,
    strip_layer: bool,
    modules: list[str],
    allow_code: bool,
    **options: Any,
) -> RefineResult | None:
    with quiet_libraries() as console:
        with console.status("Starting TensorFlow"):
            from fd_keras import refinement
            from fd_keras.classifier import Classifier
            from fd_keras.data.labelled_sources import open_labelled_images
            from fd_keras.evaluation.attacks import pgd
            from fd_keras.evaluation.protocols import protocol_named
            from fd_keras.refinement.refine import SEARCHES
            from fd_keras_cli.models import image_shape, load_model, without_layer
        marked = (options["directory"] / SEARCHES.mark).exists()
        check_outputs(options["directory"], dict.fromkeys(_OUTPUTS, lambda path: marked))
        model, _ = without_layer(
            load_model(path, modules, console, allow_code=allow_code), strip_layer, console
        )
        classifier = Classifier(
            model, value_range=value_range, class_names=reading["class_names"], **outputs
        )
        attacks = protocol_named(protocol, limits)
        with called("epsilon", "--adaptive"):
            through = [pgd(epsilon, _ADAPTIVE_ITERATIONS) for epsilon in search["adaptive"]]
        counted = "adaptive" if through else "all"
        search = {**search, "adaptive": through, "objective": counted}
        source = open_labelled_images(
            data,
            image_shape(model),
            value_range=value_range,
            class_count=classifier.classes,
            **reading,
        )
        try:
            return refinement.refine(
                classifier,
                source,
                attacks,
                refinement.Search(**search),
                verbose=console,
                **options,
            )
        finally:
            report_source(source, console)


def _written(result: RefineResult, out: Path) -> list[Path]:
    from fd_keras._files import atomic_path
    from fd_keras.plots import plot_table
    from fd_keras.refinement.plots import plot_front, plot_importance, plot_trials

    result.table.save(out / "table.json")
    result.save(out / "result.json")
    with atomic_path(out / "report.md") as temporary:
        temporary.write_text(result.to_markdown() + _pictures(), encoding="utf-8")
    figures = {
        "front": plot_front(result),
        "trials": plot_trials(result),
        "importance": plot_importance(result),
        "table": plot_table(result.table),
    }
    for name, figure in figures.items():
        with atomic_path(out / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=120)
    return [out / name for name in _OUTPUTS]


def _pictures() -> str:
    return "\n" + "\n\n".join(f"![{name}]({name}.png)" for name in _PLOTS) + "\n"
