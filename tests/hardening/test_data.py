"""Training and validation images."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages
from fd_keras.hardening.data import shuffled_batches, training_and_validation


def test_each_epoch_has_every_image_in_an_order_of_its_own():
    epoch = tf.Variable(0)
    data = LabelledImages(np.zeros((10, 8, 8, 1)), np.arange(10), (0, 255))
    batches = shuffled_batches(data, 5, 1, epoch)

    def order():
        return np.concatenate([labels for _, labels in batches.as_numpy_iterator()])

    first = order()
    assert sorted(first) == list(range(10))
    epoch.assign(1)
    second = order()
    assert not np.array_equal(first, second)
    epoch.assign(0)
    np.testing.assert_array_equal(order(), first)


@pytest.fixture
def classifier():
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    return Classifier(model)


@pytest.mark.parametrize(("most", "count"), [(1000, 10), (4, 4)])
def test_a_validation_split_shares_no_image_with_what_is_trained_on(rng, classifier, most, count):
    images = rng.integers(0, 256, (50, 8, 8, 1))
    images[25:] = images[:25]  # pictures that occur twice are told apart by their indices
    labels = rng.integers(0, 10, (50, 1))  # as keras.datasets.cifar10 has them
    train, validation = training_and_validation(
        (images, labels), None, classifier, most=most, batch_size=7, seed=1
    )
    assert len(validation) == count
    assert sorted([*train.indices, *validation.indices]) == list(range(50))
    for part in (train, validation):
        np.testing.assert_array_equal(part.images, images[part.indices])
        np.testing.assert_array_equal(part.labels, labels[part.indices, 0])


def test_given_validation_images_are_a_sample_over_the_classes(rng, classifier):
    images, labels = rng.integers(0, 256, (40, 8, 8, 1)), np.repeat(np.arange(4), 10)
    others = tf.data.Dataset.from_tensor_slices((images[10:], labels[10:])).batch(4)
    train, validation = training_and_validation(
        (images[:10], labels[:10]), others, classifier, most=6, batch_size=5, seed=1
    )
    np.testing.assert_array_equal(train.images, images[:10])
    assert validation.labels.tolist() == [1, 1, 2, 2, 3, 3]
    for image, label in zip(validation.images, validation.labels):
        assert (images[10 * label : 10 * label + 10] == image).all(axis=(1, 2, 3)).any()
    _, every = training_and_validation(
        (images[:10], labels[:10]), others, classifier, most=99, batch_size=5, seed=1
    )
    np.testing.assert_array_equal(every.images, images[10:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, labels: (images, labels + 10), "`train_data` must have labels from 0 to"),
        (lambda images, labels: (images / 255, labels), "`train_data` must be scaled to"),
    ],
    ids=["labels", "pixels"],
)
def test_data_sets_are_checked_as_arrays_are(rng, classifier, change, message):
    """Targets of zeros and images without contrast trained to a loss of 0, without a word."""
    images, labels = rng.integers(0, 256, (20, 8, 8, 1)), np.arange(20) % 4
    data = tf.data.Dataset.from_tensor_slices(change(images, labels)).batch(5)
    with pytest.raises(ValueError, match=message):
        training_and_validation(data, (images, labels), classifier, most=9, batch_size=5, seed=1)


def test_data_sets_without_an_end_are_refused(rng, classifier):
    arrays = rng.integers(0, 256, (20, 8, 8, 1)), np.arange(20) % 4
    endless = tf.data.Dataset.from_tensor_slices(arrays).batch(5).repeat()
    for train, validation, name in ((endless, arrays, "train"), (arrays, endless, "validation")):
        with pytest.raises(ValueError, match=f"`{name}_data` must have an end"):
            training_and_validation(train, validation, classifier, most=9, batch_size=5, seed=1)
