"""``fd-keras verify``: compare an exported file with the model it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fd_keras_cli.console import check_target, echo, quiet_libraries
from fd_keras_cli.options import (
    DATASET_NAMES,
    AllowCode,
    ImageKey,
    ImageSize,
    MaxPixels,
    Modules,
    StripLayer,
    ValueRange,
    check_given,
    check_tables,
    model_argument,
    path_option,
)
from fd_keras_cli.words import called


def verify(
    exported: Annotated[
        Path,
        typer.Argument(
            metavar="EXPORT",
            help="A .tflite file, a SavedModel directory, or the directory of its versions, of "
            "which the newest is taken.",
        ),
    ],
    model: Annotated[
        Path, model_argument("The .keras or .h5 file, or SavedModel, that it was made from.")
    ],
    table: Annotated[
        str | None, typer.Option(help="The table it was exported with, as for `export`.")
    ] = None,
    value_range: ValueRange = (0, 255),
    image_size: ImageSize = None,
    strip_layer: StripLayer = False,
    images: Annotated[
        str | None,
        typer.Option(
            help="Images to compare on, as DATA of `calibrate`; a sample of 100 is used. Default: "
            "packaged photographs."
        ),
    ] = None,
    modules: Modules = None,
    allow_code: AllowCode = False,
    image_key: ImageKey = None,
    max_pixels: MaxPixels = None,
    out: Annotated[
        Path | None, path_option("JSON file to write the result to, too; replaced if it exists.")
    ] = None,
) -> None:
    """Run an exported file in its real runtimes and compare it with Keras.

    It compares the distilled images and the predictions, and ends with exit code 1 unless the file
    is proven.
    """
    if out is not None:
        read = {"EXPORT": exported, "MODEL": model, "--images": images, "--table": table}
        check_target("--out", out, inputs=read)
    check_given("EXPORT", exported)
    check_given("MODEL", model)
    check_tables("--table", table)
    check_given("--images", images, names=DATASET_NAMES)
    with quiet_libraries() as console:
        with console.status("Starting TensorFlow"):
            from fd_keras import verify_export
            from fd_keras._files import atomic_path
            from fd_keras.export.archive import found_export
            from fd_keras_cli.models import (
                load_model,
                model_images,
                pixels_of,
                protected,
                without_layer,
            )

        with called("path", "EXPORT"):
            exported = found_export(exported)
        with console.status("Comparing"):
            loaded, _ = without_layer(
                load_model(model, modules or [], console, allow_code=allow_code),
                strip_layer,
                console,
            )
            whole = protected(loaded, table, value_range, image_size)
            reading = {"image_key": image_key, "max_pixels": max_pixels}
            pixels = pixels_of(whole, value_range)
            batch = (
                None if images is None else model_images(images, whole, pixels, console, **reading)
            )
            check = verify_export(exported, whole, batch)
    if out is not None:
        with atomic_path(out) as temporary:
            temporary.write_text(json.dumps(check.to_dict(), indent=1) + "\n")
    echo(str(check))
    if not check.passed:
        raise typer.Exit(1)
