"""``fd-keras calibrate``: from benign images to a designed table."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fd_keras_cli.console import print_error, quiet_libraries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from fd_keras.sources import ImageSource

# Below this, an epsilon was surely meant for pixels from 0 to 1.
_SMALLEST_EPSILON = 0.1


class ColorSpaceName(str, Enum):
    """Choices of ``--color-space``."""

    RGB = "rgb"
    YCBCR = "ycbcr"


def calibrate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Benign images: a directory of image files, an .npz or .tfrecord(.gz) file, or "
            "cifar10, cifar100, mnist, fashion_mnist.",
        ),
    ],
    epsilon: Annotated[
        float,
        typer.Option(help="Size of the perturbation of a pixel in grey levels: 2 means 2/255."),
    ],
    out: Annotated[Path, typer.Option(help="The table's JSON file.")],
    color_space: Annotated[
        ColorSpaceName, typer.Option(help="Colour space of the table.")
    ] = ColorSpaceName.YCBCR,
    as_bands: Annotated[
        int, typer.Option(min=0, max=64, help="Accuracy-sensitive bands of each channel.")
    ] = 15,
    required_removal: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Removal probability of the other bands."),
    ] = None,
    distortion_budget: Annotated[
        float | None,
        typer.Option(min=0, help="Squared error allowed in an accuracy-sensitive band."),
    ] = None,
    cycle_spins: Annotated[
        int | None, typer.Option(min=1, max=64, help="Block grids the layer averages over.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, max=3, help="Take images as grey (1) or colour (3).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read so many images.")] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="Also write the coefficient statistics to this file.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first unreadable image.")] = False,
) -> None:
    """Measure benign images and design a table against a perturbation.

    Nothing is written before all images are read, so an interrupted run leaves nothing behind.
    """
    if 0 < epsilon < _SMALLEST_EPSILON:
        raise ValueError(
            "`--epsilon` is in grey levels from 0 to 255: for 0.0078 of pixels from 0 to 1, "
            f"write 2. Received: --epsilon {epsilon:g}"
        )
    with quiet_libraries() as console:
        with console.status("Starting TensorFlow"):
            from fd_keras.design import design_table
            from fd_keras.sources import open_images
            from fd_keras.statistics import CoefficientStatistics
        source = open_images(data, channels=_checked_channels(channels), strict=strict)
        measured = CoefficientStatistics.from_data(
            _with_progress(source, limit, console),
            color_space=color_space.value,
            provenance={"data": source.name},
        )
    _report_skipped(source)
    chosen: dict[str, Any] = {
        "required_removal": required_removal,
        "distortion_budget": distortion_budget,
        "cycle_spins": cycle_spins,
    }
    # What is not chosen is left to the design's own defaults.
    table = design_table(
        measured,
        epsilon,
        as_bands=as_bands,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    if statistics is not None:
        measured.save(statistics)
    table.save(out)
    typer.echo(str(table))
    typer.echo(f"Wrote {out}")


def _checked_channels(channels: int | None) -> Any:
    if channels == 2:
        raise ValueError("`--channels` must be 1 or 3. Received: --channels 2")
    return channels


def _with_progress(source: ImageSource, limit: int | None, console: Console) -> Iterator[Any]:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )
    counts = [count for count in (source.count, limit) if count is not None]
    with progress:
        task = progress.add_task("Measuring", total=min(counts, default=None), rate="")
        start = time.monotonic()
        for number, image in enumerate(source, start=1):
            yield image
            rate = number / (time.monotonic() - start)
            progress.update(task, completed=number, rate=f"{rate:.0f} images/s")
            if number == limit:
                break


def _report_skipped(source: ImageSource) -> None:
    for message in source.skipped:
        print_error(message)
    if source.skipped:
        typer.echo(f"{len(source.skipped)} images were skipped", err=True)
