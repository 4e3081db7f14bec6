"""Read the models and images that commands are given."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Most images that are read to measure ranges and to prove an export.
_IMAGE_LIMIT = 100

# Parts of Keras 3's and 2's messages about unknown classes, in functional and sequential models.
_UNKNOWN_CLASS_CLUES = (
    "register_keras_serializable",
    "Unknown layer",
    "must be an instance of class Layer",
)

# How .keras files (zip) and HDF5 files begin.
_SIGNATURES = (b"PK\x03\x04", b"\x89HDF")

# In characters.
_LONGEST_REASON = 1000


def load_model(path: Path, modules: list[str], console: Console | None = None) -> Any:
    """Load a ``.keras`` or ``.h5`` file, or wrap a SavedModel directory.

    Args:
        path: The file, or the directory of a SavedModel or of its versions, of which the newest is
            taken.
        modules: Python modules to import first; they register the model's own classes.
        console: Where to say which version was taken.

    Raises:
        ValueError: There is no such model, it needs classes that no module registered, or it runs a
            SavedModel outside of its file.

    Example:
        >>> load_model(Path("model.keras"), [])  # doctest: +SKIP
    """
    import keras

    from fd_keras.export.archive import is_saved_model
    from fd_keras.export.wrapping import OutsideModelError

    for module in modules:
        importlib.import_module(module)
    if path.is_dir():
        return _wrapped(path, console)
    if not path.is_file():
        raise ValueError(f"`MODEL` does not exist. Received: {path}")
    try:
        return keras.models.load_model(path, compile=False)
    except OutsideModelError as error:
        there = is_saved_model(error.directory)
        raise ValueError(
            f"`MODEL` runs a SavedModel outside of its file, {error.directory}, "
            + ("whose operations can read and write files. If you trust it" * there)
            + ("which is no longer there. Where you have it" * (not there))
            + f", give the directory of that SavedModel as MODEL. Received: {path}"
        ) from error
    except Exception as error:  # Keras raises many types on files it cannot read
        message = _shortened(error)
        if any(clue in str(error) for clue in _UNKNOWN_CLASS_CLUES):
            raise ValueError(
                "`MODEL` holds classes that Keras does not know: decorate them with "
                "@keras.saving.register_keras_serializable(), and name their module with "
                f"--import. Received: {path} ({message})"
            ) from error
        rule = "be a .keras or .h5 file, or a SavedModel directory"
        with path.open("rb") as file:
            known = file.read(4) in _SIGNATURES
        if known:
            rule = "be a model that Keras can load"
        raise ValueError(f"`MODEL` must {rule}. Received: {path} ({message})") from error


def _wrapped(path: Path, console: Console | None) -> Any:
    from fd_keras import wrap_saved_model
    from fd_keras.export.archive import is_saved_model, newest_version
    from fd_keras_cli.console import print_note

    version = path if is_saved_model(path) else newest_version(path)
    if version is None:
        raise ValueError(
            "`MODEL` must be a .keras or .h5 file, or a directory that holds saved_model.pb or "
            f"numbered versions of it. Received: {path}"
        )
    if version != path and console is not None:
        print_note(f"Taking version {version.name} of {path}", console)
    try:
        return wrap_saved_model(version)
    except ValueError as error:
        raise ValueError(
            "`MODEL` must be a whole SavedModel that takes one batch of images. "
            f"Received: {version} ({_shortened(error)})"
        ) from error


def _shortened(error: Exception) -> str:
    """An error in one line; Keras puts whole configurations into some."""
    message = " ".join(str(error).split())
    return message if len(message) <= _LONGEST_REASON else f"{message[:_LONGEST_REASON]} ..."


def image_shape(classifier: Any) -> tuple[int, int, int]:
    """The shape ``(height, width, channels)`` of the images that a model takes.

    Args:
        classifier: A Keras model.

    Raises:
        ValueError: It takes images of several sizes, or something else than images.

    Example:
        >>> import keras
        >>> image_shape(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]))
        (8, 8, 3)
    """
    shape = tuple(getattr(classifier, "input_shape", None) or ())[1:]
    if len(shape) != 3 or None in shape:
        raise ValueError(
            "`MODEL` must take images of one size (height, width, channels); evaluate others "
            f"with fd_keras.evaluate. Received: a model with inputs of shape {shape}"
        )
    return shape


def class_count(classifier: Any) -> int | None:
    """The number of classes that a model distinguishes, if its outputs say it.

    Args:
        classifier: A Keras model.

    Returns:
        The number of outputs, and 2 for one output.

    Example:
        >>> import keras
        >>> class_count(keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()]))
        2
    """
    shape = getattr(classifier, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2 or not isinstance(shape[1], int):
        return None
    return max(2, shape[1])


def protected(model: Any, table: str | None, value_range: tuple[float, float]) -> Any:
    """Put a layer with the given table in front of a model.

    Args:
        model: A Keras model.
        table: Preset name or JSON file; ``None`` leaves the model as it is.
        value_range: The model's pixel values of black and white.

    Example:
        >>> protected("model", None, (0, 255))
        'model'
    """
    if table is None:
        return model
    from fd_keras import FeatureDistillation, protect
    from fd_keras.presets import table_from_argument

    layer = FeatureDistillation(table_from_argument(table), value_range=value_range)
    return protect(model, layer)


def model_images(location: str, model: Any, console: Any = None, **options: Any) -> Any:
    """Read up to a hundred images, resized as ``serving_bytes`` does with ``"crop"``.

    Args:
        location: What ``fd_keras.data.sources.open_images`` takes.
        model: The protected model.
        console: Where to print what was not read.
        **options: Further arguments of ``open_images``.

    Raises:
        ValueError: There is no image.

    Example:
        >>> model_images("photos/", model)  # doctest: +SKIP
    """
    import numpy as np
    import tensorflow as tf

    from fd_keras.data.sources import open_images
    from fd_keras.export.signatures import image_decoder, image_signature, value_range_of
    from fd_keras_cli.console import report_source

    spec = image_signature(model)
    source = open_images(location, channels=spec.shape[-1], **options)
    decode = image_decoder(spec, value_range_of(model), "crop")
    images = itertools.islice(source, _IMAGE_LIMIT)
    try:
        batches = [decode(tf.io.encode_png(image)[tf.newaxis]) for image in images]
    finally:
        report_source(source, console)
    if not batches:
        raise ValueError(f"no usable image in {source.name}")
    return np.concatenate(batches)
