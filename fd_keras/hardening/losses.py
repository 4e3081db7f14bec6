"""Losses on logits, as TensorFlow operations."""

from __future__ import annotations

import tensorflow as tf

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
