"""The 64 frequency bands of an 8x8 DCT block and the orders in which they are counted.

A band is the pair ``(u, v)`` of its vertical and horizontal frequency; ``(0, 0)`` is DC.
Arrays over bands are shaped ``(..., 8, 8)`` and indexed ``[..., u, v]``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK_SIZE = 8

# Integer pixels put coefficients of the bands (0,0), (0,4), (4,0), (4,4) exactly on k + 1/2
# steps, where every runtime's rounding errors fall differently. The offset moves those ties
# aside by more than float32 errors; 997 is prime, so no integer step moves them back.
TIE_OFFSET = 1 / 997


def zigzag_rank() -> npt.NDArray[np.int64]:
    """Position of each band in JPEG's zig-zag scan.

    Returns:
        Array ``(8, 8)`` holding 0 at DC up to 63 at the highest diagonal frequency.

    Example:
        >>> zigzag_rank()[:2, :3].tolist()
        [[0, 1, 5], [2, 4, 7]]

    References:
        ITU-T T.81, figure A.6.
    """
    u, v = np.indices((BLOCK_SIZE, BLOCK_SIZE))
    diagonal = u + v
    # Even diagonals are walked upwards (u falls), odd ones downwards.
    along = np.where(diagonal % 2 == 0, v, u)
    order = np.lexsort((along.ravel(), diagonal.ravel()))
    rank = np.empty(BLOCK_SIZE**2, np.int64)
    rank[order] = np.arange(BLOCK_SIZE**2)
    return rank.reshape(BLOCK_SIZE, BLOCK_SIZE)
