"""Checks of arguments, value ranges and model outputs."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Below this, in grey levels, an epsilon was surely meant for pixels from 0 to 1.
SMALLEST_EPSILON = 0.1


def checked(
    name: str,
    value: npt.ArrayLike,
    low: float = 0.0,
    high: float = np.inf,
    *,
    positive: bool = False,
    finite: bool = True,
) -> Array:
    """Return ``value`` as float64 when all of it lies within ``[low, high]``.

    Args:
        name: What the caller calls the argument.
        value: Numbers of any shape.
        low: Smallest permitted number.
        high: Largest permitted number.
        positive: Refuse zero too.
        finite: Refuse infinity too.

    Returns:
        Array of the shape of ``value``.

    Raises:
        ValueError: ``value`` holds anything else; NaN never passes.

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


def checked_whole(argument: str, value: Any, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int when it is a whole number in a range.

    Args:
        argument: What the error message calls it.
        value: Candidate.
        low: Smallest value.
        high: Largest value; ``None``: no limit.

    Raises:
        ValueError: It is anything else.

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


def validate_epsilon(epsilon: float) -> float:
    """Return ``epsilon`` as a float when a table can be meant for it.

    Args:
        epsilon: Size of the perturbation of a pixel, on the 0..255 scale.

    Raises:
        ValueError: It is not one finite number, or below 0.1.

    Example:
        >>> validate_epsilon(2)
        2.0
    """
    try:
        value = float(epsilon)
    except (TypeError, ValueError):
        value = np.nan
    if not SMALLEST_EPSILON <= value < np.inf:
        raise ValueError(
            f"`epsilon` must be one finite number of grey levels from 0 to 255, at least "
            f"{SMALLEST_EPSILON}: for 0.0078 of pixels from 0 to 1, write 2. "
            f"Received: epsilon={epsilon!r}"
        )
    return value


def _rule(low: float, high: float, positive: bool, finite: bool) -> str:
    if np.isfinite(high):
        return f"lie between {low:g} and {high:g}"
    sign = "positive" if positive else "not negative" if np.isfinite(low) else ""
    return "be " + " and ".join(filter(None, ("finite" if finite else "", sign)))


def validate_value_range(value_range: Sequence[float]) -> tuple[float, float]:
    """Return ``value_range`` as two floats when it is a range.

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
    """Refuse pixels that do not lie in a range, or that were scaled to a narrower one.

    Half a grey level (a 255th of the range) beyond it is forgiven: interpolation and rounding
    do that. Pixels that all lie within one grey level of black, some in between, were surely
    scaled to another range, such as 0..1.

    Args:
        pixels: Images that are looked at together, not empty.
        value_range: What ``validate_value_range`` returned.

    Raises:
        ValueError: A pixel is outside or NaN, or the pixels are of another scale.

    Example:
        >>> import numpy as np
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


# Outputs in half precision do not sum to 1 any closer.
_SUM_TOLERANCE = 1e-3


def check_outputs(outputs: npt.NDArray[np.floating], *, from_logits: bool) -> None:
    """Refuse outputs that are not what ``from_logits`` says.

    Args:
        outputs: What a classifier returned, ``(batch, classes)``.
        from_logits: Whether they should be logits; else probabilities.

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
