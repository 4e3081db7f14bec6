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
            raise _explained(error) from error
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def _refuse_signal_method(model: keras.Model) -> None:
    for layer in model._flatten_layers():
        if isinstance(layer, FeatureDistillation) and layer.dct_method == "signal":
            raise ValueError(
                "`model` uses tf.signal, which TFLite cannot run without Flex; build the layer "
                f"with dct_method='matmul'. Received: layer {layer.name!r} with "
                "dct_method='signal'"
            )


def _explained(error: Exception) -> ValueError:
    """Name the operations that the converter's error lists among pages of other text."""
    operations = sorted(set(re.findall(r"\btf\.(\w+)\b", str(error))))
    return ValueError(
        "`model` needs operations that are no TFLite builtins: "
        f"{', '.join(operations) or error}. Replace the layers that make them, or serve the "
        "model with export_saved_model. Received: model that does not convert"
    )
