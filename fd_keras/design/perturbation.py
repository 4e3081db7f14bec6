"""The size of a perturbation in each DCT band, assumed or measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import fft

from fd_keras._checks import (
    SMALLEST_EPSILON,
    Array,
    checked,
    checked_choice,
    checked_epsilons,
    is_real,
    shown,
    validate_epsilon,
    validate_value_range,
)
from fd_keras.dct import BLOCK_SIZE, RGB_TO_YCBCR, ColorSpace, validate_color_space

Perturbation = Literal["sign", "uniform", "gaussian"]

PERTURBATIONS: tuple[Perturbation, ...] = get_args(Perturbation)

_STD_PER_EPSILON: dict[Perturbation, float] = {
    "sign": 1.0,
    "uniform": 1 / np.sqrt(3),
    "gaussian": 1.0,
}

_PAIRS_AT_ONCE = 64


def pixel_std(epsilon: npt.ArrayLike, perturbation: Perturbation = "sign") -> Array:
    """Standard deviation of the change of one pixel.

    Args:
        epsilon: Size of the perturbation in grey levels of 255; 0 or at least 0.1.
        perturbation: ``"sign"``: pixels change by ``+-epsilon``. ``"uniform"``: uniformly in
            ``[-epsilon, epsilon]``. ``"gaussian"``: ``epsilon`` is the standard deviation, of any
            size.

    Returns:
        Array of the shape of ``epsilon``.

    Raises:
        ValueError: ``epsilon`` is out of its range, or ``perturbation`` unknown.

    Example:
        >>> float(pixel_std(3.0, "uniform").round(3))
        1.732
    """
    perturbation = checked_choice("perturbation", perturbation, PERTURBATIONS)
    valid = checked("epsilon", epsilon) if perturbation == "gaussian" else checked_epsilons(epsilon)
    return valid * _STD_PER_EPSILON[perturbation]


def perturbation_std(
    epsilon: float,
    perturbation: Perturbation = "sign",
    *,
    color_space: ColorSpace = "rgb",
    channels: int = 3,
    channel_correlation: float = 0.0,
) -> Array:
    """Standard deviation of the coefficients of a perturbation whose pixels are independent.

    Independence is an assumption: real attacks favour some bands, which matters where steps are
    small (see ``band_removal``). ``perturbation_profile`` measures them instead.

    An orthonormal DCT keeps the standard deviation ``s`` of the pixels in all 64 bands; a colour
    transform changes it. With correlation ``r`` between the perturbations of R, G and B, a row
    ``m`` of the colour matrix turns the variance ``s**2`` into
    ``s**2 * ((1 - r) * sum(m**2) + r * sum(m)**2)``. The deviation of luma is 0.67 ``s`` if the
    channels are independent and ``s`` if they are equal; that of chroma is 0.62 to 0.66 ``s`` and
    0. The signs of a network's gradient lie in between.

    Args:
        epsilon: Size of the perturbation of a channel of a pixel, in grey levels of 255; 0 or at
            least 0.1.
        perturbation: ``"sign"``: pixels change by ``+-epsilon``. ``"uniform"``: uniformly in
            ``[-epsilon, epsilon]``. ``"gaussian"``: ``epsilon`` is the standard deviation.
        color_space: Colour space of the coefficients.
        channels: Number of channels of the image; with 1, YCbCr is luma alone.
        channel_correlation: ``r``, from 0 to 1. Has no effect in RGB.

    Returns:
        Array ``(channels,)``.

    Raises:
        ValueError: An argument is out of its range, or the channels do not fit.

    Example:
        >>> perturbation_std(2.0, color_space="ycbcr").round(2)
        array([1.34, 1.25, 1.31])
    """
    std = pixel_std(checked_epsilons(epsilon), perturbation)
    correlation = checked("channel_correlation", channel_correlation, high=1.0)
    _check_channels(channels, color_space)
    if validate_color_space(color_space) == "rgb" or channels == 1:
        return np.full(channels, std)
    independent, equal = (RGB_TO_YCBCR**2).sum(1), RGB_TO_YCBCR.sum(1) ** 2
    return np.asarray(std * np.sqrt((1 - correlation) * independent + correlation * equal))


@dataclass(frozen=True, eq=False)
class PerturbationProfile:
    """Changes of the coefficients that an attack caused, band by band.

    Args:
        epsilon: Largest change of a pixel in grey levels of 255.
        std: Root mean square change of the coefficients, ``(channels, 8, 8)``; the mean change of
            a band is included.
        mean_abs: Mean absolute change, ``(channels, 8, 8)``; 0.798 times ``std`` for a Gaussian.
        color_space: Colour space of the coefficients.
        count: Number of image pairs.

    Raises:
        ValueError: ``epsilon`` is not from 0.1 to 255.

    Example:
        See ``perturbation_profile``.
    """

    epsilon: float
    std: Array
    mean_abs: Array
    color_space: ColorSpace
    count: int

    def __post_init__(self) -> None:
        validate_epsilon(self.epsilon)

    def __repr__(self) -> str:
        return (
            f"PerturbationProfile(epsilon={self.epsilon:g}, std={self.std.min():.3g}.."
            f"{self.std.max():.3g}, channels={len(self.std)}, color_space={self.color_space!r}, "
            f"count={self.count})"
        )


def perturbation_profile(
    benign: npt.ArrayLike,
    adversarial: npt.ArrayLike,
    *,
    color_space: ColorSpace = "rgb",
    value_range: tuple[float, float] = (0.0, 255.0),
) -> PerturbationProfile:
    """Measure how much an attack changes each DCT band.

    ``design_table`` and ``band_removal`` take the profile in place of an assumed perturbation and
    scale it to their ``epsilon``; ``removal_probability`` takes its ``std`` as ``epsilon`` with
    ``perturbation="gaussian"``. A profile holds for the attack, network and data that it was
    measured on.

    Args:
        benign: Images ``(count, height, width, channels)``.
        adversarial: The same images after the attack.
        color_space: Colour space of the table to be designed.
        value_range: Lowest and highest pixel value of both.

    Returns:
        The profile; its ``epsilon`` is the largest change of a pixel in grey levels of 255.

    Raises:
        ValueError: The images do not match, are not finite, or differ by less than 0.1 grey
            levels of 255; or an argument is out of its range.

    Example:
        >>> rng = np.random.default_rng(7)
        >>> images = rng.uniform(10, 245, (8, 64, 64, 3))
        >>> attacked = images + rng.choice([-2.0, 2.0], images.shape)
        >>> perturbation_profile(images, attacked)
        PerturbationProfile(epsilon=2, std=1.86..2.18, channels=3, color_space='rgb', count=8)
    """
    benign, adversarial = np.asarray(benign), np.asarray(adversarial)
    if benign.shape != adversarial.shape or benign.ndim != 4 or 0 in benign.shape:
        raise ValueError(
            "`benign` and `adversarial` must be images (count, height, width, channels) of one "
            f"shape. Received: benign of shape {benign.shape}, adversarial of shape "
            f"{adversarial.shape}"
        )
    for name, images in {"benign": benign, "adversarial": adversarial}.items():
        if not is_real(images.dtype):
            raise ValueError(
                f"`{name}` must hold pixels as integers or floats. Received: dtype {images.dtype}"
            )
    _check_channels(benign.shape[-1], validate_color_space(color_space))
    low, high = validate_value_range(value_range)
    largest, blocks, squares, absolutes = 0.0, 0, 0.0, 0.0
    for start in range(0, len(benign), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        change = adversarial[part].astype(np.float64) - benign[part]
        change *= 255 / (high - low)
        largest = float(np.maximum(largest, np.abs(change).max()))  # keeps NaN
        coefficients = _block_coefficients(change, color_space)
        blocks += len(coefficients)
        squares += (coefficients**2).sum(0)
        absolutes += np.abs(coefficients).sum(0)
    # Comparisons with NaN are false, so this refuses NaN too.
    if not SMALLEST_EPSILON <= largest <= 255:
        raise ValueError(
            f"`adversarial` must differ from `benign` by {SMALLEST_EPSILON} to 255 grey levels of "
            f"255, in the value_range {low:g} to {high:g}. "
            f"Received: images that differ by {largest:g}"
        )
    std = np.sqrt(np.asarray(squares) / blocks)
    return PerturbationProfile(
        largest, std, np.asarray(absolutes) / blocks, color_space, len(benign)
    )


def _block_coefficients(images: Array, color_space: ColorSpace) -> Array:
    """Orthonormal DCT of all blocks, ``(blocks, channels, 8, 8)``."""
    channels = images.shape[-1]
    if color_space == "ycbcr" and channels == 3:
        images = images @ RGB_TO_YCBCR.T
    missing = [-size % BLOCK_SIZE for size in images.shape[1:3]]
    images = np.pad(images, [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)], mode="edge")
    count, height, width, _ = images.shape
    blocks = images.reshape(
        count, height // BLOCK_SIZE, BLOCK_SIZE, width // BLOCK_SIZE, BLOCK_SIZE, channels
    )
    blocks = blocks.transpose(0, 1, 3, 5, 2, 4).reshape(-1, channels, BLOCK_SIZE, BLOCK_SIZE)
    return np.asarray(fft.dctn(blocks, axes=(-2, -1), norm="ortho"))


def _check_channels(channels: int, color_space: ColorSpace) -> None:
    if channels < 1 or (color_space == "ycbcr" and channels not in (1, 3)):
        raise ValueError(
            "`channels` must be positive, and 1 or 3 in YCbCr. "
            f"Received: channels={channels}, color_space={shown(color_space)}"
        )
