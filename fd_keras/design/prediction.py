"""Removal probability and benign distortion of every band of a quantisation table."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fd_keras._checks import Array, checked, checked_epsilons, shown
from fd_keras.dct import BLOCK_SIZE, ColorSpace, Quantizer
from fd_keras.design.generalized_gaussian import generalized_gaussian_shape
from fd_keras.design.perturbation import Perturbation, PerturbationProfile, perturbation_std
from fd_keras.design.removal import (
    benign_distortion,
    estimated_removal,
    removal_probability,
)


class BandStatistics(Protocol):
    """Statistics of benign coefficients, such as ``CoefficientStatistics``.

    On the 0..255 pixel scale, as arrays ``(channels, 8, 8)``: the number ``count`` of
    coefficients, their ``mean``, standard deviation ``std`` and mean absolute value ``mean_abs``.
    ``color_space`` is that of the coefficients; ``provenance`` describes the data in JSON types.
    """

    @property
    def count(self) -> npt.ArrayLike: ...  # noqa: D102
    @property
    def mean(self) -> npt.ArrayLike: ...  # noqa: D102
    @property
    def std(self) -> npt.ArrayLike: ...  # noqa: D102
    @property
    def mean_abs(self) -> npt.ArrayLike: ...  # noqa: D102
    @property
    def color_space(self) -> ColorSpace: ...  # noqa: D102
    @property
    def provenance(self) -> Mapping[str, Any]: ...  # noqa: D102


def band_removal(
    statistics: BandStatistics,
    steps: npt.ArrayLike,
    epsilon: float,
    *,
    perturbation: Perturbation | PerturbationProfile = "sign",
    channel_correlation: float = 0.0,
    quantizer: Quantizer = "round",
) -> Array:
    """Predicted removal probability of every band.

    Benign AC coefficients are modelled as generalised Gaussians with the moments of
    ``statistics``, DC as uniform within its cell. Predictions were compared with counts on
    ImageNet images under FGSM and BIM on MobileNetV2, in RGB and YCbCr
    (``experiments/results/removal_model.json``):

    * with a measured profile, they are within 0.025 in every band of every table;
    * with the assumed ``"sign"`` perturbation, they are within 0.05 in at least 98 % of the bands
      of ``"liu2019"`` and of a designed table;
    * with small steps, the assumption is inaccurate: for a flat step of 8 in RGB under FGSM, only
      71 % of the bands are within 0.05, and one is off by 0.178, because real gradients are not
      spread evenly over the bands. Measure a profile where steps are a few times ``epsilon``.

    Args:
        statistics: Statistics of benign images.
        steps: Quantisation steps; broadcast to ``(..., channels, 8, 8)``.
        epsilon: Size of the perturbation of a pixel in grey levels of 255; 0 or at least 0.1.
        perturbation: ``"sign"``, ``"uniform"`` or ``"gaussian"``, see ``perturbation_std``; or a
            measured profile, which is scaled to ``epsilon``.
        channel_correlation: See ``perturbation_std``; has no effect with a profile.
        quantizer: As for ``removal_probability``; soft thresholding removes nothing from DC.

    Returns:
        Probabilities ``(..., channels, 8, 8)``.

    Raises:
        ValueError: An argument is out of its range, or a profile does not fit ``statistics``.

    Example:
        >>> from types import SimpleNamespace
        >>> std = 400 / (1 + np.add.outer(np.arange(8), np.arange(8))[np.newaxis] ** 2)
        >>> statistics = SimpleNamespace(mean=0 * std, std=std, mean_abs=std / 2)
        >>> statistics.color_space = "rgb"
        >>> band_removal(statistics, 30.0, epsilon=2.0)[0, 0, [0, 4, 7]].round(3)
        array([0.947, 0.972, 0.989])

    References:
        See ``removal_probability``.
    """
    std = perturbation_of(statistics, epsilon, perturbation, channel_correlation)
    return BandModel(statistics, std, quantizer).removal(steps)


def band_distortion(
    statistics: BandStatistics, steps: npt.ArrayLike, *, quantizer: Quantizer = "round"
) -> Array:
    """Predicted mean squared error of every band of benign images.

    Args:
        statistics: Statistics of benign images.
        steps: Quantisation steps; broadcast to ``(..., channels, 8, 8)``.
        quantizer: ``"round"``, or ``"soft"``, which leaves DC as it is.

    Returns:
        Squared grey levels, ``(..., channels, 8, 8)``.

    Raises:
        ValueError: A step is not positive, or a moment not finite.

    Example:
        >>> from types import SimpleNamespace
        >>> std = 400 / (1 + np.add.outer(np.arange(8), np.arange(8))[np.newaxis] ** 2)
        >>> statistics = SimpleNamespace(mean=0 * std, std=std, mean_abs=std / 2)
        >>> band_distortion(statistics, 30.0)[0, 0, [0, 4, 7]].round(1)
        array([75. , 45.5, 22. ])

    References:
        See ``benign_distortion``.
    """
    return BandModel(statistics, np.float64(0), quantizer).distortion(steps)


class BandModel:
    """``band_removal`` and ``band_distortion`` for many steps.

    Args:
        statistics: Statistics of benign images.
        std: Standard deviation of the perturbation, from ``perturbation_of``.
        quantizer: ``"round"`` or ``"soft"``.

    Example:
        See ``design_table``.
    """

    def __init__(self, statistics: BandStatistics, std: Array, quantizer: Quantizer) -> None:
        self._scale, self._shape = _benign_model(statistics)
        self._std = np.broadcast_to(std, self._scale.shape)
        self._quantizer = quantizer
        #: Bands that the quantiser changes, ``(channels, 8, 8)``.
        self.changed = np.ones(self._scale.shape, bool)
        self.changed[:, 0, 0] = quantizer != "soft"

    def removal(self, steps: npt.ArrayLike, bands: Any = ..., *, estimated: bool = False) -> Array:
        """Removal probabilities.

        Args:
            steps: For ``bands``.
            bands: Index into the bands; by default all.
            estimated: Whether to within 0.001 is accurate enough, in a tenth of the time.
        """
        exact = functools.partial(removal_probability, perturbation="gaussian")
        found = (estimated_removal if estimated else exact)(
            steps,
            self._scale[bands],
            self._std[bands],
            shape=self._shape[bands],
            quantizer=self._quantizer,
        )
        return np.where(self.changed[bands], found, 0.0)

    def distortion(self, steps: npt.ArrayLike, bands: Any = ...) -> Array:
        """Mean squared errors.

        Args:
            steps: For ``bands``.
            bands: As for ``removal``.
        """
        found = benign_distortion(
            steps, self._scale[bands], shape=self._shape[bands], quantizer=self._quantizer
        )
        return np.where(self.changed[bands], found, 0.0)


def checked_moments(statistics: BandStatistics) -> tuple[Array, Array, Array]:
    """Mean, standard deviation and mean absolute value, ``(channels, 8, 8)`` each.

    Args:
        statistics: Statistics of benign images.

    Raises:
        ValueError: The moments are not finite, or not of one such shape.
        TypeError: ``statistics`` are something else.

    Example:
        >>> from types import SimpleNamespace
        >>> ones = np.ones((3, 8, 8))
        >>> [a.shape for a in checked_moments(SimpleNamespace(mean=ones, std=ones, mean_abs=ones))]
        [(3, 8, 8), (3, 8, 8), (3, 8, 8)]
    """
    moments = ("mean", "std", "mean_abs")
    if isinstance(statistics, np.ndarray) or not all(hasattr(statistics, m) for m in moments):
        raise TypeError(
            "`statistics` must be CoefficientStatistics; CoefficientStatistics.load reads a file "
            f"of them, from_data measures images. Received: statistics={shown(statistics)}"
        )
    mean = checked("statistics.mean", statistics.mean, low=-np.inf)
    std = checked("statistics.std", statistics.std)
    mean_abs = checked("statistics.mean_abs", statistics.mean_abs)
    shapes = {mean.shape, std.shape, mean_abs.shape}
    if len(shapes) > 1 or std.ndim != 3 or std.shape[1:] != (BLOCK_SIZE, BLOCK_SIZE):
        raise ValueError(
            "`statistics` must hold moments of one shape (channels, 8, 8). "
            f"Received: moments of shapes {sorted(shapes)}"
        )
    return mean, std, mean_abs


def _benign_model(statistics: BandStatistics) -> tuple[Array, Array]:
    """Scale and shape of each band's distribution."""
    mean, std, mean_abs = checked_moments(statistics)
    # The model is centred on zero and `mean_abs` is taken about zero: take the second moment about
    # zero too.
    shape = generalized_gaussian_shape(np.hypot(std, mean), mean_abs)
    scale = mean_abs.copy()
    # DC is spread over far more than a step, around the brightness of the images.
    scale[:, 0, 0], shape[:, 0, 0] = np.inf, 1.0
    return scale, shape


def perturbation_of(
    statistics: BandStatistics,
    epsilon: float,
    perturbation: Perturbation | PerturbationProfile,
    channel_correlation: float,
) -> Array:
    """Standard deviations of a perturbation that broadcast to the bands of statistics.

    Args:
        statistics: As for ``band_removal``.
        epsilon: As for ``band_removal``.
        perturbation: As for ``band_removal``.
        channel_correlation: As for ``band_removal``.

    Raises:
        ValueError: As for ``band_removal``.

    Example:
        See ``design_table``.
    """
    shape = np.shape(statistics.std)
    if not isinstance(perturbation, PerturbationProfile):
        std = perturbation_std(
            epsilon,
            perturbation,
            color_space=statistics.color_space,
            channels=shape[0],
            channel_correlation=channel_correlation,
        )
        return std[:, np.newaxis, np.newaxis]
    if perturbation.color_space != statistics.color_space or perturbation.std.shape != shape:
        raise ValueError(
            f"`perturbation` must be a profile in {statistics.color_space!r} with {shape[0]} "
            f"channels, like the statistics. Received: a profile in "
            f"{perturbation.color_space!r} of shape {perturbation.std.shape}"
        )
    return perturbation.std * (checked_epsilons(epsilon) / perturbation.epsilon)
