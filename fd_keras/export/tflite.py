"""TFLite files for LiteRT, on phones and in browsers."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import keras
import tensorflow as tf

from fd_keras.export.archive import write_archive
from fd_keras.files import atomic_path
from fd_keras.layer import FeatureDistillation


def export_tflite(model: keras.Model, path: str | os.PathLike[str]) -> Path:
    """Write a model as a float32 TFLite file of builtin operations.

    Batch size, and height and width where the model leaves them open, can be chosen at run
    time with ``resize_tensor_input``.

    Args:
        model: A built Keras model with one input, such as ``protect`` returns.
        path: File to write, usually ``*.tflite``. An existing one is replaced atomically.

    Returns:
        ``path``. Its signature ``serving_default`` takes ``images`` and returns ``predictions``
        (or the names of a model with several outputs).

    Raises:
        ValueError: The model needs an operation that is no TFLite builtin; the message names
            it and the way out. Or ``model`` is not built.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> export_tflite(model, tempfile.mkdtemp() + "/model.tflite").name
        'model.tflite'
    """
    _refuse_signal_method(model)
    with tempfile.TemporaryDirectory() as folder:
        saved_model = os.path.join(folder, "saved_model")
        write_archive(model, saved_model)
        # from_concrete_functions yields NaN for Keras 3 models on TF 2.21.
        converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            content = converter.convert()
        except Exception as error:
            operations = _refused_operations(str(error))
            if not operations:
                raise
            raise ValueError(
                f"`model` needs operations that are no TFLite builtins: {', '.join(operations)}. "
                f"{_advice(str(error))}. Received: model {model.name!r}"
            ) from error
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def _refuse_signal_method(model: keras.Model) -> None:
    # Keras has no public walk that finds layers inside layers, lists and dictionaries.
    for layer in model._flatten_layers():
        if isinstance(layer, FeatureDistillation) and layer.dct_method == "signal":
            raise ValueError(
                "`model` uses tf.signal, which TFLite cannot run without Flex; build the layer "
                f"with dct_method='matmul'. Received: layer {layer.name!r} with "
                "dct_method='signal'"
            )


def _refused_operations(message: str) -> list[str]:
    """The operations that the converter's error lists among pages of other text."""
    located = re.findall(r'error: loc\(.*?"(\w+):", "([^"@]+)', message)
    return [f"{operation} (in {place})" for operation, place in sorted(dict(located).items())]


def _advice(message: str) -> str:
    if re.search("f(16|64)>", message):  # as in tensor<?x8x8xbf16>
        return "They compute in float32: rebuild the model with the dtype policy 'float32'"
    return "Replace the layers that make them, or serve the model with export_saved_model"
