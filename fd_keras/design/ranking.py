"""The order in which bands are called important."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fd_keras.bands import BLOCK_SIZE, zigzag_rank
from fd_keras.design.checks import checked

Ranking = Literal["sigma", "zigzag"]

RANKINGS: tuple[Ranking, ...] = get_args(Ranking)


def rank_bands(std: npt.ArrayLike, ranking: Ranking = "sigma") -> npt.NDArray[np.int64]:
    """Rank of every band, 0 being the most important.

    The gradient of a network with respect to a coefficient grows with the coefficient, so the
    bands with the largest standard deviation carry its accuracy; JPEG's zig-zag order, made
    for the eye, is what most codes use instead. Equal deviations are ranked by zig-zag. Every
    channel is ranked by itself.

    Args:
        std: Standard deviation of the benign coefficients, ``(..., 8, 8)``.
        ranking: ``"sigma"``: largest ``std`` first. ``"zigzag"``: lowest frequency first.

    Returns:
        Ranks 0 to 63, of the shape of ``std``.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> std = 100 / (1 + np.add.outer(3 * np.arange(8), np.arange(8)))
        >>> rank_bands(std)[:2, :4].tolist()
        [[0, 1, 2, 4], [3, 5, 7, 10]]
        >>> rank_bands(std, "zigzag")[:2, :4].tolist()
        [[0, 1, 5, 6], [2, 4, 7, 13]]

    References:
        Liu et al., "Feature Distillation", CVPR 2019, section 3.3.
    """
    std = checked("std", std)
    if std.ndim < 2 or std.shape[-2:] != (BLOCK_SIZE, BLOCK_SIZE):
        raise ValueError(f"`std` must have shape (..., 8, 8). Received: std of shape {std.shape}")
    if ranking not in RANKINGS:
        raise ValueError(f"`ranking` must be one of {RANKINGS}. Received: ranking={ranking!r}")
    zigzag = np.broadcast_to(zigzag_rank(), std.shape).reshape(-1, BLOCK_SIZE**2)
    spread = std.reshape(zigzag.shape) if ranking == "sigma" else np.zeros(zigzag.shape)
    order = np.lexsort((zigzag, -spread), axis=-1)
    return np.argsort(order, axis=-1).reshape(std.shape)
