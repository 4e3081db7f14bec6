"""Put the layer in front of a model."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf


def protect(
    model: keras.Model,
    layer: keras.layers.Layer,
    *,
    input_shape: Sequence[int | None] | None = None,
) -> keras.Model:
    """Make a model that passes its input through ``layer`` and then through ``model``.

    Args:
        model: A functional, sequential or subclassed model with one image input. It is not
            copied: both models share its weights.
        layer: A ``FeatureDistillation`` with the ``value_range`` of the pixels that ``model``
            takes.
        input_shape: Shape of one image; only needed for a model that neither declares its input
            nor was called.

    Returns:
        A functional model with the inputs and outputs of ``model``.

    Raises:
        ValueError: ``model`` does not take one batch of images, or its input shape is unknown
            or not ``input_shape``; or it takes integers while ``layer`` returns floats.
        TypeError: ``model`` is no Keras model, or ``layer`` no Keras layer.

    Example:
        >>> from fd_keras import FeatureDistillation
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])
        >>> protect(model, FeatureDistillation("liu2019")).input_shape
        (None, 32, 32, 3)
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras model. Received: model={model!r}")
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(
            "`layer` must be a Keras layer, such as FeatureDistillation('liu2019'). "
            f"Received: layer={layer!r}"
        )
    inputs = _input_like(model, input_shape)
    if len(inputs.shape) != 4:
        raise ValueError(
            "`model` must take batches of images, of shape (batch, height, width, channels). "
            f"Received: model {model.name!r} with inputs of shape {tuple(inputs.shape)}"
        )
    dtype = tf.as_dtype(inputs.dtype)
    if dtype.is_integer and not tf.as_dtype(layer.compute_dtype).is_integer:
        raise ValueError(
            f"`layer` must return the integers that `model` takes; pass dtype={dtype.name!r} "
            f"to the layer. Received: layer with dtype {layer.compute_dtype!r}"
        )
    return keras.Model(inputs, model(layer(inputs)), name=f"{model.name}_protected")


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
