"""Record the distilled images of the layers inside a model while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from fd_keras.layer import FeatureDistillation


def distillation_layers(model: keras.Model) -> list[FeatureDistillation]:
    """The ``FeatureDistillation`` layers of a model, however deeply nested.

    Args:
        model: Any Keras model.

    Returns:
        The layers in the order Keras holds them.

    Example:
        >>> layer = FeatureDistillation("liu2019")
        >>> distillation_layers(keras.Sequential([keras.Input((8, 8, 3)), layer])) == [layer]
        True
    """
    # Keras has no public walk that finds layers inside layers, lists and dictionaries.
    return [layer for layer in model._flatten_layers() if isinstance(layer, FeatureDistillation)]


@contextlib.contextmanager
def recorded_distillations(model: keras.Model) -> Iterator[list[Any]]:
    """Yield a list to which each call of the model in the block appends its distilled images.

    It works in eager execution and while a graph is traced. In a graph, images that are computed
    inside a loop's own graph are left out, because nothing outside can read them.

    Args:
        model: Any Keras model.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), FeatureDistillation("liu2019")])
        >>> with recorded_distillations(model) as distilled:
        ...     outputs = model(np.zeros((2, 8, 8, 3), np.float32))
        >>> [images.shape for images in distilled]
        [TensorShape([2, 8, 8, 3])]
    """
    recorded: list[Any] = []
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    layers = distillation_layers(model)
    for layer in layers:
        # An attribute of the instance hides the method of its class until it is deleted.
        setattr(layer, "call", _recording(layer.call, recorded, graph))  # noqa: B010
    try:
        yield recorded
    finally:
        for layer in layers:
            del layer.call


def _recording(call: Any, recorded: list[Any], graph: Any) -> Any:
    def call_and_record(inputs: Any) -> Any:
        images = call(inputs)
        if graph is None or images.graph is graph:
            recorded.append(images)
        return images

    return call_and_record
