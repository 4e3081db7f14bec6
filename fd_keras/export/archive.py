"""The SavedModel that every exported format starts from."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


@dataclass(frozen=True)
class Endpoint:
    """One signature: a function of one tensor, and that tensor's shape, type and name.

    Args:
        function: Takes the tensor, returns a dictionary of named tensors.
        input: The tensor's specification; its name is the input's name.
    """

    function: Callable[[tf.Tensor], Mapping[str, tf.Tensor]]
    input: tf.TensorSpec


def write_archive(
    tracked: Sequence[Any],
    endpoints: Mapping[str, Endpoint],
    directory: str | os.PathLike[str],
) -> None:
    """Write a SavedModel with the given signatures.

    ``keras.export.ExportArchive`` is used because ``tf.saved_model.save`` of a Keras 3 model
    gives a directory that Python loads and the C API, so TF Serving, does not.

    Args:
        tracked: Models, layers, and what else holds the weights that the functions read.
        endpoints: Signatures by name.
        directory: Where to write; must not exist.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> images = tf.TensorSpec((None, 8, 8, 1), name="images")
        >>> target = tempfile.mkdtemp() + "/saved_model"
        >>> serve = Endpoint(lambda images: {"flat": model(images)}, images)
        >>> write_archive([model], {"serving_default": serve}, target)
        >>> list(tf.saved_model.load(target).signatures)
        ['serving_default']
    """
    archive = keras.export.ExportArchive()
    for resource in tracked:
        archive.track(resource)
    # Keras 2 saves no tables but its own layers' unless they hang on the archive itself.
    archive.resources = [r for r in tracked if not isinstance(r, keras.layers.Layer)]
    for name, endpoint in endpoints.items():
        archive.add_endpoint(name, endpoint.function, [endpoint.input])
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
