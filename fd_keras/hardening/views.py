"""Random variations of the quantisation: other steps, another grid of blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from fd_keras.dct import BLOCK_SIZE


class View(NamedTuple):
    """How one batch is quantised.

    Args:
        factors: What the steps are multiplied by, ``(channels, 8, 8)``; ``None``: nothing.
        offset: How many pixels the grid of blocks is shifted down and right, two integers from 0
            to 7; ``None``: not at all.
    """

    factors: tf.Tensor | None = None
    offset: tf.Tensor | None = None


PLAIN = View()


def random_view(seed: tf.Tensor, channels: int, *, step_jitter: float, random_grids: bool) -> View:
    """Draw a view.

    Args:
        seed: Two integers.
        channels: Number of channels of the steps.
        step_jitter: Largest change of a step's natural logarithm.
        random_grids: Whether to draw an offset.

    Example:
        >>> view = random_view(tf.constant([1, 2]), 3, step_jitter=0.1, random_grids=False)
        >>> view.factors.shape, view.offset
        (TensorShape([3, 8, 8]), None)
    """
    factors = offset = None
    if step_jitter:
        shape = (channels, BLOCK_SIZE, BLOCK_SIZE)
        factors = tf.exp(tf.random.stateless_uniform(shape, seed, -step_jitter, step_jitter))
    if random_grids:
        offset = tf.random.stateless_uniform((2,), seed, 0, BLOCK_SIZE, tf.int32)
    return View(factors, offset)


def on_shifted_grid(
    images: tf.Tensor, offset: tf.Tensor, distil: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """Distil images on a grid of blocks that begins before their top left corner.

    Args:
        images: ``(batch, height, width, channels)``.
        offset: How many pixels before, down and right, two integers from 0 to 7.
        distil: Function of images of any size that returns images of that size.

    Returns:
        Tensor of the shape of ``images``.

    Example:
        >>> shifted = on_shifted_grid(tf.ones((1, 8, 8, 3)), tf.constant([2, 7]), tf.identity)
        >>> shifted.shape
        TensorShape([1, 8, 8, 3])
    """
    padded, sizes = images, tf.shape(images)
    for axis in (1, 2):
        positions = tf.range(_whole_blocks(images.shape[axis] or sizes[axis])) - offset[axis - 1]
        repeated = tf.clip_by_value(positions, 0, sizes[axis] - 1)
        padded = tf.gather(padded, repeated, axis=axis)
    begin = tf.concat([[0], offset, [0]], 0)
    shifted = tf.slice(distil(padded), begin, sizes)
    return tf.ensure_shape(shifted, images.shape)


def _whole_blocks(size: Any) -> Any:
    """Pixels in the blocks that cover ``size`` of them behind any offset."""
    return (size + 2 * BLOCK_SIZE - 2) // BLOCK_SIZE * BLOCK_SIZE
