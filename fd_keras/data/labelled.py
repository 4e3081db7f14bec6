"""Labelled images: in memory, and in batches from arrays, data sets and iterables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras._checks import checked_labels
from fd_keras.data.batches import elements

# Typing alias: images and their classes.
LabelledBatch = tuple[npt.NDArray[Any], npt.NDArray[np.integer]]

# Larger labels are mistakes, or overflow in TensorFlow's operations.
LARGEST_LABEL = 2**31 - 1


@dataclass(frozen=True, eq=False, repr=False)
class LabelledImages:
    """Labelled images in memory, with the position of each in the data it was taken from.

    Args:
        images: ``(n, height, width, channels)`` in ``value_range``, of the data's own dtype.
        labels: Integer classes ``(n,)``.
        value_range: Lowest and highest pixel value.
        indices: Position of each image in the data that it was taken from, ``(n,)``.
            Default: 0, 1, 2, ...
        seen: Number of images of that data that were read. Default: ``n``.

    Example:
        >>> images = np.array([[[[0]]], [[[255]]]], np.uint8)
        >>> both = LabelledImages(images, np.array([0, 1]), (0.0, 255.0))
        >>> both[1:].unit_images().ravel(), both[1:].indices
        (array([1.], dtype=float32), array([1]))
    """

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.integer]
    value_range: tuple[float, float]
    indices: npt.NDArray[np.integer] = None  # type: ignore[assignment]
    seen: int = -1

    def __post_init__(self) -> None:
        if self.indices is None:
            object.__setattr__(self, "indices", np.arange(len(self.labels)))
        if self.seen < 0:
            object.__setattr__(self, "seen", len(self.labels))

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"<{type(self).__name__}: {len(self)} images, {shape}, {self.images.dtype}>"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | npt.NDArray[np.integer]) -> LabelledImages:
        return LabelledImages(
            self.images[index],
            self.labels[index],
            self.value_range,
            self.indices[index],
            self.seen,
        )

    def unit_images(self) -> npt.NDArray[np.float32]:
        """The images as float32, pixels from 0 to 1."""
        return unit_images(self.images, self.value_range)

    @property
    def fingerprint(self) -> str:
        """A hash of images and labels."""
        return array_hash(self.images, self.labels)


def unit_images(pixels: npt.NDArray[Any], value_range: Sequence[float]) -> npt.NDArray[np.float32]:
    """Map pixels from a value range to 0..1.

    Example:
        >>> unit_images(np.array([-1, 1]), (-1, 1))
        array([0., 1.], dtype=float32)
    """
    low, high = value_range
    return np.clip((pixels.astype(np.float32) - low) / (high - low), 0, 1)


def batches_with_labels(data: Any, batch_size: int) -> Iterator[LabelledBatch]:
    """Iterate over batches of images with their classes.

    Args:
        data: ``(images, labels)``, or a ``tf.data.Dataset``, a ``PyDataset`` (Keras 2:
            ``Sequence``) or another iterable of such batches or of single images with their
            labels. Labels are whole numbers, integers or floats.
        batch_size: Number of images in a batch, where ``data`` is not batched already.

    Yields:
        Images ``(batch, height, width, channels)`` of the data's own dtype, and labels
        ``(batch,)``.

    Raises:
        ValueError: Images and labels do not fit each other.
        TypeError: ``data`` is of another type.

    Example:
        >>> data = np.zeros((3, 8, 8, 1)), np.arange(3)
        >>> [labels.tolist() for _, labels in batches_with_labels(data, 2)]
        [[0, 1], [2]]
        >>> [labels.tolist() for _, labels in batches_with_labels(zip(*data), 2)]
        [[0, 1], [2]]
    """
    singles: list[LabelledBatch] = []
    for images, labels in map(_pair, _elements(data, batch_size)):
        if singles and (len(singles) == batch_size or images.shape != singles[0][0].shape):
            yield _stacked(singles)
            singles = []
        if images.ndim == 3:
            singles.append((images, labels))
        else:
            yield images, _class_labels(labels, len(images))
    if singles:
        yield _stacked(singles)


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


def _pair(element: Any) -> LabelledBatch:
    if not isinstance(element, (tuple, list)) or len(element) < 2:
        raise TypeError(
            "`data` must be (images, labels), or batches of them. "
            f"Received: an element of type {type(element).__name__}"
        )
    return np.asarray(element[0]), np.asarray(element[1])


def _stacked(singles: Sequence[LabelledBatch]) -> LabelledBatch:
    images, labels = (np.stack(part) for part in zip(*singles))
    return images, _class_labels(labels, len(images))


def _class_labels(labels: npt.NDArray[Any], count: int) -> npt.NDArray[np.integer]:
    return checked_classes(checked_labels(labels, count))


def checked_classes(labels: npt.NDArray[np.integer], where: str = "") -> npt.NDArray[np.integer]:
    """Return labels if they can be classes.

    Args:
        labels: Integers.
        where: Name of the file that holds them.

    Raises:
        ValueError: One is negative, or exceeds ``LARGEST_LABEL``.

    Example:
        >>> checked_classes(np.array([0, -1]))
        Traceback (most recent call last):
        ...
        ValueError: `labels` must lie between 0 and 2147483647. Received: labels from -1 to 0
    """
    if labels.size and (labels.min() < 0 or labels.max() > LARGEST_LABEL):
        raise ValueError(
            f"`labels` must lie between 0 and {LARGEST_LABEL}. Received: labels from "
            f"{labels.min()} to {labels.max()}{f' in {where}' if where else ''}"
        )
    return labels


def array_hash(*arrays: npt.NDArray[Any]) -> str:
    """A hash of the values, shapes and dtypes of arrays.

    Example:
        >>> array_hash(np.zeros(3)) == array_hash(np.zeros(3))
        True
        >>> array_hash(np.zeros(3)) == array_hash(np.zeros(4))
        False
    """
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str((array.shape, array.dtype)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
