"""The file that TF Serving replays before it serves a new version."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._extras import import_extra

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"


def write_warmup(
    version: str | os.PathLike[str],
    model_name: str,
    requests: Mapping[str, Mapping[str, npt.NDArray[Any]]],
) -> None:
    """Write requests that TF Serving answers while it loads a version.

    Without them the first requests of users wait for what TensorFlow prepares lazily.

    Args:
        version: The directory with ``saved_model.pb``.
        model_name: Name under which the model is served.
        requests: For each signature, its input by name: each row becomes a request.

    Raises:
        ImportError: tensorflow-serving-api is not installed.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> images = np.zeros((2, 8, 8, 3), np.float32)
        >>> write_warmup(folder, "classifier", {"serving_default": {"images": images}})
        >>> len(list(tf.data.TFRecordDataset(folder + "/" + WARMUP_FILE)))
        2
    """
    logs = import_extra("tensorflow_serving.apis.prediction_log_pb2", "export")
    path = Path(version) / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for signature, inputs in requests.items():
            for index in range(len(next(iter(inputs.values())))):
                log = logs.PredictionLog()
                request = log.predict_log.request
                request.model_spec.name = model_name
                request.model_spec.signature_name = signature
                for name, array in inputs.items():
                    request.inputs[name].CopyFrom(_tensor(array[index : index + 1]))
                writer.write(log.SerializeToString())


def png_files(
    images: npt.NDArray[Any], value_range: tuple[float, float]
) -> npt.NDArray[np.object_]:
    """Images as the content of PNG files, rounded to whole grey levels.

    Args:
        images: ``(batch, height, width, channels)`` in ``value_range``, 1 or 3 channels.
        value_range: What black and white are.

    Returns:
        Bytes ``(batch,)``.

    Example:
        >>> png_files(np.zeros((1, 8, 8, 3)), (0, 1))[0][1:4]
        b'PNG'
    """
    low, high = value_range
    pixels = np.clip(np.rint((np.float64(images) - low) * (255 / (high - low))), 0, 255)
    contents = [tf.io.encode_png(image).numpy() for image in pixels.astype(np.uint8)]
    return np.array(contents, object)


def _tensor(array: npt.NDArray[Any]) -> Any:
    return tf.make_tensor_proto(array, tf.string if array.dtype == object else None)
