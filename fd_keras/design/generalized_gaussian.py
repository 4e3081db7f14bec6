"""The generalised Gaussian distribution, a model of the DCT coefficients of images.

Its density is ``f(c) = shape / (2 a G(1 / shape)) * exp(-|c / a|**shape)``, ``G`` the gamma
function: Laplace for shape 1, Gaussian for 2, uniform in the limit. All formulas follow from
``E[|c|**k; |c| > x] = E[|c|**k] * Q((k + 1) / shape, (x / a)**shape)``, ``Q`` the regularised
upper incomplete gamma function.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special

from fd_keras._checks import Array, checked, checked_together

# Beyond these, the distribution is as good as a constant with rare outliers, or uniform.
SHAPE_RANGE = (0.2, 8.0)


def generalized_gaussian_shape(std: npt.ArrayLike, mean_abs: npt.ArrayLike) -> Array:
    """Exponent of the generalised Gaussian with these two moments.

    Solves ``E|c| / sqrt(E[c**2]) = G(2/p) / sqrt(G(1/p) G(3/p))`` for ``p`` by bisection; the
    right side rises with ``p``.

    Args:
        std: Standard deviations.
        mean_abs: Mean absolute values; broadcasts with ``std``.

    Returns:
        Exponents, limited to 0.2 to 8. Where ``std`` is 0: 1, Laplace.

    Raises:
        ValueError: A moment is negative or not finite, or the two do not broadcast.

    Example:
        >>> generalized_gaussian_shape(np.sqrt([2, np.pi / 2]), 1.0).round(6)
        array([1., 2.])

    References:
        Mallat, "A theory for multiresolution signal decomposition", IEEE PAMI 1989.
    """
    std, mean_abs = checked_together(
        std=checked("std", std), mean_abs=checked("mean_abs", mean_abs)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(std > 0, mean_abs / std, np.sqrt(0.5))
    low, high = (np.full(ratio.shape, limit) for limit in SHAPE_RANGE)
    for _ in range(50):
        middle = (low + high) / 2
        too_small = _moment_ratio(middle) < ratio
        low, high = np.where(too_small, middle, low), np.where(too_small, high, middle)
    return np.asarray((low + high) / 2)[()]


def _moment_ratio(shape: Array) -> Array:
    first, second, third = (special.gammaln(k / shape) for k in (1, 2, 3))
    return np.asarray(np.exp(second - (first + third) / 2))


class GeneralizedGaussian:
    """Tail probabilities and tail expectations of generalised Gaussians.

    Args:
        mean_abs: Mean absolute values ``E|c|``, positive.
        shape: Exponents; broadcasts with ``mean_abs``.

    Example:
        >>> laplace = GeneralizedGaussian(np.array(1.0), np.array(1.0))
        >>> round(float(laplace.variance), 6), float(laplace.tail(0.0))
        (2.0, 0.5)
    """

    def __init__(self, mean_abs: Array, shape: Array) -> None:
        first, second, third = (special.gammaln(k / shape) for k in (1, 2, 3))
        self._mean_abs = mean_abs
        self._shape = shape
        self._a = mean_abs * np.exp(first - second)
        self.variance: Array = self._a**2 * np.exp(third - first)

    def tail(self, x: npt.ArrayLike) -> Array:
        """``P(c > x)``."""
        x = np.asarray(x, np.float64)
        half = self._upper(1, np.abs(x)) / 2
        return np.where(x < 0, 1 - half, half)

    def excess(self, x: npt.ArrayLike) -> Array:
        """``E[max(c - x, 0)]`` for ``x >= 0``."""
        x = np.asarray(x, np.float64)
        return (self._mean_abs * self._upper(2, x) - x * self._upper(1, x)) / 2

    def squared_excess(self, x: npt.ArrayLike) -> Array:
        """``E[max(c - x, 0)**2]`` for ``x >= 0``."""
        x = np.asarray(x, np.float64)
        square = self.variance * self._upper(3, x)
        mixed = 2 * x * self._mean_abs * self._upper(2, x)
        return (square - mixed + x**2 * self._upper(1, x)) / 2

    def _upper(self, moment: int, x: Array) -> Array:
        """``Q(moment / shape, (x / a)**shape)``."""
        z = (x / self._a) ** self._shape
        return np.asarray(special.gammaincc(moment / self._shape, z))
