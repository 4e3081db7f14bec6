"""A Keras classifier with its value range, kind of outputs and class names."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import check_outputs, check_pixels, validate_value_range
from fd_keras.data.labelled import unit_images

FloatArray = npt.NDArray[np.float32]

# Smaller probabilities count as this one: the logarithm of 0 is not finite.
_LEAST_PROBABILITY = 1e-30


def as_logits(outputs: tf.Tensor, *, from_logits: bool) -> tf.Tensor:
    """Convert the outputs of a classifier to float32 logits.

    Args:
        outputs: Logits or probabilities ``(batch, classes)``.
        from_logits: Whether ``outputs`` are logits. Of probabilities, the logarithms are taken.

    Returns:
        Tensor ``(batch, classes)``; differentiable.

    Example:
        >>> as_logits(tf.constant([[1.0, 1.0]]), from_logits=False).numpy().tolist()
        [[0.0, 0.0]]
    """
    outputs = tf.cast(outputs, tf.float32)
    return outputs if from_logits else tf.math.log(tf.maximum(outputs, _LEAST_PROBABILITY))


class Classifier:
    """A Keras classifier with its value range, kind of outputs and class names.

    ``evaluate``, ``refine``, ``learn_table`` and ``harden`` take one, or a plain Keras model if it
    takes pixels from 0 to 255 and returns logits.

    Args:
        model: Keras model with one image input and outputs ``(batch, classes)``, without the
            feature distillation layer.
        value_range: Lowest and highest pixel value that ``model`` takes, such as ``(0, 1)``.
        from_logits: Whether ``model`` returns logits; else probabilities. Where probabilities are
            rounded to 0 or 1, gradients vanish, which weakens attacks and training.
        class_names: Distinct names of the classes, in the order of the outputs.

    Raises:
        ValueError: ``value_range`` is not a range, or ``class_names`` are not distinct texts, one
            for each output.
        TypeError: ``model`` cannot be called.

    Example:
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> classifier = Classifier(model, value_range=(0, 1), class_names=["cat", "dog"])
        >>> classifier.correct(np.array([[[[0.2], [0.9]]]]), np.array([1]))
        array([ True])
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        value_range: Sequence[float] = (0, 255),
        from_logits: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"`model` must be a Keras model. Received: model={model!r}")
        self.model = model
        self.value_range = validate_value_range(value_range)
        self.from_logits = from_logits
        self.class_names = _checked_names(class_names, model)
        self._graph = tf.function(self.unit_logits, reduce_retracing=True)

    @classmethod
    def of(cls, model: Classifier | keras.Model) -> Classifier:
        """Return a ``Classifier`` as it is, and wrap a plain Keras model.

        Args:
            model: A ``Classifier``, or a Keras model that takes pixels from 0 to 255 and returns
                logits.
        """
        return model if isinstance(model, Classifier) else cls(model)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of architecture, weights, value range and kind of outputs.

        Names of layers do not count. Of a subclassed model without a configuration, class and
        weights alone count.
        """
        digest = hashlib.sha256(_architecture(self.model).encode())
        digest.update(repr((self.value_range, self.from_logits)).encode())
        for weight in self.model.get_weights():
            digest.update(str((weight.shape, weight.dtype)).encode())
            digest.update(np.ascontiguousarray(weight).tobytes())
        return digest.hexdigest()

    def logits(self, images: npt.NDArray[np.generic], *, batch_size: int = 32) -> FloatArray:
        """Logits of images, one batch after the other.

        Args:
            images: ``(n, height, width, channels)``, pixels from 0 to 1.
            batch_size: Number of images classified at once.

        Returns:
            Array ``(n, classes)``.
        """
        parts = [
            self._graph(tf.convert_to_tensor(images[start : start + batch_size], tf.float32))
            for start in range(0, len(images), batch_size)
        ]
        return np.concatenate([part.numpy() for part in parts])

    def correct(
        self, images: npt.NDArray[Any], labels: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.bool_]:
        """Check images, labels and outputs, and return which images are classified correctly.

        Args:
            images: ``(n, height, width, channels)`` in ``value_range``.
            labels: Integer classes ``(n,)``.

        Returns:
            Boolean array ``(n,)``.

        Raises:
            ValueError: Images, labels, outputs or class names do not fit each other.
        """
        check_pixels(images, self.value_range)
        expected = getattr(self.model, "input_shape", None)
        if isinstance(expected, tuple) and len(expected) == 4:
            wrong = [e for e, size in zip(expected[1:], images.shape[1:]) if e not in (None, size)]
            if wrong or images.ndim != 4:
                raise ValueError(
                    f"`data` must hold images of shape {expected[1:]}, which `model` takes. "
                    f"Received: images of shape {images.shape[1:]}"
                )
        outputs = np.asarray(self.outputs(tf.constant(unit_images(images, self.value_range))))
        if outputs.ndim != 2:
            raise ValueError(
                "`model` must return one batch of outputs (batch, classes). "
                f"Received: outputs of shape {outputs.shape}"
            )
        check_outputs(outputs, from_logits=self.from_logits)
        _check_count(self.class_names, outputs.shape[1])
        if labels.min() < 0 or labels.max() >= outputs.shape[1]:
            raise ValueError(
                f"`data` must have labels from 0 to {outputs.shape[1] - 1}, the classes of "
                f"`model`. Received: labels from {labels.min()} to {labels.max()}"
            )
        return np.asarray(outputs.argmax(axis=-1) == labels)

    def outputs(self, images: tf.Tensor) -> tf.Tensor:
        """What the model returns, as a differentiable tensor.

        Args:
            images: float32 ``(batch, height, width, channels)``, pixels from 0 to 1.

        Returns:
            float32 ``(batch, classes)``: logits or probabilities.
        """
        low, high = self.value_range
        return tf.cast(self.model(low + (high - low) * images, training=False), tf.float32)

    def unit_logits(self, images: tf.Tensor) -> tf.Tensor:
        """Logits of pixels from 0 to 1, as a differentiable tensor.

        Args:
            images: float32 ``(batch, height, width, channels)``, pixels from 0 to 1.

        Returns:
            float32 ``(batch, classes)``.
        """
        return as_logits(self.outputs(images), from_logits=self.from_logits)


def _architecture(model: keras.Model) -> str:
    try:
        text = str(model.to_json())
    except Exception:  # Keras raises whatever a subclassed model's configuration raises
        return f"{type(model).__module__}.{type(model).__qualname__}"
    # Keras numbers the layers of a process: a model built again is still the same model.
    names = [layer.name for layer in (model, *model._flatten_layers(include_self=False))]
    for name in sorted(set(names), key=len, reverse=True):
        text = text.replace(f'"{name}"', f'"#{names.index(name)}"')
    return text


def _checked_names(names: Sequence[str] | None, model: Any) -> tuple[str, ...] | None:
    if names is None:
        return None
    checked = tuple(names)
    texts = all(isinstance(name, str) for name in checked)
    if isinstance(names, str) or not texts or len(set(checked)) < len(checked):
        raise ValueError(f"`class_names` must be distinct texts. Received: class_names={names!r}")
    shape = getattr(model, "output_shape", None)
    if isinstance(shape, tuple) and len(shape) == 2 and shape[-1] is not None:
        _check_count(checked, shape[-1])
    return checked


def _check_count(names: tuple[str, ...] | None, classes: int) -> None:
    if names is not None and len(names) != classes:
        raise ValueError(
            f"`class_names` must have one name for each of the {classes} outputs of `model`. "
            f"Received: {len(names)} names"
        )
