"""Images that a classifier alone classifies correctly, and the two splits of them."""

import functools
import gc
import warnings
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages, batches_with_labels
from fd_keras.data.labelled_sources import open_labelled_images
from fd_keras.data.sources import ImageSource
from fd_keras.evaluation.selection import ClassifierWarning, select, split


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
    assert sorted(selected.indices) == [1, 2, 4]
    assert (selected.seen, selected.right) == (5, 3)
    attacked = images + np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    np.testing.assert_array_equal(
        attacked[selected.indices] - selected.images, [[[[i]] * 2] for i in selected.indices]
    )


def test_splits_keep_the_indices(classifier):
    images, labels = images_of([0, 1, 0, 1, 0]), np.array([1, 1, 0, 1, 0])
    chosen = select(classifier, (images, labels), max_images=9, batch_size=2)
    validation, test = split(chosen)
    assert sorted(chosen.indices) == [1, 2, 3, 4]
    assert validation.indices.tolist() == chosen.indices[::2].tolist()
    assert test.indices.tolist() == chosen.indices[1::2].tolist()


@pytest.mark.parametrize("batch_size", [2, 3, 32])
def test_a_sample_of_ones_own_is_read_from_the_start_and_no_further(classifier, batch_size):
    """The images of published figures."""
    images, labels = images_of([0, 0, 1, 1, 0, 1]), np.array([0, 1, 0, 1, 0, 1])
    own = LabelledImages(images, labels, (0.0, 255.0))
    selected = select(classifier, own, max_images=2, batch_size=batch_size)
    assert selected.indices.tolist() == [0, 3]
    assert selected.seen == (4 if batch_size == 2 else 6)
    with pytest.raises(ValueError, match="must have the classifier's value range"):
        select(classifier, LabelledImages(images, labels, (0, 1)), max_images=2, batch_size=2)


def sources(images, labels):
    """The same labelled images as every kind of data."""
    return {
        "arrays": (images, labels),
        "batches": [
            (images[part], labels[part]) for part in np.split(np.arange(len(labels)), [40, 60])
        ],
        "generator": zip(images, labels),
        "dataset": tf.data.Dataset.from_tensor_slices((images, labels)).batch(7),
        "source with classes": ImageSource(
            "known",
            lambda: (functools.partial(tuple, pair) for pair in zip(images, labels)),
            len(labels),
            groups=labels,
        ),
        "source of unknown classes": ImageSource(
            "unknown",
            lambda: (functools.partial(tuple, pair) for pair in zip(images, labels)),
            len(labels),
        ),
    }


@pytest.mark.parametrize("kind", list(sources(images_of([0] * 50), np.zeros(50, int))))
def test_a_limit_takes_a_seeded_sample_over_the_classes(classifier, kind):
    """The first images of a folder are all of one class."""
    labels = np.repeat([0, 1], [60, 30])
    images = images_of(labels)
    images[[0, 70]] = images[[0, 70], :, ::-1]  # two that are wrong

    def taken(most, seed=1):
        data = sources(images, labels)[kind]
        return select(classifier, data, max_images=most, batch_size=8, seed=seed)

    selected = taken(12)
    assert np.bincount(selected.labels).tolist() == [8, 4]
    assert np.bincount(selected[:6].labels).tolist() in ([4, 2], [3, 3], [5, 1])
    assert classifier.correct(selected.images, selected.labels).all()
    assert "random sample spread over 2 classes (seed 1)" in selected.order
    assert taken(12).fingerprint == selected.fingerprint
    # What is wrong is replaced, as long as there is any other.
    assert len(taken(88)) == len(taken(90)) == 88
    assert (taken(90).seen, taken(90).right) == (90, 88)


def test_another_seed_takes_other_images(classifier):
    labels = np.repeat([0, 1], 50)
    taken = [
        select(classifier, (images_of(labels), labels), max_images=9, batch_size=8, seed=seed)
        for seed in (1, 2)
    ]
    assert set(taken[0].indices) != set(taken[1].indices)


def test_data_without_an_end_are_refused(classifier):
    endless = tf.data.Dataset.from_tensors((images_of([0]), [0])).repeat()
    with pytest.raises(ValueError, match="`data` must have an end"):
        select(classifier, endless, max_images=2, batch_size=2)


def test_max_images_does_not_take_the_first_class_only(tmp_path):
    """A folder of 24 images in three classes, of which six are asked for."""
    rng = np.random.default_rng(0)
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        (tmp_path / name).mkdir()
        for number in range(8):
            pixels = rng.integers(0, 90, (16, 16, 3)).astype(np.uint8)
            pixels[..., channel] = rng.integers(170, 255, (16, 16))
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    inputs = keras.Input((16, 16, 3))
    brightest = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, use_bias=False)(brightest))
    model.set_weights([np.float32(np.eye(3)[:, ::-1] / 10)])
    batches = batches_with_labels(open_labelled_images(tmp_path, (16, 16, 3)), 32)
    selected = select(Classifier(model), batches, max_images=6, batch_size=32)
    assert np.bincount(selected.labels).tolist() == [2, 2, 2]


@pytest.mark.parametrize(("right", "warned"), [(18, True), (40, False)])
def test_a_classifier_near_chance_is_warned_of_with_the_usual_causes(classifier, right, warned):
    labels = np.repeat([0, 1], 20)
    images = images_of(np.where(np.arange(40) % 40 < right, labels, 1 - labels))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        select(classifier, (images, labels), max_images=40, batch_size=40)
    texts = [str(w.message) for w in found if issubclass(w.category, ClassifierWarning)]
    assert len(texts) == warned
    for cause in ("the order of the classes", "the value range", "logits or probabilities"):
        assert all(cause in text for text in texts)
    assert all("18 of 40 images read are right, 45.0 %; chance is 50.0 %" in t for t in texts)


def test_images_of_several_sizes_are_refused_where_they_begin():
    pooled = [keras.Input((None, None, 2)), keras.layers.GlobalAveragePooling2D()]
    classifier = Classifier(keras.Sequential(pooled))

    def data():
        for side in (8, 8, 9):
            yield (
                np.eye(2, dtype=np.float32)[:1].reshape(1, 1, 1, 2)
                * np.full((1, side, side, 1), 255.0),
                np.array([0]),
            )
        raise AssertionError("read on")

    with pytest.raises(ValueError, match=r"`data` must .* one size.*\(8, 8, 2\) and \(9, 9, 2\)"):
        select(classifier, data(), max_images=9, batch_size=1)


def test_images_that_are_not_kept_leave_the_memory(classifier):
    batches = []

    def data():
        for _ in range(40):
            batch = images_of([0, 1] * 8)
            batches.append(weakref.ref(batch))
            yield batch, np.array([0, 1] * 8)
            del batch

    selected = select(classifier, data(), max_images=4, batch_size=16)
    assert len(selected) == 4
    gc.collect()
    assert sum(batch() is not None for batch in batches) <= 2


def test_a_split_needs_two_images(classifier):
    one = select(classifier, (images_of([0]), np.array([0])), max_images=9, batch_size=2)
    with pytest.raises(ValueError, match="one for the validation split and one for the test split"):
        split(one)
