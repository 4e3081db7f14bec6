"""The SavedModel that every exported format starts from."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf


def write_archive(model: keras.Model, directory: str | os.PathLike[str]) -> None:
    """Write a SavedModel with the signature ``serving_default``.

    Its input is named ``images``. An output that is one tensor is named ``predictions``; a
    model with a dictionary of outputs keeps its names. Batch size is free.

    ``keras.export.ExportArchive`` is used because ``tf.saved_model.save`` of a Keras 3 model
    gives a directory that Python loads and the C API, so TF Serving, does not.

    Args:
        model: A built Keras model with one input.
        directory: Where to write; must not exist.

    Raises:
        ValueError: ``model`` is not built, or has several inputs.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> target = tempfile.mkdtemp() + "/saved_model"
        >>> write_archive(model, target)
        >>> list(tf.saved_model.load(target).signatures)
        ['serving_default']
    """
    signature = _image_signature(model)

    def serve(images: tf.Tensor) -> Any:
        outputs = model(images, training=False)
        return {"predictions": outputs} if isinstance(outputs, tf.Tensor) else outputs

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", serve, [signature])
    with _silence():
        archive.write_out(os.fspath(directory))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep TensorFlow and Keras from announcing a path that is about to be renamed."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        # Keras 2.15 prints, and has no argument against it.
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _image_signature(model: keras.Model) -> tf.TensorSpec:
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) != 1:
        raise ValueError(
            "`model` must be a built model with one input; `fd_keras.protect` returns one. "
            f"Received: model {model.name!r} with {len(inputs)} inputs"
        )
    (tensor,) = inputs
    return tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name="images")
