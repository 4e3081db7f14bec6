"""The points of a table's lattice that images of whole pixel values come near enough to."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras.certification import margins, nominal_margins, ordered
from fd_keras.dct import BLOCK_SIZE, RGB_TO_YCBCR, TIE_OFFSET, YCBCR_TO_RGB, ColorSpace, level_shift
from fd_keras.kernels import dct_basis, distil
from fd_keras.presets import SLACK
from fd_keras.tables import QuantizationTable

FloatArray = npt.NDArray[np.float32]
Steps = npt.NDArray[np.float64]

# What a kind of file makes of images of whole pixel values, and of single blocks.
Stored = Callable[[FloatArray], FloatArray]

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
            level.

    Example:
        >>> table = QuantizationTable(np.full((8, 8), 48.0))
        >>> images = np.full((1, 8, 8, 1), 100, np.float32)
        >>> float(Lattice.of(table, 1).fitted(images)[0, 0, 0, 0])
        102.0
    """

    steps: Steps
    color_space: ColorSpace
    needed: Steps

    @classmethod
    def of(cls, table: QuantizationTable, channels: int) -> Lattice:
        """The lattice of a table with one block grid, to reach its nominal radii.

        Args:
            table: The table.
            channels: Number of channels of the images.
        """
        needed = nominal_margins(table, channels) - SLACK
        return cls(table.steps_for(channels), table.color_space, needed)

    def fitted(self, images: FloatArray, stored: Stored | None = None) -> FloatArray:
        """Find whole pixel values of which every coefficient is as far within its level as needed.

        Blocks whose nearest point of the lattice leaves 0..255 lose contrast until one fits.

        Args:
            images: ``(n, height, width, channels)`` from 0 to 255.
            stored: What a file makes of whole pixel values, block by block; the images fit
                after it. Default: it keeps them.

        Returns:
            Array of the shape of ``images``. With ``stored``, a few blocks may not fit: those come
            as near as any point that was tried.
        """
        _, height, width, _ = images.shape
        lattice = distil(
            tf.convert_to_tensor(images),
            tf.constant(self.steps, tf.float32),
            color_space=self.color_space,
        )
        whole = np.asarray(np.clip(np.rint(lattice.numpy()), 0, 255))
        short = self._spare(whole if stored is None else stored(whole)) < 0
        if not short.any():
            return whole
        padding = [(0, 0), *((0, -side % BLOCK_SIZE) for side in (height, width)), (0, 0)]
        result = np.pad(whole, padding, mode="edge")
        image, row, column = np.nonzero(short)
        used = np.stack(
            [
                np.minimum(BLOCK_SIZE, height - row * BLOCK_SIZE),
                np.minimum(BLOCK_SIZE, width - column * BLOCK_SIZE),
            ]
        )
        source = _as_blocks(np.pad(images, padding, mode="edge"))[image, row, column]
        # A view: what is assigned to a block is assigned to the image.
        _as_blocks(result)[image, row, column] = self._fitted_blocks(source, used, stored)
        return np.asarray(result[:, :height, :width])

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
        for contrast, rank in attempts:
            if rank >= shifts.shape[1]:
                continue
            candidate = self._candidate(wanted[open_], contrast, shifts[open_, rank])
            spare = self._spare(candidate if stored is None else stored(candidate))[:, 0, 0]
            better = spare > best[open_]
            result[open_[better]], best[open_[better]] = candidate[better], spare[better]
            open_ = open_[best[open_] < 0]
            if not len(open_):
                break
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


def _as_blocks(images: FloatArray) -> FloatArray:
    """A view of images ``(n, h, w, c)`` as blocks ``(n, h / 8, w / 8, 8, 8, c)``."""
    count, height, width, channels = images.shape
    split = (count, height // BLOCK_SIZE, BLOCK_SIZE, width // BLOCK_SIZE, BLOCK_SIZE, channels)
    return images.reshape(split).transpose(0, 1, 3, 2, 4, 5)
