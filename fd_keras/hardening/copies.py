"""Copies of a user's classifier, for the original stays as it is."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

# Half precision would round pixels, and attacks on them, to half a grey level and more.
_PIXEL_LAYERS = (keras.layers.Rescaling, keras.layers.Normalization)


def copied(model: keras.Model, *, dtype_policy: str | None = None) -> keras.Model:
    """A model of the same architecture and weights that shares nothing with the original.

    Args:
        model: A functional or sequential model, or any other with a complete ``get_config``.
        dtype_policy: Keras' name of a policy for all layers but those that scale pixels, such
            as ``"mixed_bfloat16"``; ``None`` keeps each layer's own.

    Raises:
        ValueError: The model cannot be copied, or its layers cannot be given a policy.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> copy = copied(model)
        >>> copy is not model, copy.output_shape
        (True, (None, 3))
    """
    try:
        if dtype_policy is None:
            copy = keras.models.clone_model(model)
        else:
            copy = _with_policy(model, dtype_policy)
        if not copy.built or len(copy.weights) != len(model.weights):
            copy(np.zeros((1, *model.input_shape[1:]), np.float32))
        copy.set_weights(model.get_weights())
    except Exception as error:  # Keras raises whatever a model's own code raises
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            "`model` must be a functional or sequential model, or have a get_config() that builds "
            f"it again. Received: model {model.name!r} ({reason})"
        ) from error
    return copy


def _with_policy(model: keras.Model, policy: str) -> keras.Model:
    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=clone)
        if isinstance(layer, _PIXEL_LAYERS):
            return type(layer).from_config(layer.get_config())
        return type(layer).from_config({**layer.get_config(), "dtype": policy})

    return keras.models.clone_model(model, clone_function=clone)
