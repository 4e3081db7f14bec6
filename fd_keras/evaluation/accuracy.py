"""How many images a classifier gets right."""

from __future__ import annotations

import keras
import numpy as np
import numpy.typing as npt


def predicted_classes(
    model: keras.Model, images: npt.NDArray[np.generic], *, batch_size: int = 128
) -> npt.NDArray[np.int64]:
    """The class with the largest output, for each image.

    Args:
        model: Classifier from images to logits or probabilities ``(batch, classes)``.
        images: Batch in the range the model takes.
        batch_size: Number of images that are classified at once.

    Returns:
        Array ``(batch,)``.

    Example:
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> predicted_classes(model, np.array([[[[3.0], [5.0]]]]))
        array([1])
    """
    outputs = model.predict(images, batch_size=batch_size, verbose=0)
    return np.asarray(outputs).argmax(axis=-1).astype(np.int64)


def accuracy(
    model: keras.Model,
    images: npt.NDArray[np.generic],
    labels: npt.NDArray[np.integer],
    *,
    batch_size: int = 128,
) -> float:
    """The share of images whose predicted class is their label.

    An accuracy on attacked images means nothing without its threat model: say whether the
    attacker knew the layer.

    Args:
        model: Classifier from images to logits or probabilities ``(batch, classes)``.
        images: Batch in the range the model takes.
        labels: Integer classes ``(batch,)``.
        batch_size: Number of images that are classified at once.

    Returns:
        A number from 0 to 1.

    Raises:
        ValueError: ``labels`` are not one integer per image, or there are none.

    Example:
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> accuracy(model, np.array([[[[3.0], [5.0]]], [[[1.0], [0.0]]]]), np.array([1, 1]))
        0.5
    """
    labels = checked_labels(labels, len(images))
    return float(np.mean(predicted_classes(model, images, batch_size=batch_size) == labels))


def checked_labels(labels: npt.ArrayLike, count: int) -> npt.NDArray[np.integer]:
    """Return ``labels`` as an array when they are integers, one for each of ``count`` images.

    Args:
        labels: Candidate.
        count: Number of images, at least one.

    Raises:
        ValueError: They are anything else.

    Example:
        >>> checked_labels([3, 1], 2)
        array([3, 1])
    """
    array = np.asarray(labels)
    if count == 0 or array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            "`labels` must be one integer class per image, for at least one image. "
            f"Received: labels of shape {array.shape} and dtype {array.dtype} for {count} images"
        )
    return array
