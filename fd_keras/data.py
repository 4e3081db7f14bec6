"""Reading images from whatever a Keras user keeps them in, batch by batch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

Batch = npt.NDArray[Any]


def image_batches(data: Any, *, batch_size: int = 32, steps: int | None = None) -> Iterator[Batch]:
    """Iterate over batches of images, leaving out labels.

    Args:
        data: One of

            * an array or tensor ``(n, height, width, channels)``, alone or as the first of a
              tuple ``(images, labels, ...)``;
            * a ``tf.data.Dataset`` or a ``PyDataset`` (Keras 2: ``Sequence``), batched or not,
              of images or of tuples that begin with images;
            * any iterable of images ``(height, width, channels)`` or batches, sizes may vary.
        batch_size: For arrays and single images; data in batches comes in its own. Single
            images are stacked while they are of one size and follow each other.
        steps: Stop after so many batches.

    Yields:
        Arrays ``(n, height, width, channels)`` of the data's own dtype.

    Raises:
        ValueError: An element is no image or batch of images.
        TypeError: ``data`` cannot be iterated over.

    Example:
        >>> [batch.shape for batch in image_batches(np.zeros((5, 8, 8, 3)), batch_size=4)]
        [(4, 8, 8, 3), (1, 8, 8, 3)]
    """
    return itertools.islice(_stacked(_elements(data, batch_size), batch_size), steps)


def _elements(data: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(data, tuple):
        data = data[0]
    if isinstance(data, (str, bytes, os.PathLike)):
        raise TypeError(
            "`data` must hold images; open files with fd_keras.sources.open_images(path). "
            f"Received: data={data!r}"
        )
    if isinstance(data, (np.ndarray, tf.Tensor)):
        if len(data.shape) == 3:
            return [data]
        return (data[start : start + batch_size] for start in range(0, len(data), batch_size))
    if isinstance(data, keras.utils.Sequence):
        # Indexed, not iterated: some versions of Keras iterate over it without end.
        return (data[index] for index in range(len(data)))
    try:
        return iter(data)
    except TypeError:
        raise TypeError(
            f"`data` must be an array, a dataset or an iterable of images. Received: data={data!r}"
        ) from None


def _stacked(elements: Iterable[Any], batch_size: int) -> Iterator[Batch]:
    """Batches as they are, and single images in batches of their own."""
    waiting: list[Batch] = []
    for element in elements:
        array = _image_array(element)
        if waiting and (array.shape != waiting[0].shape or len(waiting) == batch_size):
            yield np.stack(waiting)
            waiting = []
        if array.ndim == 4:
            yield array
        else:
            waiting.append(array)
    if waiting:
        yield np.stack(waiting)


def _image_array(element: Any) -> Batch:
    array = np.asarray(element[0] if isinstance(element, (tuple, list)) else element)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(
            "`data` must hold images (height, width, channels) or batches of them. "
            f"Received: an element of shape {array.shape}"
        )
    return array
