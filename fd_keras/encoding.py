"""Encode images onto the lattice of a table, and the paper's variants of one and two passes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image

from fd_keras._checks import checked_choice, shown, validate_value_range
from fd_keras.certification import grey_level_batch
from fd_keras.classifier import Classifier
from fd_keras.data.batches import PIXELS_AT_ONCE
from fd_keras.jpeg import encode_jpeg, rounded_table
from fd_keras.kernels import clip_straight_through, distil
from fd_keras.lattice import Lattice
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import TableLike, as_table
from fd_keras.tables import QuantizationTable, check_rounds

PIPELINES = ("one-pass", "one-pass-encoder", "two-pass")

FloatArray = npt.NDArray[np.float32]

# A classifier guides an encoder for so many rounds at most. In each, what is encoded moves by one
# grey level, and by eight in all.
_ROUNDS = 8
_STRIDE = 1.0
_REACH = 8.0

# Probabilities that differ by no more than this count as the same answer.
_SAME_ANSWER = 0.05

# Images whose gradients are computed at once.
_GUIDED_AT_ONCE = 32


def encode(
    images: npt.ArrayLike,
    table: TableLike,
    *,
    value_range: Sequence[float] = (0, 255),
    classifier: Classifier | keras.Model | None = None,
) -> npt.NDArray[Any]:
    """Store images as whole pixel values that lie on the lattice of a table.

    This is the first pass of two: what the defender keeps and hands out, before an attacker acts.
    The layer with the same table is the second, and what it returns for an encoded image is
    provably the same for every perturbation below a radius; see ``fd_keras.certify``.

    Each block is replaced by the nearest point of the lattice, rounded to whole pixels. Where
    that leaves 0..255, or the block is incomplete at the right or bottom edge, so that rounding
    would move it off the lattice, the block's contrast is reduced until a point fits; a flat block
    always does. So every image reaches the radius that the table certifies. Of a table with steps
    too small for any radius, such as ``"jpeg:95"``, it is what the layer returns, in whole pixels.

    Any other point of the lattice has the same radius. With a ``classifier``, one is sought near
    the image for which it answers, behind the layer, as it does for the image itself: where the
    answers differ, the image is moved by up to eight grey levels down the gradient of their
    difference and encoded again. That takes most of the benign loss away, for this classifier. It
    needs no labels, but it puts the classifier's answer into the image: whoever can hand out that
    answer, signed, has no need of it, and other classifiers gain less.

    Args:
        images: One image ``(height, width, channels)`` or a batch ``(n, height, width,
            channels)`` in ``value_range``; any size, float or integer.
        table: What ``FeatureDistillation`` takes, with one block grid.
        value_range: Lowest and highest pixel value of ``images``.
        classifier: The undefended classifier whose answers are to stay: a ``Classifier``, with
            its own value range, or a Keras model that takes ``value_range``; ``None`` looks at the
            pixels alone.

    Returns:
        Images of the same shape: uint8 for ``(0, 255)``; otherwise float32, whole grey levels
        scaled to ``value_range``.

    Raises:
        ValueError: The images or the table do not fit, or ``classifier`` has no gradient.

    Example:
        >>> image = np.full((8, 8, 3), 100, np.uint8)
        >>> encode(image, np.full((8, 8), 48.0))[0, 0]  # DC 800 becomes 816: 17 steps of 48
        array([102, 102, 102], dtype=uint8)

    References:
        Liu et al., CVPR 2019, figure 2 and the authors' code, which distils images before they
        are attacked and after. Quantisation that asks the network: ibid., section 3.3, and Liu
        et al., "DeepN-JPEG", DAC 2018, for tables rather than for single images.
    """
    low, high = validate_value_range(value_range)
    table = as_table(table)
    check_encodes(table)
    pixels = grey_level_batch(images, value_range)
    lattice = Lattice.of(table, pixels.shape[-1])
    count = -(-pixels[..., 0].size // PIXELS_AT_ONCE)
    encoder: Lattice | _Guide = lattice
    if classifier is not None:
        encoder = _Guide(Classifier.of(classifier, (low, high)), lattice)
        count = max(count, -(-len(pixels) // _GUIDED_AT_ONCE))
    parts = [
        encoder.fitted(np.clip(part, 0, 255)) for part in np.array_split(pixels, count) if len(part)
    ]
    encoded = np.concatenate(parts).astype(np.uint8).reshape(np.shape(images))
    if (low, high) == (0, 255):
        return encoded
    return low + np.float32((high - low) / 255) * encoded.astype(np.float32)


def check_encodes(table: QuantizationTable) -> None:
    """Refuse a table on whose lattice no image can lie.

    Args:
        table: The table.

    Raises:
        ValueError: It belongs to soft thresholding, or has several block grids.

    Example:
        >>> check_encodes(as_table("liu2019"))
    """
    check_rounds(table)
    if table.cycle_spins != 1:
        raise ValueError(
            "`table` must have one block grid, since no image lies on the lattices of several: "
            f"use table.with_settings(cycle_spins=1). Received: table={shown(table)}"
        )


class _Guide:
    """Seeks points of a lattice for which a classifier answers as for the image."""

    def __init__(self, classifier: Classifier, lattice: Lattice) -> None:
        self._classifier = classifier
        self._lattice = lattice
        self._steps = tf.constant(lattice.steps, tf.float32)
        self._descended = tf.function(self._descent, reduce_retracing=True)

    def fitted(self, images: FloatArray) -> FloatArray:
        """As ``Lattice.fitted``, of grey levels ``(n, height, width, channels)``."""
        answers = np.asarray(tf.nn.softmax(self._classifier.logits(images / np.float32(255))))
        result = np.float32(self._lattice.fitted(images))
        distances, same = self._compared(result, answers)
        aimed = images.copy()
        for _ in range(_ROUNDS):
            open_ = np.flatnonzero(~same)
            if not len(open_):
                break
            moved = aimed[open_] - _STRIDE * self._directions(aimed[open_], answers[open_])
            reach = np.clip(moved, images[open_] - _REACH, images[open_] + _REACH)
            aimed[open_] = np.clip(reach, 0, 255)
            candidates = np.float32(self._lattice.fitted(aimed[open_]))
            found, alike = self._compared(candidates, answers[open_])
            better = found < distances[open_]
            result[open_[better]] = candidates[better]
            distances[open_[better]] = found[better]
            same[open_[better]] = alike[better]
        return result

    def _compared(
        self, encoded: FloatArray, answers: FloatArray
    ) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """How far the answers behind the layer are from others, and which are the same."""
        logits = self._classifier.logits(self._behind_layer(tf.constant(encoded)).numpy())
        distances = tf.nn.softmax_cross_entropy_with_logits(answers, logits)
        change = np.abs(np.asarray(tf.nn.softmax(logits)) - answers).max(axis=-1)
        agree = logits.argmax(axis=-1) == answers.argmax(axis=-1)
        return np.array(distances), agree & (change <= _SAME_ANSWER)

    def _behind_layer(self, images: tf.Tensor) -> tf.Tensor:
        """What the classifier sees of images, pixels from 0 to 1."""
        distilled = distil(images, self._steps, color_space=self._lattice.color_space)
        return clip_straight_through(distilled, 0, 255) / 255

    def _directions(self, images: FloatArray, answers: FloatArray) -> FloatArray:
        return np.asarray(self._descended(tf.constant(images), tf.constant(answers)))

    def _descent(self, images: tf.Tensor, answers: tf.Tensor) -> tf.Tensor:
        """Signs of the gradient of the answers' cross-entropy, through the layer."""
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = self._classifier.unit_logits(self._behind_layer(images))
            loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(answers, logits))
        gradient = tape.gradient(loss, images)
        if gradient is None:
            raise ValueError(
                "`classifier` must have a gradient with respect to its input. "
                f"Received: classifier={shown(self._classifier.model)}"
            )
        return tf.sign(gradient)


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
