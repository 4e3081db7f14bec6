"""The images of an evaluation: those that the classifier alone gets right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras.data import elements
from fd_keras.evaluation.accuracy import checked_labels
from fd_keras.evaluation.classifiers import EvaluatedClassifier
from fd_keras.evaluation.store import array_hash
from fd_keras.outputs import check_outputs
from fd_keras.value_range import check_pixels


@dataclass(frozen=True, eq=False)
class Selection:
    """Labelled images in the classifier's value range.

    Args:
        pixels: ``(n, height, width, channels)`` in the data's own dtype.
        labels: Classes ``(n,)``.
        value_range: Of the pixels.
        seen: Number of images that were looked at to find these.

    Example:
        >>> pixels = np.array([[[[0]]], [[[255]]]], np.uint8)
        >>> chosen = Selection(pixels, np.array([0, 1]), (0.0, 255.0), seen=3)
        >>> chosen[1:].unit_images().ravel()
        array([1.], dtype=float32)
    """

    pixels: npt.NDArray[Any]
    labels: npt.NDArray[np.integer]
    value_range: tuple[float, float]
    seen: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice) -> Selection:
        return Selection(self.pixels[index], self.labels[index], self.value_range, self.seen)

    def unit_images(self) -> npt.NDArray[np.float32]:
        """The images as float32, pixels from 0 to 1."""
        return unit_images(self.pixels, self.value_range)

    @property
    def fingerprint(self) -> str:
        """A hash of images and labels."""
        return array_hash(self.pixels, self.labels)


def unit_images(pixels: npt.NDArray[Any], value_range: Sequence[float]) -> npt.NDArray[np.float32]:
    """Map pixels from a value range to 0..1.

    Example:
        >>> unit_images(np.array([-1, 1]), (-1, 1))
        array([0., 1.], dtype=float32)
    """
    low, high = value_range
    return np.clip((pixels.astype(np.float32) - low) / (high - low), 0, 1)


def select(
    classifier: EvaluatedClassifier, data: Any, *, max_images: int, batch_size: int
) -> Selection:
    """Read labelled images until enough are found that the classifier gets right.

    Args:
        classifier: The classifier without any defence.
        data: ``(images, labels)``, a ``tf.data.Dataset``, a ``PyDataset`` or an iterable of
            batches ``(images, labels)``; images in the classifier's value range, labels as
            integers.
        max_images: Stop when so many are found.
        batch_size: Number of images classified at once.

    Raises:
        ValueError: Images, labels and classifier do not fit, or no image is classified
            correctly.
        TypeError: ``data`` is nothing of the above.
    """
    pixels, labels, seen, found = [], [], 0, 0
    for batch, classes in batches_with_labels(data, batch_size):
        right = classified_correctly(classifier, batch, classes)
        keep = np.flatnonzero(right)[: max_images - found]
        found += len(keep)
        seen += len(batch) if found < max_images else int(keep[-1]) + 1
        pixels.append(batch[keep])
        labels.append(classes[keep])
        if found == max_images:
            break
    if found == 0:
        raise ValueError(
            "`data` must hold images that `model` classifies correctly; it gets none of the "
            f"{seen} right. Check the order of the classes and `value_range`, which is "
            f"{classifier.value_range} here"
        )
    value_range = classifier.value_range
    return Selection(np.concatenate(pixels), np.concatenate(labels), value_range, seen)


def batches_with_labels(
    data: Any, batch_size: int
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.integer]]]:
    """Batches of images and their classes from whatever a Keras user keeps them in.

    Args:
        data: As for ``select``.
        batch_size: Number of images in a batch, where ``data`` is not batched by itself.

    Raises:
        ValueError: Images and labels do not fit.
        TypeError: ``data`` is of another type.

    Example:
        >>> data = np.zeros((3, 8, 8, 1)), np.arange(3)
        >>> [labels.tolist() for _, labels in batches_with_labels(data, 2)]
        [[0, 1], [2]]
    """
    for element in _elements(data, batch_size):
        if not isinstance(element, (tuple, list)) or len(element) < 2:
            raise TypeError(
                "`data` must be (images, labels), or batches of them. "
                f"Received: an element of type {type(element).__name__}"
            )
        images, labels = np.asarray(element[0]), np.asarray(element[1])
        if images.ndim == 3:  # a data set that is not batched
            images, labels = images[np.newaxis], labels[np.newaxis]
        if labels.ndim == 2 and labels.shape[1] == 1:  # as keras.datasets.cifar10 has them
            labels = labels[:, 0]
        yield images, checked_labels(labels, len(images))


def _elements(data: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(data, (tuple, list)) and len(data) == 2 and np.ndim(data[0]) == 4:
        images, labels = np.asarray(data[0]), np.asarray(data[1])
        if len(images) != len(labels):
            raise ValueError(
                "`data` must hold one label per image. Received: "
                f"{len(images)} images and {len(labels)} labels"
            )
        starts = range(0, len(images), batch_size)
        return ((images[i : i + batch_size], labels[i : i + batch_size]) for i in starts)
    return elements(data, "(images, labels) or an iterable of such batches")


def classified_correctly(
    classifier: EvaluatedClassifier,
    batch: npt.NDArray[Any],
    labels: npt.NDArray[np.integer],
) -> npt.NDArray[np.bool_]:
    """Which images a classifier gets right, once all fits together.

    Args:
        classifier: The classifier without any defence.
        batch: Images in its value range.
        labels: Their classes.

    Raises:
        ValueError: Images, labels and classifier do not fit.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> classifier = EvaluatedClassifier(model, value_range=(0, 1), from_logits=True)
        >>> classified_correctly(classifier, np.array([[[[0.2], [0.9]]]]), np.array([1]))
        array([ True])
    """
    check_pixels(batch, classifier.value_range)
    expected = getattr(classifier.model, "input_shape", None)
    if isinstance(expected, tuple) and len(expected) == 4:
        wrong = [e for e, size in zip(expected[1:], batch.shape[1:]) if e not in (None, size)]
        if wrong or batch.ndim != 4:
            raise ValueError(
                f"`data` must hold images of shape {expected[1:]}, which `model` takes. "
                f"Received: images of shape {batch.shape[1:]}"
            )
    outputs = classifier.outputs(unit_images(batch, classifier.value_range))
    if outputs.ndim != 2:
        raise ValueError(
            "`model` must return one batch of outputs (batch, classes). "
            f"Received: outputs of shape {outputs.shape}"
        )
    check_outputs(outputs, from_logits=classifier.from_logits)
    if labels.min() < 0 or labels.max() >= outputs.shape[1]:
        raise ValueError(
            f"`data` must have labels from 0 to {outputs.shape[1] - 1}, the classes of `model`. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )
    return np.asarray(outputs.argmax(axis=-1) == labels)
