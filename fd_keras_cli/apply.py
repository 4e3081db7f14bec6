"""``fd-keras apply``: distil image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fd_keras_cli.console import (
    USER_ERRORS,
    checked_targets,
    file_progress,
    print_error,
    quiet_libraries,
)
from fd_keras_cli.options import Images, OutDirectory, TableName

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fd_keras import QuantizationTable

# Image rows that are distilled at once: a 50-megapixel photo as a whole takes 4 GB.
_STRIP_ROWS = 512

# Rows by which blocks of shifted grids reach into the neighbouring strips.
_BLOCK_ROWS = 8


def apply(images: Images, out: OutDirectory, table: TableName = "liu2019") -> None:
    """Distil image files with a quantisation table.

    PNG and WebP files keep their names and are written losslessly. A JPEG file becomes a PNG
    file, because JPEG would compress the distilled image a second time. Transparency and colour
    profile are kept, the EXIF orientation is applied, and other metadata is dropped. Palette
    images become RGB, and 16 bits per sample become 8.
    """
    with quiet_libraries() as console, console.status("Starting TensorFlow"):
        from fd_keras.presets import table_from_argument
    distiller = _Distiller(table_from_argument(table))
    targets = checked_targets(images, [_target(image, out) for image in images], out)
    failures = 0
    with file_progress("Distilling", len(images)) as (advance, console):
        for source, target in zip(images, targets):
            try:
                distiller.convert(source, target)
            except USER_ERRORS as error:
                failures += 1
                print_error(f"{source}: {error}", console)
            advance(1)
    typer.echo(f"{len(images) - failures} of {len(images)} images written to {out}")
    if failures:
        raise typer.Exit(1)


class _Distiller:
    """Distils files with one layer for each number of channels."""

    def __init__(self, table: QuantizationTable) -> None:
        self._table = table
        self._layers: dict[int, Any] = {}

    def convert(self, source: Path, target: Path) -> None:
        from fd_keras.data.files import DecodedImage, read_image, write_image

        image = read_image(source)
        pixels = self._distilled(image.pixels)
        write_image(target, DecodedImage(pixels, image.alpha, image.icc_profile))

    def _distilled(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        import numpy as np

        from fd_keras import FeatureDistillation

        channels = pixels.shape[-1]
        if channels not in self._layers:
            self._layers[channels] = FeatureDistillation(
                self._table, data_format="channels_last", dtype="uint8"
            )
        strips = []
        for start in range(0, len(pixels), _STRIP_ROWS):
            first = max(0, start - _BLOCK_ROWS)
            rows = pixels[first : start + _STRIP_ROWS + _BLOCK_ROWS]
            distilled = np.asarray(self._layers[channels](rows))
            strips.append(distilled[start - first :][:_STRIP_ROWS])
        return np.concatenate(strips)


def _target(image: Path, out: Path) -> Path:
    from fd_keras.data.files import LOSSLESS_SUFFIXES

    lossless = image.suffix.lower() in LOSSLESS_SUFFIXES
    return out / (image.name if lossless else f"{image.stem}.png")
