"""Cycle spinning: which shifted block grids a distilled image is averaged over."""

from __future__ import annotations

import operator

from fd_keras.bands import BLOCK_SIZE

MAX_CYCLE_SPINS = BLOCK_SIZE**2


def validate_cycle_spins(value: object) -> int:
    """Return ``value`` as an ``int`` when it is a number of block grids.

    Args:
        value: Candidate, an integer from 1 to 64.

    Raises:
        ValueError: It is anything else.

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
        f"Received: cycle_spins={value!r}"
    )


def grid_offsets(cycle_spins: int) -> list[tuple[int, int]]:
    """Vertical and horizontal offsets of the block grids, spread evenly over a block.

    The offsets are the first ``cycle_spins`` entries of the 8x8 ordered-dither sequence:
    every prefix whose length is a power of two is a regular lattice, and a longer
    sequence only adds to a shorter one.

    Args:
        cycle_spins: Number of grids, 1 to 64.

    Returns:
        ``cycle_spins`` pairs of pixels, the first being ``(0, 0)``.

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
