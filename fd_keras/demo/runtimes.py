"""Predictions of exported models where neither Keras nor fd_keras is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fd_keras.export.runtimes import run_saved_model, run_tflite
from fd_keras.export.signatures import SERVING


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
        >>> import tempfile
        >>> import keras
        >>> from fd_keras import export_saved_model
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> version = export_saved_model(model, tempfile.mkdtemp(), verify=False)
        >>> predict_with_saved_model(version, np.array([[[[3], [5]]]], np.float32))
        array([[3., 5.]], dtype=float32)
    """
    requests = {SERVING: {"images": images}}
    predictions: npt.NDArray[np.float32] = run_saved_model(directory, requests)[SERVING].outputs[
        "predictions"
    ]
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

    Example:
        >>> import tempfile
        >>> import keras
        >>> from fd_keras import export_tflite
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> path = export_tflite(model, tempfile.mkdtemp() + "/model.tflite", verify=False)
        >>> predict_with_tflite(path, np.array([[[[3], [5]]]], np.float32))
        array([[3., 5.]], dtype=float32)
    """
    outputs = run_tflite(Path(path).read_bytes(), images).outputs
    predictions: npt.NDArray[np.float32] = outputs["predictions"]
    return predictions
