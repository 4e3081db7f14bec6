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
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import checked, validate_value_range
from fd_keras.dct import (
    BLOCK_SIZE,
    RGB_TO_YCBCR,
    TIE_OFFSET,
    ColorSpace,
    grid_offsets,
    validate_color_space,
)
from fd_keras.kernels import coefficients, dct_basis, pad_to_blocks, to_grey_levels
from fd_keras.presets import TableLike, as_table
from fd_keras.tables import QuantizationTable, check_rounds

Norm = Literal["inf", "2"]

NORMS: tuple[Norm, ...] = get_args(Norm)

FloatArray = npt.NDArray[np.float64]

# By how much a coefficient that the layer computes in float32 may differ from the exact one.
# Worst case of its products for pixels up to 255: 19 roundings of sums up to 2040 (2.3e-3), of
# the product with 1/q (2.5e-4) and of the scaling from another value range (2.5e-4).
TOLERANCE = 0.005

# What `encode` forgives a coefficient for float32 rounding of its own; steps make up for it.
SLACK = 0.001

# Whole pixel values are half a grey level from the lattice at most.
_ROUNDING = 0.5


def linf_gains() -> FloatArray:
    """Largest change of each coefficient under a perturbation of one grey level per pixel.

    Returns:
        Array ``(8, 8)``: 8 for DC, 6.6 to 8 elsewhere.

    Example:
        >>> linf_gains()[0, 0].round(6), linf_gains().min().round(2)
        (np.float64(8.0), np.float64(6.57))
    """
    sums = np.abs(dct_basis()).sum(axis=1)
    return np.asarray(np.outer(sums, sums))


def l2_gains(channels: int, color_space: ColorSpace) -> FloatArray:
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

    Example:
        See ``certify``.
    """

    linf_radius: FloatArray
    l2_radius: FloatArray
    limiting: Sequence[LimitingCoefficient]

    def __len__(self) -> int:
        return len(self.linf_radius)

    def holds(self, epsilon: float, norm: Norm = "inf") -> npt.NDArray[np.bool_]:
        """Which images provably withstand every perturbation of a size.

        Args:
            epsilon: Size in grey levels of 255, whatever the images' value range.
            norm: ``"inf"``: largest change of a pixel. ``"2"``: L2 norm of the change.

        Returns:
            Array ``(n,)``.
        """
        size = float(checked("epsilon", epsilon))
        return (self.linf_radius if _checked_norm(norm) == "inf" else self.l2_radius) >= size


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
        ValueError: The images do not fit the table or are not finite, or the table belongs to soft
            thresholding, behind which every perturbation may change the image.

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
    found = [
        _radii(image[np.newaxis], steps, table.color_space, table.cycle_spins) for image in pixels
    ]
    linf, l2, limiting = zip(*found)
    return Certificate(np.array(linf), np.array(l2), limiting)


def certified_table(
    epsilon: float,
    *,
    color_space: ColorSpace = "rgb",
    norm: Norm = "inf",
    whole_steps: bool = True,
    at_least: TableLike | None = None,
) -> QuantizationTable:
    """The smallest steps that certify every encoded image against a perturbation.

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
        ValueError: ``epsilon`` is not positive, or another argument does not fit.

    Example:
        >>> certified_table(2)
        QuantizationTable('certified:2', steps=33..41, channels=1, color_space='rgb', cycle_spins=1)
    """
    size = float(checked("epsilon", epsilon, positive=True))
    space = validate_color_space(color_space)
    channels = 3 if space == "ycbcr" else 1
    moved = size * _gains(channels, space, _checked_norm(norm)) + _ROUNDING * linf_gains()
    steps = (moved + 2 * TOLERANCE + SLACK) / (0.5 - TIE_OFFSET)
    steps = np.ceil(steps) if whole_steps else steps
    base = None if at_least is None else as_table(at_least)
    if base is not None:
        check_rounds(base, "at_least")
        if base.color_space != space or base.cycle_spins != 1:
            raise ValueError(
                f"`at_least` must be a table in color_space={space!r} with one block grid. "
                f"Received: at_least={base!r}"
            )
        steps = np.maximum(steps, base.steps)
    provenance = {
        "source": "certified",
        "name": f"certified:{size:g}",
        "epsilon": size,
        "norm": norm,
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
    left = half - _ROUNDING * linf_gains()
    return max(0.0, float((left / _gains(channels, table.color_space, norm)).min()))


def nominal_margins(table: QuantizationTable, channels: int) -> FloatArray:
    """Distance to the boundary that each coefficient of an encoded image has at least.

    Args:
        table: A table with one block grid.
        channels: Number of channels of the images.

    Returns:
        ``(channels, 8, 8)``: what the nominal radii of both norms need.

    Example:
        >>> nominal_margins(certified_table(2, whole_steps=False), 1)[0, 0, 0].round(1)
        np.float64(16.0)
    """
    needed = [
        nominal_radius(table, channels, norm) * _gains(channels, table.color_space, norm)
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
    found = coefficients(pad_to_blocks(tf.convert_to_tensor(pixels), offset), color_space)
    grid = tf.constant(ordered(steps), tf.float32)
    levels = tf.round(found * tf.math.reciprocal(grid) + TIE_OFFSET)
    residual = found - grid * levels
    nearer = tf.minimum((0.5 + TIE_OFFSET) * grid + residual, (0.5 - TIE_OFFSET) * grid - residual)
    return nearer - 2 * TOLERANCE


def grey_level_batch(
    images: npt.ArrayLike, value_range: Sequence[float]
) -> npt.NDArray[np.float32]:
    """Images as a float32 batch on the 0..255 scale.

    Args:
        images: ``(height, width, channels)`` or ``(n, height, width, channels)``.
        value_range: Lowest and highest pixel value.

    Raises:
        ValueError: They are no images, or not finite.

    Example:
        >>> grey_level_batch(np.ones((8, 8, 1)), (0, 1)).max()
        np.float32(255.0)
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
    return pixels


def _radii(
    pixels: npt.NDArray[np.float32], steps: FloatArray, color_space: ColorSpace, spins: int
) -> tuple[float, float, LimitingCoefficient]:
    """L-inf radius, L2 radius and limiting coefficient of one image."""
    linf, l2, limiting = np.inf, np.inf, LimitingCoefficient(0, 0, 0, (0, 0))
    channels = pixels.shape[-1]
    by_norm = [np.float32(ordered(_gains(channels, color_space, norm))) for norm in NORMS]
    for offset in grid_offsets(spins):
        margin = margins(pixels, steps, color_space, offset)
        radii, lengths = ((margin / gains).numpy() for gains in by_norm)
        row, u, column, rest = np.unravel_index(int(radii.argmin()), radii.shape)
        if (least := max(0.0, float(radii[row, u, column, rest]))) < linf:
            v, channel = divmod(int(rest), channels)
            linf = least
            limiting = LimitingCoefficient(int(row), int(column), channel, (int(u), v), offset)
        shortest = lengths.min(axis=(1, 3)) / _repeats(pixels.shape, offset)
        l2 = min(l2, max(0.0, float(shortest.min())))
    return linf, l2, limiting


def ordered(by_channel: FloatArray) -> FloatArray:
    """``(channels, 8, 8)`` as ``(8, 1, 8 * channels)``, the order of the coefficients."""
    ordered = by_channel.transpose(1, 2, 0).reshape(BLOCK_SIZE, 1, -1)
    return np.asarray(ordered)


def _gains(channels: int, color_space: ColorSpace, norm: Norm) -> FloatArray:
    """Largest change of each coefficient under a perturbation of size 1, ``(channels, 8, 8)``."""
    if norm == "inf":
        by_channel = np.ones(channels)
        by_band = linf_gains()
    else:
        by_channel = l2_gains(channels, color_space)
        by_band = np.ones((BLOCK_SIZE, BLOCK_SIZE))
    return np.asarray(by_channel[:, np.newaxis, np.newaxis] * by_band)


def _repeats(shape: tuple[int, ...], offset: tuple[int, int]) -> FloatArray:
    """By how much edge repetition lengthens a perturbation in each block, at most."""
    most = []
    for size, before in zip(shape[1:3], offset):
        blocks = (before + size + BLOCK_SIZE - 1) // BLOCK_SIZE
        pixel = np.clip(np.arange(blocks * BLOCK_SIZE) - before, 0, size - 1)
        rows = pixel.reshape(blocks, BLOCK_SIZE)
        most.append([np.unique(row, return_counts=True)[1].max() for row in rows])
    return np.asarray(np.sqrt(np.outer(most[0], most[1])))


def _checked_norm(norm: Any) -> Norm:
    if norm not in NORMS:
        raise ValueError(f"`norm` must be one of {NORMS}. Received: norm={norm!r}")
    return "inf" if norm == "inf" else "2"
