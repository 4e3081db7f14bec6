"""``fd-keras apply``: distil image files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fd_keras_cli.console import quiet_libraries
from fd_keras_cli.options import Images, MaxPixels, OutDirectory, Overwrite, TableName
from fd_keras_cli.outputs import FileBatch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fd_keras import QuantizationTable
    from fd_keras.data.files import Tally

# Image rows that are distilled at once: a 50-megapixel photo as a whole takes 4 GB.
_STRIP_ROWS = 512

# Rows by which blocks of shifted grids reach into the neighbouring strips.
_BLOCK_ROWS = 8


def apply(
    images: Images,
    out: OutDirectory,
    table: TableName = "liu2019",
    max_pixels: MaxPixels = None,
    overwrite: Overwrite = False,
) -> None:
    """Distil image files with a quantisation table.

    PNG and WebP files keep their names and are written losslessly. Other files become PNG files,
    because JPEG would compress the distilled image a second time. Files of a directory keep their
    folders below OUT. Transparency, colour profile and gamma are kept, the EXIF orientation is
    applied, and other metadata is dropped. Palette images become RGB, and 16 bits per sample
    become 8. Of an animation, the first frame is taken.
    """
    with quiet_libraries() as console, console.status("Starting TensorFlow"):
        from fd_keras.presets import table_from_argument
    distiller = _Distiller(table_from_argument(table), max_pixels)
    batch = FileBatch("apply", images, out, _name, overwrite=overwrite, max_pixels=max_pixels)

    def convert(source: Path, target: Path, remarks: Tally) -> None:
        distiller.convert(source, target, remarks, batch)

    batch.finish(batch.run("Distilling", convert))


class _Distiller:
    """Distils files with one layer for each number of channels."""

    def __init__(self, table: QuantizationTable, max_pixels: int | None) -> None:
        self._table = table
        self._max_pixels = max_pixels
        self._layers: dict[int, Any] = {}

    def convert(self, source: Path, target: Path, remarks: Tally, batch: FileBatch) -> None:
        from fd_keras.data.files import read_image, write_image

        image = read_image(source, max_pixels=self._max_pixels, remark=remarks.add)
        if target.suffix.lower() == ".webp" and image.has_other_colors:
            remarks.add("its gamma or primaries are not kept, as WebP cannot hold them", source)
        image = dataclasses.replace(image, pixels=self._distilled(image.pixels))
        write_image(target, dataclasses.replace(image, software=batch.mark(image)))

    def _distilled(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        import numpy as np
        import tensorflow as tf

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
            try:
                distilled = np.asarray(self._layers[channels](rows))
            except tf.errors.ResourceExhaustedError:
                raise MemoryError from None
            strips.append(distilled[start - first :][:_STRIP_ROWS])
        return np.concatenate(strips)


def _name(image: Path) -> str:
    from fd_keras.data.files import LOSSLESS_SUFFIXES

    return image.name if image.suffix.lower() in LOSSLESS_SUFFIXES else f"{image.stem}.png"
