"""Differences between TensorFlow 2.15 with Keras 2 and later versions with Keras 3."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "fd_keras needs the TensorFlow backend of Keras: set KERAS_BACKEND=tensorflow before Keras "
        f"is imported. Received: the backend {keras.backend.backend()!r}"
    )

_KERAS_2 = keras.__version__.startswith("2.")


def add_float32_weight(layer: keras.layers.Layer, name: str, value: npt.NDArray[np.float64]) -> Any:
    """Add a non-trainable weight that stays float32 under mixed precision.

    Args:
        layer: The layer that owns the weight.
        name: Name of the weight.
        value: Initial value.

    Returns:
        The weight, a variable.

    Example:
        >>> tuple(add_float32_weight(keras.layers.Layer(), "steps", np.ones((1, 8, 8))).shape)
        (1, 8, 8)
    """
    autocast = "experimental_autocast" if _KERAS_2 else "autocast"
    return layer.add_weight(
        name=name,
        shape=value.shape,
        initializer=lambda shape, dtype=None, **kwargs: tf.constant(value, tf.float32),
        dtype="float32",
        trainable=False,
        **{autocast: False},
    )


def clip(values: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """``tf.clip_by_value`` that keeps NaN, also under XLA.

    In TensorFlow 2.15, XLA's clamp turns NaN into ``low``, which would turn a broken image into a
    black one. There, adding ``values - values`` restores NaN, at the cost of one more pass.

    Args:
        values: Floating-point tensor of any shape.
        low: Smallest value.
        high: Largest value.

    Returns:
        Tensor of the same shape.

    Example:
        >>> clip(tf.constant([-3.0, 300.0]), 0.0, 255.0).numpy().tolist()
        [0.0, 255.0]
    """
    clipped = tf.clip_by_value(values, low, high)
    return clipped + (values - values) if _KERAS_2 else clipped


def descend(optimizer: Any, tape: tf.GradientTape, loss: tf.Tensor, variables: Any) -> None:
    """Take one step of an optimiser, with its loss scaling if it has one (float16).

    Args:
        optimizer: A Keras optimiser.
        tape: The tape that recorded ``loss``; it has stopped recording.
        loss: Scalar.
        variables: Variables to update.

    Example:
        >>> variable = keras.layers.Layer().add_weight(shape=(), initializer="ones")
        >>> with tf.GradientTape() as tape:
        ...     loss = 2 * tf.convert_to_tensor(variable)
        >>> descend(keras.optimizers.SGD(0.25), tape, loss, [variable])
        >>> float(tf.convert_to_tensor(variable))
        0.5
    """
    if _KERAS_2:
        optimizer.minimize(loss, variables, tape=tape)
        return
    with tape:
        loss = optimizer.scale_loss(loss)
    gradients = tape.gradient(loss, variables)
    optimizer.apply_gradients(zip(gradients, variables))
