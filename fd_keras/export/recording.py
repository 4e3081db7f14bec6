"""Record the distilled images of the layers inside a model while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from fd_keras.layer import RECORD, FeatureDistillation


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
def recorded_distillations() -> Iterator[list[Any]]:
    """Yield a list that holds the distilled images of all calls in the block when it ends.

    It works in eager execution and while a graph is traced. In a graph, images that are computed
    inside a loop's own graph are left out, because nothing outside can read them. Calls in other
    threads are not recorded.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), FeatureDistillation("liu2019")])
        >>> with recorded_distillations() as distilled:
        ...     outputs = model(np.zeros((2, 8, 8, 3), np.float32))
        >>> [images.shape for images in distilled]
        [TensorShape([2, 8, 8, 3])]
    """
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    recorded: list[Any] = []
    token = RECORD.set(recorded)
    try:
        yield recorded
    finally:
        RECORD.reset(token)
        # A function that is traced within the block has a graph of its own, too.
        recorded[:] = [images for images in recorded if getattr(images, "graph", None) is graph]
