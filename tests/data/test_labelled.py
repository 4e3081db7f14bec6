"""Labelled images in memory, and the reader of labelled batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fd_keras.data.labelled import LabelledImages, array_hash, batches_with_labels, unit_images

IMAGES = np.arange(5 * 2 * 3).reshape(5, 2, 3, 1).astype(np.uint8)
LABELS = np.array([4, 0, 3, 1, 2])


class Pairs(keras.utils.Sequence):
    def __init__(self):
        super().__init__()

    def __len__(self):
        return 3

    def __getitem__(self, index):
        part = slice(2 * index, 2 * index + 2)
        return IMAGES[part], LABELS[part]


DATA = {
    "arrays": lambda: (IMAGES, LABELS),
    "column of labels": lambda: (IMAGES, LABELS[:, np.newaxis]),
    "dataset": lambda: tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(2),
    "unbatched dataset": lambda: tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)),
    "floats": lambda: (IMAGES, LABELS.astype(np.float16)),
    "column of floats": lambda: (IMAGES, LABELS[:, np.newaxis].astype(np.float32)),
    "unbatched floats": lambda: zip(IMAGES, LABELS.astype(float)),
    "unbatched column": lambda: zip(IMAGES, LABELS[:, np.newaxis]),
    "PyDataset": Pairs,
    "list of batches": lambda: [(IMAGES[i : i + 2], LABELS[i : i + 2]) for i in (0, 2, 4)],
    "generator of images": lambda: zip(IMAGES, LABELS),
}


@pytest.mark.parametrize("kind", DATA)
def test_every_kind_of_data_gives_the_same_batches(kind):
    """Images that came one by one were once classified one by one."""
    batches = list(batches_with_labels(DATA[kind](), 2))
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), IMAGES)
    labels = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(labels, LABELS)
    assert np.issubdtype(labels.dtype, np.integer)
    assert {images.dtype for images, _ in batches} == {np.dtype(np.uint8)}


def test_binary_labels_of_keras_directories(tmp_path):
    """They are float32 of shape (batch, 1), and were refused."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        keras.utils.save_img(tmp_path / name / "1.png", np.zeros((4, 4, 3)))
    data = keras.utils.image_dataset_from_directory(
        tmp_path, label_mode="binary", image_size=(4, 4), shuffle=False
    )
    ((_, labels),) = batches_with_labels(data, 2)
    assert labels.tolist() == [0, 1]


def test_images_of_other_shapes_start_a_batch_of_their_own():
    pairs = [(np.zeros((8, 8, 3)), 0), (np.zeros((8, 9, 3)), 1), (np.zeros((2, 8, 8, 3)), [2, 3])]
    batches = [(images.shape, labels.tolist()) for images, labels in batches_with_labels(pairs, 9)]
    assert batches == [((1, 8, 8, 3), [0]), ((1, 8, 9, 3), [1]), ((2, 8, 8, 3), [2, 3])]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((IMAGES, LABELS[:4]), ValueError, "one label per image. Received: 5 images and 4 labels"),
        ([(IMAGES, LABELS[:4])], ValueError, "`labels` must be one integer class per image"),
        ((IMAGES, LABELS / 2), ValueError, "dtype float64"),
        ((IMAGES, np.full(5, np.nan)), ValueError, "dtype float64"),
        ((IMAGES, LABELS > 2), ValueError, "dtype bool"),
        ([(IMAGES, np.eye(5, dtype=int))], ValueError, "`labels` must be one integer class"),
        ((IMAGES, LABELS - 1), ValueError, "between 0 and 2147483647. Received: labels from -1"),
        (
            (IMAGES, LABELS.astype(np.uint64) << 60),
            ValueError,
            "labels from 0 to 4611686018427387904",
        ),
        ([IMAGES], TypeError, "Received: an element of type ndarray"),
        (None, TypeError, "`data` must be .* Received: data=None"),
    ],
)
def test_data_without_fitting_labels_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        list(batches_with_labels(data, 2))


def test_parts_remember_where_their_images_came_from():
    images = LabelledImages(IMAGES, LABELS, (0.0, 255.0))
    assert images.indices.tolist() == [0, 1, 2, 3, 4]
    assert images.seen == len(images) == 5
    part = images[np.array([3, 1])][1:]
    assert (part.labels.tolist(), part.indices.tolist(), part.seen) == ([0], [1], 5)
    np.testing.assert_array_equal(part.images, IMAGES[1:2])


def test_fingerprint_is_that_of_images_and_labels():
    images = LabelledImages(IMAGES, LABELS, (0.0, 255.0))
    assert images.fingerprint == LabelledImages(IMAGES.copy(), LABELS, (0.0, 1.0)).fingerprint
    assert images.fingerprint != LabelledImages(IMAGES, LABELS[::-1], (0.0, 255.0)).fingerprint
    assert array_hash(IMAGES) != array_hash(IMAGES.astype(int))


def test_unit_images_are_clipped():
    np.testing.assert_array_equal(unit_images(np.array([-9, 0, 3, 9]), (-3, 3)), [0, 0.5, 1, 1])
