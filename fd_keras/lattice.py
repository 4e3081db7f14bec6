"""The points of a table's lattice that images of whole pixel values come near enough to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras.certification import margins, nominal_margins, nominal_radius, ordered
from fd_keras.dct import BLOCK_SIZE, RGB_TO_YCBCR, TIE_OFFSET, YCBCR_TO_RGB, ColorSpace, level_shift
from fd_keras.kernels import dct_basis, distil
from fd_keras.presets import SLACK
from fd_keras.tables import QuantizationTable

FloatArray = npt.NDArray[np.float32]
Steps = npt.NDArray[np.float64]

# What a kind of file makes of images of whole pixel values, and of single blocks.
Stored = Callable[[FloatArray], FloatArray]

# Pixels of images that are looked at at once, and blocks of those that do not fit at once; and
# how many candidates for few blocks, for a small batch takes as long as one block.
_PIXELS_AT_ONCE = 2**18
_BLOCKS_AT_ONCE = 2**12
_CANDIDATES_AT_ONCE = 2**9

# What is left of a block's contrast where its lattice point leaves 0..255, until one fits.
_CONTRASTS = (1, 0.975, 0.95, 0.925, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0)

# Contrasts and ranks of DC levels, by their distance, to try where decoders round once more: a
# flat block is off by the same in every pixel there, which only another level of DC avoids.
_ROUNDED_AGAIN = (
    *((1.0, rank) for rank in range(9)),
    *((contrast, rank) for contrast in _CONTRASTS for rank in range(3)),
    *((contrast, rank) for contrast in (0.9, 0.6, 0.3, 0) for rank in range(27)),
)


@dataclass(frozen=True, eq=False)
class Lattice:
    """The lattice of a table, for images of some number of channels.

    Args:
        steps: ``(channels, 8, 8)``.
        color_space: Of the steps.
        needed: ``(channels, 8, 8)``: how far each coefficient has to be from the boundary of its
            level; minus infinity where no radius is to be kept.

    Example:
        >>> table = QuantizationTable(np.full((8, 8), 48.0))
        >>> images = np.full((1, 8, 8, 1), 100, np.float32)
        >>> int(Lattice.of(table, 1).fitted(images)[0, 0, 0, 0])
        102
    """

    steps: Steps
    color_space: ColorSpace
    needed: Steps

    @classmethod
    def of(cls, table: QuantizationTable, channels: int) -> Lattice:
        """The lattice of a table with one block grid, to reach its nominal radii.

        Args:
            table: The table. Steps too small for any radius leave nothing to reach: no block loses
                contrast for it.
            channels: Number of channels of the images.
        """
        needed = nominal_margins(table, channels) - SLACK
        if nominal_radius(table, channels) == 0:
            needed = np.full_like(needed, -np.inf)
        return cls(table.steps_for(channels), table.color_space, needed)

    def fitted(
        self, images: npt.NDArray[Any], stored: Stored | None = None
    ) -> npt.NDArray[np.uint8]:
        """Find whole pixel values of which every coefficient is as far within its level as needed.

        Blocks whose nearest point of the lattice leaves 0..255 lose contrast until one fits.

        Args:
            images: ``(n, height, width, channels)`` from 0 to 255, of any dtype.
            stored: What a file makes of whole pixel values, block by block; the images fit
                after it. Default: it keeps them.

        Returns:
            Array of the shape of ``images``. With ``stored``, a few blocks may not fit: those come
            as near as any point that was tried.
        """
        result = np.empty(images.shape, np.uint8)
        short = []
        for first, top, part in _parts(images):
            whole = self._nearest(np.float32(part))
            count, height, _, _ = part.shape
            result[first : first + count, top : top + height] = whole
            spare = self._spare(whole if stored is None else stored(whole))
            short.append(np.argwhere(spare < 0) + np.array([first, top // BLOCK_SIZE, 0]))
        # Those of all parts, for the last of them take many attempts.
        missed = np.concatenate(short)
        for start in range(0, len(missed), _BLOCKS_AT_ONCE):
            self._refit(images, result, missed[start : start + _BLOCKS_AT_ONCE], stored)
        return result

    def _nearest(self, images: FloatArray) -> FloatArray:
        """The points of the lattice, in whole pixel values from 0 to 255."""
        steps = tf.constant(self.steps, tf.float32)
        points = distil(tf.convert_to_tensor(images), steps, color_space=self.color_space)
        return np.asarray(np.clip(np.rint(points.numpy()), 0, 255))

    def _refit(
        self,
        images: npt.NDArray[Any],
        result: npt.NDArray[np.uint8],
        missed: npt.NDArray[np.integer],
        stored: Stored | None,
    ) -> None:
        """Replace blocks of ``result``, of which ``missed`` holds image, row and column."""
        image = missed[:, 0, np.newaxis, np.newaxis]
        places = missed[:, 1:, np.newaxis] * BLOCK_SIZE + np.arange(BLOCK_SIZE)
        sides = np.array(images.shape[1:3])
        rows, columns = np.minimum(places, sides[:, np.newaxis] - 1).transpose(1, 0, 2)
        source = np.float32(images[image, rows[:, :, np.newaxis], columns[:, np.newaxis]])
        inside = places < sides[:, np.newaxis]
        fitted = self._fitted_blocks(source, inside.sum(-1).T, stored)
        block, row, column = np.nonzero(inside[:, 0, :, np.newaxis] & inside[:, 1, np.newaxis])
        target = missed[block, 0], places[block, 0, row], places[block, 1, column]
        result[target] = fitted[block, row, column]

    def _fitted_blocks(
        self, blocks: FloatArray, used: npt.NDArray[np.integer], stored: Stored | None
    ) -> FloatArray:
        """Blocks ``(m, 8, 8, channels)`` of as much contrast as the lattice has room for.

        ``used`` says how many of each block's rows and columns belong to the image; the others
        repeat the last one, and so must those of the result.
        """
        # Across an incomplete side only constant patterns survive the repetition of the edge.
        constant = (used < BLOCK_SIZE)[..., np.newaxis]
        frequencies = np.arange(BLOCK_SIZE)
        kept = ~(constant & (frequencies > 0))  # (2, m, 8)
        bands = kept[0][:, :, np.newaxis] & kept[1][:, np.newaxis, :]
        blocks = _averaged(_averaged(blocks, 1, used[0]), 2, used[1])
        wanted = _transformed(blocks, self.color_space) * bands[:, np.newaxis]
        shifts = self._shifts(wanted[:, :, 0, 0])
        result, best = np.empty_like(blocks), np.full(len(blocks), -np.inf)
        open_ = np.arange(len(blocks))
        attempts = [(c, 0) for c in _CONTRASTS] if stored is None else _ROUNDED_AGAIN
        attempts = [(c, rank) for c, rank in attempts if rank < shifts.shape[1]]
        together = 1
        while attempts and len(open_):
            together = max(1, min(together, _CANDIDATES_AT_ONCE // len(open_)))
            tried, attempts = attempts[:together], attempts[together:]
            candidates = np.concatenate(
                [self._candidate(wanted[open_], c, shifts[open_, rank]) for c, rank in tried]
            )
            spare = self._spare(candidates if stored is None else stored(candidates))
            spare = spare.reshape(len(tried), len(open_))
            # The first that fits, or else the first of those that come nearest.
            chosen = np.where(spare.max(0) >= 0, (spare >= 0).argmax(0), spare.argmax(0))
            number = np.arange(len(open_))
            found = candidates.reshape(len(tried), len(open_), *blocks.shape[1:])[chosen, number]
            reached = spare[chosen, number]
            better = reached > best[open_]
            result[open_[better]], best[open_[better]] = found[better], reached[better]
            open_ = open_[best[open_] < 0]
            together *= 2  # few blocks take most attempts
        return result

    def _candidate(self, wanted: Steps, contrast: float, shifts: Steps) -> FloatArray:
        """Whole pixel values near the lattice point of blocks with less contrast."""
        scaled = wanted * contrast
        # Grey and RGB keep the brightness of each channel, YCbCr that of luma.
        bright = slice(1) if self.color_space == "ycbcr" else slice(None)
        scaled[:, bright, 0, 0] = wanted[:, bright, 0, 0]
        levels = np.round(scaled / self.steps + TIE_OFFSET)
        lowest, highest = _flat_levels(self.steps[:, 0, 0], self.color_space)
        levels[:, :, 0, 0] = np.clip(levels[:, :, 0, 0] + shifts, lowest, highest)
        pixels = np.rint(_inverse(levels * self.steps, self.color_space))
        return np.asarray(np.clip(pixels, 0, 255), np.float32)

    def _shifts(self, wanted: Steps) -> Steps:
        """Changes of the DC levels of blocks, ``(m, changes, channels)``, the nearest first."""
        steps = self.steps[:, 0, 0]
        residual = wanted - steps * np.round(wanted / steps + TIE_OFFSET)
        changes = np.array(list(itertools.product((0, -1, 1), repeat=len(steps))), np.float64)
        distances = ((residual[:, np.newaxis] - changes * steps) ** 2).sum(-1)
        # Near a tie, which the offset decides, another level is nearer than the block's own.
        distances[:, 0] = 0
        return np.asarray(changes[np.argsort(distances, axis=1, kind="stable")])

    def _spare(self, images: FloatArray) -> Steps:
        """By how much blocks ``(n, rows, columns)`` are further within their levels than needed."""
        found = margins(images, self.steps, self.color_space)
        spare = found - tf.constant(ordered(self.needed), tf.float32)
        least = tf.reduce_min(spare, axis=(1, 3)).numpy()
        return np.asarray(least.reshape(len(images), -1, least.shape[-1]))


def _averaged(blocks: FloatArray, axis: int, used: npt.NDArray[np.integer]) -> FloatArray:
    """Blocks that are constant along an axis wherever it is incomplete."""
    inside = np.arange(BLOCK_SIZE) < used[:, np.newaxis]
    weights = np.expand_dims(inside / inside.sum(1, keepdims=True), (3 - axis, 3))
    mean = (blocks * weights).sum(axis, keepdims=True)
    whole = (used == BLOCK_SIZE)[:, np.newaxis, np.newaxis, np.newaxis]
    return np.asarray(np.where(whole, blocks, mean), np.float32)


def _transformed(blocks: FloatArray, color_space: ColorSpace) -> npt.NDArray[np.float64]:
    """Coefficients ``(m, channels, 8, 8)`` of blocks ``(m, 8, 8, channels)``."""
    x = np.float64(blocks) - level_shift(color_space)
    if color_space == "ycbcr" and blocks.shape[-1] == 3:
        x = x @ RGB_TO_YCBCR.T
    basis = dct_basis()
    return np.asarray(basis @ x.transpose(0, 3, 1, 2) @ basis.T)


def _inverse(
    coefficients: npt.NDArray[np.float64], color_space: ColorSpace
) -> npt.NDArray[np.float64]:
    """The inverse of ``_transformed``."""
    basis = dct_basis()
    x = (basis.T @ coefficients @ basis).transpose(0, 2, 3, 1)
    if color_space == "ycbcr" and x.shape[-1] == 3:
        x = x @ YCBCR_TO_RGB.T
    return np.asarray(x + level_shift(color_space))


def _flat_levels(
    dc_steps: Steps, color_space: ColorSpace
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Lowest and highest DC level of each channel whose flat block lies within 0..255."""
    shift = level_shift(color_space)
    chroma = np.arange(len(dc_steps)) > 0 if color_space == "ycbcr" else False
    lowest = np.where(chroma, -np.inf, np.ceil(-shift * BLOCK_SIZE / dc_steps))
    highest = np.where(chroma, np.inf, np.floor((255 - shift) * BLOCK_SIZE / dc_steps))
    return lowest, highest


def _parts(images: npt.NDArray[Any]) -> Iterator[tuple[int, int, npt.NDArray[Any]]]:
    """Some images, or rows of blocks of one, at a time: the first image, the first row, pixels."""
    count, height, width, _ = images.shape
    several = max(1, _PIXELS_AT_ONCE // (height * width))
    rows = max(1, _PIXELS_AT_ONCE // (width * BLOCK_SIZE)) * BLOCK_SIZE
    for first in range(0, count, several):
        for top in range(0, height, rows):
            yield first, top, images[first : first + several, top : top + rows]
