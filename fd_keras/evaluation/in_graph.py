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
    enough: float | None = None,
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
        enough: By how much a wrong logit must exceed the true one for an image to be left as it
            is; the attack ends once all images are there. Default: all take every step.

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

    def step(x: tf.Tensor, moving: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = tf.cast(logits(x), tf.float32)
            ascended = odds.call(labels, outputs)
        moved = x + stride * tf.sign(tape.gradient(ascended, x))
        moved = tf.clip_by_value(moved, lowest, highest)
        if enough is None:
            return [moved, moving]
        own = tf.one_hot(labels, tf.shape(outputs)[-1])
        wrong = tf.reduce_max(tf.where(own > 0, outputs.dtype.min, outputs), -1)
        moving &= wrong - tf.reduce_sum(own * outputs, -1) < enough
        return [tf.where(moving[:, None, None, None], moved, x), moving]

    noise = tf.random.stateless_uniform(tf.shape(images), seed, -radius, radius)
    start = tf.clip_by_value(images + noise, lowest, highest)
    moving = tf.ones(tf.shape(images)[:1], tf.bool)
    if steps == 1:
        attacked = step(start, moving)[0]
    else:
        attacked, _ = tf.while_loop(
            lambda x, moving: tf.reduce_any(moving), step, [start, moving], maximum_iterations=steps
        )
    return tf.stop_gradient(tf.ensure_shape(attacked, images.shape))
