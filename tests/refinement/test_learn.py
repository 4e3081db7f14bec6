"""Tables learnt by gradient."""

import numpy as np
import pytest
import searches

import fd_keras
from fd_keras import QuantizationTable, preset_table
from fd_keras.evaluation import fgsm, pgd


def test_learning_descends_and_never_ends_worse_than_it_began(digits, tmp_path):
    model, test = digits
    data, attacked = (test.images, test.labels), {"noise": searches.noisy(test.images, 40)}
    # Steps so coarse that digits are lost: any sensible gradient makes them finer.
    coarse = QuantizationTable(np.full((8, 8), 1500.0))
    learnt = fd_keras.learn_table(
        model, data, attacked, coarse, max_benign_loss=0.1, epochs=4, learning_rate=0.2
    )
    before = 1 - learnt.started.validation.benign
    assert learnt.history[-1]["benign_loss"] < before
    assert learnt.table.steps.mean() < 1500
    assert learnt.table.steps.std() > 0
    assert learnt.learnt.validation.benign > learnt.started.validation.benign
    assert "test split" in str(learnt)
    unchanged = fd_keras.learn_table(model, data, attacked, "liu2019", epochs=1, learning_rate=1e-9)
    assert unchanged.table == preset_table("liu2019")


def test_a_table_is_learnt_against_an_attacker_who_knows_it(digits, tmp_path):
    """Steps far too fine remove nothing: learning against PGD makes them coarser, and it helps."""
    model, test = digits
    fine = QuantizationTable(np.full((8, 8), 2.0), quantizer="soft")
    learnt = fd_keras.learn_table(
        model, (test.images, test.labels), pgd(24, 4), fine, max_benign_loss=0.2, epochs=4,
        learning_rate=0.8, max_images=80, cache_dir=tmp_path,
    )  # fmt: skip
    assert list(learnt.learnt.test.counts) == ["benign", "PGD-4 24/255, adaptive"]
    assert learnt.table.steps.mean() > 4
    assert learnt.learnt.validation.attacked > learnt.started.validation.attacked
    assert "test split, adaptive" in str(learnt)
    with pytest.raises(ValueError, match=r"one random start.*Received: protocol='FGSM 8/255'"):
        fd_keras.learn_table(model, (test.images, test.labels), fgsm(8))


def test_the_gradient_of_a_step_is_the_rounding_error_it_leaves():
    import tensorflow as tf

    from fd_keras.kernels import distil

    pixels = np.full((1, 8, 8, 1), 10.0, np.float32)  # DC is 80, every other band 0
    steps = tf.Variable(np.full((1, 8, 8), 30.0, np.float32))
    with tf.GradientTape() as tape:
        dc = tf.reduce_sum(distil(tf.constant(pixels), steps)) / 8
    gradient = tape.gradient(dc, steps).numpy()
    assert gradient[0, 0, 0] == pytest.approx(round(80 / 30) - 80 / 30, abs=1e-3)
