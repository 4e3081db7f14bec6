"""What recipes and training settings refuse when they are made."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from fd_keras.hardening import Recipe, Training
from fd_keras.hardening.recipe import cross_entropy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 4 / 255}, "grey levels of 255, from 0.1"),
        ({"epsilon": math.nan}, "`epsilon` must be one finite number"),
        ({"attack_steps": 0}, "`attack_steps` must be a whole number"),
        ({"attack_gradient": "none"}, "`attack_gradient` must be one of"),
        ({"attacked_share": 1.5}, "`attacked_share` must lie between 0 and 1"),
        ({"transferred_share": -0.5}, "`transferred_share` must lie between 0 and 1"),
        ({"transferred_share": 0.6}, "must not be more than 1 together. .* transferred_share=0.6"),
        ({"transferred_epsilon": 0.01}, "`transferred_epsilon` must be .* transferred_epsilon=0.0"),
        ({"soft_labels": -1}, "`soft_labels` must lie between 0 and 1"),
        ({"table_rate": -1}, "`table_rate` must"),
        ({"averaging": 1}, "`averaging` must be below 1"),
    ],
)
def test_bad_recipes(arguments, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**arguments)


@pytest.mark.parametrize("count", [1, 7, 128])
@pytest.mark.parametrize(
    "shares", [(0.5, 0.25), (0.1, 0.2), (1.0, 0.0), (0.7, 0.3), (0.0, 1.0), (0.35, 0.65)]
)
def test_parts_of_a_batch_do_not_overlap(shares, count):
    recipe = Recipe(attacked_share=shares[0], transferred_share=shares[1])
    through, transferred = recipe.attacked_counts(count)
    assert 0 <= through <= through + transferred <= count
    assert [int(part) for part in recipe.attacked_counts(tf.constant(count))] == [
        through,
        transferred,
    ]
    assert Recipe(epsilon=0, attacked_share=1.0).attacked_counts(count) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "`epochs` must be a whole number"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be a whole number"),
        ({"optimizer": "sdg"}, ValueError, "`optimizer` must be one that Keras knows"),
        ({"dtype_policy": "bfloat15"}, ValueError, "`dtype_policy` must be one that Keras knows"),
        ({"augment": "flip"}, TypeError, "`augment` must be a function"),
        ({"callbacks": [print]}, TypeError, "`callbacks` must be Keras callbacks"),
    ],
)
def test_bad_trainings(arguments, error, message):
    with pytest.raises(error, match=message):
        Training(**arguments)


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


def test_numbers_of_numpy_become_plain_ones():
    """The result of hours of training could not be written."""
    recipe = Recipe(attack_steps=np.int64(2), soft_labels=np.float32(0.5))
    assert json.loads(json.dumps(recipe.to_dict()))["attack_steps"] == 2
    training = Training(epochs=np.int64(3), batch_size=np.int32(8))
    assert (type(training.epochs), type(training.batch_size)) == (int, int)
