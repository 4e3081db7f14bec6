"""Removal probability of a perturbation and benign distortion for one quantisation step.

The model, for one band with step ``q``: a benign coefficient ``c`` and an independent
perturbation ``d``. The layer computes ``Q(c) = q * round(c / q)`` (its tie offset of 1/997 step
shifts all cell borders equally and is ignored here). The perturbation is *removed* if
``Q(c + d) = Q(c)``, that is, if no cell border ``+-r_j``, ``r_j = (j + 1/2) q``, lies
between ``c`` and ``c + d``.

**Benign coefficients** are symmetric around zero, with the tail ``T(x) = P(c > x)``. Summed
over all borders, a shift by ``0 <= d <= q`` crosses one with probability::

    X(d) = sum over j >= 0 of T(r_j - d) - T(r_j + d)                                   (1)

and ``X(d) = 1`` beyond ``q``. Every border ``r_j < |c|`` reduces ``(c - Q(c))**2`` by
``2 q (|c| - r_j)`` compared with ``c**2``, hence with ``L(x) = E[max(c - x, 0)]``::

    D = E[(c - Q(c))**2] = E[c**2] - 4 q * sum over j >= 0 of L(r_j)                    (2)

For the Laplace distribution of scale ``b``, with ``h = q / (2 b)``, both sums are geometric::

    X(d) = sinh(d / b) / (2 sinh h)              for d <= q / 2
    X(d) = 1 - sinh((q - d) / b) / (2 sinh h)    for q / 2 <= d <= q                    (3)
    D    = 2 b**2 - q b / sinh h                                                        (4)

For ``b -> inf``, ``c`` is uniform within its cell: ``X(d) = d / q`` and ``D = q**2 / 12``.
For the generalised Gaussian, ``f(c) ~ exp(-|c / a|**shape)``, ``T`` and ``L`` are incomplete
gamma functions; the terms of borders near zero are summed, the others integrated.

**Soft thresholding** with the same step has a dead zone of the same width, ``|c| <= t = q / 2``.
A perturbation is removed if it leaves a coefficient in there; coefficients beyond it keep theirs
whole. Of those in the dead zone, a shift by ``0 <= d <= q`` moves out::

    X(d) = (T(t - d) - T(t)) / (1 - 2 T(t))                                             (5)

which is ``d / q`` for ``b -> inf``, as with rounding. What is lost is ``min(c**2, t**2)``::

    D = E[c**2] - 2 * E[max(c - t, 0)**2] - 2 q L(t)                                    (6)

For ``b -> inf``, ``D = q**2 / 4``. As ``q`` grows, the numerator of (5) is the mass of an interval
of length ``d`` that moves away from zero, its denominator grows, and so does ``D``.

**Perturbations** are modelled as ``d ~ N(0, s**2)``. A coefficient of the orthonormal DCT
is a sum of 64 pixels with weights of unit norm: independent pixel noise of standard deviation
``s`` gives it the standard deviation ``s``, and the central limit theorem its normal
distribution. Signs ``+-epsilon`` have ``s = epsilon``, uniform noise in
``[-epsilon, epsilon]`` has ``s = epsilon / sqrt(3)``.

**Monotone.** A symmetric unimodal distribution is a mixture of uniform ones on ``[-A, A]``
(Khinchin), and (1) and (2) are linear in the mixture. Each term of (1) is the mass of an
interval of length ``d`` that moves away from zero as ``q`` grows, so ``X`` falls. With ``n``
borders below ``A``, (2) gives ``A dD/dq = n (q**2 / 4 - (A - n q)**2)``, and ``A`` lies within
``q / 2`` of ``n q``, so ``D`` rises. A larger step therefore never removes less and never
distorts less, and a larger perturbation is never removed more often.

References:
    Liu et al., "Feature Distillation", CVPR 2019 (semi-analytical choice of steps);
    Lam & Goodman, "A mathematical analysis of the DCT coefficient distributions for images",
    IEEE TIP 2000 (Laplace); Mueller, "Distribution shape of two-dimensional DCT coefficients
    of natural images", Electronics Letters 1993 (generalised Gaussian); Sullivan, "Efficient
    scalar quantization of exponential and Laplacian random variables", IEEE TIT 1996.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import special

from fd_keras._checks import Array, checked, checked_together
from fd_keras.dct import Quantizer, validate_quantizer
from fd_keras.design.generalized_gaussian import SHAPE_RANGE, GeneralizedGaussian
from fd_keras.design.perturbation import Perturbation, pixel_std

# Number of borders that are summed one by one; beyond them the density hardly changes over a step.
# With as many nodes, the error of probabilities is 1e-4 and the relative error of distortions 2e-4.
_SUMMED_BORDERS = 16
_NODES = 16

# With these, the error of probabilities is 1e-3.
_FEW_BORDERS = 4
_FEW_NODES = 6

# Scales in steps beyond which the limits are used: a constant, and uniform within the cell.
_SCALE_LIMITS = (1e-30, 1e5)


def removal_probability(
    step: npt.ArrayLike,
    scale: npt.ArrayLike,
    epsilon: npt.ArrayLike,
    *,
    shape: npt.ArrayLike = 1.0,
    perturbation: Perturbation = "sign",
    quantizer: Quantizer = "round",
) -> Array:
    """Probability that a perturbed coefficient is rounded to the benign coefficient's value.

    ``P(Q(c + d) = Q(c)) = 1 - E[X(|d|)]`` of the module's model: in closed form for Laplace
    coefficients that are rounded, by Gauss-Legendre quadrature over ``d`` otherwise. Never falls
    if ``step`` grows, never rises if ``epsilon`` grows. All arguments broadcast.

    Args:
        step: Quantisation step, positive, on the 0..255 pixel scale.
        scale: Mean absolute benign coefficient ``E|c|`` on the same scale, which is Laplace's
            ``b``. ``inf`` means uniform within the cell, which suits DC and steps far below the
            scale.
        epsilon: Size of the perturbation of a pixel in grey levels of 255; 0 or at least 0.1.
        shape: Exponent of the generalised Gaussian, 0.2 to 8: 1 is Laplace, 2 Gaussian;
            natural images have about 0.5 (see ``generalized_gaussian_shape``).
        perturbation: ``"sign"``: pixels change by ``+-epsilon``. ``"uniform"``: uniformly in
            ``[-epsilon, epsilon]``. ``"gaussian"``: ``epsilon`` is a standard deviation of any
            size, of pixels or of the band's coefficients as ``perturbation_profile`` measures it.
        quantizer: ``"round"``, or ``"soft"``: the probability that a coefficient in the dead zone
            of soft thresholding stays there, which those beyond it have no part in.

    Returns:
        Probabilities, of the broadcast shape.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> removal_probability([5, 20, 80], scale=6.0, epsilon=2.0).round(3)
        array([0.685, 0.946, 1.   ])

    References:
        See the module; Liu et al., CVPR 2019.
    """
    std = pixel_std(epsilon, perturbation)
    return _removal(_broadcast(step, scale, shape, epsilon=std), quantizer, _SUMMED_BORDERS, _NODES)


def estimated_removal(
    step: npt.ArrayLike,
    scale: npt.ArrayLike,
    std: npt.ArrayLike,
    *,
    shape: npt.ArrayLike,
    quantizer: Quantizer = "round",
) -> Array:
    """``removal_probability`` of a Gaussian perturbation to within 0.001, in a tenth of the time.

    Args:
        step: As for ``removal_probability``, like the others.
        scale: Mean absolute benign coefficient.
        std: Standard deviation of the perturbation.
        shape: Exponent of the generalised Gaussian.
        quantizer: ``"round"`` or ``"soft"``.

    Returns:
        Probabilities, of the broadcast shape.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> exact = removal_probability(20.0, 6.0, 2.0, shape=0.5)
        >>> bool(abs(estimated_removal(20.0, 6.0, 2.0, shape=0.5) - exact) < 0.001)
        True
    """
    values = _broadcast(step, scale, shape, std=pixel_std(std, "gaussian"))
    return _removal(values, quantizer, _FEW_BORDERS, _FEW_NODES)


def _removal(values: tuple[Array, ...], quantizer: Quantizer, borders: int, nodes: int) -> Array:
    """Removal probability of steps, scales, shapes and perturbations of one shape."""
    q, b, beta, s = values
    uniform = np.isinf(b)
    b, s = np.clip(b / q, *_SCALE_LIMITS), np.clip(s / q, 1e-9, 1e6)  # in steps
    if validate_quantizer(quantizer) == "soft":
        crossing = _mean_over_gaussian(lambda d: _leaving(d, b, beta), s, nodes)
    elif np.all(beta == 1):
        crossing = _laplace_crossing(b, s)
    else:
        crossing = _mean_over_gaussian(lambda d: _crossing(d, b, beta, borders), s, nodes)
    crossing = np.where(uniform, _uniform_crossing(s), crossing)
    return np.clip(1 - crossing, 0.0, 1.0)[()]


def benign_distortion(
    step: npt.ArrayLike,
    scale: npt.ArrayLike,
    *,
    shape: npt.ArrayLike = 1.0,
    quantizer: Quantizer = "round",
) -> Array:
    """Mean squared error ``E[(c - Q(c))**2]`` of quantised benign coefficients.

    The DCT is orthonormal: the mean over the 64 bands is the mean squared error of a pixel.
    Never falls if ``step`` grows. All arguments broadcast.

    Args:
        step: Quantisation step, positive.
        scale: Mean absolute coefficient ``E|c|``; ``inf`` gives ``step**2 / 12``, or
            ``step**2 / 4`` with soft thresholding.
        shape: Exponent of the generalised Gaussian, 0.2 to 8; 1 is Laplace.
        quantizer: ``"round"`` or ``"soft"``.

    Returns:
        Distortions in squared grey levels, of the broadcast shape.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> benign_distortion([6, 1e6], scale=[np.inf, 5.0])
        array([ 3., 50.])

    References:
        Sullivan, IEEE TIT 1996, for Laplace.
    """
    q, b, beta = _broadcast(step, scale, shape)
    uniform = np.isinf(b)
    b = np.clip(b / q, *_SCALE_LIMITS)  # in steps
    if validate_quantizer(quantizer) == "soft":
        return (np.where(uniform, 1 / 4, _shrinkage(b, beta)) * q**2)[()]
    distortion = _laplace_distortion(b) if np.all(beta == 1) else _distortion(b, beta)
    return (np.where(uniform, 1 / 12, distortion) * q**2)[()]


def empirical_removal_probability(
    step: npt.ArrayLike,
    coefficients: npt.ArrayLike,
    epsilon: npt.ArrayLike,
    *,
    perturbation: Perturbation = "sign",
    quantizer: Quantizer = "round",
) -> Array:
    """``removal_probability`` for observed benign coefficients instead of a distribution.

    ``P = mean over c of P(l <= c + d < l + q)``, ``l`` being the lower border of the cell of
    ``c``. No distribution of the coefficients is assumed, so the result need not be monotone in
    ``step``.

    Args:
        step: Quantisation step; broadcasts to ``coefficients.shape[1:]``.
        coefficients: Samples along the first axis, ``(samples, ...)``.
        epsilon: Size of the perturbation in grey levels of 255, as for ``removal_probability``;
            broadcasts like ``step``.
        perturbation: As for ``removal_probability``.
        quantizer: As for ``removal_probability``.

    Returns:
        Probabilities, of the shape of ``coefficients`` without its first axis; 0 for a dead zone
        in which no sample lies.

    Raises:
        ValueError: An argument is out of its range, or there are no samples.

    Example:
        >>> round(float(empirical_removal_probability(8.0, [-3.0, 0.0, 1.0], 2.0)), 3)
        0.858
    """
    samples = _checked_samples(coefficients)
    q = _per_band("step", checked("step", step, positive=True), samples)
    s = np.maximum(_per_band("epsilon", pixel_std(epsilon, perturbation), samples), 1e-9 * q)
    soft = validate_quantizer(quantizer) == "soft"
    offset = samples if soft else samples - q * np.round(samples / q)
    inside = special.ndtr((q / 2 - offset) / s) - special.ndtr((-q / 2 - offset) / s)
    counted = np.abs(offset) <= q / 2 if soft else np.ones(offset.shape)
    return np.asarray((inside * counted).sum(0) / np.maximum(counted.sum(0), 1))[()]


def empirical_distortion(
    step: npt.ArrayLike, coefficients: npt.ArrayLike, *, quantizer: Quantizer = "round"
) -> Array:
    """``benign_distortion`` of observed coefficients: the mean of ``(c - Q(c))**2``.

    Args:
        step: Quantisation step; broadcasts to ``coefficients.shape[1:]``.
        coefficients: Samples along the first axis, ``(samples, ...)``.
        quantizer: ``"round"`` or ``"soft"``.

    Returns:
        Distortions, of the shape of ``coefficients`` without its first axis.

    Raises:
        ValueError: An argument is out of its range, or there are no samples.

    Example:
        >>> float(empirical_distortion(8.0, [-3.0, 0.0, 9.0, 8.0]))
        2.5
    """
    samples = _checked_samples(coefficients)
    q = _per_band("step", checked("step", step, positive=True), samples)
    if validate_quantizer(quantizer) == "soft":
        lost = np.clip(samples, -q / 2, q / 2)
    else:
        lost = samples - q * np.round(samples / q)
    return np.asarray((lost**2).mean(0))[()]


def _broadcast(
    step: npt.ArrayLike, scale: npt.ArrayLike, shape: npt.ArrayLike, **others: Array
) -> tuple[Array, ...]:
    return checked_together(
        step=checked("step", step, positive=True),
        scale=checked("scale", scale, finite=False),
        shape=checked("shape", shape, *SHAPE_RANGE),
        **others,
    )


def _checked_samples(coefficients: npt.ArrayLike) -> Array:
    samples = np.asarray(coefficients, np.float64)
    if samples.ndim == 0 or len(samples) == 0 or not np.isfinite(samples).all():
        raise ValueError(
            "`coefficients` must be finite samples along the first axis. "
            f"Received: coefficients of shape {samples.shape}"
        )
    return samples


def _per_band(name: str, value: Array, samples: Array) -> Array:
    bands = samples.shape[1:]
    try:
        fits = np.broadcast_shapes(value.shape, bands) == bands
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"`{name}` must broadcast to the bands of `coefficients`, {bands}. "
            f"Received: {name} of shape {value.shape}"
        )
    return value


def _uniform_crossing(s: Array) -> Array:
    """``E[min(|d|, 1)]`` for ``d ~ N(0, s**2)``, in steps."""
    flat = s * np.sqrt(2 / np.pi) * -np.expm1(-((1 / s) ** 2) / 2)
    return np.asarray(flat + 2 * special.ndtr(-1 / s))


def _laplace_crossing(b: Array, s: Array) -> Array:
    """``E[X(|d|)]`` of (3) for ``d ~ N(0, s**2)``, all in steps."""
    # Each `sinh` is two integrals of exp(a x) times the density of d over [low, high]. Completing
    # the square, one is exp(a**2 s**2 / 2) times the normal probability of [low, high] - a s**2.
    # In logarithms, because the factors overflow where their product is small.
    # Below this, the coefficient is as good as constant and the exponents lose their digits.
    b = np.maximum(b, np.maximum(1e-6, 1e-5 * s))
    log_front = -1 / (2 * b) - np.log1p(-np.exp(-1 / b))  # of 1 / (2 sinh h)

    def term(sign: int, low: float, high: float, exponent: Array | float) -> Array:
        mean = sign * s**2 / b
        log_mass = _log_normal_mass((low - mean) / s, (high - mean) / s)
        return np.exp(log_front + exponent + (s / b) ** 2 / 2 + log_mass)

    return (
        2 * special.ndtr(-0.5 / s)
        + (term(1, 0, 0.5, 0) - term(-1, 0, 0.5, 0))
        - (term(-1, 0.5, 1, 1 / b) - term(1, 0.5, 1, -1 / b))
    )


def _log_normal_mass(low: Array, high: Array) -> Array:
    """Logarithm of the standard normal probability of ``[low, high]``, in either tail."""
    flip = low > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    upper = special.log_ndtr(high)
    return upper + np.log1p(-np.exp(special.log_ndtr(low) - upper))


def _laplace_distortion(b: Array) -> Array:
    """(4), in steps; its series where ``h / sinh h`` would cancel."""
    h = 1 / (2 * b)
    with np.errstate(over="ignore"):
        closed = 2 * b**2 * (1 - h / np.sinh(h))
    return np.where(h < 1e-2, 1 / 12 - 7 * h**2 / 720, closed)


def _crossing(d: Array, b: Array, shape: Array, borders: int) -> Array:
    """(1) in steps for the generalised Gaussian; ``d`` has one more, leading, axis."""
    tails = GeneralizedGaussian(b, shape)
    crossing = np.zeros(np.broadcast_shapes(d.shape, b.shape))
    for j in range(borders):
        crossing += tails.tail(j + 0.5 - d) - tails.tail(j + 0.5 + d)
    # The other borders, by the midpoint rule: an integral of T from their start -+ d.
    return crossing + tails.excess(borders - d) - tails.excess(borders + d)


def _distortion(b: Array, shape: Array) -> Array:
    """(2) in steps for the generalised Gaussian."""
    tails = GeneralizedGaussian(b, shape)
    summed = sum(tails.excess(j + 0.5) for j in range(_SUMMED_BORDERS))
    # The other borders, by Euler-Maclaurin's midpoint rule with its first correction.
    start = float(_SUMMED_BORDERS)
    rest = tails.squared_excess(start) / 2 - tails.tail(start) / 24
    return tails.variance - 4 * (summed + rest)


def _leaving(d: Array, b: Array, shape: Array) -> Array:
    """(5) in steps; ``d`` has one more, leading, axis."""
    tails = GeneralizedGaussian(b, shape)
    beyond = tails.tail(0.5)
    return (tails.tail(0.5 - d) - beyond) / (1 - 2 * beyond)


def _shrinkage(b: Array, shape: Array) -> Array:
    """(6) in steps."""
    tails = GeneralizedGaussian(b, shape)
    return tails.variance - 2 * (tails.squared_excess(0.5) + tails.excess(0.5))


def _mean_over_gaussian(crossing: Callable[[Array], Array], s: Array, count: int) -> Array:
    """Mean of ``crossing(|d|)`` for ``d ~ N(0, s**2)``, ``crossing`` being 1 beyond a step."""
    # Two panels, because X has a kink at half a step; none reaches beyond 8 deviations.
    total = 2 * special.ndtr(-1 / s)
    places, shares = np.polynomial.legendre.leggauss(count)
    for low, high in ((0.0, 0.5), (0.5, 1.0)):
        width = np.maximum(np.minimum(high, 8 * s) - low, 0)
        nodes = (places.reshape(-1, *[1] * s.ndim) + 1) / 2
        weights = shares.reshape(nodes.shape) / 2
        d = low + width * nodes
        density = np.exp(-((d / s) ** 2) / 2) * np.sqrt(2 / np.pi) / s
        total = total + (weights * width * density * crossing(d)).sum(0)
    return total
