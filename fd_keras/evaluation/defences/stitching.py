"""Stitching overlapping patches along the boundary where they differ least."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def stitch(patches: Array, overlap: int) -> Array:
    """Lay a grid of overlapping patches, each cut along its minimum-error boundary.

    Patches are laid row by row, left to right, as Efros and Freeman do: where one overlaps
    what already lies there, to its left and above, a cut through the overlap along which the
    two differ least decides which pixels it covers. Patches that do not touch each other and
    whose neighbours lie already are laid at once, which changes nothing but the time.

    Args:
        patches: Array ``(rows, columns, size, size, channels)``.
        overlap: Pixels that neighbours share, from 1 to ``size // 2``.

    Returns:
        Array ``(height, width, channels)`` with ``height = (rows - 1) * (size - overlap) +
        size``, and width likewise.

    Example:
        >>> stitch(np.full((2, 3, 5, 5, 1), 7.0), overlap=2).shape
        (8, 11, 1)

    References:
        Efros & Freeman, "Image Quilting for Texture Synthesis and Transfer", SIGGRAPH 2001.
    """
    rows, columns, size, _, channels = patches.shape
    step = size - overlap
    shape = ((rows - 1) * step + size, (columns - 1) * step + size, channels)
    canvas = np.zeros(shape, patches.dtype)
    offsets = np.arange(size)
    # A patch waits for its left neighbour and the three above. The last of them to be laid is
    # the one above to the right: hence two fronts' delay from row to row.
    for front in range(columns + 2 * (rows - 1)):
        row = np.arange(max(0, -(-(front - columns + 1) // 2)), min(rows - 1, front // 2) + 1)
        column = front - 2 * row
        window = (
            (row * step)[:, None, None] + offsets[:, None],
            (column * step)[:, None, None] + offsets,
        )
        laid, patch = canvas[window], patches[row, column]
        covered = _covered(laid, patch, overlap, has_left=column > 0, has_above=row > 0)
        canvas[window] = np.where(covered[..., np.newaxis], patch, laid)
    return canvas


def minimum_error_cut(errors: Array) -> npt.NDArray[np.intp]:
    """The connected path with the least sum of errors through each of several strips.

    Args:
        errors: Array ``(strips, length, width)``.

    Returns:
        Array ``(strips, length)``: at each position along a strip the path's place across
        it; neighbours differ by at most 1.

    Example:
        >>> minimum_error_cut(np.array([[[9, 1, 9], [1, 9, 9], [9, 0, 9]]]))
        array([[1, 0, 1]])
    """
    strips, length, width = errors.shape
    # cost[:, i, j]: the least sum over positions 0 to i of a path that arrives at (i, j).
    cost = np.full((strips, length, width + 2), np.inf)  # an infinite border on both sides
    cost[:, :, 1:-1] = errors
    for i in range(1, length):
        arrive = np.minimum(cost[:, i - 1, :-2], cost[:, i - 1, 2:])
        cost[:, i, 1:-1] += np.minimum(arrive, cost[:, i - 1, 1:-1])
    path = np.empty((strips, length), np.intp)
    path[:, -1] = cost[:, -1].argmin(axis=1)
    strip = np.arange(strips)
    for i in range(length - 2, -1, -1):
        nearby = path[:, i + 1, np.newaxis] + np.array([-1, 0, 1])
        best = cost[strip[:, np.newaxis], i, nearby].argmin(axis=1)
        path[:, i] = nearby[strip, best]
    return path - 1


def _covered(
    laid: Array, patch: Array, overlap: int, *, has_left: Array, has_above: Array
) -> npt.NDArray[np.bool_]:
    """Which pixels of patches ``(n, size, size, channels)`` to put over what lies there."""
    errors = np.square(laid - patch).sum(axis=-1)
    strips = np.concatenate([errors[:, :, :overlap], errors[:, :overlap].swapaxes(1, 2)])
    left, above = np.split(minimum_error_cut(strips), 2)
    offsets = np.arange(patch.shape[1])
    # A patch with nothing on that side is cut at its first pixel, which is not at all.
    left, above = left * has_left[:, np.newaxis], above * has_above[:, np.newaxis]
    right_of_cut = offsets >= left[:, :, np.newaxis]
    below_cut = offsets[:, np.newaxis] >= above[:, np.newaxis]
    return right_of_cut & below_cut
