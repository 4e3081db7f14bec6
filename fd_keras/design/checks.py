"""Checks of numeric arguments, shared by the modules of this package."""

from __future__ import annotations

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
