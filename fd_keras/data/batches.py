"""Batches of images from arrays, data sets and iterables."""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import shown
from fd_keras.data.samples import spread_order
from fd_keras.data.sources import ImageSource
from fd_keras.dct import BLOCK_SIZE

Batch = npt.NDArray[Any]

# Pixels that are processed at once. A 12-megapixel photo takes 150 MB as float32, and several
# copies exist while its blocks are transformed.
PIXELS_AT_ONCE = 2**22

_SAMPLE_SEED = 1

# An array of rank 3 with more channels is more likely a batch without a channel axis.
_MOST_CHANNELS = 4


def image_batches(
    data: Any, *, batch_size: int = 32, steps: int | None = None, channel_axis: int = -1
) -> Iterator[Batch]:
    """Iterate over batches of images, leaving out labels.

    Args:
        data: One of

            * an array or tensor ``(n, height, width, channels)``, alone or as the first of a
              tuple ``(images, labels, ...)``;
            * a ``tf.data.Dataset`` or a ``PyDataset`` (Keras 2: ``Sequence``), batched or not,
              of images or of tuples that begin with images;
            * any iterable of images ``(height, width, channels)`` or batches, sizes may vary.
              Single images have 4 channels at most.
        batch_size: Number of images in a batch, where ``data`` is not batched already. Single
            images are stacked if they follow each other, have the same shape, and have no more
            than 4 megapixels together.
        steps: Maximum number of batches; ``None``: all. Of arrays and files they are a random
            sample, spread over the labels or folders; of data sets and iterables, the first.
        channel_axis: -1, or -3 for data with channels first.

    Yields:
        Arrays of rank 4, of the data's own dtype and order of axes.

    Raises:
        ValueError: An element is no image or batch of images, or a number is not positive.
        TypeError: ``data`` cannot be iterated over.

    Example:
        >>> [batch.shape for batch in image_batches(np.zeros((5, 8, 8, 3)), batch_size=4)]
        [(4, 8, 8, 3), (1, 8, 8, 3)]
    """
    batch_size = _positive("batch_size", batch_size)
    limit = None if steps is None else _positive("steps", steps)
    if limit is not None:
        data = image_sample(data, limit * batch_size)
    arrays = (_image_array(element, channel_axis) for element in _elements(data, batch_size))
    return itertools.islice(_stacked(arrays, batch_size), limit)


def parts_of_batch(batch: Batch) -> Iterator[Batch]:
    """Split a batch into parts of bounded size: whole images, or whole rows of 8x8 blocks.

    Args:
        batch: Images ``(n, height, width, channels)``.

    Yields:
        Views of ``batch``, of about 4 megapixels at most.

    Example:
        >>> [part.shape for part in parts_of_batch(np.zeros((1, 3000, 4000, 1), np.uint8))]
        [(1, 1048, 4000, 1), (1, 1048, 4000, 1), (1, 904, 4000, 1)]
    """
    _, height, width, _ = batch.shape
    images = max(1, PIXELS_AT_ONCE // (height * width))
    rows = max(1, PIXELS_AT_ONCE // (width * BLOCK_SIZE)) * BLOCK_SIZE
    for start in range(0, len(batch), images):
        for top in range(0, height, rows):
            yield batch[start : start + images, top : top + rows]


def elements(data: Any, expected: str) -> Iterable[Any]:
    """Iterate over a data set or another iterable.

    Args:
        data: Any iterable.
        expected: What the error message says that ``data`` must be.

    Raises:
        TypeError: ``data`` cannot be iterated over.

    Example:
        >>> list(elements([1, 2], "an iterable"))
        [1, 2]
    """
    if isinstance(data, keras.utils.Sequence):
        # By index, because iterating over one never ends in some versions of Keras.
        return (data[index] for index in range(len(data)))
    try:
        return iter(data)
    except TypeError:
        raise TypeError(f"`data` must be {expected}. Received: data={described(data)}") from None


def described(data: Any) -> str:
    """Describe data in an error message: arrays by shape and dtype, not by their values.

    Args:
        data: Data of any type.

    Example:
        >>> described(np.zeros((0, 8, 8, 3)))
        'ndarray of shape (0, 8, 8, 3) and dtype float64'
    """
    if isinstance(data, tuple) and data:
        return described(data[0])
    if hasattr(data, "shape") and hasattr(data, "dtype"):
        return f"{type(data).__name__} of shape {tuple(data.shape)} and dtype {data.dtype}"
    return shown(data if data is None or isinstance(data, (str, os.PathLike)) else type(data))


def _positive(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={shown(value)}")
    return number


def image_sample(data: Any, count: int) -> Any:
    """A random sample of images, spread over labels or folders, of data that can be sampled.

    Args:
        data: As for ``image_batches``.
        count: Number of images.

    Returns:
        Images of an array in their order, or a source whose first ``count`` are the sample; data
        sets and iterables as they are.

    Example:
        >>> images, labels = np.zeros((90, 8, 8, 3)), np.repeat([0, 1, 2], 30)
        >>> image_sample((images, labels), 6).shape
        (6, 8, 8, 3)
    """
    if isinstance(data, ImageSource):
        return data.sampled(count, _SAMPLE_SEED)
    several = isinstance(data, tuple) and len(data) > 1
    images, labels = data[:2] if several else (data, None)
    if not isinstance(images, (np.ndarray, tf.Tensor)) or len(images.shape) != 4:
        return data
    if len(images) <= count:
        return data
    groups = np.zeros(len(images), np.int64)
    if labels is not None and np.size(labels) == len(images):
        groups = np.unique(np.ravel(labels), return_inverse=True)[1]
    chosen = np.sort(spread_order(groups, _SAMPLE_SEED)[:count])
    return np.asarray(images)[chosen]


def _elements(data: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(data, tuple) and data:
        # Of a single image and its label, the label has no such shape.
        several = all(len(getattr(part, "shape", ())) == 3 for part in data)
        data = list(data) if several else data[0]
    if isinstance(data, (str, bytes, os.PathLike)):
        raise TypeError(
            "`data` must hold images; open files with fd_keras.data.sources.open_images(path). "
            f"Received: data={shown(data)}"
        )
    if isinstance(data, (np.ndarray, tf.Tensor)):
        if len(data.shape) == 3:
            return [data]
        return (data[start : start + batch_size] for start in range(0, len(data), batch_size))
    return elements(data, "an array, a dataset or an iterable of images")


def _stacked(arrays: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    """Stack single images into batches; batches stay as they are."""
    waiting: list[Batch] = []
    for array in arrays:
        if waiting and (array.shape != waiting[0].shape or _is_full(waiting, batch_size)):
            yield np.stack(waiting)
            waiting = []
        if array.ndim == 4:
            yield array
        else:
            waiting.append(array)
    if waiting:
        yield np.stack(waiting)


def _is_full(images: list[Batch], batch_size: int) -> bool:
    values = (len(images) + 1) * images[0].size
    return len(images) == batch_size or values > PIXELS_AT_ONCE * 3


def _image_array(element: Any, channel_axis: int) -> Batch:
    array = np.asarray(element[0] if isinstance(element, (tuple, list)) and element else element)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(
            "`data` must hold images (height, width, channels) or batches of them. "
            f"Received: an element of shape {array.shape}"
        )
    if array.ndim == 3 and array.shape[channel_axis] > _MOST_CHANNELS:
        raise ValueError(
            "`data` must have a channel axis: use images[..., np.newaxis] for grey images, and "
            f"image[np.newaxis] for one of more than {_MOST_CHANNELS} channels. "
            f"Received: an element of shape {array.shape}"
        )
    return array
