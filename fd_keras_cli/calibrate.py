"""``fd-keras calibrate``: measure benign images and design a table."""

from __future__ import annotations

import itertools
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import (
    check_directory,
    check_target,
    echo,
    interruptible,
    print_next,
    printable,
    quiet_libraries,
    report_source,
    sampled,
    shard_progress,
)
from fd_keras_cli.options import (
    DATASET_NAMES,
    ImageKey,
    MaxPixels,
    QuantizerName,
    RunDirectoryPath,
    Scheduler,
    Strict,
    Workers,
    check_given,
    path_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fd_keras._console import Advance
    from fd_keras.data.sources import ImageSource
    from fd_keras.statistics import CoefficientStatistics
    from fd_keras_cli.console import Cluster


# Of the sample of images.
_SEED = 1


class ColorSpaceName(str, Enum):
    """Choices of ``--color-space``."""

    RGB = "rgb"
    YCBCR = "ycbcr"


def calibrate(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="Benign images: image files or directories of them, .npz or TFRecord files, "
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
    scheduler: Scheduler = None,
    workers: Workers = None,
    run: RunDirectoryPath = None,
) -> None:
    """Measure benign images and design a table for perturbations of a given size.

    The table is not written before all images are read; an interrupted run leaves no files but
    those in RUN. DATA are read in shards: 64 image files, or one file of another kind. A shard
    that keeps failing is named and left out of the table; the exit code is then 1.
    """
    for location in data:
        check_target("--out", out, inputs={"DATA": location})
        if statistics is not None:
            check_target("--statistics", statistics, inputs={"DATA": location, "--out": out})
    if run is not None:
        check_directory(run, option="--run")
    check_given("DATA", *data, names=DATASET_NAMES)
    chosen: dict[str, Any] = {
        "required_removal": required_removal,
        "distortion_budget": distortion_budget,
        "max_step": max_step,
        "cycle_spins": cycle_spins,
        "as_bands": as_bands,
        "quantizer": quantizer.value,
    }
    kept = "Interrupted, nothing was written"
    if run is not None:
        kept = f"Interrupted; the same command goes on from {printable(run)}"
    with interruptible(kept):
        with quiet_libraries() as console:
            with console.status("Starting TensorFlow"):
                from fd_keras.design import design_table
                from fd_keras.design.tables import check_design
            # Options that were not given are left to the defaults of `design_table`.
            design = {name: value for name, value in chosen.items() if value is not None}
            check_design(epsilon, **design)
        options = {
            "channels": _checked_channels(channels),
            "strict": strict,
            "image_key": image_key,
            "max_pixels": max_pixels,
        }
        failed = False
        if limit is None:
            measured, failed = _measured_shards(
                data, options, color_space, cluster=(scheduler, workers), run=run
            )
        else:
            measured = _measured_sample(
                data, limit, options, color_space, refused=(scheduler, workers, run)
            )
        if statistics is not None:  # what takes long is kept, also where no table can be designed
            measured.save(statistics)
        table = design_table(measured, epsilon, **design)
    table.save(out)
    echo(table)
    echo(f"Wrote {printable(out)}")
    print_next("evaluate", "MODEL", "DATA", "--table", out, "--out", "report")
    if failed:
        raise typer.Exit(1)


def _checked_channels(channels: int | None) -> Any:
    if channels == 2:
        raise ValueError("`--channels` must be 1 or 3. Received: --channels 2")
    return channels


def _measured_shards(
    data: Sequence[str],
    options: Mapping[str, Any],
    color_space: ColorSpaceName,
    *,
    cluster: Cluster,
    run: Path | None,
) -> tuple[CoefficientStatistics, bool]:
    """Statistics of all images, and whether a shard of them failed."""
    from fd_keras.data.shards import find_shards
    from fd_keras.statistics import measure_shards

    shards = find_shards(data)
    strict = options["strict"] or len(shards.shards) == 1  # else nothing is left
    try:
        with shard_progress(
            "Measuring", len(shards.shards), shards.found.count, cluster
        ) as progress:
            measured = measure_shards(
                shards,
                progress.client,
                color_space=color_space.value,
                options=options,
                directory=run,
                on_image=progress.image,
                on_shard=progress.strict_shard if strict else progress.shard,
            )
        return measured.total({"data": shards.found.name}), bool(measured.failed)
    finally:
        report_source(shards.found)


def _measured_sample(
    data: Sequence[str],
    limit: int,
    options: Mapping[str, Any],
    color_space: ColorSpaceName,
    *,
    refused: Sequence[Any],
) -> CoefficientStatistics:
    from fd_keras._console import bar, progress_bars
    from fd_keras.data.sources import open_images
    from fd_keras.statistics import CoefficientStatistics

    if len(data) > 1 or any(option is not None for option in refused):
        raise ValueError(
            "`--limit` takes a sample of one DATA in this process, without --scheduler, --workers "
            f"and --run. Received: --limit {limit} with {len(data)} DATA"
        )
    source = sampled(open_images(data[0], **options), limit, _SEED)
    counts = [count for count in (source.count, limit) if count is not None]
    try:
        with (
            quiet_libraries() as console,
            progress_bars(console, unit="images") as progress,
            bar(progress, "Measuring", min(counts)) as advance,
        ):
            return CoefficientStatistics.from_data(
                _counted(source, limit, advance),
                color_space=color_space.value,
                provenance={"data": source.name},
            )
    finally:
        report_source(source)


def _counted(source: ImageSource, limit: int, advance: Advance) -> Iterator[Any]:
    empty = True
    for image in itertools.islice(source, limit):
        empty = False
        yield image
        advance(1)
    if empty:
        raise ValueError(f"no usable image in {source.name}")
