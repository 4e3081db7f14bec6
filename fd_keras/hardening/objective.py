"""The loss of hardening."""

from __future__ import annotations

import tensorflow as tf


def cross_entropy(
    labels: tf.Tensor,
    logits: tf.Tensor,
    teacher_logits: tf.Tensor | None = None,
    teacher_share: float = 0.0,
) -> tf.Tensor:
    """Mean cross-entropy with labels that may be softened by a teacher's probabilities.

    Args:
        labels: True classes ``(batch,)``.
        logits: ``(batch, classes)``.
        teacher_logits: Logits of the teacher ``(batch, classes)``; no gradient reaches them.
        teacher_share: Weight of the teacher's probabilities in the targets, from 0 to 1.

    Returns:
        Scalar.

    Example:
        >>> round(float(cross_entropy(tf.constant([1]), tf.zeros((1, 2)))), 4)
        0.6931

    References:
        Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.
    """
    targets = tf.one_hot(labels, logits.shape[-1])
    if teacher_logits is not None:
        soft = tf.stop_gradient(tf.nn.softmax(teacher_logits))
        targets = (1 - teacher_share) * targets + teacher_share * soft
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
