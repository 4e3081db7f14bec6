"""Checks of arguments, pixels and model outputs.

``checked...`` and ``validate_...`` return the value in the type that the caller needs;
``check_...`` return nothing. All raise ``ValueError`` with a message that names the argument and
what was received.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Smallest perturbation in grey levels of 255. Smaller numbers are refused, because they were
# almost certainly meant for pixels from 0 to 1.
SMALLEST_EPSILON = 0.1

# Sums of probabilities in half precision differ from 1 by up to this much.
_SUM_TOLERANCE = 1e-3


def checked(
    name: str,
    value: npt.ArrayLike,
    low: float = 0.0,
    high: float = np.inf,
    *,
    positive: bool = False,
    finite: bool = True,
) -> Array:
    """Return ``value`` as float64 if all of its numbers lie within ``[low, high]``.

    Args:
        name: Name of the argument in the error message.
        value: Numbers of any shape.
        low: Smallest permitted number.
        high: Largest permitted number.
        positive: Whether zero is refused.
        finite: Whether infinity is refused.

    Returns:
        Array of the shape of ``value``.

    Raises:
        ValueError: A number is outside the range or NaN.

    Example:
        >>> checked("step", -1.0)
        Traceback (most recent call last):
        ...
        ValueError: `step` must be finite and not negative. Received: step=-1.0
    """
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be numbers. Received: {name}={value!r}") from error
    valid = (array >= low) & (array <= high)
    if positive:
        valid &= array > 0
    if finite:
        valid &= np.isfinite(array)
    if not valid.all():
        rule = _rule(low, high, positive, finite)
        received = array[~valid].ravel()[0]
        raise ValueError(f"`{name}` must {rule}. Received: {name}={received}")
    return array


def _rule(low: float, high: float, positive: bool, finite: bool) -> str:
    if np.isfinite(high):
        return f"lie between {low:g} and {high:g}"
    sign = "positive" if positive else "not negative" if np.isfinite(low) else ""
    return "be " + " and ".join(filter(None, ("finite" if finite else "", sign)))


def checked_whole(argument: str, value: Any, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int if it is a whole number in a range.

    Args:
        argument: Name of the argument in the error message.
        value: Candidate.
        low: Smallest permitted number.
        high: Largest permitted number; ``None``: no limit.

    Raises:
        ValueError: ``value`` is anything else.

    Example:
        >>> checked_whole("bits", np.int64(5), 1, 8)
        5
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or int(value) < low or (high is not None and int(value) > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(
            f"`{argument}` must be a whole number {limits}. Received: {argument}={value!r}"
        )
    return int(value)


def checked_labels(labels: npt.ArrayLike, count: int) -> npt.NDArray[np.integer]:
    """Return ``labels`` as an array if they are integers, one for each of ``count`` images.

    Args:
        labels: Candidate.
        count: Number of images, at least one.

    Raises:
        ValueError: ``labels`` are anything else.

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


def validate_epsilon(epsilon: float) -> float:
    """Return ``epsilon`` as a float if it is the size of a perturbation in grey levels of 255.

    Args:
        epsilon: Candidate, from 0.1 to 255.

    Raises:
        ValueError: ``epsilon`` is anything else.

    Example:
        >>> validate_epsilon(2)
        2.0
    """
    try:
        value = float(epsilon)
    except (TypeError, ValueError):
        value = np.nan
    if not SMALLEST_EPSILON <= value <= 255:
        raise ValueError(
            f"`epsilon` must be one finite number of grey levels of 255, from {SMALLEST_EPSILON} "
            "to 255: for 0.0078 of pixels from 0 to 1, write 2. "
            f"Received: epsilon={epsilon!r}"
        )
    return value


def checked_epsilons(epsilon: npt.ArrayLike) -> Array:
    """Return sizes of perturbations in grey levels of 255 as an array; 0 is none at all.

    Args:
        epsilon: Candidates of any shape, each 0 or at least 0.1.

    Raises:
        ValueError: A number is negative, not finite, or between 0 and 0.1.

    Example:
        >>> checked_epsilons([0, 2])
        array([0., 2.])
    """
    array = checked("epsilon", epsilon)
    too_small = (array > 0) & (array < SMALLEST_EPSILON)
    if too_small.any():
        raise ValueError(
            f"`epsilon` must be 0 or at least {SMALLEST_EPSILON} grey levels of 255: for 0.0078 "
            f"of pixels from 0 to 1, write 2. Received: epsilon={array[too_small].ravel()[0]}"
        )
    return array


def validate_value_range(value_range: Sequence[float]) -> tuple[float, float]:
    """Return ``value_range`` as two floats if it is a range of pixel values.

    Args:
        value_range: Lowest and highest pixel value.

    Raises:
        ValueError: It is not two finite numbers, the lower first.

    Example:
        >>> validate_value_range((0, 255))
        (0.0, 255.0)
    """
    try:
        low, high = (float(bound) for bound in value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            "`value_range` must be two finite numbers, the lower first. "
            f"Received: value_range={value_range!r}"
        )
    return low, high


def check_pixels(pixels: npt.NDArray[Any], value_range: tuple[float, float]) -> None:
    """Refuse pixels outside ``value_range``, and pixels that were scaled to a narrower range.

    Pixels may exceed the range by half a grey level (a 255th of the range), as interpolation and
    rounding cause it. Pixels that all lie within one grey level of black, some of them strictly in
    between, were almost certainly scaled to another range, such as 0..1.

    Args:
        pixels: Images that are checked together; not empty.
        value_range: Lowest and highest pixel value.

    Raises:
        ValueError: A pixel is outside the range or NaN, or the pixels are of another scale.

    Example:
        >>> check_pixels(np.array([0.0, 0.25, 1.0]), (0.0, 255.0))
        Traceback (most recent call last):
        ...
        ValueError: `data` must be scaled to value_range, 0 to 255. Received: images from 0 to 1
    """
    low, high = value_range
    grey_level = (high - low) / 255
    darkest, brightest = float(pixels.min()), float(pixels.max())
    received = f"Received: images from {darkest:g} to {brightest:g}"
    # Comparisons with NaN are false, so this refuses NaN too.
    if not (low - grey_level / 2 <= darkest and brightest <= high + grey_level / 2):
        raise ValueError(
            f"`data` must be finite and lie within value_range, {low:g} to {high:g}. {received}"
        )
    if brightest <= low + 1.001 * grey_level:
        share = (pixels - low) / grey_level
        if ((share > 0.01) & (share < 0.99)).any():
            raise ValueError(
                f"`data` must be scaled to value_range, {low:g} to {high:g}. {received}"
            )


def check_outputs(outputs: npt.NDArray[np.floating], *, from_logits: bool) -> None:
    """Refuse outputs of a classifier that are not what ``from_logits`` says.

    Args:
        outputs: Outputs ``(batch, classes)``.
        from_logits: Whether they should be logits; otherwise probabilities.

    Raises:
        ValueError: They are not finite, or the other of the two.

    Example:
        >>> check_outputs(np.array([[-1.0, 2.0]]), from_logits=True)
    """
    received = f"Received: outputs from {outputs.min():g} to {outputs.max():g}"
    if not np.isfinite(outputs).all():
        raise ValueError(f"`model` must return finite outputs. {received}")
    sums = outputs.sum(axis=-1, dtype=np.float64)
    looks_normal = outputs.min() >= 0 and np.abs(sums - 1).max() <= _SUM_TOLERANCE
    if looks_normal and from_logits:
        raise ValueError(
            "`model` must return logits, and these are probabilities: they lie from 0 to 1 "
            "and sum to 1. Pass from_logits=False, or take off its softmax. "
            f"{received}, with from_logits=True"
        )
    if not looks_normal and not from_logits:
        raise ValueError(
            "`model` must return probabilities, which lie from 0 to 1 and sum to 1. Pass "
            f"from_logits=True for logits. {received}, with from_logits=False"
        )
