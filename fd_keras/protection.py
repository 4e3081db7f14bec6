"""Put the layer in front of a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fd_keras._checks import shown
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import TableLike, as_table
from fd_keras.tables import QuantizationTable


def protect(
    model: keras.Model,
    layer: keras.layers.Layer | TableLike,
    *,
    input_shape: Sequence[int | None] | None = None,
) -> keras.Model:
    """Make a model that passes its input through ``layer`` and then through ``model``.

    Args:
        model: A functional, sequential or subclassed model with one image input. It is not
            copied: both models share its weights.
        layer: A ``FeatureDistillation`` with the ``value_range`` of the pixels that ``model``
            takes. Or a table, of which a layer is made if ``model`` shows that it takes pixels
            from 0 to 255: by inputs of dtype uint8, or a ``Rescaling`` of them as its first layer.
        input_shape: Shape of one image; only needed for a model that neither declares its input
            nor was called.

    Returns:
        A functional model with the inputs and outputs of ``model``.

    Raises:
        ValueError: ``model`` does not take one batch of images, or its input shape is unknown
            or not ``input_shape``; or it takes integers while ``layer`` returns floats, or the
            other way round; or ``layer`` is a table, and ``model`` may take pixels of any range.
        TypeError: ``model`` is no Keras model, or ``layer`` neither a Keras layer nor a table.

    Example:
        >>> from fd_keras import FeatureDistillation
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])
        >>> protect(model, FeatureDistillation("liu2019")).input_shape
        (None, 32, 32, 3)
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras model. Received: model={shown(model)}")
    layer = layer_for(model, layer)
    inputs = _input_like(model, input_shape)
    if len(inputs.shape) != 4:
        raise ValueError(
            "`model` must take batches of images, of shape (batch, height, width, channels). "
            f"Received: model {model.name!r} with inputs of shape {tuple(inputs.shape)}"
        )
    dtype, returned = tf.as_dtype(inputs.dtype), tf.as_dtype(layer.compute_dtype)
    if dtype.is_integer and not returned.is_integer:
        raise ValueError(
            f"`layer` must return the integers that `model` takes; pass dtype={dtype.name!r} "
            f"to the layer. Received: layer with dtype {layer.compute_dtype!r}"
        )
    # Functional models cast what they are given, others do not.
    if returned.is_integer and not dtype.is_integer and not getattr(model, "inputs", None):
        raise ValueError(
            "`layer` must return the floats that `model` takes; make it without "
            f"dtype={returned.name!r}. Received: layer with dtype {layer.compute_dtype!r}"
        )
    return keras.Model(inputs, model(layer(inputs)), name=f"{model.name}_protected")


def layer_for(model: keras.Model, layer: keras.layers.Layer | TableLike) -> keras.layers.Layer:
    """Return a layer as it is, and make one of a table for a model that takes 0 to 255.

    Args:
        model: As for ``protect``.
        layer: As for ``protect``.

    Raises:
        ValueError: ``layer`` is no valid table, or ``model`` may take pixels of any range.
        TypeError: ``layer`` is neither a layer nor a table.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255)])
        >>> layer_for(model, "liu2019").value_range
        (0.0, 255.0)
    """
    if isinstance(layer, keras.layers.Layer):
        return layer
    if not isinstance(layer, (str, os.PathLike, Mapping, QuantizationTable, Sequence, np.ndarray)):
        raise TypeError(
            "`layer` must be a Keras layer, such as FeatureDistillation('liu2019'). "
            f"Received: layer={shown(layer)}"
        )
    table = as_table(layer)
    inputs = getattr(model, "inputs", None) or []
    dtype = tf.as_dtype(inputs[0].dtype) if len(inputs) == 1 else None
    if dtype == tf.uint8:
        return FeatureDistillation(table, value_range=(0, 255), dtype="uint8")
    if _rescales_grey_levels(model):
        return FeatureDistillation(table, value_range=(0, 255))
    raise ValueError(
        "`layer` must say which pixels `model` takes: pass FeatureDistillation(table, "
        "value_range=(0, 255)), or (0, 1) or (-1, 1) as they are. "
        f"Received: layer={shown(layer)}"
    )


def _rescales_grey_levels(model: Any) -> bool:
    """Whether the first layer of a model scales 0..255 to 0..1 or -1..1."""
    inner = getattr(model, "layers", [])
    first = next((x for x in inner if not isinstance(x, keras.layers.InputLayer)), None)
    if isinstance(first, keras.Model):
        return _rescales_grey_levels(first)
    if not isinstance(first, keras.layers.Rescaling) or not isinstance(first.scale, (int, float)):
        return False
    return any(abs(first.scale * width - 1) < 0.01 for width in (255, 256, 127.5, 128))


def _input_like(model: keras.Model, shape: Sequence[int | None] | None) -> keras.KerasTensor:
    declared = getattr(model, "inputs", None) or []
    if len(declared) > 1:
        raise ValueError(
            f"`model` must have one image input. Received: model {model.name!r} with "
            f"{len(declared)} inputs"
        )
    if declared:
        (tensor,) = declared
        if shape is not None and tuple(shape) != tuple(tensor.shape)[1:]:
            raise ValueError(
                f"`input_shape` must be the {tuple(tensor.shape)[1:]} that `model` declares. "
                f"Received: input_shape={shape!r}"
            )
        name = tensor.name.split(":")[0]
        return keras.Input(batch_shape=tuple(tensor.shape), dtype=tensor.dtype, name=name)
    if shape is None:
        # Keras records this of a subclassed model once it was called or built.
        build_shape = (model.get_build_config() or {}).get("input_shape")
        if not isinstance(build_shape, (tuple, list)) or not all(
            size is None or isinstance(size, int) for size in build_shape
        ):
            raise ValueError(
                "`input_shape` is needed for a model that was never called on one batch of "
                f"images. Received: model {model.name!r}, input_shape=None"
            )
        shape = tuple(build_shape)[1:]
    return keras.Input(shape=tuple(shape), name="image")
