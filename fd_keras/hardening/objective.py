"""Attacking a batch inside a training step, as TensorFlow operations."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from fd_keras.evaluation.classifiers import LogOdds

# Smallest probability whose logarithm is taken, for models that return probabilities.
_LEAST_PROBABILITY = 1e-30


def as_logits(outputs: tf.Tensor, *, from_logits: bool) -> tf.Tensor:
    """What a model returned as float32 logits.

    Args:
        outputs: ``(batch, classes)``.
        from_logits: Whether they are logits; else probabilities.

    Example:
        >>> as_logits(tf.constant([[1.0, 1.0]]), from_logits=False).numpy().tolist()
        [[0.0, 0.0]]
    """
    outputs = tf.cast(outputs, tf.float32)
    return outputs if from_logits else tf.math.log(tf.maximum(outputs, _LEAST_PROBABILITY))


def targets(labels: tf.Tensor, soft: tf.Tensor | None, share: float, classes: int) -> tf.Tensor:
    """Probabilities to be predicted: the label's, mixed with another classifier's.

    Args:
        labels: Classes ``(batch,)``.
        soft: The other classifier's logits ``(batch, classes)``; ``None``: there is none.
        share: Of the other classifier, from 0 to 1.
        classes: Number of classes.

    Returns:
        Tensor ``(batch, classes)``.

    Example:
        >>> targets(tf.constant([1]), tf.zeros((1, 2)), 0.5, 2).numpy().tolist()
        [[0.25, 0.75]]
    """
    hard = tf.one_hot(labels, classes)
    if soft is None:
        return hard
    return (1 - share) * hard + share * tf.stop_gradient(tf.nn.softmax(soft))


def cross_entropy(wanted: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Mean cross-entropy of a batch.

    Args:
        wanted: Probabilities ``(batch, classes)``.
        logits: ``(batch, classes)``.

    Example:
        >>> round(float(cross_entropy(tf.constant([[1.0, 0.0]]), tf.zeros((1, 2)))), 4)
        0.6931
    """
    return _mean(tf.nn.softmax_cross_entropy_with_logits(wanted, logits))


def divergence(reference: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Mean Kullback-Leibler divergence from one classifier's prediction to another's.

    Args:
        reference: Logits ``(batch, classes)``, whose probabilities weigh.
        logits: Logits ``(batch, classes)``.

    Example:
        >>> float(divergence(tf.zeros((1, 2)), tf.zeros((1, 2))))
        0.0
    """
    expected, found = tf.nn.log_softmax(reference), tf.nn.log_softmax(logits)
    return _mean(tf.reduce_sum(tf.exp(expected) * (expected - found), -1))


def _mean(values: tf.Tensor) -> tf.Tensor:
    """The mean, or 0 of nothing: the benign part of a last, small batch may be empty."""
    count = tf.cast(tf.size(values), values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(values), count)


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
