"""``fd-keras calibrate``: measure benign images and design a table."""

from __future__ import annotations

import itertools
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import (
    check_target,
    echo,
    interruptible,
    printable,
    quiet_libraries,
    report_source,
    sampled,
)
from fd_keras_cli.options import (
    DATASET_NAMES,
    ImageKey,
    MaxPixels,
    QuantizerName,
    Strict,
    check_given,
    path_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fd_keras._console import Advance
    from fd_keras.data.sources import ImageSource
    from fd_keras.statistics import CoefficientStatistics


# Of the sample of images.
_SEED = 1


class ColorSpaceName(str, Enum):
    """Choices of ``--color-space``."""

    RGB = "rgb"
    YCBCR = "ycbcr"


def calibrate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Benign images: an image file or a directory of them, an .npz or TFRecord file, "
            "or cifar10, cifar100, mnist, fashion_mnist.",
        ),
    ],
    epsilon: Annotated[
        float,
        typer.Option(
            help="Size of the perturbation of a pixel in grey levels of 255: 2 means 2/255."
        ),
    ],
    out: Annotated[Path, path_option("The table's JSON file; replaced if it exists.")],
    color_space: Annotated[
        ColorSpaceName, typer.Option(help="Colour space of the table.")
    ] = ColorSpaceName.YCBCR,
    as_bands: Annotated[
        int, typer.Option(min=0, max=64, help="Accuracy-sensitive bands of each channel.")
    ] = 15,
    required_removal: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Minimum removal probability of the other bands."),
    ] = None,
    distortion_budget: Annotated[
        float | None,
        typer.Option(min=0, help="Maximum mean squared error of an accuracy-sensitive band."),
    ] = None,
    max_step: Annotated[
        int | None, typer.Option(min=1, help="Largest step; a JPEG file can hold 255.")
    ] = None,
    cycle_spins: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Number of block grids to average over; 1 if not given."),
    ] = None,
    quantizer: Annotated[
        QuantizerName,
        typer.Option(help="What steps do: round coefficients, or soft-threshold them by half."),
    ] = QuantizerName.ROUND,
    channels: Annotated[
        int | None, typer.Option(min=1, max=3, help="Convert images to grey (1) or colour (3).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of images, taken as a random sample.")
    ] = None,
    statistics: Annotated[
        Path | None,
        path_option("Write the coefficient statistics to this file, too, replacing it."),
    ] = None,
    image_key: ImageKey = None,
    max_pixels: MaxPixels = None,
    strict: Strict = False,
) -> None:
    """Measure benign images and design a table for perturbations of a given size.

    Nothing is written before all images are read; an interrupted run leaves no files.
    """
    check_target("--out", out, inputs={"DATA": data})
    if statistics is not None:
        check_target("--statistics", statistics, inputs={"DATA": data, "--out": out})
    check_given("DATA", data, names=DATASET_NAMES)
    chosen: dict[str, Any] = {
        "required_removal": required_removal,
        "distortion_budget": distortion_budget,
        "max_step": max_step,
        "cycle_spins": cycle_spins,
    }
    with interruptible("Interrupted, nothing was written"):
        with quiet_libraries() as console:
            with console.status("Starting TensorFlow"):
                from fd_keras._checks import validate_epsilon
                from fd_keras.data.sources import open_images
                from fd_keras.design import design_table
            validate_epsilon(epsilon)
            source = open_images(
                data,
                channels=_checked_channels(channels),
                strict=strict,
                image_key=image_key,
                max_pixels=max_pixels,
            )
        measured = _measured(source, limit, color_space)
        # Options that were not given are left to the defaults of `design_table`.
        table = design_table(
            measured,
            epsilon,
            as_bands=as_bands,
            quantizer=quantizer.value,
            **{name: value for name, value in chosen.items() if value is not None},
        )
    if statistics is not None:
        measured.save(statistics)
    table.save(out)
    echo(table)
    echo(f"Wrote {printable(out)}")


def _checked_channels(channels: int | None) -> Any:
    if channels == 2:
        raise ValueError("`--channels` must be 1 or 3. Received: --channels 2")
    return channels


def _measured(
    source: ImageSource, limit: int | None, color_space: ColorSpaceName
) -> CoefficientStatistics:
    from fd_keras._console import bar, progress_bars
    from fd_keras.statistics import CoefficientStatistics

    source = sampled(source, limit, _SEED)
    counts = [count for count in (source.count, limit) if count is not None]
    try:
        with (
            quiet_libraries() as console,
            progress_bars(console, unit="images") as progress,
            bar(progress, "Measuring", min(counts, default=None)) as advance,
        ):
            return CoefficientStatistics.from_data(
                _counted(source, limit, advance),
                color_space=color_space.value,
                provenance={"data": source.name},
            )
    finally:
        report_source(source)


def _counted(source: ImageSource, limit: int | None, advance: Advance) -> Iterator[Any]:
    empty = True
    for image in itertools.islice(source, limit):
        empty = False
        yield image
        advance(1)
    if empty:
        raise ValueError(f"no usable image in {source.name}")
