"""The loss of hardening against its formula."""

import numpy as np
import tensorflow as tf

from fd_keras.hardening.objective import cross_entropy


def test_cross_entropy_is_that_of_its_formula(rng):
    logits, teacher = rng.normal(size=(2, 6, 4)).astype(np.float32)
    labels = np.array([0, 3, 1, 2, 2, 0])

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    p, q = softmax(logits), softmax(teacher)
    wanted = 0.7 * np.eye(4)[labels] + 0.3 * q
    np.testing.assert_allclose(
        cross_entropy(tf.constant(labels), tf.constant(logits), tf.constant(teacher), 0.3),
        -(wanted * np.log(p)).sum(-1).mean(), rtol=1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(
        cross_entropy(tf.constant(labels), tf.constant(logits)),
        -np.log(p[np.arange(6), labels]).mean(), rtol=1e-5,
    )  # fmt: skip
