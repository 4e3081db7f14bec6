"""Feature distillation of a batch of images as TensorFlow operations.

Images are float32, channels last, on the 0..255 pixel scale. Every coefficient ``c`` of the
orthonormal DCT-II of every 8x8 block of every channel, with quantisation step ``q`` of its band,
becomes::

    c' = q * round(c * (1 / q) + TIE_OFFSET)

where ``round`` goes to the nearest integer. Its true gradient is 0, which is no protection: an
attacker replaces it by another one (BPDA, Athalye et al. 2018). Two are implemented. The
straight-through gradient treats ``round`` as the identity (Bengio et al. 2013); it is used for
training. The smooth gradient is that of ``round(x) + (x - round(x)) ** 3`` (Shin & Song 2017): it
is large for coefficients that a small change moves to the next multiple of the step, and makes
much stronger attacks.

The other quantiser is soft thresholding (Donoho 1995). It removes the same coefficients, and
moves the others by half a step::

    c' = c - min(max(c, -q / 2), q / 2)    (DC: c' = c)

What is computed is the inverse transform of the ``min``, which is subtracted from the image: that
takes fewer passes over memory. The gradient is its own. It is non-expansive: the transform is
orthonormal, shrinkage moves no two coefficients apart, and neither does the mean over grids. So
the distilled images of two inputs are never farther apart in L2 than the inputs. This is exact
in RGB and grey where sides are multiples of 8 or, on 2 and 4 grids, of 4: images are mirrored at
their edges, and the DCT of half a block with its mirror image is that of 4 pixels. Elsewhere the
images are to be compared as they are continued. A table in YCbCr moves no Y, Cb and Cr apart, and
RGB by a factor of at most 1.76, the condition number of the colour matrix.

Clipping to the value range has the straight-through gradient in all cases.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import checked_choice
from fd_keras._compat import clip
from fd_keras.dct import (
    BLOCK_SIZE,
    RGB_TO_YCBCR,
    TIE_OFFSET,
    YCBCR_TO_RGB,
    ColorSpace,
    Quantizer,
    grid_offsets,
    level_shift,
)

DctMethod = Literal["matmul", "signal"]
Gradient = Literal["straight-through", "smooth"]
Norm = Literal["inf", "2"]

DCT_METHODS: tuple[DctMethod, ...] = get_args(DctMethod)
GRADIENTS: tuple[Gradient, ...] = get_args(Gradient)
NORMS: tuple[Norm, ...] = get_args(Norm)

# By how much a coefficient that the layer computes in float32 may differ from the exact one.
# Worst case of its products for pixels up to 255: 19 roundings of sums up to 2040 (2.3e-3), of
# the product with 1/q (2.5e-4) and of the scaling from another value range (2.5e-4).
TOLERANCE = 0.005

# With more channels, a product with kron(D, colour matrix) costs more multiplications than it
# saves passes over memory.
_MAX_INTERLEAVED_CHANNELS = 4


@functools.cache
def dct_basis() -> npt.NDArray[np.float64]:
    """The 8x8 orthonormal DCT-II matrix ``D``, with ``D @ x`` the transform of ``x``.

    Returns:
        Array ``(8, 8)``, one frequency per row, computed with ``tf.signal.dct``.

    Example:
        >>> bool(np.allclose(dct_basis() @ dct_basis().T, np.eye(8)))
        True
    """
    with tf.init_scope():  # eager, even if the first call is inside a graph
        columns = tf.signal.dct(tf.eye(BLOCK_SIZE, dtype=tf.float64), type=2, norm="ortho")
        basis: npt.NDArray[np.float64] = np.array(columns.numpy().T)
    basis.setflags(write=False)
    return basis


def distil(
    pixels: tf.Tensor,
    steps: tf.Tensor,
    *,
    color_space: ColorSpace = "rgb",
    cycle_spins: int = 1,
    quantizer: Quantizer = "round",
    method: DctMethod = "matmul",
    gradient: Gradient = "straight-through",
    value_range: tuple[float, float] = (0, 255),
) -> tf.Tensor:
    """Quantise the blockwise DCT of images, averaged over shifted block grids.

    Args:
        pixels: float32 ``(batch, height, width, channels)`` in ``value_range``. Any height
            and width: incomplete blocks are completed by repeating the edge, or before soft
            thresholding by mirroring the image at it.
        steps: float32 ``(channels, 8, 8)``, positive, in the order of ``color_space``; for pixels
            from 0 to 255, whatever ``value_range``.
        color_space: Colour space in which the DCT is quantised.
        cycle_spins: Number of block grids.
        quantizer: ``"round"`` or ``"soft"``, as for ``QuantizationTable``.
        method: ``"matmul"``: products with constant matrices, without a transpose, as TFLite
            builtins. ``"signal"``: ``tf.signal.dct`` and ``idct``, as a reference.
        gradient: Gradient that replaces that of rounding; soft thresholding has its own.
        value_range: Pixel values of black and white.

    Returns:
        float32 of the shape of ``pixels`` and in ``value_range``, but not clipped. Any size may
        be 0.

    Example:
        >>> image = tf.fill((1, 16, 16, 3), 77.0)
        >>> out = distil(image, tf.fill((3, 8, 8), 16.0))
        >>> float(tf.round(out[0, 0, 0, 0]))  # DC 616 rounds to 39 steps of 16: 78
        78.0
    """
    if 0 in pixels.shape.as_list():
        return pixels
    soft = quantizer == "soft"
    round_trip, change = _ROUND_TRIPS[method], _clip if soft else _ROUNDINGS[gradient]
    # What soft thresholding removes has no DC, and so no level shift.
    shift = 0.0 if soft else level_shift(color_space)
    if soft:
        # What is removed scales with the pixels, so that the thresholds are scaled instead.
        low, high = value_range
        steps = steps * tf.constant(_THRESHOLDS * ((high - low) / 255), tf.float32)
    else:
        pixels = to_grey_levels(pixels, *value_range)
    straight = gradient == "straight-through" and not soft
    seen = tf.stop_gradient(pixels) if straight else pixels
    total: Any = None
    for offset in grid_offsets(cycle_spins):
        padded = pad_to_blocks(seen, offset, mirror=soft)
        distilled = round_trip(padded, steps, color_space, change, shift)
        distilled = _crop(distilled, offset, pixels)
        total = distilled if total is None else total + distilled
    mean = total * (1 / cycle_spins) if cycle_spins > 1 else total
    if soft:
        return pixels - mean
    mean = _straight_through(pixels, mean) if straight else mean
    return from_grey_levels(mean, *value_range)


def to_grey_levels(values: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Scale float pixels from ``low``..``high`` to 0..255.

    Args:
        values: Tensor of any shape.
        low: Pixel value of black.
        high: Pixel value of white.

    Returns:
        Tensor of the same shape.

    Example:
        >>> to_grey_levels(tf.constant([-1.0, 1.0]), -1.0, 1.0).numpy().tolist()
        [0.0, 255.0]
    """
    return values if (low, high) == (0, 255) else (values - low) * (255.0 / (high - low))


def from_grey_levels(values: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Scale float pixels from 0..255 to ``low``..``high``.

    Args:
        values: Tensor of any shape.
        low: Pixel value of black.
        high: Pixel value of white.

    Returns:
        Tensor of the same shape.

    Example:
        >>> from_grey_levels(tf.constant([0.0, 255.0]), -1.0, 1.0).numpy().tolist()
        [-1.0, 1.0]
    """
    return values if (low, high) == (0, 255) else values * ((high - low) / 255.0) + low


def clip_straight_through(values: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Clip values, with a gradient that is 1 everywhere.

    The true gradient is 0 where quantisation has moved a black or white pixel out of the range,
    about half of them, and would hide the model's gradient from an attacker.

    Args:
        values: Tensor of any shape.
        low: Smallest value.
        high: Largest value.

    Returns:
        Tensor of the same shape; NaN stays NaN.

    Example:
        >>> clip_straight_through(tf.constant([-3.0, 300.0]), 0.0, 255.0).numpy().tolist()
        [0.0, 255.0]
    """

    @tf.custom_gradient
    def clipped(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return clip(x, low, high), lambda upstream: upstream

    return clipped(values)


@tf.custom_gradient
def _straight_through(
    pixels: tf.Tensor, distilled: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
    """``distilled``, with the identity as its gradient with respect to ``pixels``."""
    # If rounding is treated as the identity, the transform and its inverse cancel, and nothing
    # has to be propagated back through them. The gradient of the steps goes through `distilled`.
    return tf.identity(distilled), lambda upstream: (upstream, upstream)


@tf.custom_gradient
def _round_straight_through(
    x: tf.Tensor,
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    return tf.round(x + tf.constant(TIE_OFFSET, x.dtype)), lambda upstream: upstream


@tf.custom_gradient
def round_smoothly(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Round to the nearest integer, with the gradient of a smooth approximation.

    Args:
        x: Float tensor of any shape.

    Returns:
        Tensor of the same shape, whose gradient is ``3 * (x - round(x)) ** 2``.

    Example:
        >>> round_smoothly(tf.constant([1.2, 1.6])).numpy().tolist()
        [1.0, 2.0]

    References:
        Shin & Song, "JPEG-resistant Adversarial Images", NIPS workshop on machine learning and
        computer security, 2017.
    """
    rounded = tf.round(x + tf.constant(TIE_OFFSET, x.dtype))
    return rounded, lambda upstream: upstream * 3 * tf.square(x - rounded)


def _quantise(
    values: tf.Tensor, steps: tf.Tensor, rounded: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    # Not c / q: compilers replace a division by a constant by this product, eager execution does
    # not, and ties would be rounded differently.
    return rounded(values * tf.math.reciprocal(steps)) * steps


def _clip(values: tf.Tensor, thresholds: tf.Tensor) -> tf.Tensor:
    """What soft thresholding removes from coefficients."""
    # Where two operands are equal, TensorFlow's gradient goes to the first one: with the thresholds
    # there, nothing of DC, whose threshold is 0, is removed from the gradient where DC is 0.
    return tf.minimum(thresholds, tf.maximum(-thresholds, values))


# Typing alias: function of coefficients and, in a shape that broadcasts, of their steps.
_Change = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

_ROUNDINGS: dict[Gradient, _Change] = {
    "straight-through": functools.partial(_quantise, rounded=_round_straight_through),
    "smooth": functools.partial(_quantise, rounded=round_smoothly),
}

# Thresholds of soft thresholding in steps, by band: half of one, and 0 for DC.
_THRESHOLDS = np.where(np.arange(BLOCK_SIZE**2).reshape(BLOCK_SIZE, BLOCK_SIZE), 0.5, 0.0)


def coefficients(
    pixels: tf.Tensor, color_space: ColorSpace = "rgb", *, shift: float | None = None
) -> tf.Tensor:
    """Blockwise DCT of images, in the order in which matrix products compute it.

    Along the width, the 8 pixels of a block row are ``8 * channels`` neighbouring numbers:
    one product with ``kron(D, colour matrix)`` transforms them and converts their colour.
    Along the height, ``D`` is multiplied from the left. Nothing is transposed.

    Args:
        pixels: float32 ``(batch, height, width, channels)`` on the 0..255 scale; height and
            width are multiples of 8.
        color_space: Colour space of the coefficients; ``"ycbcr"`` is centred on 128.
        shift: Grey level to centre on instead.

    Returns:
        float32 ``(batch * height / 8, 8, width / 8, 8 * channels)``: vertical frequency on
        axis 1, horizontal frequency and, fastest, channel on axis 3.

    Example:
        >>> c = coefficients(tf.ones((1, 8, 16, 1)))
        >>> c.shape, round(float(c[0, 0, 1, 0]))
        (TensorShape([1, 8, 2, 8]), 8)
    """
    _, _, width, channels = _shape(pixels)
    shift = level_shift(color_space) if shift is None else shift
    x = pixels - shift if shift else pixels
    x = _transform_rows(x, dct_basis(), channels, color_space, inverse=False)
    x = _transform_columns(x, dct_basis(), width * channels)
    return tf.reshape(x, (-1, BLOCK_SIZE, width // BLOCK_SIZE, BLOCK_SIZE * channels))


def linf_gains() -> npt.NDArray[np.float64]:
    """Largest change of each coefficient under a perturbation of one grey level per pixel.

    Returns:
        Array ``(8, 8)``: 8 for DC, 6.6 to 8 elsewhere.

    Example:
        >>> round(float(linf_gains().max()), 2), round(float(linf_gains().min()), 2)
        (8.0, 6.57)
    """
    sums = np.abs(dct_basis()).sum(axis=1)
    return np.asarray(np.outer(sums, sums))


def l2_gains(channels: int, color_space: ColorSpace) -> npt.NDArray[np.float64]:
    """Largest change of a coefficient of each channel under a perturbation of L2 norm 1.

    Args:
        channels: Number of channels of the image.
        color_space: Of the coefficients.

    Returns:
        Array ``(channels,)``.

    Example:
        >>> l2_gains(3, "ycbcr").round(3)
        array([0.669, 0.623, 0.657])
    """
    if color_space == "ycbcr" and channels == 3:
        return np.asarray(np.linalg.norm(RGB_TO_YCBCR, axis=1))
    return np.ones(channels)


def gains(channels: int, color_space: ColorSpace, norm: Norm) -> npt.NDArray[np.float64]:
    """Largest change of each coefficient under a perturbation of size 1.

    Args:
        channels: Number of channels of the image.
        color_space: Of the coefficients.
        norm: Of the perturbation.

    Returns:
        Array ``(channels, 8, 8)``.

    Example:
        >>> gains(3, "rgb", "2").shape
        (3, 8, 8)
    """
    if norm == "inf":
        by_channel = np.ones(channels)
        by_band = linf_gains()
    else:
        by_channel = l2_gains(channels, color_space)
        by_band = np.ones((BLOCK_SIZE, BLOCK_SIZE))
    return np.asarray(by_channel[:, np.newaxis, np.newaxis] * by_band)


def validate_norm(value: object) -> Norm:
    """Return ``value`` if it is the name of a norm.

    Args:
        value: Candidate.

    Raises:
        ValueError: ``value`` is none of ``NORMS``.

    Example:
        >>> validate_norm("inf")
        'inf'
    """
    return checked_choice("norm", value, NORMS)


def _matmul_round_trip(
    pixels: tf.Tensor,
    steps: tf.Tensor,
    color_space: ColorSpace,
    change: _Change,
    shift: float,
) -> tf.Tensor:
    """DCT, quantise and inverse DCT of whole blocks as products with constant matrices."""
    batch, height, width, channels = _shape(pixels)
    # (c, u, v) -> (u, 1, v * c), the order of the coefficients
    grid = tf.reshape(tf.transpose(steps, (1, 2, 0)), (BLOCK_SIZE, 1, BLOCK_SIZE * channels))
    x = change(coefficients(pixels, color_space, shift=shift), grid)
    x = _transform_columns(x, dct_basis().T, width * channels)
    x = _transform_rows(x, dct_basis().T, channels, color_space, inverse=True)
    x = tf.reshape(x, (batch, height, width, channels))
    return x + shift if shift else x


def _transform_columns(x: tf.Tensor, matrix: npt.NDArray[np.float64], stride: Any) -> tf.Tensor:
    """Multiply every 8 rows, which are ``stride`` numbers apart, by ``matrix`` from the left."""
    return tf.matmul(tf.constant(matrix, tf.float32), tf.reshape(x, (-1, BLOCK_SIZE, stride)))


def _transform_rows(
    x: tf.Tensor,
    matrix: npt.NDArray[np.float64],
    channels: int,
    color_space: ColorSpace,
    *,
    inverse: bool,
) -> tf.Tensor:
    """Multiply every 8 pixels along the width by ``matrix``, and convert their colour."""
    if channels > _MAX_INTERLEAVED_CHANNELS:
        return _transform_columns(x, matrix, channels)
    mix = np.eye(channels)
    if color_space == "ycbcr" and channels == 3:
        mix = YCBCR_TO_RGB if inverse else RGB_TO_YCBCR
    interleaved = np.kron(matrix.T, mix.T)
    return tf.matmul(
        tf.reshape(x, (-1, BLOCK_SIZE * channels)), tf.constant(interleaved, tf.float32)
    )


def _signal_round_trip(
    pixels: tf.Tensor,
    steps: tf.Tensor,
    color_space: ColorSpace,
    change: _Change,
    shift: float,
) -> tf.Tensor:
    """The same computation with ``tf.signal``, block by block."""
    batch, height, width, channels = _shape(pixels)
    convert = color_space == "ycbcr" and channels == 3
    x = pixels - shift
    if convert:
        x = tf.tensordot(x, tf.constant(RGB_TO_YCBCR.T, x.dtype), 1)
    x = tf.reshape(
        x, (batch, height // BLOCK_SIZE, BLOCK_SIZE, width // BLOCK_SIZE, BLOCK_SIZE, channels)
    )
    x = tf.transpose(x, (0, 1, 3, 5, 2, 4))  # (batch, block row, block column, channel, 8, 8)
    shape, known = _shape(x), x.shape.is_fully_defined()
    x = tf.reshape(x, (-1, *shape[3:]))
    if not known:
        # TensorFlow's FFT fails on tensors without elements: one block more than there may be.
        x = tf.pad(x, ((0, 1), (0, 0), (0, 0), (0, 0)))
    x = _swap_last_two(tf.signal.dct(x, type=2, norm="ortho"))
    x = _swap_last_two(tf.signal.dct(x, type=2, norm="ortho"))
    x = change(x, steps)
    x = _swap_last_two(tf.signal.idct(x, type=2, norm="ortho"))
    x = _swap_last_two(tf.signal.idct(x, type=2, norm="ortho"))
    x = tf.reshape(x if known else x[:-1], shape)
    x = tf.reshape(tf.transpose(x, (0, 1, 4, 2, 5, 3)), (batch, height, width, channels))
    if convert:
        x = tf.tensordot(x, tf.constant(YCBCR_TO_RGB.T, x.dtype), 1)
    return x + shift


def _swap_last_two(x: tf.Tensor) -> tf.Tensor:
    return tf.transpose(x, (0, 1, 3, 2))


_ROUND_TRIPS: dict[DctMethod, Callable[..., tf.Tensor]] = {
    "matmul": _matmul_round_trip,
    "signal": _signal_round_trip,
}


def pad_to_blocks(
    x: tf.Tensor, offset: tuple[int, int] = (0, 0), *, mirror: bool = False
) -> tf.Tensor:
    """Continue images beyond their edges, so that all 8x8 blocks are complete.

    Args:
        x: ``(batch, height, width, channels)``, any height and width.
        offset: Number of pixels that are added at the top and at the left.
        mirror: Whether images are mirrored at their edges; otherwise the edges are repeated.

    Returns:
        ``(batch, padded height, padded width, channels)``, both multiples of 8.

    Example:
        >>> pad_to_blocks(tf.zeros((1, 9, 8, 3)), (0, 4)).shape
        TensorShape([1, 16, 16, 3])
    """
    for axis, before in zip((1, 2), offset):
        size = _shape(x)[axis]
        if before == 0 and isinstance(size, int) and size % BLOCK_SIZE == 0:
            continue
        x = tf.gather(x, _continued(size, before, mirror), axis=axis)
    return x


def _continued(size: Any, before: int, mirror: bool) -> Any:
    """Index into the axis of the image for every position of the padded axis."""
    padded = (before + size + BLOCK_SIZE - 1) // BLOCK_SIZE * BLOCK_SIZE
    if isinstance(size, int):
        index = np.arange(padded, dtype=np.int32) - before
        if mirror:  # again and again, where the image is smaller than what is added
            index %= 2 * size
            return np.minimum(index, 2 * size - 1 - index)
        return np.clip(index, 0, size - 1)
    if before:
        padded *= tf.minimum(size, 1)  # an empty image has no edge to continue
    index = tf.range(padded) - before
    if mirror:
        index = tf.math.floormod(index, tf.maximum(2 * size, 1))
        return tf.minimum(index, 2 * size - 1 - index)
    return tf.minimum(tf.maximum(index, 0), size - 1)


def _crop(x: tf.Tensor, offset: tuple[int, int], like: tf.Tensor) -> tf.Tensor:
    """Undo ``pad_to_blocks``: crop ``x`` to the image ``like``."""
    if x.shape.is_fully_defined() and x.shape == like.shape:
        return x
    (dy, dx), (_, height, width, _) = offset, _shape(like)
    cropped = x[:, dy : dy + height, dx : dx + width, :]
    cropped.set_shape(like.shape)
    return cropped


def _shape(x: tf.Tensor) -> list[Any]:
    """Sizes of the axes: Python integers if static, scalar tensors otherwise."""
    dynamic = tf.shape(x)
    return [dynamic[i] if size is None else size for i, size in enumerate(x.shape.as_list())]
