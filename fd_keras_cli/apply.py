"""``fd-keras apply``: distil image files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fd_keras_cli.console import print_next, quiet_libraries
from fd_keras_cli.models import load_model, without_layer
from fd_keras_cli.options import (
    AllowCode,
    Images,
    MaxPixels,
    ModelOutput,
    Modules,
    OutDirectory,
    Overwrite,
    Probabilities,
    StripLayer,
    TableName,
    ValueRange,
    check_given,
    check_images,
    check_needs,
    check_tables,
    path_option,
)
from fd_keras_cli.outputs import FileBatch, mark

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fd_keras import Classifier, QuantizationTable
    from fd_keras.data.files import Tally

# Pixels that are distilled at once: each takes 80 bytes meanwhile.
_PIXELS_AT_ONCE = 2**20

# Rows by which blocks of shifted grids reach into the neighbouring strips.
_BLOCK_ROWS = 8


def apply(
    images: Images,
    out: OutDirectory,
    table: TableName = "liu2019",
    encode: Annotated[
        bool,
        typer.Option(
            "--encode",
            help="Write images that lie on the table's lattice, for `fd-keras certify`.",
        ),
    ] = False,
    model: Annotated[
        Path | None,
        path_option(
            "With --encode: the undefended classifier, whose predictions are to stay the same "
            "behind the layer. Its input must have the images' size."
        ),
    ] = None,
    value_range: ValueRange = (0.0, 255.0),
    probabilities: Probabilities = None,
    strip_layer: StripLayer = False,
    model_output: ModelOutput = None,
    modules: Modules = None,
    allow_code: AllowCode = False,
    max_pixels: MaxPixels = None,
    overwrite: Overwrite = False,
) -> None:
    """Distil image files with a quantisation table.

    PNG and WebP files keep their names and are written losslessly. Other files become PNG files,
    because JPEG would compress the distilled image a second time. Files of a directory keep their
    folders below OUT. Transparency, colour profile and gamma are kept, the EXIF orientation is
    applied, and other metadata is dropped. Palette images become RGB, and 16 bits per sample
    become 8. Of an animation, the first frame is taken.

    With --encode, the first pass of two is written: whole pixel values whose coefficients lie on
    the table's lattice, in all blocks, also those whose distilled version leaves 0 to 255. With
    --model, the encoder searches for a nearby lattice point on which the model's prediction matches
    that for the original image, which takes most of the benign loss away for this model.
    """
    if not encode:
        check_needs("--encode", {"--model": model is not None})
    if model is None:
        of_a_model = {
            "--value-range": value_range != (0.0, 255.0),
            "--probabilities": probabilities is not None,
            "--strip-layer": strip_layer,
            "--model-output": model_output is not None,
            "--import": bool(modules),
            "--allow-code": allow_code,
        }
        check_needs("--model", of_a_model)
    check_images(images)
    check_tables("--table", table)
    check_given("--model", model)
    with quiet_libraries() as console:
        with console.status("Starting TensorFlow"):
            from fd_keras import Classifier
            from fd_keras.encoding import check_encodes
            from fd_keras.presets import table_from_argument
        chosen = table_from_argument(table)
        if encode:
            check_encodes(chosen)
        classifier = None
        if model is not None:
            loaded, _ = without_layer(
                load_model(model, modules or [], console, allow_code=allow_code),
                strip_layer,
                console,
            )
            classifier = Classifier(
                loaded,
                value_range=value_range,
                from_logits=None if probabilities is None else not probabilities,
                output=model_output,
            )
    distiller = _Distiller(chosen, max_pixels, encode, classifier)
    batch = FileBatch("apply", images, out, _name, overwrite=overwrite, max_pixels=max_pixels)
    written = batch.run("Distilling", distiller.convert)
    if encode and written:
        print_next("certify", out, "--table", table)
    batch.finish(written)


class _Distiller:
    """Distils files with one layer for each number of channels, or encodes them."""

    def __init__(
        self,
        table: QuantizationTable,
        max_pixels: int | None,
        encode: bool,
        classifier: Classifier | None,
    ) -> None:
        self._table = table
        self._encode = encode
        self._classifier = classifier
        self._max_pixels = max_pixels
        self._layers: dict[int, Any] = {}

    def convert(self, source: Path, target: Path, remarks: Tally) -> None:
        from fd_keras.data.files import read_image, write_image

        image = read_image(source, max_pixels=self._max_pixels, remark=remarks.add)
        if target.suffix.lower() == ".webp" and image.has_other_colors:
            remarks.add("its gamma or primaries are not kept, as WebP cannot hold them", source)
        make = self._encoded if self._encode else self._distilled
        image = dataclasses.replace(image, pixels=make(image.pixels))
        write_image(target, dataclasses.replace(image, software=mark("apply", image)))

    def _encoded(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        import numpy as np

        from fd_keras import encode

        if self._classifier is not None:
            expected = self._classifier.image_shape
            if expected is not None and any(
                wanted not in (None, size) for wanted, size in zip(expected, pixels.shape)
            ):
                raise ValueError(
                    f"an image of shape {pixels.shape}, where the model of --model takes {expected}"
                )
            return encode(pixels, self._table, classifier=self._classifier)
        result, rows = np.empty_like(pixels), _strip_rows(pixels)
        for start in range(0, len(pixels), rows):
            result[start : start + rows] = encode(pixels[start : start + rows], self._table)
        return result

    def _distilled(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        import numpy as np
        import tensorflow as tf

        from fd_keras import FeatureDistillation

        channels = pixels.shape[-1]
        if channels not in self._layers:
            self._layers[channels] = FeatureDistillation(
                self._table, data_format="channels_last", dtype="uint8"
            )
        result, rows = np.empty_like(pixels), _strip_rows(pixels)
        for start in range(0, len(pixels), rows):
            first = max(0, start - _BLOCK_ROWS)
            strip = pixels[first : start + rows + _BLOCK_ROWS]
            try:
                distilled = np.asarray(self._layers[channels](strip))
            except tf.errors.ResourceExhaustedError:
                raise MemoryError from None
            result[start : start + rows] = distilled[start - first :][:rows]
        return result


def _strip_rows(pixels: npt.NDArray[np.uint8]) -> int:
    """Rows of an image that are distilled at once, whole blocks."""
    return max(1, _PIXELS_AT_ONCE // (_BLOCK_ROWS * pixels.shape[1])) * _BLOCK_ROWS


def _name(image: Path) -> str:
    from fd_keras.data.files import LOSSLESS_SUFFIXES

    return image.name if image.suffix.lower() in LOSSLESS_SUFFIXES else f"{image.stem}.png"
