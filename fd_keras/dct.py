"""The geometry of the quantised DCT in plain numpy: bands, colour spaces and block grids."""

from __future__ import annotations

import operator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fd_keras._checks import checked_choice, shown

BLOCK_SIZE = 8

# Integer pixels put coefficients of the bands (0,0), (0,4), (4,0), (4,4) exactly on k + 1/2
# steps, where the rounding errors of different runtimes fall on different sides. The offset moves
# those ties aside by more than float32 errors; 997 is prime, so that no integer step moves a
# coefficient onto a tie again.
TIE_OFFSET = 1 / 997

ColorSpace = Literal["rgb", "ycbcr"]

COLOR_SPACES: tuple[ColorSpace, ...] = get_args(ColorSpace)

Quantizer = Literal["round", "soft"]

QUANTIZERS: tuple[Quantizer, ...] = get_args(Quantizer)

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

MAX_CYCLE_SPINS = BLOCK_SIZE**2


def zigzag_rank() -> npt.NDArray[np.int64]:
    """Position of each band in JPEG's zig-zag scan.

    Returns:
        Array ``(8, 8)``, from 0 for DC to 63 for the highest diagonal frequency.

    Example:
        >>> zigzag_rank()[:2, :3].tolist()
        [[0, 1, 5], [2, 4, 7]]

    References:
        ITU-T T.81, figure A.6.
    """
    u, v = np.indices((BLOCK_SIZE, BLOCK_SIZE))
    diagonal = u + v
    # Even diagonals are scanned upwards (u falls), odd ones downwards.
    along = np.where(diagonal % 2 == 0, v, u)
    order = np.lexsort((along.ravel(), diagonal.ravel()))
    rank = np.empty(BLOCK_SIZE**2, np.int64)
    rank[order] = np.arange(BLOCK_SIZE**2)
    return rank.reshape(BLOCK_SIZE, BLOCK_SIZE)


def validate_color_space(value: object) -> ColorSpace:
    """Return ``value`` if it is the name of a colour space.

    Args:
        value: Candidate.

    Raises:
        ValueError: ``value`` is none of ``COLOR_SPACES``.

    Example:
        >>> validate_color_space("rgb")
        'rgb'
    """
    return checked_choice("color_space", value, COLOR_SPACES)


def validate_quantizer(value: object) -> Quantizer:
    """Return ``value`` if it is the name of a quantiser.

    Args:
        value: Candidate.

    Raises:
        ValueError: ``value`` is none of ``QUANTIZERS``.

    Example:
        >>> validate_quantizer("soft")
        'soft'
    """
    return checked_choice("quantizer", value, QUANTIZERS)


def level_shift(color_space: ColorSpace) -> float:
    """Grey level that is subtracted from every pixel before the DCT.

    A JPEG codec centres its components on 128 (T.81, A.3.1), so that neutral grey has zero
    chroma and stays neutral whatever the chroma steps. The authors' code, in RGB, does not shift.

    Args:
        color_space: ``"rgb"`` or ``"ycbcr"``.

    Example:
        >>> level_shift("ycbcr"), level_shift("rgb")
        (128.0, 0.0)
    """
    return 128.0 if color_space == "ycbcr" else 0.0


def validate_cycle_spins(value: object) -> int:
    """Return ``value`` as an ``int`` if it is a number of block grids.

    Args:
        value: Candidate, an integer from 1 to 64.

    Raises:
        ValueError: ``value`` is anything else.

    Example:
        >>> validate_cycle_spins(4)
        4
    """
    try:
        spins = 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        spins = 0
    if 1 <= spins <= MAX_CYCLE_SPINS:
        return spins
    raise ValueError(
        f"`cycle_spins` must be an integer from 1 to {MAX_CYCLE_SPINS}. "
        f"Received: cycle_spins={shown(value)}"
    )


def grid_offsets(cycle_spins: int) -> list[tuple[int, int]]:
    """Vertical and horizontal offsets of the block grids, spread evenly over a block.

    The offsets are the first ``cycle_spins`` entries of the 8x8 ordered-dither sequence. If their
    number is a power of two, they form a regular lattice; more grids add to those of fewer.

    Args:
        cycle_spins: Number of grids, 1 to 64.

    Returns:
        ``cycle_spins`` pairs of offsets in pixels, the first being ``(0, 0)``.

    Example:
        >>> grid_offsets(4)
        [(0, 0), (4, 4), (0, 4), (4, 0)]

    References:
        Coifman & Donoho, "Translation-invariant de-noising", 1995 (cycle spinning);
        Bayer, "An optimum method for two-level rendition of continuous-tone pictures", 1973.
    """
    # Each base-4 digit of the index, lowest first, halves the lattice spacing.
    quarter = [(0, 0), (1, 1), (0, 1), (1, 0)]
    offsets = []
    for index in range(cycle_spins):
        dy = dx = 0
        for spacing in (4, 2, 1):
            index, digit = divmod(index, 4)
            dy += spacing * quarter[digit][0]
            dx += spacing * quarter[digit][1]
        offsets.append((dy, dx))
    return offsets
