"""The quantisation while a classifier is trained behind it, with a table that may learn."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras.hardening.views import PLAIN, View, on_shifted_grid
from fd_keras.kernels import (
    Gradient,
    clip_straight_through,
    distil,
    from_grey_levels,
    to_grey_levels,
)
from fd_keras.layer import FeatureDistillation
from fd_keras.tables import QuantizationTable

# Steps that are learnt stay in here, in grey levels.
STEP_RANGE = (1.0, 255.0)


class TrainingDistillation(keras.layers.Layer):
    """Does what a ``FeatureDistillation`` does, in variations, with steps that may learn.

    Each step is ``start * exp(rate * move)``, where ``move`` is a weight that starts at 0: steps
    are positive whatever an optimiser does to it.

    Args:
        layer: The layer whose table is the start; it is not changed.
        channels: Number of channels of the images.
        rate: 0: the table is fixed. More: how fast the logarithms move.

    Example:
        >>> training = TrainingDistillation(FeatureDistillation("liu2019"), channels=3)
        >>> training(tf.ones((1, 8, 8, 3))).shape
        TensorShape([1, 8, 8, 3])
    """

    def __init__(self, layer: FeatureDistillation, channels: int, *, rate: float = 0.0) -> None:
        # float32 and no cast on entry, as in the layer itself.
        super().__init__(dtype="float32", autocast=False, name="training_distillation")
        self._table = layer.quantization_table
        self._range = layer.value_range
        self._rate = rate
        self._start = np.log(np.float32(self._table.steps_for(channels)))
        self.moves = self.add_weight(
            name="moves",
            shape=self._start.shape,
            initializer="zeros",
            trainable=rate > 0,
            constraint=_Within(self._start, rate) if rate > 0 else None,
        )
        self.built = True

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return len(self._start)

    @property
    def value_range(self) -> tuple[float, float]:
        """Lowest and highest pixel value."""
        return self._range

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Distil a batch of images as the layer does."""
        return self.distil(images)

    def distil(
        self,
        images: tf.Tensor,
        view: View = PLAIN,
        gradient: Gradient = "straight-through",
    ) -> tf.Tensor:
        """Distil a batch of images in a variation.

        Args:
            images: ``(batch, height, width, channels)`` in the layer's value range.
            view: The variation.
            gradient: What stands for the gradient of rounding.
        """
        steps = self._steps()
        if view.factors is not None:
            steps = steps * view.factors

        def distilled(pixels: tf.Tensor) -> tf.Tensor:
            return distil(
                pixels,
                steps,
                color_space=self._table.color_space,
                cycle_spins=self._table.cycle_spins,
                gradient=gradient,
            )

        pixels = to_grey_levels(tf.cast(images, tf.float32), *self._range)
        if view.offset is None:
            pixels = distilled(pixels)
        else:
            pixels = on_shifted_grid(pixels, view.offset, distilled)
        return clip_straight_through(from_grey_levels(pixels, *self._range), *self._range)

    def table(self) -> QuantizationTable:
        """The table of the present steps; the layer's own while nothing has moved."""
        if not self._rate:
            return self._table
        steps = np.asarray(tf.convert_to_tensor(self._steps()))
        # The shortest decimal numbers that are these float32 ones.
        exact = np.array([float(str(step)) for step in steps.ravel()]).reshape(steps.shape)
        provenance = {"source": "harden", "name": "hardened", "from": dict(self._table.provenance)}
        table = self._table
        return QuantizationTable(exact, table.color_space, table.cycle_spins, provenance)

    def _steps(self) -> tf.Tensor:
        if not self._rate:
            return tf.exp(tf.constant(self._start))
        return tf.exp(self._start + self._rate * tf.convert_to_tensor(self.moves))


class _Within:
    """Constraint on moves that keeps steps in ``STEP_RANGE``, or where they started beyond it."""

    def __init__(self, start: npt.NDArray[np.float32], rate: float) -> None:
        low, high = np.log(STEP_RANGE)
        self._low = np.float32((np.minimum(low, start) - start) / rate)
        self._high = np.float32((np.maximum(high, start) - start) / rate)

    def __call__(self, moves: Any) -> tf.Tensor:
        return tf.clip_by_value(moves, self._low, self._high)
