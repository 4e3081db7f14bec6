"""Images that a classifier alone classifies correctly, and the two splits of them."""

import keras
import numpy as np
import pytest

from fd_keras.classifier import Classifier
from fd_keras.evaluation.selection import select, split


@pytest.fixture
def classifier():
    """Classifies an image by the brighter of its two pixels."""
    return Classifier(keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()]))


def images_of(classes):
    """One image for each class; images of the same class are duplicates."""
    return np.float32(255 * np.eye(2)[classes]).reshape(-1, 1, 2, 1)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_indices_tell_a_duplicate_from_its_mislabelled_twin(classifier, batch_size):
    """Indices once came from a comparison of pixels, which found the first of both pictures."""
    images, labels = images_of([0, 1, 0, 1, 0]), np.array([1, 1, 0, 0, 0])
    selected = select(classifier, (images, labels), max_images=9, batch_size=batch_size)
    assert selected.indices.tolist() == [1, 2, 4]
    assert selected.seen == 5
    attacked = images + np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    np.testing.assert_array_equal(
        attacked[selected.indices] - selected.images, [[[[i]] * 2] for i in (1, 2, 4)]
    )


def test_splits_keep_the_indices(classifier):
    images, labels = images_of([0, 1, 0, 1, 0]), np.array([1, 1, 0, 1, 0])
    validation, test = split(select(classifier, (images, labels), max_images=9, batch_size=2))
    assert validation.indices.tolist() == [1, 3]
    assert test.indices.tolist() == [2, 4]


@pytest.mark.parametrize("batch_size", [2, 3, 32])
def test_reading_ends_with_the_last_image_that_is_needed(classifier, batch_size):
    images, labels = images_of([0, 0, 1, 1, 0, 1]), np.array([0, 1, 0, 1, 0, 1])
    selected = select(classifier, (images, labels), max_images=2, batch_size=batch_size)
    assert selected.indices.tolist() == [0, 3]
    assert selected.labels.tolist() == [0, 1]
    assert selected.seen == 4


def test_a_split_needs_two_images(classifier):
    one = select(classifier, (images_of([0]), np.array([0])), max_images=9, batch_size=2)
    with pytest.raises(ValueError, match="one for the validation split and one for the test split"):
        split(one)
