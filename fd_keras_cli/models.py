"""Read the models and images that commands are given."""

from __future__ import annotations

import importlib
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fd_keras_cli.words import called

if TYPE_CHECKING:
    from rich.console import Console

    from fd_keras import QuantizationTable

# Most images that are read to measure ranges and to prove an export.
_IMAGE_LIMIT = 100

# Of the sample of them.
_SEED = 1

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
        "holds a Lambda layer, whose Python code is not run; pass --allow-code if you trust the "
        "file, or replace the layer by one such as Rescaling, or by a registered class whose "
        "module --import names",
    ),
    (
        "it (holds|calls) ",
        "holds or names code, which is not run; pass --allow-code if you trust the file",
    ),
    (
        "parent module .* cannot be imported|Unrecognized keyword arguments: .'batch_shape'",
        "was saved by another version of Keras; run fd-keras with that version, or give the "
        "SavedModel that model.export writes there",
    ),
    ("No model config", "holds weights alone; save the whole model with model.save"),
)


def load_model(
    path: Path,
    modules: list[str],
    console: Console | None = None,
    *,
    allow_code: bool = False,
) -> Any:
    """Load a ``.keras`` or ``.h5`` file, or wrap a SavedModel directory.

    Args:
        path: The file, or the directory of a SavedModel or of its versions, of which the newest is
            taken.
        modules: Python modules to import first; they register the model's own classes.
        console: Where to say which version was taken.
        allow_code: Whether Python code in the file may run, in this process for good.

    Raises:
        ValueError: There is no such model, it needs classes that no module registered, it runs a
            SavedModel outside of its file, or it holds code that may not run.

    Example:
        >>> load_model(Path("model.keras"), [])  # doctest: +SKIP
    """
    from fd_keras import _compat
    from fd_keras._compat import reason_of
    from fd_keras.export.archive import is_saved_model
    from fd_keras.export.wrapping import OutsideModelError

    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"`--import` must name a module that Python finds. Received: --import {module} "
                f"({error})"
            ) from error
    if path.is_dir():
        return _wrapped(path, console)
    if not path.is_file():
        raise ValueError(f"`MODEL` does not exist. Received: {path}")
    if allow_code:
        _compat.allow_code()
    try:
        return _compat.load_model_file(path, modules)
    except OutsideModelError as error:
        there = is_saved_model(error.directory)
        raise ValueError(
            f"`MODEL` runs a SavedModel outside of its file, {error.directory}, "
            + ("whose operations can read and write files. If you trust it" * there)
            + ("which is no longer there. Where you have it" * (not there))
            + f", give the directory of that SavedModel as MODEL. Received: {path}"
        ) from error
    except Exception as error:  # Keras raises many types on files it cannot read
        reason = reason_of(error)
        remedies = (text for clue, text in _REMEDIES if re.search(clue, reason))
        known = "cannot be loaded; the file may be damaged"
        if path.suffix not in _SUFFIXES:
            # Keras' reason is advice on its own functions.
            raise ValueError(
                f"`MODEL` must be a .keras or .h5 file, or a SavedModel directory. Received: {path}"
            ) from error
        raise ValueError(f"`MODEL` {next(remedies, known)}. Received: {path} ({reason})") from error


def _wrapped(path: Path, console: Console | None) -> Any:
    from fd_keras import wrap_saved_model
    from fd_keras._compat import reason_of
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
            f"Received: {version} ({reason_of(error)})"
        ) from error


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
    if len(shape) != 3 or None in shape or shape[-1] not in (1, 3):
        raise ValueError(
            "`MODEL` must take images of one size (height, width, 1 or 3 channels); evaluate "
            f"others with fd_keras.evaluate in Python. Received: a model with inputs of shape "
            f"{shape}"
        )
    return shape


def without_layer(
    model: Any, strip: bool, console: Console | None = None
) -> tuple[Any, QuantizationTable | None]:
    """A model without the feature distillation layer, and the table of one that was taken off.

    Args:
        model: A Keras model.
        strip: Whether to take it off; otherwise, the model stays as it is.
        console: Where to say so.

    Raises:
        ValueError: It cannot be taken off.

    Example:
        >>> without_layer("model", strip=False)
        ('model', None)
    """
    from fd_keras.protection import layers_of_ours, unprotect
    from fd_keras_cli.console import print_note

    if not strip:
        return model, None
    if not layers_of_ours(model):
        print_note("MODEL contains no feature distillation layer to take off", console)
        return model, None
    alone, layer = unprotect(model)
    table = layer.quantization_table
    print_note(f"Took the layer with the table {table.name!r} off MODEL", console)
    return alone, table


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


def pixels_of(model: Any, value_range: tuple[float, float]) -> tuple[float, float]:
    """The value range of a model's pixels: what its layers tell, else ``--value-range``.

    Args:
        model: What ``protected`` returned.
        value_range: Value of ``--value-range``, whose default does not contradict any model.

    Raises:
        ValueError: The layers tell another range.

    Example:
        >>> import keras
        >>> pixels_of(keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()]), (0, 1))
        (0.0, 1.0)
    """
    from fd_keras.export.signatures import GREY_LEVELS, known_value_range

    given = None if tuple(value_range) == GREY_LEVELS else value_range
    with called("value_range", "--value-range"):
        return known_value_range(model, given) or value_range


def model_images(
    location: str,
    model: Any,
    value_range: tuple[float, float],
    console: Any = None,
    **options: Any,
) -> Any:
    """Read a sample of a hundred images, resized as ``serving_bytes`` does with ``"crop"``.

    Args:
        location: What ``fd_keras.data.sources.open_images`` takes.
        model: The protected model.
        value_range: Its pixel values of black and white.
        console: Where to print what was not read.
        **options: Further arguments of ``open_images``.

    Raises:
        ValueError: There is no image, or they are of several sizes for a model of any size.

    Example:
        >>> model_images("photos/", model, (0, 255))  # doctest: +SKIP
    """
    import numpy as np
    import tensorflow as tf

    from fd_keras.data.sources import open_images
    from fd_keras.export.signatures import image_decoder, image_signature
    from fd_keras_cli.console import report_source, sampled

    spec = image_signature(model)
    source = open_images(location, channels=spec.shape[-1], **options)
    source = sampled(source, _IMAGE_LIMIT, _SEED, console)
    decode = image_decoder(spec, value_range, "crop")
    images = itertools.islice(source, _IMAGE_LIMIT)
    try:
        batches = [decode(tf.io.encode_png(image)[tf.newaxis]) for image in images]
    finally:
        report_source(source, console)
    if not batches:
        raise ValueError(f"no usable image in {source.name}")
    shapes = sorted({tuple(batch.shape[1:3]) for batch in batches})
    if len(shapes) > 1:
        sizes = " and ".join("x".join(map(str, shape)) for shape in shapes[:2])
        raise ValueError(
            "`--image-size` must be given with a model of any size and images of several: "
            f"{source.name} has images of {sizes}"
        )
    return np.concatenate(batches)
