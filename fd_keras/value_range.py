"""The range of pixel values, and whether pixels lie in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt


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
