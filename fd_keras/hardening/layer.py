"""The quantisation that a classifier is trained behind, with steps that may be learnt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras.kernels import (
    GRADIENTS,
    Gradient,
    clip_straight_through,
    distil,
)
from fd_keras.layer import FeatureDistillation
from fd_keras.tables import QuantizationTable

# Bounds of learnt steps, in grey levels.
STEP_RANGE = (1.0, 255.0)


class TrainingDistillation(keras.layers.Layer):
    """Distils images as a ``FeatureDistillation`` does, with a table that may be learnt.

    Each step is ``start * exp(rate * move)``, where ``move`` is a weight that starts at 0: steps
    stay positive whatever the optimiser does to it.

    Args:
        layer: The layer whose table is the start; it is not changed.
        channels: Number of channels of the images.
        rate: Factor on the moves of the steps' logarithms; 0: the table is fixed.

    Example:
        >>> training = TrainingDistillation(FeatureDistillation("liu2019"), channels=3)
        >>> training(tf.ones((1, 8, 8, 3))).shape
        TensorShape([1, 8, 8, 3])

    References:
        Salamah et al., "JPEG Inspired Deep Learning", ICLR 2025 (tables learnt with the network).
    """

    def __init__(self, layer: FeatureDistillation, channels: int, *, rate: float = 0.0) -> None:
        # float32 and no cast on entry, as in the layer itself.
        super().__init__(dtype="float32", autocast=False, name="training_distillation")
        self._table = layer.quantization_table
        self.value_range = layer.value_range
        self._rate = rate
        self._start = np.log(np.float32(self._table.steps_for(channels)))
        self.moves = self.add_weight(
            name="moves",
            shape=self._start.shape,
            initializer="zeros",
            trainable=rate > 0,
            constraint=_StepBounds(self._start, rate) if rate > 0 else None,
        )
        self.built = True

    def call(self, images: tf.Tensor, gradient: Gradient = "straight-through") -> tf.Tensor:
        """Distil a batch of images.

        Args:
            images: ``(batch, height, width, channels)`` in the layer's value range.
            gradient: What stands for the gradient of rounding; soft thresholding has its own.
        """
        pixels = distil(
            tf.cast(images, tf.float32),
            self._steps(),
            color_space=self._table.color_space,
            cycle_spins=self._table.cycle_spins,
            quantizer=self._table.quantizer,
            gradient=gradient,
            value_range=self.value_range,
        )
        return clip_straight_through(pixels, *self.value_range)

    @property
    def gradients(self) -> tuple[Gradient, ...]:
        """The gradients that an attacker tries; they are the same for soft thresholding."""
        return GRADIENTS if self._table.quantizer == "round" else GRADIENTS[:1]

    def table(self) -> QuantizationTable:
        """The table of the present steps; the layer's own where it is fixed."""
        if not self._rate:
            return self._table
        steps = np.asarray(tf.convert_to_tensor(self._steps()))
        # The shortest decimal numbers that are these float32 ones.
        exact = np.array([float(str(step)) for step in steps.ravel()]).reshape(steps.shape)
        provenance = {"source": "harden", "name": "hardened", "from": dict(self._table.provenance)}
        table = self._table
        return replace(table, steps=exact, provenance=provenance)

    def _steps(self) -> tf.Tensor:
        return tf.exp(self._start + self._rate * tf.convert_to_tensor(self.moves))


class _StepBounds:
    """Constraint on moves that keeps steps in ``STEP_RANGE``, or where they started beyond it."""

    def __init__(self, start: npt.NDArray[np.float32], rate: float) -> None:
        low, high = np.log(STEP_RANGE)
        self._low = np.float32((np.minimum(low, start) - start) / rate)
        self._high = np.float32((np.maximum(high, start) - start) / rate)

    def __call__(self, moves: Any) -> tf.Tensor:
        return tf.clip_by_value(moves, self._low, self._high)
