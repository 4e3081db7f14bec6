"""Running exported models where neither Keras nor fd_keras is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fd_keras.extras import import_extra

# Python would import fd_keras without being asked if the SavedModel needed it; it must not.
_SERVE = """
import sys
sys.modules["fd_keras"] = None
import numpy as np
import tensorflow as tf
directory, images, predictions = sys.argv[1:]
serve = tf.saved_model.load(directory).signatures["serving_default"]
outputs = serve(images=tf.constant(np.load(images)))
np.save(predictions, outputs["predictions"].numpy())
"""


def predict_with_saved_model(
    directory: str | os.PathLike[str], images: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Outputs of an exported SavedModel in a new process that cannot import fd_keras.

    Args:
        directory: A version that ``export_saved_model`` returned.
        images: Batch as the model takes it.

    Returns:
        What the signature ``serving_default`` names ``predictions``.

    Raises:
        RuntimeError: The process failed; the message ends with what it printed.

    Example:
        >>> import keras
        >>> from fd_keras import export_saved_model
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> version = export_saved_model(model, tempfile.mkdtemp())
        >>> predict_with_saved_model(version, np.array([[[[3], [5]]]], np.float32))
        array([[3., 5.]], dtype=float32)
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "images.npy"), Path(folder, "predictions.npy")
        np.save(inputs, images)
        command = [sys.executable, "-c", _SERVE, os.fspath(directory), str(inputs), str(outputs)]
        process = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if process.returncode:
            raise RuntimeError(f"the SavedModel could not be run: {process.stderr[-2000:]}")
        predictions: npt.NDArray[np.float32] = np.load(outputs)
    return predictions


def predict_with_tflite(
    path: str | os.PathLike[str], images: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Outputs of a TFLite file in LiteRT.

    Args:
        path: What ``export_tflite`` returned.
        images: Batch as the model takes it.

    Returns:
        What the signature ``serving_default`` names ``predictions``.

    Raises:
        ImportError: LiteRT is not installed.

    Example:
        >>> import keras
        >>> from fd_keras import export_tflite
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> path = export_tflite(model, tempfile.mkdtemp() + "/model.tflite")
        >>> predict_with_tflite(path, np.array([[[[3], [5]]]], np.float32))
        array([[3., 5.]], dtype=float32)
    """
    litert = import_extra("ai_edge_litert.interpreter", "export")
    serve = litert.Interpreter(os.fspath(path)).get_signature_runner("serving_default")
    predictions: npt.NDArray[np.float32] = serve(images=images)["predictions"]
    return predictions
