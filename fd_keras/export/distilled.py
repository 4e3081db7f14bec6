"""What the distillation layers inside a model return while the model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras.layer import FeatureDistillation

Array = npt.NDArray[Any]


def distillation_layers(model: keras.Model) -> list[FeatureDistillation]:
    """The ``FeatureDistillation`` layers of a model, however deep inside it.

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
    """Yield a list that receives the distilled images of each call of the model in the block.

    Works in eager execution and while a graph is traced; there, images that are computed inside
    a loop's own graph are left out, because nothing outside can read them.

    Args:
        model: Any Keras model.

    Example:
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


def run_recorded(
    model: keras.Model, images: Array, *, batch_size: int = 16
) -> tuple[dict[str, Array], list[Array]]:
    """Outputs and distilled images of a model.

    Args:
        model: A Keras model with one input.
        images: Batch as the model takes it.
        batch_size: Images at a time.

    Returns:
        The outputs, named as by ``named_outputs``, and the distilled images of each call of a
        distillation layer.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), FeatureDistillation("liu2019")])
        >>> outputs, distilled = run_recorded(model, np.zeros((2, 8, 8, 3), np.float32))
        >>> list(outputs), len(distilled)
        (['predictions'], 1)
    """
    outputs, distilled = [], []
    for start in range(0, len(images), batch_size):
        with recorded_distillations(model) as recorded:
            result = model(tf.constant(images[start : start + batch_size]), training=False)
        outputs.append(named_outputs(result))
        distilled.append(recorded)
    return (
        {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]},
        [np.concatenate(parts) for parts in zip(*distilled)],
    )


def named_outputs(outputs: Any) -> dict[str, Any]:
    """The outputs of a model by name, as its signature ``serving_default`` returns them.

    Args:
        outputs: A tensor, which becomes ``predictions``; a dictionary, which keeps its names; or
            a list, which becomes ``output_0`` and so on.

    Example:
        >>> sorted(named_outputs([tf.zeros(1), tf.zeros(2)]))
        ['output_0', 'output_1']
    """
    if isinstance(outputs, dict):
        return outputs
    if isinstance(outputs, (list, tuple)):
        return {f"output_{index}": output for index, output in enumerate(outputs)}
    return {"predictions": outputs}


def named_distilled(distilled: list[Any]) -> dict[str, Any]:
    """Distilled images by name: ``distilled``, or numbered where there are several.

    Args:
        distilled: What ``recorded_distillations`` recorded.

    Example:
        >>> sorted(named_distilled([tf.zeros(1), tf.zeros(2)]))
        ['distilled_0', 'distilled_1']
    """
    if len(distilled) == 1:
        return {"distilled": distilled[0]}
    return {f"distilled_{index}": images for index, images in enumerate(distilled)}
