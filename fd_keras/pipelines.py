"""One-pass and two-pass feature distillation: at the encoder, at the decoder, or at both."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fd_keras._checks import checked_choice
from fd_keras.jpeg import encode_jpeg, rounded_table
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import TableLike, as_table
from fd_keras.tables import QuantizationTable

PIPELINES = ("one-pass", "one-pass-encoder", "two-pass")


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
      the layer. With an RGB table that does not hold for DC: JPEG subtracts 128 from every pixel,
      the layer does not in RGB, and the multiples of both coincide only for steps that divide
      1024.

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
