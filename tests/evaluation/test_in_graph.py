"""PGD in the graph against closed forms."""

import numpy as np
import pytest
import tensorflow as tf

from fd_keras.evaluation.in_graph import pgd

SEED = tf.constant([1, 2])


@pytest.mark.parametrize("steps", [1, 10])
def test_attack_reaches_the_worst_corner_of_a_linear_classifier(rng, steps):
    """For a linear classifier the best L-inf attack is known: every pixel goes to its bound."""
    images = rng.uniform(20, 235, (5, 4, 4, 1)).astype(np.float32)
    weights = rng.normal(size=(16, 2)).astype(np.float32)
    labels = np.array([0, 1, 0, 1, 0])
    attacked = pgd(
        tf.constant(images), tf.constant(labels),
        lambda x: tf.reshape(x, (-1, 16)) @ weights,
        epsilon=3.0, steps=steps, step_size=7.0, value_range=(0, 255), seed=SEED,
    ).numpy()  # fmt: skip
    wrong = (weights[:, 1] - weights[:, 0]).reshape(4, 4, 1)
    sign = np.where(labels == 0, 1, -1)[:, None, None, None]
    np.testing.assert_allclose(attacked, images + 3 * sign * np.sign(wrong), atol=1e-4)


def test_attack_stays_within_epsilon_and_range(rng):
    images = tf.constant(rng.uniform(0, 1, (3, 4, 4, 1)), tf.float32)
    attacked = pgd(
        images, tf.constant([0, 1, 2]), lambda x: tf.reshape(x, (3, -1))[:, :3] ** 2,
        epsilon=25.5, steps=3, step_size=22.95, value_range=(0, 1), seed=SEED,
    )  # fmt: skip
    assert float(tf.reduce_max(tf.abs(attacked - images))) <= 0.1 + 1e-6
    assert 0 <= float(tf.reduce_min(attacked)) <= float(tf.reduce_max(attacked)) <= 1


@pytest.mark.parametrize("steps", [1, 4])
def test_epsilon_means_grey_levels_in_every_value_range(rng, steps):
    grey = rng.uniform(20, 235, (4, 4, 4, 1)).astype(np.float32)
    weights = rng.normal(size=(16, 2)).astype(np.float32)

    def attacked(low, high):
        found = pgd(
            tf.constant(low + (high - low) / 255 * grey), tf.constant([0, 1, 0, 1]),
            lambda x: tf.reshape(x, (-1, 16)) @ weights,
            epsilon=4, steps=steps, value_range=(low, high), seed=SEED,
        )  # fmt: skip
        return (found.numpy() - low) * 255 / (high - low)

    expected = attacked(0, 255)
    assert np.abs(expected - grey).max() == pytest.approx(4, abs=1e-3)
    np.testing.assert_allclose(attacked(0, 1), expected, atol=1e-3)
    np.testing.assert_allclose(attacked(-1, 1), expected, atol=1e-3)
