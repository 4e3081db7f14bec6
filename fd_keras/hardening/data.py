"""Training images in a new order for every epoch, and the validation images."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import check_range, shown
from fd_keras.classifier import Classifier
from fd_keras.data.batches import described
from fd_keras.data.labelled import LabelledImages, batches_with_labels
from fd_keras.data.samples import Reservoir, spread_order

# Share of the training images that becomes the validation split where none is given.
_VALIDATION_SHARE = 0.2


def training_and_validation(
    train_data: Any,
    validation_data: Any,
    classifier: Classifier,
    *,
    most: int,
    batch_size: int,
    seed: int,
) -> tuple[LabelledImages | Any, LabelledImages]:
    """What is trained on, and the validation images, which are never trained on.

    Args:
        train_data: Arrays ``(images, labels)``, a ``tf.data.Dataset`` of batches or a
            ``PyDataset`` (Keras 2: ``Sequence``). Of data sets, the first batch is checked here,
            and the labels of the others while they are trained on.
        validation_data: Labelled images of any kind that ``fd_keras.evaluate`` takes. ``None``:
            a fifth of ``train_data``.
        classifier: What is trained; it tells the value range and the classes.
        most: Maximum number of validation images, which are a random sample, spread over the
            classes.
        batch_size: Number of images read at once.
        seed: Of the sample.

    Returns:
        ``LabelledImages`` or the data set that was given, and the validation images. Each image
        of ``LabelledImages`` keeps its index in the data that it is from.

    Raises:
        ValueError: There are no validation images, images do not fit the classifier, or a data set
            has no end.
        TypeError: ``train_data`` is of another type.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> data = np.zeros((10, 8, 8, 1)), np.arange(10)
        >>> train, validation = training_and_validation(
        ...     data, None, Classifier(model), most=5, batch_size=4, seed=1
        ... )
        >>> len(train), len(validation), set(train.indices) & set(validation.indices)
        (8, 2, set())
    """
    train = _arrays(train_data, classifier)
    if train is None and not isinstance(train_data, (tf.data.Dataset, keras.utils.Sequence)):
        raise TypeError(
            "`train_data` must be the arrays (images, labels), a tf.data.Dataset of batches or a "
            f"PyDataset, which can be read in every epoch. Received: {described(train_data)}"
        )
    if train is None:
        _check_data_set(train_data, classifier)
    if validation_data is not None:
        _check_end("validation_data", validation_data)
        validation = _sample(validation_data, classifier.value_range, most, batch_size, seed)
        return train_data if train is None else train, validation
    count = min(most, int(_VALIDATION_SHARE * len(train))) if train is not None else 0
    if train is None or count == 0:
        raise ValueError(
            "`validation_data` is needed where `train_data` is a data set, or of less than five "
            f"images. Received: validation_data=None, train_data={described(train_data)}"
        )
    order = spread_order(train.labels, seed)
    return train[np.sort(order[count:])], train[np.sort(order[:count])]


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


def _arrays(data: Any, classifier: Classifier) -> LabelledImages | None:
    """Arrays that fit the classifier; ``None`` where ``data`` is something else."""
    if not isinstance(data, (tuple, list)) or len(data) != 2 or np.ndim(data[0]) != 4:
        return None
    images, labels = next(batches_with_labels(data, max(1, len(data[0]))), (None, None))
    if images is None or labels is None:
        raise ValueError(f"`train_data` holds no image. Received: {described(data)}")
    _check_fit(images, labels, classifier)
    return LabelledImages(images, labels, classifier.value_range)


def _check_fit(images: npt.NDArray[Any], labels: npt.NDArray[Any], classifier: Classifier) -> None:
    check_range("train_data", images, classifier.value_range)
    classes = classifier.classes
    if classes is not None and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(
            f"`train_data` must have labels from 0 to {classes - 1}, the classes of `classifier`. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )


def _check_data_set(data: Any, classifier: Classifier) -> None:
    """Look at the first batch, whose errors would come late and whose faults not at all."""
    _check_end("train_data", data)
    first = next(iter(data.take(1)), None) if isinstance(data, tf.data.Dataset) else data[0]
    if isinstance(first, (tuple, list)) and len(first) == 2:  # others are refused in training
        images, labels = (np.asarray(part) for part in first)
        if images.ndim == 4 and labels.size:
            _check_fit(images, labels, classifier)


def _check_end(argument: str, data: Any) -> None:
    endless = tf.data.INFINITE_CARDINALITY
    if isinstance(data, tf.data.Dataset) and int(data.cardinality()) == endless:
        raise ValueError(
            f"`{argument}` must have an end; take(count) gives it one. "
            f"Received: {argument}={shown(data)}"
        )


def _sample(
    data: Any, value_range: tuple[float, float], most: int, batch_size: int, seed: int
) -> LabelledImages:
    """All images of any data, or a sample of them that is spread over the classes."""
    kept: Reservoir[tuple[int, Any, Any]] = Reservoir(most, seed)
    for batch, classes in batches_with_labels(data, batch_size):
        for image, label in zip(batch, classes):
            kept.add((kept.seen, image, label), int(label))
    if not kept.seen:
        raise ValueError(f"`validation_data` holds no image. Received: {described(data)}")
    _, images, labels = zip(*sorted(kept.items(), key=lambda item: item[0]))
    return LabelledImages(np.stack(images), np.array(labels), value_range)
