"""``fd-keras export``: write a model for TF Serving and LiteRT, and prove the files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import (
    check_directory,
    check_outputs,
    echo,
    print_next,
    printable,
    quiet_libraries,
)
from fd_keras_cli.options import (
    DATASET_NAMES,
    AllowCode,
    ImageKey,
    ImageSize,
    MaxPixels,
    Modules,
    OutDirectory,
    Overwrite,
    StripLayer,
    ValueRange,
    check_given,
    check_needs,
    check_tables,
    model_argument,
    same_options,
)
from fd_keras_cli.words import called

if TYPE_CHECKING:
    from fd_keras import ExportCheck


class FormatName(str, Enum):
    """Choices of ``--format``."""

    SAVED_MODEL = "saved_model"
    TFLITE = "tflite"


_ORDER = (FormatName.TFLITE, FormatName.SAVED_MODEL)

# Defaults of --name and --int8-error.
_SERVED = "saved_model"
_INT8_ERROR = 0.3


class QuantizeName(str, Enum):
    """Choices of ``--quantize``."""

    NONE = "none"
    DYNAMIC = "dynamic"
    FLOAT16 = "float16"
    INT8 = "int8"


class ResizeName(str, Enum):
    """Choices of ``--resize``."""

    CROP = "crop"
    STRETCH = "stretch"


def export(
    model: Annotated[
        Path, model_argument("A .keras or .h5 file, or the directory of a SavedModel's version.")
    ],
    out: OutDirectory,
    table: Annotated[
        str | None,
        typer.Option(
            help="Put a layer with this table in front: liu2019, zigzag15, balanced, soft8, jpeg, "
            "jpeg:QUALITY, certified:EPSILON[:ycbcr], or a table's JSON file. Without it the model "
            "is exported as it is."
        ),
    ] = None,
    value_range: ValueRange = (0, 255),
    image_size: ImageSize = None,
    strip_layer: StripLayer = False,
    formats: Annotated[
        list[FormatName] | None, typer.Option("--format", help="Can be given twice. Default: both.")
    ] = None,
    quantize: Annotated[
        QuantizeName,
        typer.Option(help="How the TFLite file's body is quantised; the layer stays float32."),
    ] = QuantizeName.NONE,
    representative: Annotated[
        str | None,
        typer.Option(
            help="Images like those the model will see, as DATA of `calibrate`; int8 needs them. "
            "A sample of 100 is used, resized and cropped; the files are proven on them, too."
        ),
    ] = None,
    int8_error: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of int8's error that may stay; the operations that cause the rest are "
            "computed in float32. 1: all operations are int8.",
        ),
    ] = _INT8_ERROR,
    single_image: Annotated[
        bool,
        typer.Option(help="Fix the TFLite file's batch at one image, which LiteRT.js needs."),
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            "--classes",
            help="Text file with one class per line in the model's order.",
        ),
    ] = None,
    resize: Annotated[
        ResizeName, typer.Option(help="How `serving_bytes` fits images of other sizes.")
    ] = ResizeName.CROP,
    name: Annotated[
        str,
        typer.Option(
            help="Name under which TF Serving serves the SavedModel: that of its directory in OUT, "
            "and of the model in warm-up requests."
        ),
    ] = _SERVED,
    warmup: Annotated[bool, typer.Option(help="Write warm-up requests for TF Serving.")] = False,
    modules: Modules = None,
    allow_code: AllowCode = False,
    image_key: ImageKey = None,
    max_pixels: MaxPixels = None,
    overwrite: Overwrite = False,
    verify: Annotated[bool, typer.Option(help="Prove each file before keeping it.")] = True,
) -> None:
    """Export a model, behind a layer or as it is, and prove that it computes the same.

    Writes the next OUT/NAME/VERSION, and OUT/model.tflite (or model_int8.tflite and so on)
    in place of an earlier export. A file that does not give Keras' distilled image is not kept.
    """
    check_directory(out, for_tensorflow=True)
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"`--name` must be the name of one directory. Received: --name {name!r}")
    check_given("MODEL", model)
    check_tables("--table", table)
    check_given("--representative", representative, names=DATASET_NAMES)
    check_given("--labels", labels)
    wanted = formats or list(FormatName)
    if FormatName.TFLITE not in wanted:
        of_tflite = {
            "--quantize": quantize is not QuantizeName.NONE,
            "--single-image": single_image,
        }
        check_needs("--format tflite", of_tflite)
    if FormatName.SAVED_MODEL not in wanted:
        of_saved_model = {
            "--resize": resize is not ResizeName.CROP,
            "--name": name != _SERVED,
            "--warmup": warmup,
        }
        check_needs("--format saved_model", of_saved_model)
    if quantize is not QuantizeName.INT8:
        check_needs("--quantize int8", {"--int8-error": int8_error != _INT8_ERROR})
    with quiet_libraries() as console:
        with console.status("Starting TensorFlow"):
            from fd_keras import export_saved_model, export_tflite
            from fd_keras.export.tflite_file import is_export
            from fd_keras_cli.models import (
                load_model,
                model_images,
                pixels_of,
                protected,
                without_layer,
            )

        served = out / name
        directories = [out, served] if FormatName.SAVED_MODEL in wanted else [out]
        if FormatName.SAVED_MODEL in wanted:
            check_directory(served)
        if FormatName.TFLITE in wanted:
            check_outputs(out, {_tflite_name(quantize): is_export}, overwrite=overwrite)
        if quantize is QuantizeName.INT8 and representative is None:
            raise ValueError(
                "`--representative` must be given with --quantize int8: images like those the "
                "model will see, to measure the ranges of its activations"
            )
        with _held(*(directory for directory in directories if directory.exists())):
            pass  # to be refused before the model is read; nothing is made for one that cannot be
        checks: list[ExportCheck] = []
        written: list[Path] = []
        with console.status("Exporting"), _reported(checks, written):
            loaded, _ = without_layer(
                load_model(model, modules or [], console, allow_code=allow_code),
                strip_layer,
                console,
            )
            whole = protected(loaded, table, value_range, image_size)
            pixels = pixels_of(whole, value_range)
            reading = {"image_key": image_key, "max_pixels": max_pixels}
            images = (
                None
                if representative is None
                else model_images(representative, whole, pixels, console, **reading)
            )
            common: dict[str, Any] = {"labels": labels, "images": images, "verify": verify}
            common |= {"value_range": pixels, "on_check": checks.append}
            with _held(*directories):
                # A server may take up the SavedModel at once, so it comes last.
                for kind in sorted(set(wanted), key=_ORDER.index):
                    if kind is FormatName.SAVED_MODEL:
                        path = export_saved_model(
                            whole, served, resize=resize.value, warmup=warmup, **common
                        )
                    else:
                        path = export_tflite(
                            whole,
                            out / _tflite_name(quantize),
                            quantize=quantize.value,
                            representative_data=images,
                            int8_error=int8_error,
                            single_image=single_image,
                            **common,
                        )
                    written.append(path)
    behind = () if table is None else ("--table", table)
    size = () if image_size is None else ("--image-size", *image_size)
    ours = ("--strip-layer",) * strip_layer
    read = same_options(modules, allow_code=allow_code)
    scale = ("--value-range", *pixels)
    print_next("verify", written[0], model, *ours, *behind, *scale, *size, *read)


@contextmanager
def _reported(checks: list[ExportCheck], written: list[Path]) -> Iterator[None]:
    """Say what was written in the block, also where another file then fails."""
    try:
        yield
    finally:
        for check in checks[: len(written)]:
            echo(str(check))
        for path in written:
            echo(f"Wrote {printable(path)}")


@contextmanager
def _held(*directories: Path) -> Iterator[None]:
    """Hold all directories for this command, and no other export."""
    from fd_keras._files import held

    with called("directory", "--out"), ExitStack() as stack:
        for directory in directories:
            stack.enter_context(held(directory))
        yield


def _tflite_name(quantize: QuantizeName) -> str:
    return "model.tflite" if quantize is QuantizeName.NONE else f"model_{quantize.value}.tflite"
