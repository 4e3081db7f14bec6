"""Attacking a batch inside a training step, as TensorFlow operations."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from fd_keras.evaluation.classifiers import LogOdds


def perturbed(
    images: tf.Tensor,
    labels: tf.Tensor,
    logits: Callable[[tf.Tensor], tf.Tensor],
    *,
    budget: float,
    steps: int,
    step_size: float,
    value_range: tuple[float, float],
    seed: tf.Tensor,
) -> tf.Tensor:
    """Images that signed gradient steps from a random start made to be misread.

    What is ascended is the log odds of the wrong classes, whose gradient does not vanish where
    a classifier is sure.

    Args:
        images: float32 ``(batch, height, width, channels)`` within ``value_range``.
        labels: True classes ``(batch,)``.
        logits: Differentiable function of images that returns ``(batch, classes)``.
        budget: Largest change of a pixel, in the unit of the images.
        steps: Number of steps.
        step_size: Change of a pixel in one step.
        value_range: Lowest and highest pixel value.
        seed: Two integers, of the random start.

    Returns:
        Tensor of the shape of ``images``, without a gradient.

    Example:
        >>> images = tf.constant([[[[0.5], [0.4]]]])
        >>> attacked = perturbed(
        ...     images, tf.constant([0]), lambda x: tf.reshape(x, (-1, 2)), budget=0.1, steps=4,
        ...     step_size=0.1, value_range=(0, 1), seed=tf.constant([1, 2]),
        ... )
        >>> attacked.numpy().ravel().round(3).tolist()
        [0.4000000059604645, 0.5]

    References:
        Wong et al., "Fast is better than free", ICLR 2020; Madry et al., ICLR 2018.
    """
    odds = LogOdds()
    low, high = value_range
    lowest, highest = tf.maximum(images - budget, low), tf.minimum(images + budget, high)

    def step(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            ascended = tf.reduce_sum(odds.call(labels, tf.cast(logits(x), tf.float32)))
        moved = x + step_size * tf.sign(tape.gradient(ascended, x))
        return [tf.clip_by_value(moved, lowest, highest)]

    noise = tf.random.stateless_uniform(tf.shape(images), seed, -budget, budget)
    start = tf.clip_by_value(images + noise, lowest, highest)
    if steps == 1:
        attacked = step(start)[0]
    else:
        attacked = tf.while_loop(lambda x: True, step, [start], maximum_iterations=steps)[0]
    return tf.stop_gradient(tf.ensure_shape(attacked, images.shape))
