"""Wrap a SavedModel in a Keras model, where its Python code is not at hand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from fd_keras._checks import shown
from fd_keras._compat import code_is_allowed
from fd_keras.export.archive import is_saved_model
from fd_keras.export.signatures import SERVING


class OutsideModelError(ValueError):
    """A saved model runs a SavedModel outside of its file, which was not loaded.

    Args:
        message: What is wrong.
        directory: The SavedModel.
    """

    def __init__(self, message: str, directory: str) -> None:
        super().__init__(message)
        self.directory = directory


def wrap_saved_model(
    directory: str | os.PathLike[str],
    *,
    signature: str = SERVING,
    input_shape: Sequence[int | None] | None = None,
) -> keras.Model:
    """A Keras model that runs a SavedModel, to protect and export it without its code.

    The result is meant for ``protect``, ``DistillationDetector`` and the exporters; its weights
    cannot be trained. A file that Keras saves of it holds no more than the path of the SavedModel,
    and ``keras.models.load_model`` loads it only with ``safe_mode=False``: the operations of a
    SavedModel can read and write files.

    Args:
        directory: A version directory, with ``saved_model.pb``.
        signature: The signature that classifies images. It must take one batch of images.
        input_shape: Shape of one image; only needed where the signature leaves the channels open.

    Returns:
        A functional model with the outputs of the signature in a dictionary, by their names. Of
        several, ``protect``, ``DistillationDetector`` and ``Classifier`` take ``output``.

    Raises:
        ValueError: There is no such SavedModel or signature, or it does not take one batch of
            images.

    Example:
        >>> import tempfile
        >>> from fd_keras import FeatureDistillation, export_saved_model, protect
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
        >>> version = export_saved_model(
        ...     model, tempfile.mkdtemp(), value_range=(0, 255), verify=False
        ... )
        >>> protect(wrap_saved_model(version), FeatureDistillation("liu2019")).input_shape
        (None, 8, 8, 3)
    """
    if not is_saved_model(directory):
        raise ValueError(
            "`directory` must hold saved_model.pb; a served model's versions are the numbered "
            f"directories inside it. Received: directory={os.fspath(directory)!r}"
        )
    layer = SavedModelLayer(os.fspath(directory), signature)
    spec = layer.input_spec_of_signature
    shape = spec.shape[1:] if input_shape is None else tf.TensorShape(input_shape)
    if spec.shape.rank not in (None, 4) or shape.rank != 3 or shape[-1] is None:
        raise ValueError(
            f"`signature` must take batches of images, (batch, height, width, channels); give "
            "input_shape where it leaves the channels open. "
            f"Received: signature={shown(signature)}, which takes {spec.shape}, and "
            f"input_shape={shown(input_shape)}"
        )
    images = keras.Input(tuple(shape), dtype=spec.dtype.name)
    return keras.Model(images, layer(images), name="wrapped")


def wrapped_resources(model: keras.Model) -> list[Any]:
    """The objects that own the weights and tables of the SavedModels inside a model.

    Keras 2 finds their weights by itself, but not their tables.

    Args:
        model: Any Keras model.

    Example:
        >>> wrapped_resources(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]))
        []
    """
    return [x.loaded for x in model._flatten_layers() if isinstance(x, SavedModelLayer)]


def _hashed(directory: Path) -> str:
    """Hash of the files below a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(directory).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@keras.saving.register_keras_serializable(package="fd_keras")
class SavedModelLayer(keras.layers.Layer):
    """Runs a signature of a SavedModel.

    Args:
        directory: A directory with ``saved_model.pb``.
        signature: Name of a signature with one input.
        **kwargs: ``name`` and the other arguments of ``keras.layers.Layer``.

    Input shape:
        That of the signature's input.

    Output shape:
        A dictionary of the signature's outputs.

    Raises:
        ValueError: There is no such signature, or it has several inputs.

    Example:
        See ``wrap_saved_model``.
    """

    def __init__(self, directory: str, signature: str = SERVING, **kwargs: Any) -> None:
        super().__init__(**{"autocast": False, "trainable": False, **kwargs})
        self.directory, self.signature = directory, signature
        self.loaded = _loaded(directory)  # it owns the weights and tables
        # Hash of what was loaded, whose weights are none of Keras' own: its files may change.
        self.fingerprint = _hashed(Path(directory))
        if signature not in self.loaded.signatures:
            raise ValueError(
                f"`signature` must be one of {sorted(self.loaded.signatures)}. "
                f"Received: signature={shown(signature)}"
            )
        self._serve = self.loaded.signatures[signature]
        inputs = self._serve.structured_input_signature[1]
        if len(inputs) != 1:
            raise ValueError(
                "`signature` must take one batch of images. "
                f"Received: signature={shown(signature)}, which takes {sorted(inputs)}"
            )
        ((self._input_name, self.input_spec_of_signature),) = inputs.items()

    def call(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Run the signature."""
        outputs: dict[str, tf.Tensor] = self._serve(**{self._input_name: inputs})
        return outputs

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain JSON types."""
        return {**super().get_config(), "directory": self.directory, "signature": self.signature}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None, safe_mode: bool | None = None
    ) -> SavedModelLayer:
        """Make the layer from its config, but not in safe mode, as ``keras.layers.TFSMLayer``."""
        directory = config["directory"]
        if safe_mode is not False and not (safe_mode is None and code_is_allowed()):
            raise OutsideModelError(
                f"the model runs the SavedModel {directory!r}, whose operations can read and "
                "write files, so that it is not loaded in safe mode. If you trust it, wrap it "
                f"again with fd_keras.wrap_saved_model({directory!r}), or pass safe_mode=False "
                "to the loading function",
                directory,
            )
        if not is_saved_model(directory):
            raise OutsideModelError(
                f"the model runs the SavedModel {directory!r}, which is no longer there. Wrap it "
                "again where it is now, with fd_keras.wrap_saved_model(directory)",
                directory,
            )
        return cls(**config)


def _loaded(directory: str) -> Any:
    """A SavedModel, or one kind of error whatever is wrong with it."""
    try:
        return tf.saved_model.load(directory)
    except Exception as error:  # TensorFlow raises many types on damaged files
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"`directory` must hold a whole SavedModel ({reason}). Received: "
            f"directory={shown(directory)}"
        ) from error
