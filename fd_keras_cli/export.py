"""``fd-keras export``: a protected model for TF Serving and LiteRT, proven."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fd_keras_cli.console import quiet_libraries
from fd_keras_cli.options import Modules, ValueRange


class FormatName(str, Enum):
    """Choices of ``--format``."""

    SAVED_MODEL = "saved_model"
    TFLITE = "tflite"


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
        Path,
        typer.Argument(
            metavar="MODEL", help="A .keras or .h5 file, or a version of a SavedModel: a directory."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write to; made if missing.")],
    table: Annotated[
        str | None,
        typer.Option(
            help="Put a layer with this table in front: liu2019, zigzag15, balanced, jpeg, "
            "jpeg:QUALITY, or a table's JSON file. Without it the model is exported as it is."
        ),
    ] = None,
    value_range: ValueRange = (0, 255),
    formats: Annotated[
        list[FormatName] | None, typer.Option("--format", help="Can be given twice. Default: both.")
    ] = None,
    quantize: Annotated[
        QuantizeName, typer.Option(help="Of the TFLite file's body; the layer stays float32.")
    ] = QuantizeName.NONE,
    representative: Annotated[
        str | None,
        typer.Option(
            help="Images like those the model will see; int8 needs them. As DATA of "
            "`calibrate`; the first 100, resized and cropped."
        ),
    ] = None,
    int8_error: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the error of int8 that may stay: operations that cause the rest are "
            "computed in float32. 1: none is.",
        ),
    ] = 0.3,
    single_image: Annotated[
        bool,
        typer.Option(help="Fix the TFLite file's batch at one image, which LiteRT.js needs."),
    ] = False,
    labels: Annotated[
        Path | None, typer.Option(help="Text file with the name of a class on each line.")
    ] = None,
    resize: Annotated[
        ResizeName, typer.Option(help="What `serving_bytes` does to images of other sizes.")
    ] = ResizeName.CROP,
    warmup: Annotated[bool, typer.Option(help="Write warm-up requests for TF Serving.")] = False,
    modules: Modules = None,
    verify: Annotated[bool, typer.Option(help="Prove what was written before keeping it.")] = True,
) -> None:
    """Export a model, behind a layer or as it is, and prove that it computes the same.

    Writes OUT/saved_model/VERSION and OUT/model.tflite (or model_int8.tflite and so on). A file
    that does not give Keras' distilled image is not kept.
    """  # fmt: skip
    with quiet_libraries() as console:
        with console.status("Starting TensorFlow"):
            from fd_keras import ExportCheck, export_saved_model, export_tflite
            from fd_keras_cli.models import load_model, model_images, protected

        checks: list[ExportCheck] = []
        written = []
        with console.status("Exporting"):
            whole = protected(load_model(model, modules or []), table, value_range)
            images = None if representative is None else model_images(representative, whole)
            common: dict[str, Any] = {"labels": labels, "images": images, "verify": verify}
            common["on_check"] = checks.append
            for name in formats or list(FormatName):
                if name is FormatName.SAVED_MODEL:
                    written.append(
                        export_saved_model(
                            whole,
                            out / "saved_model",
                            resize=resize.value,
                            warmup=warmup,
                            **common,
                        )
                    )
                else:
                    suffix = "" if quantize is QuantizeName.NONE else f"_{quantize.value}"
                    written.append(
                        export_tflite(
                            whole,
                            out / f"model{suffix}.tflite",
                            quantize=quantize.value,
                            representative_data=images,
                            int8_error=int8_error,
                            single_image=single_image,
                            **common,
                        )
                    )
    for check in checks:
        typer.echo(str(check))
    for path in written:
        typer.echo(f"Wrote {path}")
