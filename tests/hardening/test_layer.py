"""The quantisation that is trained behind, and its learnt steps."""

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_keras import FeatureDistillation
from fd_keras.hardening.layer import STEP_RANGE, TrainingDistillation


def test_it_does_what_the_layer_does(rng):
    images = tf.constant(rng.integers(0, 256, (2, 16, 16, 3)), tf.float32)
    layer = FeatureDistillation("zigzag15", cycle_spins=2)
    np.testing.assert_array_equal(TrainingDistillation(layer, 3)(images), layer(images))


def test_soft_thresholds_are_learnt_by_their_true_gradient(rng):
    images = tf.constant(rng.integers(0, 256, (2, 16, 16, 3)), tf.float32)
    layer = FeatureDistillation("jpeg", cycle_spins=2, quantizer="soft")
    training = TrainingDistillation(layer, 3, rate=0.5)
    np.testing.assert_allclose(training(images), layer(images), atol=1e-3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(training(images) - images))
    (gradient,) = map(np.array, tape.gradient(loss, training.trainable_variables))
    assert (gradient[:, 0, 0] == 0).all()  # DC has no threshold
    assert (np.delete(gradient.reshape(3, 64), 0, axis=1) > 0).mean() > 0.9
    assert training.gradients == ("straight-through",)
    assert training.table().quantizer == "soft"


@given(moves=st.lists(st.floats(-1e6, 1e6), min_size=64, max_size=64), rate=st.floats(0.01, 10))
@settings(max_examples=20)
def test_learnt_steps_stay_positive_whatever_moves_them(moves, rate):
    training = TrainingDistillation(FeatureDistillation("liu2019"), 1, rate=rate)
    constrained = training.moves.constraint(tf.constant(moves, tf.float32, (1, 8, 8)))
    training.moves.assign(constrained)
    steps = training.table().steps
    low, high = STEP_RANGE
    assert low * 0.999 <= steps.min() <= steps.max() <= high * 1.001
