"""``fd-keras harden``: fine-tune a classifier behind its table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import (
    check_budget,
    check_directory,
    check_outputs,
    echo,
    print_next,
    printable,
    quiet_libraries,
    report_source,
    resumable,
    sampled,
)
from fd_keras_cli.options import (
    DATASET_NAMES,
    AllowCode,
    Classes,
    ImageKey,
    LabelKey,
    MaxPixels,
    ModelOutput,
    Modules,
    Probabilities,
    Strict,
    StripLayer,
    ValueRange,
    check_given,
    check_tables,
    model_argument,
    path_option,
    read_class_names,
    same_options,
)
from fd_keras_cli.words import called

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.console import Console

    from fd_keras import Classifier, HardenResult


class AttackGradientName(str, Enum):
    """Choices of ``--attack-gradient``."""

    SMOOTH = "smooth"
    STRAIGHT_THROUGH = "straight-through"


_SMOOTH = AttackGradientName.SMOOTH
_TRAINING = "training"
_OUTPUTS = ("model.keras", "table.json", "result.json")


def harden(
    model: Annotated[
        Path,
        model_argument(
            "The trained classifier without the layer, as Keras saves it (.keras, .h5)."
        ),
    ],
    train_data: Annotated[
        str,
        typer.Argument(
            metavar="TRAIN_DATA",
            help="Labelled images: a directory with a subdirectory per class, an .npz file with "
            "x and y (or x_train and y_train), a TFRecord file, or cifar10 and the like, of which "
            "the training images are taken. They are kept in memory.",
        ),
    ],
    out: Annotated[Path, path_option("Directory of the training and its result; made if missing.")],
    table: Annotated[
        str, typer.Option(help="The table to stand behind: a preset's name or a JSON file.")
    ] = "soft8",
    epsilon: Annotated[
        float,
        typer.Option(
            min=0,
            help="Largest change of a pixel by the attack through the table on training images, in "
            "grey levels of 255: 2 means 2/255. 0: no such attack.",
        ),
    ] = 2.0,
    max_benign_loss: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the images by which benign accuracy may fall."),
    ] = 0.01,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over TRAIN_DATA.")] = 12,
    attack_steps: Annotated[
        int,
        typer.Option(
            min=1,
            help="Steps of the attack on training images. 1: FGSM from a random start. More: PGD.",
        ),
    ] = 1,
    attack_gradient: Annotated[
        AttackGradientName,
        typer.Option(
            help="Surrogate gradient of rounding in that attack (BPDA); smooth is the stronger one."
        ),
    ] = _SMOOTH,
    attacked_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Part of every batch that is attacked through the table."),
    ] = 0.5,
    transferred_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Part of every batch that is attacked on the original model, as attackers do who "
            "have that one alone.",
        ),
    ] = 0.0,
    transferred_epsilon: Annotated[
        float, typer.Option(help="Largest change of a pixel by that attack, in grey levels.")
    ] = 4.0,
    soft_labels: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Weight of the original model's probabilities in the targets (knowledge "
            "distillation). 0: labels only.",
        ),
    ] = 0.0,
    learn_table: Annotated[
        bool, typer.Option("--learn-table", help="Learn the table's steps, too.")
    ] = False,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Constant learning rate of Adam. Default: a warm-up to 0.001, then a cosine decay "
            "to 0.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images in a batch.")] = 128,
    dtype_policy: Annotated[
        str | None, typer.Option(help="Keras dtype policy to train with, such as mixed_bfloat16.")
    ] = None,
    validation_data: Annotated[
        str | None,
        typer.Option(
            help="Labelled images that choose the epoch, given as TRAIN_DATA. Default: a fifth of "
            "TRAIN_DATA, at most --max-validation-images, which is then not trained on."
        ),
    ] = None,
    max_images: Annotated[
        int,
        typer.Option(
            min=5, help="Maximum number of images of TRAIN_DATA, taken as a random sample."
        ),
    ] = 100_000,
    max_validation_images: Annotated[
        int,
        typer.Option(
            "--max-validation-images",
            "--max-held-out",
            min=1,
            help="Maximum number of validation images, taken as a random sample.",
        ),
    ] = 1000,
    value_range: ValueRange = (0.0, 255.0),
    probabilities: Probabilities = None,
    strip_layer: StripLayer = False,
    model_output: ModelOutput = None,
    classes: Classes = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 1,
    modules: Modules = None,
    allow_code: AllowCode = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the training in --out.")
    ] = False,
    image_key: ImageKey = None,
    label_key: LabelKey = None,
    max_pixels: MaxPixels = None,
    strict: Strict = False,
) -> None:
    """Fine-tune a classifier behind its table, so that attacks through it do less.

    The result is the epoch with the highest accuracy under an adaptive attack on the validation
    images among those that lose no more benign accuracy than --max-benign-loss. Interrupt it at
    any time: the same command goes on after the last whole epoch. Writes model.keras, table.json
    and result.json, and below training/ what TensorBoard reads. If no epoch keeps within
    --max-benign-loss, it still writes the one that lost least, says so and exits with 1.
    """
    check_directory(out, for_tensorflow=True)
    check_given("MODEL", model)
    check_given("TRAIN_DATA", train_data, names=DATASET_NAMES)
    check_given("--validation-data", validation_data, names=DATASET_NAMES)
    check_tables("--table", table)
    with resumable(overwrite), _words_of_options(out):
        result = _result(
            model,
            _Reader(
                value_range,
                seed,
                class_names=read_class_names(classes),
                strict=strict,
                image_key=image_key,
                label_key=label_key,
                max_pixels=max_pixels,
            ),
            {
                "TRAIN_DATA": (train_data, max_images),
                "--validation-data": (validation_data, max_validation_images),
            },
            table,
            modules or [],
            learning_rate,
            recipe={
                "epsilon": epsilon,
                "attack_steps": attack_steps,
                "attack_gradient": attack_gradient.value,
                "attacked_share": attacked_share,
                "transferred_share": transferred_share,
                "transferred_epsilon": transferred_epsilon,
                "soft_labels": soft_labels,
                "table_rate": 1.0 if learn_table else 0.0,
            },
            training={"epochs": epochs, "batch_size": batch_size, "dtype_policy": dtype_policy},
            outputs={
                "from_logits": None if probabilities is None else not probabilities,
                "output": model_output,
            },
            strip_layer=strip_layer,
            allow_code=allow_code,
            max_benign_loss=max_benign_loss,
            max_validation_images=max_validation_images,
            out=out,
            overwrite=overwrite,
            seed=seed,
        )
        result.save(out)
    echo(str(result))
    for name in _OUTPUTS:
        echo(f"Wrote {printable(out / name)}")
    check_budget(
        result.within_benign_loss,
        f"no epoch kept within --max-benign-loss {max_benign_loss:g}: the result is the one that "
        "lost least. Train for more --epochs, with a smaller --epsilon or behind a gentler --table",
    )
    print_next(
        *("evaluate", out / "model.keras", "DATA", "--table", out / "table.json"),
        *same_options(
            modules,
            allow_code=allow_code,
            probabilities=probabilities,
            model_output=model_output,
            classes=classes,
        ),
        *("--value-range", *value_range, "--out", "report"),
    )


@contextmanager
def _words_of_options(out: Path) -> Iterator[None]:
    """Errors about the directory as errors about ``--out``."""
    try:
        yield
    except ValueError as error:
        text = str(error).replace("`directory`", "`--out`").replace("overwrite=True", "--overwrite")
        for directory in (out, out / _TRAINING):
            text = text.replace(f"directory={str(directory)!r}", f"--out {out}")
        raise ValueError(text) from error


def _check_out(out: Path, model: Path) -> None:
    """Refuse, before anything is read, an ``--out`` that is in use or holds files of others."""
    from fd_keras._files import locked
    from fd_keras.hardening.result import foreign_files

    foreign = foreign_files(out)
    check_outputs(out, dict.fromkeys(_OUTPUTS, lambda path: path.name not in foreign))
    if model.resolve() == (out / "model.keras").resolve():
        raise ValueError(
            f"`--out` must not be where MODEL is, which would be replaced. Received: --out {out}"
        )
    check_directory(out / _TRAINING)
    if (out / _TRAINING).is_dir():
        with locked(out / _TRAINING):
            pass


class _Reader:
    """Reads labelled images into memory."""

    def __init__(self, value_range: tuple[float, float], seed: int, **options: Any) -> None:
        self.value_range = value_range
        self.class_names = options["class_names"]
        self._seed = seed
        self._options = options

    def read(
        self, name: str, location: str, limit: int, classifier: Classifier, console: Console
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Images in the value range, and their classes."""
        import numpy as np

        from fd_keras.data.labelled_sources import open_labelled_images
        from fd_keras_cli.models import image_shape

        # Bytes take a quarter of the memory, and most models of 0 to 255 scale them themselves.
        scaled = None if self.value_range == (0, 255) else self.value_range
        with called("location", name):
            source = open_labelled_images(
                location,
                image_shape(classifier.model),
                value_range=scaled,
                class_count=classifier.classes,
                part="train" if name == "TRAIN_DATA" else "test",
                **self._options,
            )
            source = sampled(source, limit, self._seed, console)
            try:
                pairs = list(itertools.islice(source, limit))
            finally:
                report_source(source, console)
        if not pairs:
            raise ValueError(f"`{name}` holds no image. Received: {location}")
        images, labels = zip(*pairs)
        return np.stack(images), np.array(labels, np.int64)


def _result(
    path: Path,
    reader: _Reader,
    locations: Mapping[str, tuple[str | None, int]],
    table: str,
    modules: list[str],
    learning_rate: float | None,
    *,
    recipe: dict[str, Any],
    training: dict[str, Any],
    outputs: dict[str, Any],
    strip_layer: bool,
    allow_code: bool,
    out: Path,
    **options: Any,
) -> HardenResult:
    with quiet_libraries() as console:
        with console.status("Starting TensorFlow"):
            import keras

            from fd_keras import FeatureDistillation, harden
            from fd_keras.classifier import Classifier
            from fd_keras.hardening import Recipe, Training
            from fd_keras.presets import table_from_argument
            from fd_keras_cli.models import load_model, without_layer
        _check_out(out, path)
        model, _ = without_layer(
            load_model(path, modules, console, allow_code=allow_code), strip_layer, console
        )
        classifier = Classifier(
            model, value_range=reader.value_range, class_names=reader.class_names, **outputs
        )
        layer = FeatureDistillation(table_from_argument(table), value_range=reader.value_range)
        with console.status("Reading images"):
            train, validation = (
                None
                if location is None
                else reader.read(name, location, limit, classifier, console)
                for name, (location, limit) in locations.items()
            )
        if learning_rate is not None:
            training["optimizer"] = keras.optimizers.Adam(learning_rate)
        return harden(
            classifier,
            layer,
            train,
            validation,
            Recipe(**recipe),
            Training(**training),
            directory=out / _TRAINING,
            verbose=console,
            **options,
        )
