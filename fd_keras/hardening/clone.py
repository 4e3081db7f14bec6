"""Clone a classifier without sharing weights."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from fd_keras._compat import reason_of
from fd_keras.protection import image_shape_of

# Half precision would round pixels, and attacks on them, to half a grey level and more.
_PIXEL_LAYERS = (keras.layers.Rescaling, keras.layers.Normalization)


def clone_classifier(model: keras.Model, *, dtype_policy: str | None = None) -> keras.Model:
    """A model of the same architecture, with a copy of the weights.

    Args:
        model: A functional or sequential model, or any other with a complete ``get_config``.
        dtype_policy: Name of a Keras dtype policy, such as ``"mixed_bfloat16"``, for all layers
            but those that scale pixels. Default: each layer's own.

    Raises:
        ValueError: The model cannot be cloned, or its layers do not take the policy.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> clone = clone_classifier(model)
        >>> clone is not model, clone.output_shape
        (True, (None, 3))
    """
    try:
        if dtype_policy is None:
            clone = keras.models.clone_model(model)
        else:
            clone = _with_policy(model, dtype_policy)
        if not clone.built or len(clone.weights) != len(model.weights):
            clone(np.zeros((1, *(image_shape_of(model) or ())), np.float32))
        clone.set_weights(model.get_weights())
    except Exception as error:  # Keras raises whatever a model's own code raises
        raise ValueError(
            "`classifier` must be a functional or sequential model, or have a get_config() that "
            f"builds it again. Received: model {model.name!r} ({reason_of(error)})"
        ) from error
    return clone


def _with_policy(model: keras.Model, policy: str) -> keras.Model:
    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=clone)
        if isinstance(layer, _PIXEL_LAYERS):
            return type(layer).from_config(layer.get_config())
        return type(layer).from_config({**layer.get_config(), "dtype": policy})

    return keras.models.clone_model(model, clone_function=clone)
