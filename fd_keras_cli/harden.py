"""``fd-keras harden``: fine-tune a classifier behind its table."""

from __future__ import annotations

import itertools
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import check_directory, interruptible, quiet_libraries, report_skipped
from fd_keras_cli.options import (
    Modules,
    Probabilities,
    Strict,
    ValueRange,
    model_argument,
    path_option,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.console import Console

    from fd_keras import HardenResult


class AttackGradientName(str, Enum):
    """Choices of ``--attack-gradient``."""

    SMOOTH = "smooth"
    STRAIGHT_THROUGH = "straight-through"
    RANDOM = "random"


_SMOOTH = AttackGradientName.SMOOTH
_TRAINING = "training"


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
            "x and y, or a .tfrecord(.gz) file. They are kept in memory.",
        ),
    ],
    out: Annotated[Path, path_option("Directory of the training and its result; made if missing.")],
    table: Annotated[
        str, typer.Option(help="The table to stand behind: a preset's name or a JSON file.")
    ] = "liu2019",
    epsilon: Annotated[
        float,
        typer.Option(
            min=0,
            help="Change of a pixel in the attacks that are trained on, in grey levels: 4 means "
            "4/255. 0: no attack.",
        ),
    ] = 4.0,
    max_benign_loss: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the benign images it may cost.")
    ] = 0.01,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over TRAIN_DATA.")] = 5,
    attack_steps: Annotated[
        int, typer.Option(min=1, help="1: FGSM with a random start. More: PGD.")
    ] = 1,
    attack_gradient: Annotated[
        AttackGradientName, typer.Option(help="What attacks take for the gradient of rounding.")
    ] = _SMOOTH,
    attacked_share: Annotated[
        float, typer.Option(min=0, max=1, help="Part of every batch that is attacked.")
    ] = 0.5,
    trades: Annotated[
        float, typer.Option(min=0, help="Weight of the TRADES divergence; 0: cross-entropy.")
    ] = 0.0,
    consistency: Annotated[
        float, typer.Option(min=0, help="Weight of agreement with and without the quantisation.")
    ] = 0.0,
    soft_labels: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the original's predictions as labels.")
    ] = 0.0,
    learn_table: Annotated[
        bool, typer.Option("--learn-table", help="Learn the table's steps, too.")
    ] = False,
    random_grids: Annotated[
        bool, typer.Option("--random-grids", help="Shift the block grid at random in training.")
    ] = False,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0, help="Of Adam, constant. Default: a warm-up to 0.001 and a cosine."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 128,
    dtype_policy: Annotated[
        str | None, typer.Option(help="Keras' policy to train with, such as mixed_bfloat16.")
    ] = None,
    validation_data: Annotated[
        str | None,
        typer.Option(help="Images to hold out, as TRAIN_DATA. Default: a fifth of TRAIN_DATA."),
    ] = None,
    max_images: Annotated[
        int, typer.Option(min=5, help="Read so many images of TRAIN_DATA at most.")
    ] = 100_000,
    max_held_out: Annotated[int, typer.Option(min=1, help="Images to check on at most.")] = 1000,
    value_range: ValueRange = (0.0, 255.0),
    probabilities: Probabilities = False,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn at random.")] = 1,
    modules: Modules = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away the training in --out.")
    ] = False,
    strict: Strict = False,
) -> None:
    """Fine-tune a classifier behind its table, so that attacks through it do less.

    The best epoch is the one with the highest accuracy under an adaptive attack on held-out images
    among those that cost no more benign accuracy than --max-benign-loss. Interrupt it at any time:
    the same command goes on after the last whole epoch. Writes model.keras, table.json and
    result.json, and below training/ what TensorBoard reads.
    """
    check_directory(out)
    with interruptible():
        result = _result(
            model,
            _Reader(value_range, max_images, strict),
            train_data,
            validation_data,
            table,
            modules or [],
            learning_rate,
            attack_budget=epsilon,
            max_benign_loss=max_benign_loss,
            epochs=epochs,
            batch_size=batch_size,
            from_logits=not probabilities,
            dtype_policy=dtype_policy,
            max_held_out=max_held_out,
            directory=out / _TRAINING,
            overwrite=overwrite,
            seed=seed,
            attack_steps=attack_steps,
            attack_gradient=attack_gradient.value,
            attacked_share=attacked_share,
            trades=trades,
            consistency=consistency,
            soft_labels=soft_labels,
            random_grids=random_grids,
            table_rate=1.0 if learn_table else 0.0,
        )
    result.save(out)
    typer.echo(str(result))
    for name in ("model.keras", "table.json", "result.json"):
        typer.echo(f"Wrote {out / name}")


class _Reader:
    """Reads labelled images into memory."""

    def __init__(self, value_range: tuple[float, float], max_images: int, strict: bool) -> None:
        self.value_range = value_range
        self._max_images = max_images
        self._strict = strict

    def read(
        self, location: str, shape: tuple[int, int, int], console: Console
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Images in the value range, and their classes."""
        import numpy as np

        from fd_keras.data.labelled_sources import open_labelled_images

        source = open_labelled_images(location, shape, strict=self._strict)
        try:
            pairs = list(itertools.islice(source, self._max_images))
        finally:
            report_skipped(source.skipped, console)
        if not pairs:
            raise ValueError(f"`TRAIN_DATA` holds no image. Received: {location}")
        images, labels = zip(*pairs)
        low, high = self.value_range
        stacked = np.stack(images)
        # Bytes take a quarter of the memory, and most models of 0 to 255 scale them themselves.
        if (low, high) != (0, 255):
            stacked = low + np.float32((high - low) / 255) * stacked.astype(np.float32)
        return stacked, np.array(labels, np.int64)


def _result(
    path: Path,
    reader: _Reader,
    train_data: str,
    validation_data: str | None,
    table: str,
    modules: list[str],
    learning_rate: float | None,
    **options: Any,
) -> HardenResult:
    with quiet_libraries() as console:
        with console.status("Starting TensorFlow"):
            import keras

            from fd_keras import FeatureDistillation, harden
            from fd_keras.presets import table_from_argument
            from fd_keras_cli.models import image_shape, load_model
        classifier = load_model(path, modules)
        shape = image_shape(classifier)
        layer = FeatureDistillation(table_from_argument(table), value_range=reader.value_range)
        with console.status("Reading images"):
            train = reader.read(train_data, shape, console)
            held = None
            if validation_data is not None:
                held = reader.read(validation_data, shape, console)
        if learning_rate is not None:
            options["optimizer"] = keras.optimizers.Adam(learning_rate)
        return harden(classifier, layer, train, held, console=console, **options)
