"""The packaged images of the demo, and the classifier of them."""

import keras
import numpy as np
from sklearn.datasets import load_digits as load_originals

from fd_keras.demo import build_classifier, load_digits, train_classifier


def test_digits_are_scikit_learns():
    digits = load_digits(seed=3)
    assert (len(digits.train), len(digits.test)) == (1297, 500)
    both = np.concatenate([digits.train.images, digits.test.images])
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    indices = np.concatenate([digits.train.indices, digits.test.indices])
    assert both.shape == (1797, 32, 32, 1)
    assert both.min() == 0
    assert both.max() == 255
    np.testing.assert_array_equal(both, np.rint(both))
    # Each original is there once, under its index, and each enlarged image shrinks back to it.
    originals = load_originals()
    np.testing.assert_array_equal(np.sort(indices), np.arange(1797))
    np.testing.assert_array_equal(labels, originals.target[indices])
    small = both.reshape(1797, 8, 4, 8, 4).mean((2, 4)).reshape(1797, 64)
    known = originals.images.reshape(1797, 64) * 255 / 16
    squares = (small**2).sum(1)[:, None] + (known**2).sum(1) - 2 * small @ known.T
    nearest = squares.argmin(1)
    assert len(set(nearest)) > 1780  # a few originals are near-duplicates
    assert np.mean(nearest == indices) > 0.99


def test_split_depends_on_the_seed_only():
    first, again, other = (load_digits(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.test.images, again.test.images)
    assert not np.array_equal(first.test.labels, other.test.labels)
    assert np.bincount(first.test.labels).min() >= 48


def test_the_classifier_learns_and_says_when_an_epoch_ends():
    keras.utils.set_random_seed(1)
    digits, model, ended = load_digits(seed=1), build_classifier(), []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: ended.append(epoch))
    train_classifier(model, digits.train, epochs=4, callbacks=[callback])
    assert ended == [0, 1, 2, 3]
    predicted = model.predict(digits.test.images, verbose=0).argmax(-1)
    assert np.mean(predicted == digits.test.labels) > 0.8
