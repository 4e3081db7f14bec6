"""Put the layer in front of a model, and tell what a model takes and returns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fd_keras._checks import shown
from fd_keras._compat import graph_layers, reason_of, tensors_around
from fd_keras.layer import FeatureDistillation
from fd_keras.presets import TableLike, as_table
from fd_keras.tables import QuantizationTable


def protect(
    model: keras.Model,
    layer: keras.layers.Layer | TableLike,
    *,
    input_shape: Sequence[int | None] | None = None,
    output: str | None = None,
) -> keras.Model:
    """Make a model that passes its input through ``layer`` and then through ``model``.

    A ``preprocessor`` that a model of KerasHub carries, which its ``predict`` applies and calling
    it does not, is kept between the two.

    Args:
        model: A functional, sequential or subclassed model with one image input. It is not
            copied: both models share its weights.
        layer: A ``FeatureDistillation`` with the ``value_range`` of the pixels that ``model``
            takes. Or a table, of which a layer is made if ``model`` shows that it takes pixels
            from 0 to 255: by inputs of dtype uint8, or a ``Rescaling`` of them as its first layer.
        input_shape: Shape of one image; needed for a model that neither declares its input
            nor was called, and fixes sizes that ``model`` leaves open.
        output: Name of the only output to keep, of a model with several. Default: all of them.

    Returns:
        A functional model with the inputs and outputs of ``model``.

    Raises:
        ValueError: ``model`` does not take one batch of images, or its input shape is unknown
            or does not fit ``input_shape``; it takes integers while ``layer`` returns floats, or
            the other way round; it has no such ``output``; its ``preprocessor`` cannot be a part
            of a model; ``layer`` is a table, and ``model`` may take pixels of any range, or a layer
            for another range than the one that ``model`` itself scales from.
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
    if isinstance(layer, FeatureDistillation):
        check_without_layer(model)
        check_scaling(model, layer.value_range)
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
    outputs = run_whole(model, layer(inputs))
    if output is not None:
        outputs = chosen_output(outputs, output, model)
    return keras.Model(inputs, outputs, name=f"{model.name}_protected")


def layers_of_ours(model: Any) -> list[FeatureDistillation]:
    """The feature distillation layers in a model, also those of models in it.

    Args:
        model: Any model.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), FeatureDistillation("liu2019")])
        >>> [layer.quantization_table.name for layer in layers_of_ours(model)]
        ['liu2019']
    """
    if not isinstance(model, keras.Model):
        return []
    inner = model._flatten_layers(include_self=False)
    return [layer for layer in inner if isinstance(layer, FeatureDistillation)]


def check_without_layer(model: Any) -> None:
    """Refuse a model that holds a feature distillation layer, and say how to take it off.

    Args:
        model: Any model.

    Raises:
        ValueError: It holds one.

    Example:
        >>> check_without_layer(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]))
    """
    if found := layers_of_ours(model):
        names = ", ".join(repr(layer.quantization_table.name) for layer in found)
        raise ValueError(
            "`model` must be the classifier alone, and it contains the feature distillation layer "
            "already; take it off with fd_keras.unprotect(model). Received: model "
            f"{model.name!r} with the table {names}"
        )


def unprotect(model: keras.Model) -> tuple[keras.Model, FeatureDistillation]:
    """Take the feature distillation layer off a model: what ``protect`` put together.

    Args:
        model: A functional or sequential model with one such layer in its own graph, which
            ``protect`` or ``keras.Sequential`` made. It is not changed; both models share their
            weights.

    Returns:
        The model without the layer, and the layer.

    Raises:
        ValueError: There is no such layer, there are several, or it is inside of another model or
            of a subclassed one.
        TypeError: ``model`` is no Keras model.

    Example:
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])
        >>> classifier, layer = unprotect(protect(model, FeatureDistillation("liu2019")))
        >>> classifier is model, layer.quantization_table.name
        (True, 'liu2019')
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras model. Received: model={shown(model)}")
    found = layers_of_ours(model)
    steps = [x for x in graph_layers(model) if not isinstance(x, keras.layers.InputLayer)]
    if len(found) != 1 or found[0] not in steps:
        raise ValueError(
            "`model` must be a functional or sequential model with one feature distillation layer "
            "in its own graph; take the classifier from where it was before the layer was put in. "
            f"Received: model {model.name!r} with {len(found)} such layers"
        )
    (layer,) = found
    if steps[0] is layer and len(steps) == 2 and isinstance(steps[1], keras.Model):
        of_all = getattr(steps[1], "outputs", None) or model.outputs
        if len(of_all) == len(model.outputs):  # else `protect` has chosen one
            return steps[1], layer
    images = _input_like(model, None)
    if isinstance(model, keras.Sequential):
        others = [step for step in steps if step is not layer]
        return keras.Sequential([images, *others], name=model.name), layer
    before, distilled = tensors_around(model, layer)
    outputs = model.outputs[0] if len(model.outputs) == 1 else model.output
    after = keras.Model([distilled], outputs)
    taken = images if steps[0] is layer else keras.Model(model.inputs, before)([images])
    return keras.Model(images, after([taken]), name=model.name), layer


def with_preprocessor(model: keras.Model) -> keras.Model:
    """A model that applies the ``preprocessor`` that ``model`` carries; else ``model`` itself.

    Args:
        model: Any Keras model.

    Raises:
        ValueError: The preprocessor cannot be a part of a model.

    Example:
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])
        >>> with_preprocessor(model) is model
        True
    """
    if _preprocessor_of(model) is None:
        return model
    inputs = _input_like(model, None)
    return keras.Model(inputs, run_whole(model, inputs), name=model.name)


def run_whole(model: keras.Model, images: Any) -> Any:
    """Call a model, after the ``preprocessor`` that it may carry.

    Args:
        model: Any Keras model.
        images: A symbolic batch of images.

    Raises:
        ValueError: The preprocessor cannot be a part of a model.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
        >>> tuple(run_whole(model, keras.Input((8, 8, 3))).shape)
        (None, 192)
    """
    preprocessor = _preprocessor_of(model)
    if preprocessor is None:
        return model(images)
    try:
        images = preprocessor(images)
    except Exception as error:  # Keras raises whatever the preprocessor's own code raises
        raise ValueError(
            f"`model` carries a preprocessor, {type(preprocessor).__name__}, that cannot be a part "
            "of a model; without it, the predictions would be others. Make a model that does the "
            "same with layers, such as keras.layers.Resizing and Rescaling, and protect that. "
            f"Received: model {model.name!r} ({reason_of(error)})"
        ) from error
    return model(images)


def named_outputs(outputs: Any) -> dict[str, Any]:
    """The outputs of a model by name, as ``serving_default`` returns them.

    Args:
        outputs: A tensor, which becomes ``predictions``; a dictionary, which keeps its names; or
            a list, which becomes ``output_0`` and so on.

    Example:
        >>> sorted(named_outputs([tf.zeros(1), tf.zeros(2)]))
        ['output_0', 'output_1']
    """
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, (list, tuple)):
        return {f"output_{index}": output for index, output in enumerate(outputs)}
    return {"predictions": outputs}


def chosen_output(outputs: Any, output: str | None, model: Any) -> Any:
    """The output of that name, or the only one.

    Args:
        outputs: What ``model`` returned: a tensor, a dictionary or a list.
        output: A name of ``named_outputs``; ``None``: there is only one output.
        model: The model, for the error message.

    Raises:
        ValueError: There is no such output, or there are several and ``output`` is ``None``.

    Example:
        >>> float(chosen_output({"a": tf.zeros(()), "b": tf.ones(())}, "b", "a model"))
        1.0
    """
    named = named_outputs(outputs)
    if output is None and len(named) == 1:
        (only,) = named.values()
        return only
    if output not in named:
        shapes = ", ".join(
            f"{name!r} {tuple(getattr(tensor, 'shape', ()))}" for name, tensor in named.items()
        )
        raise ValueError(
            f"`output` must name one of the outputs of `model`, which are {shapes}. "
            f"Received: output={shown(output)} for model {getattr(model, 'name', model)!r}"
        )
    return named[output]


def image_shape_of(model: Any) -> tuple[Any, ...] | None:
    """The shape of one image that a model takes, as far as it tells.

    Args:
        model: A model with one input.

    Returns:
        Sizes, ``None`` where any is taken; ``None`` for a model that was never called.

    Example:
        >>> image_shape_of(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]))
        (8, 8, 3)
    """
    declared = getattr(model, "inputs", None) or []
    if declared:
        return tuple(declared[0].shape)[1:]
    # Keras records this of a subclassed model once it was called or built.
    config = model.get_build_config() if isinstance(model, keras.Model) else None
    shape = (config or {}).get("input_shape")
    if isinstance(shape, (tuple, list)) and all(x is None or isinstance(x, int) for x in shape):
        return tuple(shape)[1:]
    return None


def check_one_input(model: Any) -> None:
    """Refuse a model with several inputs, and say how to protect its image input.

    Args:
        model: Any model.

    Raises:
        ValueError: It declares several inputs.

    Example:
        >>> check_one_input(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]))
    """
    declared = getattr(model, "inputs", None) or []
    if len(declared) < 2:
        return
    structure = model.input
    inputs = named_outputs(structure)
    images = next((name for name, tensor in inputs.items() if len(tensor.shape) == 4), None)
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.values())
    way = "it has no input of images"
    if images is not None:
        way = "apply the layer to the image input in a functional model of your own: "
        if isinstance(structure, Mapping):
            way += (
                f"x = model.input; keras.Model(x, model({{**x, {images!r}: layer(x[{images!r}])}}))"
            )
        else:
            place = list(inputs).index(images)
            parts = [f"layer(x[{i}])" if i == place else f"x[{i}]" for i in range(len(inputs))]
            way += f"x = model.input; keras.Model(x, model([{', '.join(parts)}]))"
    raise ValueError(
        f"`model` must have one image input; {way}. Received: model {model.name!r} with "
        f"{len(declared)} inputs of shapes {shapes}"
    )


def _preprocessor_of(model: keras.Model) -> Any:
    """What ``predict`` of a KerasHub model applies and calling the model does not."""
    found = getattr(model, "preprocessor", None)
    if not callable(found):
        return None
    if hasattr(model, "preprocess_samples"):  # KerasHub's method that applies it
        return found
    # A subclassed model's own `call` applies what it holds; a graph does where it is a part of it.
    layers = graph_layers(model)
    return found if layers and not any(layer is found for layer in layers) else None


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
    if _takes_bytes(model):
        return FeatureDistillation(table, value_range=(0, 255), dtype="uint8")
    if rescales_grey_levels(model):
        return FeatureDistillation(table, value_range=(0, 255))
    raise ValueError(
        "`layer` must say which pixels `model` takes: pass FeatureDistillation(table, "
        "value_range=(0, 255)), or (0, 1) or (-1, 1) as they are. "
        f"Received: layer={shown(layer)}"
    )


def check_scaling(model: Any, value_range: Sequence[float]) -> None:
    """Refuse a value range that is not the one that the model itself scales from.

    Args:
        model: Any Keras model.
        value_range: Lowest and highest pixel value that it should take.

    Raises:
        ValueError: Its first layer scales pixels from 0 to 255, and they should be of another
            range.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255)])
        >>> check_scaling(model, (0, 255))
    """
    low, high = value_range
    if (low, high) != (0, 255) and rescales_grey_levels(model):
        raise ValueError(
            "`value_range` does not fit the model, whose first layer scales pixels from 0 to 255: "
            "give 0, 255, or take that layer off. Received: value_range="
            f"{low:g}, {high:g}"
        )


def takes_grey_levels(model: Any) -> bool:
    """Whether a model shows that it takes pixels from 0 to 255.

    Args:
        model: Any Keras model.

    Returns:
        Whether its input is of dtype uint8, or its first layer scales 0..255.

    Example:
        >>> takes_grey_levels(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]))
        False
    """
    return _takes_bytes(model) or rescales_grey_levels(model)


def _takes_bytes(model: Any) -> bool:
    inputs = getattr(model, "inputs", None) or []
    return len(inputs) == 1 and bool(tf.as_dtype(inputs[0].dtype) == tf.uint8)


def rescales_grey_levels(model: Any) -> bool:
    """Whether the first layer of a model scales 0..255 to 0..1 or -1..1.

    Args:
        model: Any Keras model.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255)])
        >>> rescales_grey_levels(model)
        True
    """
    inner = getattr(model, "layers", [])
    first = next((x for x in inner if not isinstance(x, keras.layers.InputLayer)), None)
    if isinstance(first, keras.Model):
        return rescales_grey_levels(first)
    if not isinstance(first, keras.layers.Rescaling) or not isinstance(first.scale, (int, float)):
        return False
    return any(abs(first.scale * width - 1) < 0.01 for width in (255, 256, 127.5, 128))


def _input_like(model: keras.Model, shape: Sequence[int | None] | None) -> keras.KerasTensor:
    check_one_input(model)
    declared = getattr(model, "inputs", None) or []
    if not declared:
        found = image_shape_of(model) if shape is None else tuple(shape)
        if found is None:
            raise ValueError(
                "`input_shape` is needed for a model that was never called on one batch of "
                f"images. Received: model {model.name!r}, input_shape=None"
            )
        return keras.Input(shape=found, name="image")
    (tensor,) = declared
    batch, *sizes = tuple(tensor.shape)
    # A preprocessor takes images of other sizes than those that it returns.
    if shape is not None and _preprocessor_of(model) is None and not _fits(shape, sizes):
        raise ValueError(
            f"`input_shape` must be the {tuple(sizes)} that `model` declares, None standing for "
            f"any size. Received: input_shape={shown(shape)}"
        )
    name = tensor.name.split(":")[0]
    return keras.Input(batch_shape=(batch, *(shape or sizes)), dtype=tensor.dtype, name=name)


def _fits(shape: Sequence[int | None], declared: Sequence[int | None]) -> bool:
    pairs = zip(shape, declared)
    return len(shape) == len(declared) and all(size is None or x == size for x, size in pairs)
