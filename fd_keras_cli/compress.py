"""``fd-keras compress``: write JPEG files with a quantisation table."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from fd_keras_cli.console import (
    USER_ERRORS,
    checked_targets,
    file_progress,
    print_error,
    quiet_libraries,
)
from fd_keras_cli.options import Images, OutDirectory, TableName


class SubsamplingName(str, Enum):
    """Choices of ``--subsampling``."""

    NONE = "4:4:4"
    HALF = "4:2:0"


def compress(
    images: Images,
    out: OutDirectory,
    table: TableName = "jpeg",
    subsampling: Annotated[
        SubsamplingName, typer.Option(help="Chroma at full (4:4:4) or half (4:2:0) size.")
    ] = SubsamplingName.NONE,
) -> None:
    """Compress images to JPEG files with a quantisation table.

    This is feature distillation at the encoder: with 4:4:4 and a YCbCr table, any JPEG decoder
    returns nearly what the layer computes. Differences are possible in blocks of high contrast, in
    incomplete blocks at the edges, and where Y, Cb or Cr leave 0 to 255. Because of the JPEG
    format, steps are rounded to whole numbers from 1 to 255 and cycle spins are dropped; a message
    reports it. Transparency and metadata are dropped.
    """
    with quiet_libraries() as console, console.status("Starting TensorFlow"):
        from fd_keras.data.files import read_image
        from fd_keras.jpeg import rounded_table, write_jpeg
        from fd_keras.presets import table_from_argument
    given = table_from_argument(table)
    rounded = rounded_table(given)
    if rounded != given:
        typer.echo(f"Rounded for JPEG: {given!r} -> {rounded!r}", err=True)
    targets = checked_targets(images, [out / f"{image.stem}.jpg" for image in images], out)
    written = pixels = size = 0
    with file_progress("Writing", len(images)) as (advance, console):
        for source, target in zip(images, targets):
            try:
                image = read_image(source).pixels
                size += write_jpeg(target, image, rounded, subsampling=subsampling.value)
                pixels += image.size
                written += 1
            except USER_ERRORS as error:
                print_error(f"{source}: {error}", console)
            advance(1)
    typer.echo(f"{written} of {len(images)} images written to {out}")
    if written:
        typer.echo(f"{size} bytes, {pixels / size:.1f} times smaller than the pixels")
    if written < len(images):
        raise typer.Exit(1)
