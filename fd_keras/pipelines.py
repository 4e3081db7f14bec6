"""Where the quantisation sits: the paper's one-pass and two-pass variants."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fd_keras.jpeg import encode_jpeg, rounded_table
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import TableLike, as_table
from fd_keras.tables import QuantizationTable

PIPELINES = ("one-pass", "one-pass-encoder", "two-pass")


@dataclass(frozen=True)
class Pipeline:
    """Which tables an image meets between the camera and the classifier.

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
        """What a reader of the stored image gets: an attacker acts on this.

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
    """A variant of the defence by its name in the paper.

    * ``"one-pass"``: the layer alone distils, whatever file an image came in. This is what
      ``FeatureDistillation`` does, and the authors' code.
    * ``"one-pass-encoder"``: images are stored as JPEG files with the table and classified as
      they are decoded. It removes what was added before the file was written, nothing later.
    * ``"two-pass"``: both. The stored image consists of whole steps, so that what is added
      to it later has to carry a coefficient over half a step to survive the layer. With an RGB
      table that does not hold for DC: JPEG subtracts 128 from every pixel, the layer does not
      in RGB, so the two lattices of DC only meet for steps that divide 1024.

    Args:
        name: One of ``PIPELINES``.
        table: What ``FeatureDistillation`` takes. A JPEG file holds it rounded; in two
            passes, both use the rounded table, or their steps would not meet.

    Raises:
        ValueError: The name or the table is no such thing.

    Example:
        >>> make_pipeline("one-pass-encoder", "jpeg:50").decoder is None
        True

    References:
        Liu et al., CVPR 2019, figure 2.
    """
    if name not in PIPELINES:
        raise ValueError(f"`name` must be one of {PIPELINES}. Received: name={name!r}")
    decoder = as_table(table)
    if name == "one-pass":
        return Pipeline(None, decoder)
    rounded = rounded_table(decoder)
    return Pipeline(rounded, rounded if name == "two-pass" else None)
