"""Encode images onto the lattice of a table, and the paper's variants of one and two passes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image

from fd_keras._checks import checked_choice, validate_value_range
from fd_keras.certification import SLACK, grey_level_batch, margins, nominal_margins, ordered
from fd_keras.data.batches import PIXELS_AT_ONCE
from fd_keras.dct import BLOCK_SIZE, RGB_TO_YCBCR, TIE_OFFSET, YCBCR_TO_RGB, ColorSpace, level_shift
from fd_keras.jpeg import encode_jpeg, rounded_table
from fd_keras.kernels import dct_basis, distil
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import TableLike, as_table
from fd_keras.tables import QuantizationTable, check_rounds

FloatArray = npt.NDArray[np.float32]
Steps = npt.NDArray[np.float64]

# What is left of a block's contrast where its lattice point leaves 0..255, until one fits.
_CONTRASTS = (1, 0.975, 0.95, 0.925, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0)


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
    check_rounds(table)
    if table.cycle_spins != 1:
        raise ValueError(
            "`table` must have one block grid, since no image lies on the lattices of several: "
            f"use table.with_settings(cycle_spins=1). Received: table={table!r}"
        )
    pixels = grey_level_batch(images, value_range)
    steps = table.steps_for(pixels.shape[-1])
    needed = nominal_margins(table, pixels.shape[-1]) - SLACK
    parts = [
        _encoded(np.clip(part, 0, 255), steps, table.color_space, needed)
        for part in np.array_split(pixels, -(-pixels[..., 0].size // PIXELS_AT_ONCE))
        if len(part)
    ]
    encoded = np.concatenate(parts).astype(np.uint8).reshape(np.shape(images))
    if (low, high) == (0, 255):
        return encoded
    return low + np.float32((high - low) / 255) * encoded.astype(np.float32)


def _encoded(
    images: FloatArray, steps: Steps, color_space: ColorSpace, needed: Steps
) -> FloatArray:
    """Whole pixel values, every coefficient at least ``needed`` within its level."""
    _, height, width, _ = images.shape
    lattice = distil(
        tf.convert_to_tensor(images), tf.constant(steps, tf.float32), color_space=color_space
    )
    whole = np.clip(np.rint(lattice.numpy()), 0, 255)
    short = _short_blocks(whole, steps, color_space, needed)
    if not short.any():
        return np.asarray(whole)
    padding = [(0, 0), *((0, -side % BLOCK_SIZE) for side in (height, width)), (0, 0)]
    result = np.pad(whole, padding, mode="edge")
    image, row, column = np.nonzero(short)
    used = np.stack(
        [
            np.minimum(BLOCK_SIZE, height - row * BLOCK_SIZE),
            np.minimum(BLOCK_SIZE, width - column * BLOCK_SIZE),
        ]
    )
    source = _as_blocks(np.pad(images, padding, mode="edge"))[image, row, column]
    # A view: what is assigned to a block is assigned to the image.
    _as_blocks(result)[image, row, column] = _fitted(source, used, steps, color_space, needed)
    return np.asarray(result[:, :height, :width])


def _fitted(
    blocks: FloatArray,
    used: npt.NDArray[np.integer],
    steps: Steps,
    color_space: ColorSpace,
    needed: Steps,
) -> FloatArray:
    """Blocks ``(m, 8, 8, channels)`` of as much contrast as their lattice has room for.

    ``used`` says how many of each block's rows and columns belong to the image; the others repeat
    the last one, and so must those of the result.
    """
    # Across an incomplete side only constant patterns survive the repetition of the edge.
    constant = (used < BLOCK_SIZE)[..., np.newaxis]
    frequencies = np.arange(BLOCK_SIZE)
    kept = ~(constant & (frequencies > 0))  # (2, m, 8)
    bands = kept[0][:, :, np.newaxis] & kept[1][:, np.newaxis, :]
    blocks = _averaged(_averaged(blocks, 1, used[0]), 2, used[1])
    wanted = _transformed(blocks, color_space) * bands[:, np.newaxis]
    lowest, highest = _flat_levels(steps[:, 0, 0], color_space)
    result = np.empty_like(blocks)
    open_ = np.arange(len(blocks))
    for contrast in _CONTRASTS:
        scaled = wanted[open_] * contrast
        scaled[:, 0, 0, 0] = wanted[open_, 0, 0, 0]
        if color_space == "rgb" or blocks.shape[-1] == 1:
            scaled[:, :, 0, 0] = wanted[open_, :, 0, 0]
        levels = np.round(scaled / steps + TIE_OFFSET)
        levels[:, :, 0, 0] = np.clip(levels[:, :, 0, 0], lowest, highest)
        candidate = np.clip(np.rint(_inverse(levels * steps, color_space)), 0, 255)
        candidate = np.float32(candidate)
        fits = ~_short_blocks(candidate, steps, color_space, needed)[:, 0, 0]
        result[open_[fits]] = candidate[fits]
        open_ = open_[~fits]
        if not len(open_):
            return result
    raise AssertionError("a flat block always lies on the lattice")


def _averaged(blocks: FloatArray, axis: int, used: npt.NDArray[np.integer]) -> FloatArray:
    """Blocks that are constant along an axis wherever it is incomplete."""
    inside = np.arange(BLOCK_SIZE) < used[:, np.newaxis]
    weights = np.expand_dims(inside / inside.sum(1, keepdims=True), (3 - axis, 3))
    mean = (blocks * weights).sum(axis, keepdims=True)
    whole = (used == BLOCK_SIZE)[:, np.newaxis, np.newaxis, np.newaxis]
    return np.asarray(np.where(whole, blocks, mean), np.float32)


def _transformed(blocks: FloatArray, color_space: ColorSpace) -> npt.NDArray[np.float64]:
    """Coefficients ``(m, channels, 8, 8)`` of blocks ``(m, 8, 8, channels)``."""
    x = np.float64(blocks) - level_shift(color_space)
    if color_space == "ycbcr" and blocks.shape[-1] == 3:
        x = x @ RGB_TO_YCBCR.T
    basis = dct_basis()
    return np.asarray(basis @ x.transpose(0, 3, 1, 2) @ basis.T)


def _inverse(
    coefficients: npt.NDArray[np.float64], color_space: ColorSpace
) -> npt.NDArray[np.float64]:
    """The inverse of ``_transformed``."""
    basis = dct_basis()
    x = (basis.T @ coefficients @ basis).transpose(0, 2, 3, 1)
    if color_space == "ycbcr" and x.shape[-1] == 3:
        x = x @ YCBCR_TO_RGB.T
    return np.asarray(x + level_shift(color_space))


def _flat_levels(
    dc_steps: Steps, color_space: ColorSpace
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Lowest and highest DC level of each channel whose flat block lies within 0..255."""
    shift = level_shift(color_space)
    chroma = np.arange(len(dc_steps)) > 0 if color_space == "ycbcr" else False
    lowest = np.where(chroma, -np.inf, np.ceil(-shift * BLOCK_SIZE / dc_steps))
    highest = np.where(chroma, np.inf, np.floor((255 - shift) * BLOCK_SIZE / dc_steps))
    return lowest, highest


def _as_blocks(images: FloatArray) -> FloatArray:
    """A view of images ``(n, h, w, c)`` as blocks ``(n, h / 8, w / 8, 8, 8, c)``."""
    count, height, width, channels = images.shape
    split = (count, height // BLOCK_SIZE, BLOCK_SIZE, width // BLOCK_SIZE, BLOCK_SIZE, channels)
    return images.reshape(split).transpose(0, 1, 3, 2, 4, 5)


def _short_blocks(
    images: FloatArray, steps: Steps, color_space: ColorSpace, needed: Steps
) -> npt.NDArray[np.bool_]:
    """Which blocks ``(n, rows, columns)`` have a coefficient nearer to a boundary than needed."""
    spare = margins(images, steps, color_space) - tf.constant(ordered(needed), tf.float32)
    least = tf.reduce_min(spare, axis=(1, 3)).numpy()
    return np.asarray(least.reshape(len(images), -1, least.shape[-1]) < 0)


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
