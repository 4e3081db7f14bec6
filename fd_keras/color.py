"""Colour spaces in which an image can be quantised."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

ColorSpace = Literal["rgb", "ycbcr"]

COLOR_SPACES: tuple[ColorSpace, ...] = get_args(ColorSpace)

# JFIF 1.02, section 7: rows give Y, Cb - 128 and Cr - 128 from full-range R, G, B.
RGB_TO_YCBCR: npt.NDArray[np.float64] = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.299 / 1.772, -0.587 / 1.772, 0.5],
        [0.5, -0.587 / 1.402, -0.114 / 1.402],
    ],
    np.float64,
)

YCBCR_TO_RGB: npt.NDArray[np.float64] = np.linalg.inv(RGB_TO_YCBCR).astype(np.float64)


def level_shift(color_space: ColorSpace) -> float:
    """Grey level that is subtracted from every pixel before the DCT.

    A JPEG codec centres its components on 128 (T.81, A.3.1), so a neutral grey has zero
    chroma and stays neutral under any chroma step. The authors' RGB code does not shift.

    Args:
        color_space: ``"rgb"`` or ``"ycbcr"``.

    Example:
        >>> level_shift("ycbcr"), level_shift("rgb")
        (128.0, 0.0)
    """
    return 128.0 if color_space == "ycbcr" else 0.0


def validate_color_space(value: object) -> ColorSpace:
    """Return ``value`` when it names a colour space.

    Args:
        value: Candidate name.

    Raises:
        ValueError: It is none of ``COLOR_SPACES``.

    Example:
        >>> validate_color_space("rgb")
        'rgb'
    """
    for name in COLOR_SPACES:
        if value == name:
            return name
    raise ValueError(
        f"`color_space` must be one of {COLOR_SPACES}. Received: color_space={value!r}"
    )
