"""``fd-keras compress``: write JPEG files with a quantisation table."""

from __future__ import annotations

import functools
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import check_directory, echo, print_next, print_note, quiet_libraries
from fd_keras_cli.options import (
    Images,
    MaxPixels,
    OutDirectory,
    Overwrite,
    RunDirectoryPath,
    Scheduler,
    TableName,
    Workers,
    check_images,
    check_tables,
)
from fd_keras_cli.outputs import FileBatch, mark

if TYPE_CHECKING:
    from fd_keras import QuantizationTable
    from fd_keras.data.files import Tally


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
    max_pixels: MaxPixels = None,
    overwrite: Overwrite = False,
    scheduler: Scheduler = None,
    workers: Workers = None,
    run: RunDirectoryPath = None,
) -> None:
    """Compress images to JPEG files with a quantisation table.

    This is feature distillation at the encoder, the first pass of two: with 4:4:4, libjpeg decodes
    an image that lies on the table's lattice, for which `fd-keras certify` says how large a change
    it withstands. Tables with steps too small for that give nearly what the layer computes.
    Because of the JPEG format, steps are rounded to whole numbers from 1 to 255 and cycle spins are
    dropped; a message reports it. Files of a directory keep their folders below OUT. Colour
    profiles are kept, transparency and other metadata are dropped.
    """
    check_images(images)
    check_tables("--table", table)
    with quiet_libraries() as console, console.status("Starting TensorFlow"):
        from fd_keras.jpeg import rounded_table
        from fd_keras.presets import table_from_argument
    given = table_from_argument(table)
    rounded = rounded_table(given)
    if rounded != given:
        print_note(f"Rounded for JPEG: {given!r} -> {rounded!r}")
    if run is not None:
        check_directory(run, option="--run")
    spread = (scheduler, workers, run) != (None, None, None)
    batch = FileBatch(
        *("compress", images, out, lambda image: f"{image.stem}.jpg"),
        overwrite=overwrite,
        max_pixels=max_pixels,
        spread=spread,
    )
    work = functools.partial(_compressed, rounded, subsampling.value, max_pixels)
    if spread:
        sizes = batch.run_spread(
            "Writing",
            work,
            settings={
                "work": "compress",
                "table": rounded.to_dict(),
                "subsampling": subsampling.value,
                "max_pixels": max_pixels,
            },
            cluster=(scheduler, workers),
            run=run,
        )
        written = len(sizes)
    else:
        sizes = []

        def convert(source: Path, target: Path, remarks: Tally) -> None:
            sizes.append(work(source, target, remarks))

        written = batch.run("Writing", convert)
    if written:
        values, size = (sum(numbers) for numbers in zip(*sizes))
        echo(f"{size} bytes, {values / size:.1f} times smaller than the pixels")
        # Files of other steps or of halved colours do not lie on the lattice of the table given.
        if rounded == given and subsampling is SubsamplingName.NONE:
            print_next("certify", out, "--table", table)
    batch.finish(written)


def _compressed(
    table: QuantizationTable,
    subsampling: Any,
    max_pixels: int | None,
    source: Path,
    target: Path,
    remarks: Tally,
) -> list[int]:
    """Write one JPEG file; its number of pixel values and of bytes."""
    from fd_keras._files import atomic_path
    from fd_keras.data.files import read_image
    from fd_keras.jpeg import LARGEST_JPEG_PROFILE, encode_jpeg, with_software

    image = read_image(source, max_pixels=max_pixels, remark=remarks.add)
    profile = image.icc_profile
    if profile is not None and len(profile) > LARGEST_JPEG_PROFILE:
        remarks.add("its ICC profile is not kept, as it is too large for JPEG", source)
        profile = None
    if image.has_other_colors:
        remarks.add("its gamma or primaries are not kept, as JPEG cannot hold them", source)
    if image.alpha is not None:
        remarks.add("its transparency is not kept, as JPEG has none", source)
    content = encode_jpeg(image.pixels, table, subsampling=subsampling, icc_profile=profile)
    decoded = read_image(content, max_pixels=image.pixels.size)
    content = with_software(content, mark("compress", decoded))
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
    return [image.pixels.size, len(content)]
