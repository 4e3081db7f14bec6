"""ART's attacks on small models whose answers can be worked out by hand."""

import dataclasses

import keras
import numpy as np
import pytest

import fd_keras
from fd_keras.evaluation import (
    accuracy,
    art_classifier,
    bim,
    fgsm,
    pgd,
    predicted_classes,
)

pytest.importorskip("art", reason="ART is not installed")

CLASSES = 2
VALUE_RANGES = [(0, 255), (0, 1), (-1, 1)]


@pytest.fixture
def weights():
    return np.random.default_rng(3).normal(size=(16 * 16 * 3, CLASSES)).astype(np.float32)


def linear_model(weights):
    """Logits linear in the pixels: the loss gradient's sign is known everywhere."""
    dense = keras.layers.Dense(CLASSES, use_bias=False)
    # Small logits, because float32's softmax gradient is exactly 0 at confident ones.
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten(), dense])
    dense.set_weights([weights * 1e-4])
    return model


def linear_attack(weights, images, labels, change, value_range):
    """Towards the other class, by hand."""
    away = (weights[:, 1 - labels] - weights[:, labels]).T.reshape(images.shape)
    return np.clip(images + change * np.sign(away), *value_range)


def random_batch(value_range, count=5):
    rng = np.random.default_rng(5)
    images = rng.uniform(*value_range, (count, 16, 16, 3)).astype(np.float32)
    images[0] = value_range[0]
    images[1] = value_range[1]
    return images, rng.integers(0, CLASSES, count)


@pytest.mark.parametrize("value_range", VALUE_RANGES)
@pytest.mark.parametrize("protected", [False, True])
def test_both_attacks_follow_the_gradient(weights, value_range, protected):
    """The layer's straight-through gradient leaves a linear model's unchanged (BPDA)."""
    model = linear_model(weights)
    if protected:
        layer = fd_keras.FeatureDistillation("liu2019", value_range=value_range)
        model = fd_keras.protect(model, layer)
    images, labels = random_batch(value_range)
    unit = (value_range[1] - value_range[0]) / 255
    classifier = art_classifier(model, value_range=value_range)

    single = fgsm(8 / 255).generate(classifier, images, labels)
    repeated = bim(8 / 255, 3 / 255, 2).generate(classifier, images, labels)

    expected = linear_attack(weights, images, labels, 8 * unit, value_range)
    np.testing.assert_allclose(single, expected, atol=1e-4 * unit)
    expected = linear_attack(weights, images, labels, 6 * unit, value_range)
    np.testing.assert_allclose(repeated, expected, atol=1e-4 * unit)


@pytest.mark.parametrize("attack", [fgsm(16 / 255), bim(16 / 255, 4 / 255), pgd(16 / 255)])
def test_attack_on_a_protected_network_keeps_to_its_bounds_and_hurts(attack):
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    protected = fd_keras.protect(model, fd_keras.FeatureDistillation("jpeg:50"))
    images = np.random.default_rng(4).integers(0, 256, (40, 16, 16, 1)).astype(np.float32)
    labels = predicted_classes(protected, images)
    classifier = art_classifier(protected)

    attacked = attack.generate(classifier, images, labels)

    assert attacked.shape == images.shape
    assert attacked.dtype == np.float32
    assert attacked.min() >= 0
    assert attacked.max() <= 255
    assert 15.9 < np.abs(attacked - images).max() <= 16 + 1e-3
    assert accuracy(protected, images, labels) == 1.0
    assert accuracy(protected, attacked, labels) < 0.5


def test_batches_and_their_size_make_no_difference(weights):
    images, labels = random_batch((0, 255), count=7)
    classifier = art_classifier(linear_model(weights))
    seen = []

    attack = fgsm(4 / 255)
    threes = dataclasses.replace(attack, batch_size=3)
    in_batches = threes.generate(classifier, images, labels, on_batch=seen.append)

    assert seen == [3, 3, 1]
    np.testing.assert_array_equal(in_batches, attack.generate(classifier, images, labels))


def test_images_are_left_as_they_are(weights):
    images, labels = random_batch((0, 255))
    original = images.copy()
    fgsm(4 / 255).generate(art_classifier(linear_model(weights)), images, labels)
    np.testing.assert_array_equal(images, original)


def test_uint8_images_can_be_attacked(weights):
    images, labels = random_batch((0, 255))
    images = images.astype(np.uint8)
    attacked = fgsm(4 / 255).generate(art_classifier(linear_model(weights)), images, labels)
    expected = linear_attack(weights, images.astype(np.float32), labels, 4, (0, 255))
    np.testing.assert_allclose(attacked, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "`labels` must be one integer class per image"),
        ([0.0, 1, 0, 1, 0], "`labels` must be one integer class per image"),
        (np.eye(5, 2, dtype=int), "`labels` must be one integer class per image"),
        ([0, 1, 2, 0, 0], "`labels` must lie from 0 to 1"),
        ([0, 1, -1, 0, 0], "`labels` must lie from 0 to 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(weights, labels, message):
    images, _ = random_batch((0, 255))
    with pytest.raises(ValueError, match=message):
        fgsm(4 / 255).generate(art_classifier(linear_model(weights)), images, np.asarray(labels))


@pytest.mark.parametrize("pixel", [-1.0, 256.0, np.nan])
def test_images_outside_the_value_range_are_refused(weights, pixel):
    images, labels = random_batch((0, 255))
    images[2, 3, 4, 0] = pixel
    with pytest.raises(ValueError, match="value range, 0 to 255"):
        bim(4 / 255, 1 / 255).generate(art_classifier(linear_model(weights)), images, labels)


def test_accuracy_of_no_images_is_refused(weights):
    with pytest.raises(ValueError, match="at least one image"):
        accuracy(linear_model(weights), np.zeros((0, 16, 16, 3)), np.zeros(0, int))


def test_accuracy_counts():
    model = keras.Sequential([keras.Input((1, 3, 1)), keras.layers.Flatten()])
    images = np.array([[0, 1, 2], [5, 1, 2], [0, 7, 2], [0, 1, 2]], np.float32)
    images = images.reshape(4, 1, 3, 1)
    assert predicted_classes(model, images, batch_size=3).tolist() == [2, 0, 1, 2]
    assert accuracy(model, images, np.array([2, 0, 2, 2])) == 0.75
