"""Read the models and images that commands are given."""

from __future__ import annotations

import importlib
import itertools
import re
from pathlib import Path
from typing import Any

# Most images that are read to measure ranges and to prove an export.
_IMAGE_LIMIT = 100

_SUFFIXES = (".keras", ".h5", ".hdf5")

# What Keras 3's or 2's message about a file says, and what to do about it. The first that fits
# counts.
_REMEDIES = (
    (
        "register_keras_serializable|Unknown layer|custom_object|Unknown activation|"
        "must be an instance of class Layer|interpret activation",
        "holds classes or functions that Keras does not know: decorate them with "
        "@keras.saving.register_keras_serializable(), and name their module with --import",
    ),
    (
        "Lambda",
        "holds a Lambda layer, whose Python code Keras does not run from a file; replace it by a "
        "layer such as Rescaling, or by a registered class whose module --import names",
    ),
    (
        "parent module .* cannot be imported|Unrecognized keyword arguments: .'batch_shape'",
        "was saved by another version of Keras; run fd-keras with that version, or give the "
        "SavedModel that model.export writes there",
    ),
    ("No model config", "holds weights alone; save the whole model with model.save"),
)


def load_model(path: Path, modules: list[str]) -> Any:
    """Load a ``.keras`` or ``.h5`` file, or wrap a SavedModel directory.

    Args:
        path: The file or directory.
        modules: Python modules to import first; they register the model's own classes.

    Raises:
        ValueError: There is no such model, or it needs classes that no module registered.

    Example:
        >>> load_model(Path("model.keras"), [])  # doctest: +SKIP
    """
    import keras

    from fd_keras import wrap_saved_model
    from fd_keras._compat import reason_of

    for module in modules:
        importlib.import_module(module)
    if path.is_dir():
        return wrap_saved_model(path)
    if not path.is_file():
        raise ValueError(f"`MODEL` does not exist. Received: {path}")
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises many types on files it cannot read
        reason = reason_of(error)
        remedies = (text for clue, text in _REMEDIES if re.search(clue, reason))
        known = "cannot be loaded; the file may be damaged"
        if path.suffix not in _SUFFIXES:
            known = "must be a .keras or .h5 file, or a SavedModel directory"
        raise ValueError(f"`MODEL` {next(remedies, known)}. Received: {path} ({reason})") from error


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
    from fd_keras.protection import check_one_input, image_shape_of

    check_one_input(classifier)
    shape = image_shape_of(classifier) or ()
    if len(shape) != 3 or None in shape:
        raise ValueError(
            "`MODEL` must take images of one size (height, width, channels); evaluate others "
            f"with fd_keras.evaluate. Received: a model with inputs of shape {shape}"
        )
    return shape


def protected(
    model: Any,
    table: str | None,
    value_range: tuple[float, float],
    image_size: tuple[int, int] | None = None,
) -> Any:
    """Put a layer with the given table in front of a model.

    Args:
        model: A Keras model.
        table: Preset name or JSON file; ``None`` leaves the model as it is.
        value_range: The model's pixel values of black and white.
        image_size: Height and width of the images, where the model takes any.

    Example:
        >>> protected("model", None, (0, 255))
        'model'
    """
    if table is None and image_size is None:
        return model
    import keras

    from fd_keras import FeatureDistillation, protect
    from fd_keras.presets import table_from_argument
    from fd_keras.protection import image_shape_of

    layer: Any = keras.layers.Identity()
    if table is not None:
        layer = FeatureDistillation(table_from_argument(table), value_range=value_range)
    if image_size is None:
        return protect(model, layer)
    channels = (image_shape_of(model) or (3,))[-1]
    return protect(model, layer, input_shape=(*image_size, channels))


def model_images(location: str, model: Any) -> Any:
    """Read up to a hundred images, resized as ``serving_bytes`` does with ``"crop"``.

    Args:
        location: What ``fd_keras.data.sources.open_images`` takes.
        model: The protected model.

    Example:
        >>> model_images("photos/", model)  # doctest: +SKIP
    """
    import numpy as np
    import tensorflow as tf

    from fd_keras.data.sources import open_images
    from fd_keras.export.signatures import image_decoder, image_signature, value_range_of

    spec = image_signature(model)
    source = open_images(location, channels=spec.shape[-1])
    decode = image_decoder(spec, value_range_of(model), "crop")
    images = itertools.islice(source, _IMAGE_LIMIT)
    batches = [decode(tf.io.encode_png(image)[tf.newaxis]) for image in images]
    return np.concatenate(batches)
