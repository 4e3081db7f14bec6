"""What the signatures of an exported model compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from fd_keras.detection import DistillationDetector
from fd_keras.export.archive import Endpoint
from fd_keras.export.distilled import (
    distillation_layers,
    named_distilled,
    named_outputs,
    recorded_distillations,
)
from fd_keras.export.encoded_images import READABLE_CHANNELS, ResizePolicy, image_decoder
from fd_keras.layer import FeatureDistillation

SERVING = "serving_default"
DISTILL = "distill"
BYTES = "serving_bytes"
DETECT = "detect"


def exportable(model: keras.Model | FeatureDistillation) -> keras.Model:
    """The model that is exported for ``model``.

    Args:
        model: A built model with one input; or a layer alone, which becomes a model from images
            of any size to distilled images, of the channels it was built for, else three.

    Raises:
        ValueError: The model is not built, or has several inputs.

    Example:
        >>> exportable(FeatureDistillation("liu2019")).input_shape
        (None, None, None, 3)
    """
    if isinstance(model, FeatureDistillation):
        channels = model.steps.shape[0] if model.built else 3
        shape = [None, None, channels]
        if model.data_format == "channels_first":
            shape = [channels, None, None]
        images = keras.Input(shape, dtype=_input_dtype(model))
        return keras.Model(images, {"distilled": model(images)}, name="plugin")
    image_signature(model)
    return model


def image_signature(model: keras.Model) -> tf.TensorSpec:
    """The specification of a model's input, named ``images``, with a free batch size.

    Args:
        model: A built model with one input.

    Raises:
        ValueError: It is not built, or has several inputs.

    Example:
        >>> image_signature(keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()]))
        TensorSpec(shape=(None, 8, 8, 1), dtype=tf.float32, name='images')
    """
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) != 1:
        raise ValueError(
            "`model` must be a built model with one input; `fd_keras.protect` returns one. "
            f"Received: model {model.name!r} with {len(inputs)} inputs"
        )
    (tensor,) = inputs
    return tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name="images")


def model_endpoints(model: keras.Model) -> dict[str, Endpoint]:
    """``serving_default`` of a model, and ``distill`` of one that distils.

    Args:
        model: What ``exportable`` returned.

    Returns:
        ``serving_default`` returns ``predictions`` (a model with a dictionary of outputs keeps
        its names), ``distill`` returns ``distilled``.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), FeatureDistillation("liu2019")])
        >>> list(model_endpoints(model))
        ['serving_default', 'distill']
    """
    spec = image_signature(model)

    def serve(images: tf.Tensor) -> Mapping[str, Any]:
        return named_outputs(model(images, training=False))

    def distill(images: tf.Tensor) -> Mapping[str, Any]:
        with recorded_distillations(model) as distilled:
            model(images, training=False)
        return named_distilled(distilled)

    endpoints = {SERVING: Endpoint(serve, spec)}
    if _distils_in_sight(model, distill, spec):
        endpoints[DISTILL] = Endpoint(distill, spec)
    return endpoints


def value_range_of(model: keras.Model) -> tuple[float, float]:
    """What black and white are for a model: as its distillation says, or 0 and 255.

    Args:
        model: Any Keras model.

    Example:
        >>> layer = FeatureDistillation("liu2019", value_range=(0, 1))
        >>> value_range_of(keras.Sequential([keras.Input((8, 8, 3)), layer]))
        (0.0, 1.0)
    """
    layers = distillation_layers(model)
    return layers[0].value_range if layers else (0.0, 255.0)


def bytes_endpoint(model: keras.Model, resize: ResizePolicy) -> Endpoint | None:
    """``serving_bytes`` of a model, from the content of image files to its outputs.

    Args:
        model: What ``exportable`` returned.
        resize: What happens to images of another size; see ``image_decoder``.

    Returns:
        The endpoint, or ``None`` for a model that does not take grey or RGB images, channels
        last.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 7)), keras.layers.Flatten()])
        >>> bytes_endpoint(model, "crop") is None
        True
    """
    spec = image_signature(model)
    decode = image_decoder(spec, value_range_of(model), resize) if _takes_files(model) else None
    if decode is None:
        return None

    def serve(image_bytes: tf.Tensor) -> Mapping[str, Any]:
        return named_outputs(model(decode(image_bytes), training=False))

    return Endpoint(serve, tf.TensorSpec((None,), tf.string, name="image_bytes"))


def detect_endpoint(model: keras.Model, detector: DistillationDetector) -> Endpoint:
    """``detect`` of a detector that takes what ``model`` takes.

    Args:
        model: What ``exportable`` returned.
        detector: The detector.

    Raises:
        ValueError: It takes other images.

    Example:
        >>> head = [keras.layers.Flatten(), keras.layers.Dense(3)]
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), *head])
        >>> detector = DistillationDetector(model, FeatureDistillation("liu2019"))
        >>> detect_endpoint(model, detector).input.name
        'images'
    """
    spec, given = image_signature(model), image_signature(detector)
    if (spec.shape.as_list(), spec.dtype) != (given.shape.as_list(), given.dtype):
        raise ValueError(
            f"`detector` must take the images that `model` takes, {spec.shape}. "
            f"Received: a detector of images {given.shape}"
        )
    return Endpoint(lambda images: detector(images, training=False), given)


def _distils_in_sight(model: keras.Model, distill: Any, spec: tf.TensorSpec) -> bool:
    layers = distillation_layers(model)
    if any(layer in layers for layer in model.layers):
        return True
    # Deeper inside, it may be in a loop of its own, which only tracing the model tells.
    return bool(layers and tf.function(distill).get_concrete_function(spec).structured_outputs)


def _takes_files(model: keras.Model) -> bool:
    shape = image_signature(model).shape
    formats = {layer.data_format for layer in distillation_layers(model)}
    return shape.rank == 4 and shape[-1] in READABLE_CHANNELS and "channels_first" not in formats


def _input_dtype(layer: FeatureDistillation) -> str:
    dtype = tf.as_dtype(layer.compute_dtype)
    return dtype.name if dtype.is_integer else "float32"
