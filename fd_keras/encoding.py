"""Encode images onto the lattice of a table, and the paper's variants of one and two passes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fd_keras._checks import checked_choice, validate_value_range
from fd_keras.certification import grey_level_batch
from fd_keras.data.batches import PIXELS_AT_ONCE
from fd_keras.jpeg import encode_jpeg, rounded_table
from fd_keras.lattice import Lattice
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import TableLike, as_table
from fd_keras.tables import QuantizationTable

PIPELINES = ("one-pass", "one-pass-encoder", "two-pass")


def encode(
    images: npt.ArrayLike, table: TableLike, *, value_range: Sequence[float] = (0, 255)
) -> npt.NDArray[Any]:
    """Store images as whole pixel values that lie on the lattice of a table.

    This is the first pass of two: what the defender keeps and hands out, before an attacker acts.
    The layer with the same table is the second, and what it returns for an encoded image is
    provably the same for every perturbation below a radius; see ``fd_keras.certify``.

    Each block is replaced by the nearest point of the lattice, rounded to whole pixels. Where
    that leaves 0..255, or the block is incomplete at the right or bottom edge, so that rounding
    would move it off the lattice, the block's contrast is reduced until a point fits; a flat block
    always does. So every image reaches the radius that the table certifies.

    Args:
        images: One image ``(height, width, channels)`` or a batch ``(n, height, width,
            channels)`` in ``value_range``; any size, float or integer.
        table: What ``FeatureDistillation`` takes, with one block grid.
        value_range: Lowest and highest pixel value.

    Returns:
        Images of the same shape: uint8 for ``(0, 255)``; otherwise float32, whole grey levels
        scaled to ``value_range``.

    Raises:
        ValueError: The images or the table do not fit.

    Example:
        >>> image = np.full((8, 8, 3), 100, np.uint8)
        >>> encode(image, np.full((8, 8), 48.0))[0, 0]  # DC 800 becomes 816: 17 steps of 48
        array([102, 102, 102], dtype=uint8)

    References:
        Liu et al., CVPR 2019, figure 2 and the authors' code, which distils images before they
        are attacked and after.
    """
    low, high = validate_value_range(value_range)
    table = as_table(table)
    if table.cycle_spins != 1:
        raise ValueError(
            "`table` must have one block grid, since no image lies on the lattices of several: "
            f"use table.with_settings(cycle_spins=1). Received: table={table!r}"
        )
    pixels = grey_level_batch(images, value_range)
    lattice = Lattice.of(table, pixels.shape[-1])
    parts = [
        lattice.fitted(np.clip(part, 0, 255))
        for part in np.array_split(pixels, -(-pixels[..., 0].size // PIXELS_AT_ONCE))
        if len(part)
    ]
    encoded = np.concatenate(parts).astype(np.uint8).reshape(np.shape(images))
    if (low, high) == (0, 255):
        return encoded
    return low + np.float32((high - low) / 255) * encoded.astype(np.float32)


@dataclass(frozen=True)
class Pipeline:
    """The tables that quantise an image at the encoder and at the decoder.

    Args:
        encoder: Table of the JPEG files that images are stored and sent as; ``None``: images
            are stored without loss.
        decoder: Table of the layer in front of the classifier; ``None``: there is none.

    Example:
        >>> make_pipeline("two-pass", "jpeg:50").decoder.name
        'jpeg:50'
    """

    encoder: QuantizationTable | None
    decoder: QuantizationTable | None

    def layer(self, **options: Any) -> FeatureDistillation | None:
        """The layer to put in front of the classifier, or ``None``.

        Args:
            **options: Further arguments of ``FeatureDistillation``, such as ``value_range``.

        Example:
            >>> make_pipeline("one-pass").layer(value_range=(0, 1)).value_range
            (0.0, 1.0)
        """
        return None if self.decoder is None else FeatureDistillation(self.decoder, **options)

    def encode(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Store an image and read it back; an attacker perturbs the result.

        Args:
            image: uint8 ``(height, width, 1)`` or ``(height, width, 3)``.

        Returns:
            The image after the encoder's JPEG file, or as it is without one.

        Raises:
            ValueError: The image does not fit the encoder's table.

        Example:
            >>> image = np.full((8, 8, 3), 100, np.uint8)
            >>> int(make_pipeline("two-pass", "jpeg:50").encode(image)[0, 0, 0])
            100
        """
        if self.encoder is None:
            return image
        content = encode_jpeg(image, self.encoder)
        return np.asarray(Image.open(io.BytesIO(content))).reshape(image.shape)


def make_pipeline(name: str, table: TableLike = "liu2019") -> Pipeline:
    """Make a variant of the defence by its name in the paper.

    * ``"one-pass"``: the layer in front of the classifier quantises, whatever file an image came
      in. This is ``FeatureDistillation`` alone.
    * ``"one-pass-encoder"``: images are stored as JPEG files with the table and classified as
      they are decoded. Removes perturbations that were added before the file was written, and
      none that are added later.
    * ``"two-pass"``: both. All coefficients of the stored image are multiples of their steps, so
      that a perturbation that is added to it has to move a coefficient by half a step to survive
      the layer. How large it has to be at least, ``fd_keras.certify`` of the stored image says.

    The authors' code measures two passes: it distils all images, attacks the distilled ones and
    distils the result again. Its accuracies therefore hold where the defender encodes an image
    before the attacker changes it, and cannot be compared with those of ``"one-pass"``. Both of
    its passes quantise RGB values without JPEG's level shift, as the layer does.

    Args:
        name: One of ``PIPELINES``.
        table: What ``FeatureDistillation`` takes. A JPEG file holds it rounded, see
            ``fd_keras.jpeg.rounded_table``; in two passes, both use the rounded table.

    Raises:
        ValueError: ``name`` or ``table`` is unknown or invalid.

    Example:
        >>> make_pipeline("one-pass-encoder", "jpeg:50").decoder is None
        True

    References:
        Liu et al., CVPR 2019, figure 2, and the ``main.py`` of its code.
    """
    checked_choice("name", name, PIPELINES)
    decoder = as_table(table)
    if name == "one-pass":
        return Pipeline(None, decoder)
    rounded = rounded_table(decoder)
    return Pipeline(rounded, rounded if name == "two-pass" else None)
