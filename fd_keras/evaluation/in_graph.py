"""PGD in the graph, for training steps that attack the images they descend on."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from fd_keras.evaluation.classifiers import LogOdds


def pgd(
    images: tf.Tensor,
    labels: tf.Tensor,
    logits: Callable[[tf.Tensor], tf.Tensor],
    *,
    epsilon: float,
    steps: int,
    value_range: tuple[float, float],
    seed: tf.Tensor,
    step_size: float | None = None,
) -> tf.Tensor:
    """PGD from a random start, in graph.

    It ascends the log odds of the wrong classes, whose gradient does not vanish where a
    classifier is sure.

    Args:
        images: float32 ``(batch, height, width, channels)`` within ``value_range``.
        labels: True classes ``(batch,)``.
        logits: Differentiable function of images that returns ``(batch, classes)``.
        epsilon: Largest change of a pixel, in grey levels of 255 whatever the value range.
        steps: Number of steps. 1 is FGSM from a random start.
        value_range: Lowest and highest pixel value.
        seed: Two integers, of the random start.
        step_size: Change of a pixel in one step, in grey levels of 255. Default:
            ``1.25 * epsilon`` for one step, else ``2.5 * epsilon / steps``.

    Returns:
        Tensor of the shape of ``images``, without a gradient.

    Example:
        >>> images = tf.constant([[[[51.0], [40.0]]]])
        >>> attacked = pgd(
        ...     images, tf.constant([0]), lambda x: tf.reshape(x, (-1, 2)), epsilon=4, steps=10,
        ...     value_range=(0, 255), seed=tf.constant([1, 2]),
        ... )
        >>> attacked.numpy().ravel().tolist()
        [47.0, 44.0]

    References:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018;
        Wong et al., "Fast is better than free", ICLR 2020 (one step).
    """
    if step_size is None:
        step_size = 1.25 * epsilon if steps == 1 else 2.5 * epsilon / steps
    odds = LogOdds()
    low, high = value_range
    radius, stride = (levels * (high - low) / 255 for levels in (epsilon, step_size))
    lowest, highest = tf.maximum(images - radius, low), tf.minimum(images + radius, high)

    def step(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            ascended = tf.reduce_sum(odds.call(labels, tf.cast(logits(x), tf.float32)))
        moved = x + stride * tf.sign(tape.gradient(ascended, x))
        return [tf.clip_by_value(moved, lowest, highest)]

    noise = tf.random.stateless_uniform(tf.shape(images), seed, -radius, radius)
    start = tf.clip_by_value(images + noise, lowest, highest)
    if steps == 1:
        attacked = step(start)[0]
    else:
        attacked = tf.while_loop(lambda x: True, step, [start], maximum_iterations=steps)[0]
    return tf.stop_gradient(tf.ensure_shape(attacked, images.shape))
