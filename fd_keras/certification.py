"""Certified radii: how large a perturbation provably cannot change a distilled image.

A perturbation of at most ``e`` grey levels per pixel changes the coefficient of band ``(u, v)``
by at most ``e * L1[u, v]``, where ``L1 = outer(s, s)`` and ``s[u]`` is the sum of the absolute
values of row ``u`` of the DCT matrix: the coefficient is a sum of pixels with weights
``D[u, i] * D[v, j]``, and the absolute weights sum to ``s[u] * s[v]``. In YCbCr each component is
a sum of R, G and B whose absolute weights sum to 1, so that the bound is the same. A perturbation
of L2 norm ``n`` changes it by at most ``n`` times the L2 norm of the component's weights (1 in
RGB), because the DCT is orthonormal. As long as no coefficient crosses the boundary to another
level, all indices stay, and with them everything that is computed from the indices alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import of_another_scale, shown, validate_epsilon, validate_value_range
from fd_keras.data.batches import PIXELS_AT_ONCE
from fd_keras.dct import (
    BLOCK_SIZE,
    TIE_OFFSET,
    ColorSpace,
    grid_offsets,
    validate_color_space,
)
from fd_keras.kernels import (
    NORMS,
    TOLERANCE,
    Norm,
    coefficients,
    gains,
    linf_gains,
    pad_to_blocks,
    to_grey_levels,
    validate_norm,
)
from fd_keras.presets import ROUNDING, TableLike, as_table, certified_name, certified_steps
from fd_keras.tables import QuantizationTable, check_rounds

FloatArray = npt.NDArray[np.float64]

# Rounding pixels gives 0.3 to 0.5, clipping them up to 0.3 more. Changing every pixel by
# one level gives more than 1, and photographs that are not encoded several levels.
LARGEST_ENCODED_RESIDUAL = 1.0


@dataclass(frozen=True)
class LimitingCoefficient:
    """The coefficient that decides an image's L-inf radius.

    Args:
        row: Of its block, from the top.
        column: Of its block, from the left.
        channel: In the order of the table's colour space.
        band: Vertical and horizontal frequency.
        offset: Vertical and horizontal offset of the block grid in pixels.
    """

    row: int
    column: int
    channel: int
    band: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return f"block ({self.row}, {self.column}), channel {self.channel}, band {self.band}"


@dataclass(frozen=True, eq=False)
class Certificate:
    """How large a perturbation each image provably withstands.

    Args:
        linf_radius: ``(n,)``, grey levels of 255: every perturbation of at most this much per pixel
            leaves all quantisation indices, and so the distilled image, as they are.
        l2_radius: ``(n,)``, grey levels of 255: the same for perturbations whose L2 norm over
            all pixels and channels is at most this.
        limiting: The coefficient that decides each ``linf_radius``.
        residual: ``(n,)``, grey levels of 255: root mean square distance of the coefficients from
            the levels they are rounded to. 0.2 to 0.6 for what ``encode`` made, 0.5 to 0.8 for what
            libjpeg decodes of a file of ``encode_jpeg``, and several levels for other images.

    Example:
        See ``certify``.
    """

    linf_radius: FloatArray
    l2_radius: FloatArray
    limiting: Sequence[LimitingCoefficient]
    residual: FloatArray

    def __len__(self) -> int:
        return len(self.linf_radius)

    @property
    def encoded(self) -> npt.NDArray[np.bool_]:
        """Which images lie on the lattice at all, but for the rounding of pixels; ``(n,)``.

        With steps below about 3.4, as of ``jpeg:95``, every image is that near to the lattice.
        """
        return self.residual <= LARGEST_ENCODED_RESIDUAL

    def holds(self, epsilon: float, norm: Norm = "inf") -> npt.NDArray[np.bool_]:
        """Which images provably withstand every perturbation of a size.

        Args:
            epsilon: Size in grey levels of 255, whatever the images' value range.
            norm: ``"inf"``: largest change of a pixel. ``"2"``: L2 norm of the change.

        Returns:
            Array ``(n,)``.
        """
        size = validate_epsilon(epsilon)
        return (self.linf_radius if validate_norm(norm) == "inf" else self.l2_radius) >= size


def certify(
    images: npt.ArrayLike, table: TableLike, *, value_range: Sequence[float] = (0, 255)
) -> Certificate:
    """Compute how large a perturbation cannot change the distilled version of each image.

    **Theorem.** Let ``c`` be a coefficient of an image, ``q k`` its level (``k`` the index that the
    layer rounds ``c / q`` to) and ``m > 0`` its distance to the nearer boundary of that level.
    For a perturbation ``d`` with ``|d| <= e`` in every pixel, the coefficient moves by
    ``|<d, b>| <= e ||b||_1 = e L1``, where ``b`` is the band's basis image (times the colour
    weights, which sum to 1); for ``||d||_2 <= n`` it moves by at most ``n ||b||_2``. If
    ``e < m / L1`` for every coefficient, no index changes, and the layer, which computes its
    output from the indices alone, returns the same image bit for bit. The least ``m / L1`` is
    the image's radius.

    It holds for the image as it was before the attacker acted, usually one that ``encode`` made,
    and for attackers who know everything. It says nothing about images that were attacked before,
    about perturbations beyond the radius or of another kind (a shift, another crop), or about
    the classifier's answer for the untouched image.

    The layer's float32 arithmetic is accounted for: every distance is reduced by 0.01, twice the
    worst case of its rounding errors (about 0.0015 grey levels of radius).

    Args:
        images: One image ``(height, width, channels)`` or a batch ``(n, height, width,
            channels)`` in ``value_range``; float or integer.
        table: What ``FeatureDistillation`` takes. With several block grids, every index of each
            of them has to stay.
        value_range: Lowest and highest pixel value.

    Returns:
        The radii, in grey levels of 255.

    Raises:
        ValueError: The images do not fit the table, are not finite or not scaled to
            ``value_range``, or the table belongs to soft thresholding, behind which every
            perturbation may change the image.

    Example:
        >>> from fd_keras.encoding import encode
        >>> image = np.random.default_rng(1).integers(0, 256, (1, 24, 24, 3))
        >>> table = certified_table(2)
        >>> certify(encode(image, table), table).holds(2)
        array([ True])

    References:
        The condition on indices: Liu et al., CVPR 2019, section 3.2 (for one coefficient and a
        random perturbation). A distance to the decision boundary as a certificate: Cohen et al.,
        "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019.
    """
    pixels, table = grey_level_batch(images, value_range), as_table(table)
    check_rounds(table)
    steps = table.steps_for(pixels.shape[-1])
    found = _certified(pixels, steps, table.color_space, table.cycle_spins)
    linf, l2, limiting, residual = zip(*found)
    return Certificate(np.array(linf), np.array(l2), limiting, np.array(residual))


def certified_table(
    epsilon: float,
    *,
    color_space: ColorSpace = "rgb",
    norm: Norm = "inf",
    whole_steps: bool = True,
    at_least: TableLike | None = None,
) -> QuantizationTable:
    """The smallest steps that certify every encoded image against a perturbation.

    For ``norm="2"``, these are RGB images of whole 8x8 blocks: a change of the last row or column
    of an incomplete block is repeated, and of a grey image all of the norm is luma's.

    Whole pixel values lie within half a grey level of the lattice, so that ``q / 2`` has to hold
    the perturbation's and this rounding's change of a coefficient:
    ``q >= 2 (epsilon + 1/2) L1``, with the tie rule's offset and the float32 tolerance added.

    Args:
        epsilon: Perturbation in grey levels of 255: the largest change of a pixel, or with
            ``norm="2"`` the L2 norm over the whole image.
        color_space: In which the steps quantise.
        norm: ``"inf"`` or ``"2"``.
        whole_steps: Whether to round steps up to whole numbers, which a JPEG file needs.
        at_least: A table whose steps are kept where they are larger, such as one that was designed
            for the network; of the same colour space.

    Returns:
        The table, for any image that ``color_space`` permits.

    Raises:
        ValueError: ``epsilon`` is not in grey levels of 255, or another argument does not fit.

    Example:
        >>> certified_table(2)
        QuantizationTable('certified:2', steps=33..41, channels=1, color_space='rgb', cycle_spins=1)
    """
    size = validate_epsilon(epsilon)
    space, kind = validate_color_space(color_space), validate_norm(norm)
    steps = certified_steps(size, space, kind, whole_steps=whole_steps)
    base = None if at_least is None else as_table(at_least)
    if base is not None:
        check_rounds(base, "at_least")
        if base.color_space != space or base.cycle_spins != 1:
            raise ValueError(
                f"`at_least` must be a table in color_space={space!r} with one block grid. "
                f"Received: at_least={shown(base)}"
            )
        steps = np.maximum(steps, np.ceil(base.steps) if whole_steps else base.steps)
    provenance = {
        "source": "certified",
        "name": certified_name(size, space, kind),
        "epsilon": size,
        "norm": kind,
    }
    if base is not None:
        provenance["at_least"] = base.name
    return QuantizationTable(steps, space, 1, provenance)


def nominal_radius(table: QuantizationTable, channels: int, norm: Norm = "inf") -> float:
    """The radius in grey levels that a table certifies for every encoded image; at least 0.

    Images with incomplete blocks fall short of it in the L2 norm, since a change of their last row
    or column is repeated.

    Args:
        table: A table with one block grid.
        channels: Number of channels of the images.
        norm: ``"inf"`` or ``"2"``.

    Raises:
        ValueError: The table belongs to soft thresholding.

    Example:
        >>> round(nominal_radius(certified_table(2, whole_steps=False), 3), 2)
        2.0
    """
    check_rounds(table)
    half = table.steps_for(channels) * (0.5 - TIE_OFFSET) - 2 * TOLERANCE
    left = half - ROUNDING * linf_gains()
    return max(0.0, float((left / gains(channels, table.color_space, norm)).min()))


def nominal_margins(table: QuantizationTable, channels: int) -> FloatArray:
    """Distance to the boundary that each coefficient of an encoded image has at least.

    Args:
        table: A table with one block grid.
        channels: Number of channels of the images.

    Returns:
        ``(channels, 8, 8)``: what the nominal radii of both norms need.

    Example:
        >>> round(float(nominal_margins(certified_table(2, whole_steps=False), 1)[0, 0, 0]), 1)
        16.0
    """
    needed = [
        nominal_radius(table, channels, norm) * gains(channels, table.color_space, norm)
        for norm in NORMS
    ]
    return np.asarray(np.maximum(*needed))


def margins(
    pixels: npt.NDArray[np.float32],
    steps: FloatArray,
    color_space: ColorSpace,
    offset: tuple[int, int] = (0, 0),
) -> tf.Tensor:
    """Distance of each coefficient to the boundary of its level, less the tolerance.

    Args:
        pixels: float32 ``(n, height, width, channels)`` from 0 to 255.
        steps: ``(channels, 8, 8)``.
        color_space: Of the coefficients.
        offset: Of the block grid.

    Returns:
        float32 in the order of ``kernels.coefficients``: ``(n * block rows, 8, block columns,
        8 * channels)``. Negative where float32 leaves the level open.

    Example:
        >>> steps = np.full((1, 8, 8), 16.0)
        >>> flat = np.full((1, 8, 8, 1), 4.0, np.float32)
        >>> round(float(margins(flat, steps, "rgb")[0, 0, 0, 0]), 3)
        7.974
    """
    return _margins_of(residuals(pixels, steps, color_space, offset), steps)


def _margins_of(residual: tf.Tensor, steps: FloatArray) -> tf.Tensor:
    """``margins`` of coefficients that are so far above their levels."""
    grid = tf.constant(ordered(steps), tf.float32)
    nearer = tf.minimum((0.5 + TIE_OFFSET) * grid + residual, (0.5 - TIE_OFFSET) * grid - residual)
    return nearer - 2 * TOLERANCE


def residuals(
    pixels: npt.NDArray[np.float32],
    steps: FloatArray,
    color_space: ColorSpace,
    offset: tuple[int, int] = (0, 0),
) -> tf.Tensor:
    """How far each coefficient is above the level that the layer rounds it to.

    Args:
        pixels: As for ``margins``.
        steps: As for ``margins``.
        color_space: Of the coefficients.
        offset: Of the block grid.

    Returns:
        float32 in the shape of ``margins``.

    Example:
        >>> flat = np.full((1, 8, 8, 1), 4.5, np.float32)
        >>> round(float(residuals(flat, np.full((1, 8, 8), 16.0), "rgb")[0, 0, 0, 0]), 3)
        4.0
    """
    found = coefficients(pad_to_blocks(tf.convert_to_tensor(pixels), offset), color_space)
    grid = tf.constant(ordered(steps), tf.float32)
    return found - grid * tf.round(found * tf.math.reciprocal(grid) + TIE_OFFSET)


def grey_level_batch(
    images: npt.ArrayLike, value_range: Sequence[float]
) -> npt.NDArray[np.float32]:
    """Images as a float32 batch on the 0..255 scale.

    Args:
        images: ``(height, width, channels)`` or ``(n, height, width, channels)``.
        value_range: Lowest and highest pixel value.

    Raises:
        ValueError: They are no images, not finite, or of another scale.

    Example:
        >>> float(grey_level_batch(np.ones((8, 8, 1)), (0, 1)).max())
        255.0
    """
    low, high = validate_value_range(value_range)
    batch = np.asarray(images)
    if batch.ndim == 3:
        batch = batch[np.newaxis]
    numeric = np.issubdtype(batch.dtype, np.integer) or np.issubdtype(batch.dtype, np.floating)
    if batch.ndim != 4 or 0 in batch.shape or not numeric:
        raise ValueError(
            "`images` must be one image (height, width, channels) or a batch of them. "
            f"Received: images of shape {batch.shape} and dtype {batch.dtype}"
        )
    pixels = np.asarray(to_grey_levels(batch.astype(np.float32), low, high), np.float32)
    if not np.isfinite(pixels).all():
        raise ValueError("`images` must be finite. Received: images with NaN or infinity")
    if of_another_scale(batch, (low, high)):
        raise ValueError(
            f"`images` must be scaled to value_range, {low:g} to {high:g}; give the `value_range` "
            f"that they have. Received: images from {batch.min():g} to {batch.max():g}"
        )
    return pixels


def radii(pixels: tf.Tensor, table: QuantizationTable) -> tuple[tf.Tensor, tf.Tensor]:
    """The radii of a certificate as operations of a graph, all of them TFLite builtins.

    Args:
        pixels: float32 ``(batch, height, width, channels)`` from 0 to 255; any size.
        table: The table.

    Returns:
        ``linf_radius`` and ``l2_radius`` of ``certify``, float32 ``(batch,)``.

    Example:
        >>> table = certified_table(2)
        >>> image = np.full((1, 8, 8, 3), 41.0, np.float32)  # DC 328: 8 steps of 41; AC 0
        >>> round(float(radii(image, table)[0][0]), 3)
        2.505
    """
    pixels = tf.convert_to_tensor(pixels)
    channels = pixels.shape[-1]
    steps, space = table.steps_for(channels), table.color_space
    linf, l2 = [], []
    for offset in grid_offsets(table.cycle_spins):
        margin = margins(pixels, steps, space, offset)
        by_norm = [_least_of_blocks(margin, pixels, space, norm) for norm in NORMS]
        linf.append(tf.reduce_min(by_norm[0], axis=(1, 2)))
        l2.append(tf.reduce_min(by_norm[1] / _repeats(pixels, offset), axis=(1, 2)))
    return _least(linf), _least(l2)


def _least(found: Sequence[tf.Tensor]) -> tf.Tensor:
    least = found[0]
    for others in found[1:]:
        least = tf.minimum(least, others)
    return tf.maximum(least, 0.0)


def _least_of_blocks(
    margin: tf.Tensor, pixels: tf.Tensor, color_space: ColorSpace, norm: Norm
) -> tf.Tensor:
    """Least radius of the coefficients of each block, ``(batch, rows, columns)``."""
    gain = tf.constant(ordered(gains(pixels.shape[-1], color_space, norm)), tf.float32)
    least = tf.reduce_min(margin / gain, axis=(1, 3))
    return tf.reshape(least, (tf.shape(pixels)[0], -1, tf.shape(margin)[2]))


# L-inf radius, L2 radius, limiting coefficient and residual of one image.
_Certified = tuple[float, float, LimitingCoefficient, float]


def _certified(
    pixels: npt.NDArray[np.float32], steps: FloatArray, color_space: ColorSpace, spins: int
) -> list[_Certified]:
    """What a certificate says of each image, several at once or a few rows of blocks at a time."""
    count, height, width = pixels.shape[:3]
    rows = max(1, PIXELS_AT_ONCE // (BLOCK_SIZE * width)) * BLOCK_SIZE
    if spins > 1 or rows >= height:
        at_once = max(1, PIXELS_AT_ONCE // (height * width))
        parts = (pixels[start : start + at_once] for start in range(0, count, at_once))
        return [found for part in parts for found in _radii(part, steps, color_space, spins)]
    strips = []
    for top in range(0, height, rows):
        found = _certified(pixels[:, top : top + rows], steps, color_space, spins)
        below = top // BLOCK_SIZE
        strips.append([(f[0], f[1], replace(f[2], row=f[2].row + below), f[3]) for f in found])
    sizes = [min(rows, height - top) for top in range(0, height, rows)]
    return [_joined(found, sizes) for found in zip(*strips)]


def _joined(strips: Sequence[_Certified], sizes: Sequence[int]) -> _Certified:
    """What the strips of an image say of the whole."""
    linf, _, limiting, _ = min(strips, key=lambda strip: strip[0])
    squared = np.average([strip[3] ** 2 for strip in strips], weights=sizes)
    return linf, min(strip[1] for strip in strips), limiting, float(np.sqrt(squared))


def _radii(
    pixels: npt.NDArray[np.float32], steps: FloatArray, color_space: ColorSpace, spins: int
) -> list[_Certified]:
    """``_certified`` of images that fit into memory several times."""
    by_grid = [_of_grid(pixels, steps, color_space, offset) for offset in grid_offsets(spins)]
    joined = []
    for found in zip(*by_grid):
        linf, _, limiting, _ = min(found, key=lambda grid: grid[0])
        l2, residual = min(grid[1] for grid in found), max(grid[3] for grid in found)
        joined.append((linf, l2, limiting, residual))
    return joined


def _of_grid(
    pixels: npt.NDArray[np.float32],
    steps: FloatArray,
    color_space: ColorSpace,
    offset: tuple[int, int],
) -> list[_Certified]:
    """``_radii`` for the indices of one block grid."""
    count, channels = len(pixels), pixels.shape[-1]
    above = residuals(pixels, steps, color_space, offset)
    margin = _margins_of(above, steps)
    gain = np.float32(ordered(gains(channels, color_space, "inf")))
    found = (margin / gain).numpy().reshape(count, -1, *margin.shape[1:])
    shortest = _least_of_blocks(margin, pixels, color_space, "2") / _repeats(pixels, offset)
    lengths = tf.reduce_min(shortest, axis=(1, 2)).numpy()
    squared = tf.square(above).numpy()
    residual = np.sqrt(squared.reshape(count, -1).mean(axis=1))
    certified = []
    for image, length, distance in zip(found, lengths, residual):
        row, u, column, rest = (int(i) for i in np.unravel_index(image.argmin(), image.shape))
        v, channel = divmod(rest, channels)
        limiting = LimitingCoefficient(row, column, channel, (u, v), offset)
        least = float(image[row, u, column, rest])
        certified.append((max(0.0, least), max(0.0, float(length)), limiting, float(distance)))
    return certified


def ordered(by_channel: FloatArray) -> FloatArray:
    """``(channels, 8, 8)`` as ``(8, 1, 8 * channels)``, the order of the coefficients."""
    ordered = by_channel.transpose(1, 2, 0).reshape(BLOCK_SIZE, 1, -1)
    return np.asarray(ordered)


def _repeats(pixels: tf.Tensor, offset: tuple[int, int]) -> tf.Tensor:
    """By how much edge repetition lengthens a perturbation in each block, at most."""
    sizes = tf.shape(pixels)[1:3]
    rows, columns = (_longest_run(sizes[axis], before) for axis, before in enumerate(offset))
    return tf.sqrt(rows[:, tf.newaxis] * columns)


def _longest_run(size: tf.Tensor, before: int) -> tf.Tensor:
    """How often the most repeated pixel of each block occurs along an axis, float32."""
    blocks = (before + size + BLOCK_SIZE - 1) // BLOCK_SIZE
    after = blocks * BLOCK_SIZE - before - size
    index = tf.range(blocks)
    first = tf.where(index == 0, before + 1, 1)
    last = tf.where(index == blocks - 1, after + 1, 1)
    # The only pixel of an axis is repeated on both sides.
    run = tf.where(size == 1, BLOCK_SIZE, tf.maximum(first, last))
    return tf.cast(run, tf.float32)
