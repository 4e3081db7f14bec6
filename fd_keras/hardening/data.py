"""Training images in a new order for every epoch, and those that are held out."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fd_keras._checks import check_pixels, checked_labels
from fd_keras.classifier import Classifier
from fd_keras.data.batches import described
from fd_keras.data.labelled import LabelledImages, batches_with_labels

# Where no images to check on are given, at most this share of the training images is held out.
_MOST_HELD_OUT = 0.2


def in_memory(data: Any, value_range: tuple[float, float]) -> LabelledImages | None:
    """Arrays ``(images, labels)``; ``None`` where ``data`` is something else.

    Args:
        data: Anything.
        value_range: Lowest and highest pixel value.

    Raises:
        ValueError: They are arrays and do not fit each other.

    Example:
        >>> len(in_memory((np.zeros((3, 8, 8, 1)), [[0], [1], [2]]), (0, 255)))
        3
    """
    if not isinstance(data, (tuple, list)) or len(data) != 2 or np.ndim(data[0]) != 4:
        return None
    images, labels = np.asarray(data[0]), np.asarray(data[1])
    if labels.ndim == 2 and labels.shape[1] == 1:  # as keras.datasets.cifar10 has them
        labels = labels[:, 0]
    return LabelledImages(images, checked_labels(labels, len(images)), value_range)


def held_out(
    train_data: Any,
    validation_data: Any,
    *,
    value_range: tuple[float, float],
    most: int,
    batch_size: int,
    seed: int,
) -> tuple[LabelledImages | Any, LabelledImages]:
    """What is trained on, and the images that are held out from it.

    Args:
        train_data: Arrays ``(images, labels)``, a ``tf.data.Dataset`` of batches or a
            ``PyDataset`` (Keras 2: ``Sequence``).
        validation_data: Anything that holds labelled images; ``None``: a part of ``train_data``.
        value_range: Lowest and highest pixel value of both.
        most: Number of images that are held out at most.
        batch_size: Number of images read at once.
        seed: Of the choice from ``train_data``.

    Returns:
        ``LabelledImages`` or the data set that was given, and the held-out images.

    Raises:
        ValueError: There is nothing to hold out.
        TypeError: ``train_data`` is of another type.

    Example:
        >>> data = np.zeros((10, 8, 8, 1)), np.arange(10)
        >>> [len(part) for part in held_out(
        ...     data, None, value_range=(0, 255), most=5, batch_size=4, seed=1
        ... )]
        [8, 2]
    """
    train = in_memory(train_data, value_range)
    if train is None and not isinstance(train_data, (tf.data.Dataset, keras.utils.Sequence)):
        raise TypeError(
            "`train_data` must be the arrays (images, labels), a tf.data.Dataset of batches or a "
            f"PyDataset, which can be read in every epoch. Received: {described(train_data)}"
        )
    if validation_data is not None:
        return train_data if train is None else train, _first(
            validation_data, value_range, most, batch_size
        )
    count = min(most, int(_MOST_HELD_OUT * len(train))) if train is not None else 0
    if train is None or count == 0:
        raise ValueError(
            "`validation_data` is needed where `train_data` is a data set, or of less than five "
            f"images. Received: validation_data=None, train_data={described(train_data)}"
        )
    order = np.random.default_rng(seed).permutation(len(train))
    return train[np.sort(order[count:])], train[np.sort(order[:count])]


def undefended_correct(classifier: Classifier, images: LabelledImages) -> int:
    """How many images the classifier alone gets right, once all fits together.

    Args:
        classifier: The classifier.
        images: What is held out.

    Raises:
        ValueError: Images, labels and classifier do not fit.
    """
    batches = batches_with_labels((images.images, images.labels), 128)
    return sum(int(classifier.correct(*batch).sum()) for batch in batches)


def check_training_images(train: LabelledImages | Any, classifier: Classifier) -> None:
    """Refuse arrays that do not fit the classifier; data sets are checked batch by batch.

    Args:
        train: What ``held_out`` returned.
        classifier: The classifier.

    Raises:
        ValueError: Images or labels do not fit.
    """
    if not isinstance(train, LabelledImages):
        return
    check_pixels(train.images, classifier.value_range)
    classes = classifier.model.output_shape[-1]
    if train.labels.min() < 0 or train.labels.max() >= classes:
        raise ValueError(
            f"`train_data` must have labels from 0 to {classes - 1}, the classes of `model`. "
            f"Received: labels from {train.labels.min()} to {train.labels.max()}"
        )


def shuffled_batches(
    data: LabelledImages, batch_size: int, seed: int, epoch: tf.Variable
) -> tf.data.Dataset:
    """Batches in an order that depends on the seed and the epoch alone.

    Keras' own shuffling starts anew in a resumed training, which would then see other batches
    than one that was never stopped.

    Args:
        data: The images.
        batch_size: Number of images in a batch; a last, smaller one is left out.
        seed: Of the order.
        epoch: Holds the number of the epoch, int32, when an iteration begins.

    Example:
        >>> data = LabelledImages(np.zeros((4, 8, 8, 1)), np.arange(4), (0, 255))
        >>> batches = shuffled_batches(data, 2, 1, tf.Variable(0))
        >>> len(batches), batches.element_spec[0].shape
        (2, TensorShape([2, 8, 8, 1]))
    """
    images, labels = tf.constant(data.images), tf.constant(data.labels)
    batch_size = min(batch_size, len(data))

    def order(_: tf.Tensor) -> tf.data.Dataset:
        indices = tf.random.experimental.stateless_shuffle(
            tf.range(len(data)), tf.stack([seed, tf.convert_to_tensor(epoch)])
        )
        return tf.data.Dataset.from_tensor_slices(indices)

    batches = tf.data.Dataset.range(1).flat_map(order).batch(batch_size, drop_remainder=True)
    batches = batches.map(lambda chosen: (tf.gather(images, chosen), tf.gather(labels, chosen)))
    count = tf.data.experimental.assert_cardinality(len(data) // batch_size)
    return batches.apply(count).prefetch(2)


def _first(
    data: Any, value_range: tuple[float, float], most: int, batch_size: int
) -> LabelledImages:
    images, labels, count = [], [], 0
    for batch, classes in batches_with_labels(data, batch_size):
        images.append(batch[: most - count])
        labels.append(classes[: most - count])
        count += len(labels[-1])
        if count == most:
            break
    if not count:
        raise ValueError(f"`validation_data` holds no image. Received: {described(data)}")
    return LabelledImages(np.concatenate(images), np.concatenate(labels), value_range)
