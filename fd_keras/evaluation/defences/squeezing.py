"""Feature Squeezing's two defences: bit-depth reduction and median smoothing."""

from __future__ import annotations

import functools
import importlib.util
import itertools

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import checked_whole
from fd_keras._extras import import_extra
from fd_keras.evaluation.defences.base import Defence, Encoder, image_by_image, stored_as_png

# By how much float32 may move the boundary between two levels.
_TOLERANCE = 0.001


def bit_depth(bits: int = 5) -> Defence:
    """Round every pixel to one of ``2**bits`` evenly spaced levels from 0 to 255.

    In two passes, images are stored with these levels, rounded to whole pixel values. No
    perturbation that is smaller than the distance of every pixel to the boundary between its level
    and the next one changes the result: 8.5 grey levels for four bits.

    Args:
        bits: Bits per pixel and channel, from 1 to 8.

    Returns:
        The defence: ``x`` in 0..1 becomes ``round(x * (2**bits - 1)) / (2**bits - 1)``.

    Raises:
        ValueError: ``bits`` is out of range.

    Example:
        >>> bit_depth(1)(np.array([[[[100], [200]]]])).ravel()
        array([  0., 255.], dtype=float32)

    References:
        Xu et al., "Feature Squeezing: Detecting Adversarial Examples in Deep Neural
        Networks", NDSS 2018.
    """
    bits = checked_whole("bits", bits, 1, 8)
    # Multiplied by one float32 number, so that the levels are exact where 255 is a multiple.
    step = np.float32(255 / (2**bits - 1))
    return Defence(
        f"{bits} bit" + ("s" if bits > 1 else ""),
        "bit depth",
        lambda batch, _: np.rint(batch / step) * step,
        {"bits": bits},
        encoder=Encoder(
            lambda images: stored_as_png(np.rint(np.rint(images / step) * step)),
            "PNG",
            functools.partial(_distances, step=float(step)),
        ),
    )


def _distances(images: npt.NDArray[np.uint8], step: float) -> npt.NDArray[np.float64]:
    """Of each image, the distance in grey levels to the nearest boundary between two levels."""
    pixels = images.astype(np.float64).reshape(len(images), -1)
    level = np.rint(pixels / step)
    above = (level + 0.5) * step - pixels
    below = pixels - (level - 0.5) * step
    # There is nothing above white and below black.
    above[level >= round(255 / step)] = np.inf
    below[level <= 0] = np.inf
    return np.asarray(np.minimum(above, below).min(axis=1) - _TOLERANCE)


def median_smoothing(size: int = 2) -> Defence:
    """Replace every pixel by the median of the window around it, in each channel.

    Borders are mirrored. A window of even size extends up and to the left of its pixel, and the
    larger of the two middle values is taken, as in Feature Squeezing and in SciPy's filter, which
    ART calls. tensorflow-addons, if installed, filters with odd sizes, where both agree; its even
    windows extend down and to the right, and it takes the mean of the middle values.

    Args:
        size: Height and width of the window in pixels, at least 2; the paper uses 2 and 3.

    Returns:
        The defence.

    Raises:
        ImportError: ART is not installed.
        ValueError: ``size`` is out of range.

    Example:
        >>> image = np.array([[10, 10, 10], [10, 99, 10], [10, 10, 10]]).reshape(1, 3, 3, 1)
        >>> float(median_smoothing(3)(image).max())
        10.0

    References:
        Xu et al., "Feature Squeezing: Detecting Adversarial Examples in Deep Neural
        Networks", NDSS 2018.
    """
    size = checked_whole("size", size, 2)
    if size % 2 and importlib.util.find_spec("tensorflow_addons"):
        addons = import_extra("tensorflow_addons", "addons")
        # One image at a time: the windows of many would not fit into memory.
        transform = image_by_image(
            lambda image: addons.image.median_filter2d(image, size, "SYMMETRIC").numpy()
        )
        library = f"tensorflow-addons {addons.__version__}"
    else:
        art = import_extra("art", "evaluate")
        smoothing = import_extra("art.defences.preprocessor", "evaluate").SpatialSmoothing(size)
        transform = lambda batch, _: smoothing(batch)[0]  # noqa: E731
        library = f"ART {art.__version__}"
    graph = functools.partial(_median, size=size)
    return Defence(
        f"median {size}x{size}",
        "median",
        transform,
        {"size": size, "library": library},
        smooth=graph,
        graph=graph,
    )


def _median(images: tf.Tensor, size: int) -> tf.Tensor:
    """The same medians as TensorFlow operations; the gradient goes to the median pixel."""
    before = size // 2
    border = [before, size - 1 - before]
    padded = tf.pad(images, [[0, 0], border, border, [0, 0]], "SYMMETRIC")
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    window = [
        padded[:, row : row + height, column : column + width]
        for row, column in itertools.product(range(size), repeat=2)
    ]
    values, middle = tf.stack(window, axis=-1), size * size // 2
    # Half the time of tf.sort, which ranks the upper half, too, and scatters gradients back.
    chosen = tf.math.top_k(-values, middle + 1).indices[..., middle]
    return tf.reduce_sum(tf.one_hot(chosen, size * size) * values, axis=-1)
