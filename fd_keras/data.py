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
        batch_size: For arrays; other data comes in its own batches. Consecutive single images
            of one size are not stacked.
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
    batches = (_as_batch(element) for element in _elements(data, batch_size))
    return itertools.islice(batches, steps)


def _elements(data: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(data, tuple):
        data = data[0]
    if isinstance(data, (str, bytes, os.PathLike)):
        raise TypeError(
            "`data` must hold images; open a file or directory with fd_keras.data.open_images. "
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


def _as_batch(element: Any) -> Batch:
    if isinstance(element, (tuple, list)):
        element = element[0]
    batch = np.asarray(element)
    if batch.ndim == 3:
        batch = batch[np.newaxis]
    if batch.ndim != 4 or 0 in batch.shape:
        raise ValueError(
            "`data` must hold images (height, width, channels) or batches of them. "
            f"Received: an element of shape {batch.shape}"
        )
    return batch
