"""A Keras classifier with its value range, kind of outputs and class names."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import (
    check_outputs,
    check_range,
    looks_normalised,
    shown,
    validate_value_range,
)
from fd_keras._compat import last_activation
from fd_keras.data.labelled import unit_images
from fd_keras.protection import (
    check_one_input,
    check_scaling,
    check_without_layer,
    chosen_output,
    image_shape_of,
    with_preprocessor,
)

FloatArray = npt.NDArray[np.float32]

# Smaller probabilities count as this one: the logarithm of 0 is not finite.
_LEAST_PROBABILITY = 1e-30

# Activations of a head with one output whose values are probabilities.
SIGMOIDS = ("sigmoid", "hard_sigmoid")

# Where the configuration of a model names its layers.
_REFERRING = ("name", "inbound_nodes", "input_layers", "output_layers")

# Packages whose layers do what their configuration says.
_CONFIGURED = ("keras", "tf_keras", "fd_keras")

# By the answers for so many images, to this part of their root mean square, models are told apart.
_ANSWERS = 4
_DIGIT = 0.02

# So many numbers from 0 to 1, and no other, are taken for probabilities.
_ENOUGH_TO_TELL = 16


def known_threshold(name: str, activation: str | None) -> float | None:
    """What a single output must exceed for class 1, where its name or its activation tells.

    Args:
        name: Name of the output.
        activation: What ``last_activation`` returned.

    Returns:
        0.5 for a probability, 0 for a logit, ``None`` where neither tells.

    Example:
        >>> known_threshold("predictions", "sigmoid"), known_threshold("logits", None)
        (0.5, 0.0)
    """
    if name in ("logits", "probabilities"):
        return 0.5 if name == "probabilities" else 0.0
    if activation is None:
        return None
    return 0.5 if activation in SIGMOIDS else 0.0


def as_logits(outputs: tf.Tensor, *, from_logits: bool) -> tf.Tensor:
    """Convert the outputs of a classifier to float32 logits, one for each class.

    Args:
        outputs: Logits or probabilities ``(batch, classes)``; or those of the second of two
            classes, ``(batch, 1)``.
        from_logits: Whether ``outputs`` are logits. Of probabilities, the logarithms are taken.

    Returns:
        Tensor ``(batch, classes)``; differentiable. A single logit ``z`` becomes ``[0, z]``.

    Example:
        >>> as_logits(tf.constant([[1.0, 1.0]]), from_logits=False).numpy().tolist()
        [[0.0, 0.0]]
        >>> as_logits(tf.constant([[3.0]]), from_logits=True).numpy().tolist()
        [[0.0, 3.0]]
    """
    outputs = tf.cast(outputs, tf.float32)
    single = outputs.shape[-1] == 1
    if not from_logits:
        logs = tf.math.log(tf.maximum(outputs, _LEAST_PROBABILITY))
        outputs = logs
        if single:
            outputs -= tf.math.log(tf.maximum(1 - tf.exp(logs), _LEAST_PROBABILITY))
    return tf.concat([tf.zeros_like(outputs), outputs], axis=-1) if single else outputs


def check_kind(
    outputs: npt.NDArray[np.floating], *, from_logits: bool, activation: str | None = None
) -> None:
    """Refuse outputs of a classifier that are not what ``from_logits`` says.

    A single output is told by its activation, where that is known. Where it is not, numbers that
    all lie from 0 to 1 are taken for probabilities, unless they are few.

    Args:
        outputs: Outputs ``(batch, classes)`` or ``(batch, 1)``.
        from_logits: Whether they should be logits; otherwise probabilities.
        activation: What ``last_activation`` returned of a single output.

    Raises:
        ValueError: They are not finite, or the other of the two.

    Example:
        >>> check_kind(np.array([[0.2], [3.0]]), from_logits=True)
    """
    if outputs.shape[-1] != 1:
        check_outputs(outputs, from_logits=from_logits)
        return
    received = f"Received: outputs from {outputs.min():g} to {outputs.max():g}"
    if not np.isfinite(outputs).all():
        raise ValueError(f"`model` must return finite outputs. {received}")
    normal = bool(outputs.min() >= 0 and outputs.max() <= 1)
    unknown = activation is None and len(outputs) >= _ENOUGH_TO_TELL
    if from_logits and (activation in SIGMOIDS or (normal and unknown)):
        raise _not_a_logit(received)
    if not from_logits and not normal:
        raise ValueError(
            "`model` must return a probability, from 0 to 1. Pass from_logits=True for a logit. "
            f"{received}, with from_logits=False"
        )


def _not_a_logit(received: str) -> ValueError:
    return ValueError(
        "`model` must return a logit, and this is a probability, from 0 to 1. Pass "
        f"from_logits=False, or take off its sigmoid. {received}, with from_logits=True"
    )


class Classifier:
    """A Keras classifier with its value range, kind of outputs and class names.

    ``evaluate``, ``refine``, ``learn_table`` and ``harden`` take one, or a plain Keras model if it
    takes pixels from 0 to 255 and returns logits.

    A model of two classes may have a single output ``(batch, 1)``, the logit or the probability of
    class 1. Everything here sees it as two classes with the logits ``[0, z]``, so that class 1 is
    predicted where the logit is above 0, or the probability above 0.5.

    Args:
        model: Keras model with one image input and outputs ``(batch, classes)`` or
            ``(batch, 1)``, without the feature distillation layer.
        value_range: Lowest and highest pixel value that ``model`` takes, such as ``(0, 1)``.
        from_logits: Whether ``model`` returns logits; else probabilities. Default: probabilities
            where the last activation is a softmax or a sigmoid, or where the outputs lie from 0 to
            1 and sum to 1; ``assumption`` says what was found. Where probabilities are rounded to 0
            or 1, gradients vanish, which weakens attacks and training.
        class_names: Names of the classes, in the order of the outputs; two may be the same, as
            ImageNet's crane is.
        output: Name of the output that classifies, of a model with several.

    Raises:
        ValueError: ``value_range`` is not a range, or not the one that the model's first layer
            scales from; ``class_names`` are not one text for each class; or ``model`` has several
            inputs, other outputs, no such ``output``, or holds a feature distillation layer
            already, which ``unprotect`` takes off.
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
        from_logits: bool | None = None,
        class_names: Sequence[str] | None = None,
        output: str | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"`model` must be a Keras model. Received: model={shown(model)}")
        check_one_input(model)
        check_without_layer(model)
        self.model = with_preprocessor(model)
        self.value_range = validate_value_range(value_range)
        check_scaling(self.model, self.value_range)
        self.output = output
        self.class_names = _checked_names(class_names)
        self._activation: str | None = None
        declared = _declared_outputs(self.model)
        if declared is not None:
            head = self._classifying(declared)
            self._activation = last_activation(head)
            if head.shape[-1] == 1 and self._activation in SIGMOIDS and from_logits:
                raise _not_a_logit("Received: a model that ends in a sigmoid")
        self._asked = from_logits is None
        self.from_logits = from_logits if from_logits is not None else not self._normalised()
        self._graph = tf.function(self.unit_logits, reduce_retracing=True)

    @property
    def assumption(self) -> str:
        """What the outputs are taken for, and why."""
        kind = "logits" if self.from_logits else "probabilities"
        if not self._asked:
            return f"{kind}, as was said"
        if self._activation is not None:
            return f"{kind}, as the last activation is {self._activation}"
        sums = "lie from 0 to 1 and sum" if not self.from_logits else "do not sum"
        return f"{kind}, as they {sums} to 1"

    def _normalised(self, images: npt.NDArray[np.float32] | None = None) -> bool:
        """Whether the last activation or, where it is not known, the outputs are normalised."""
        if self._activation is not None:
            return self._activation in ("softmax", *SIGMOIDS)
        if images is None:
            shape = self.image_shape
            if shape is None or None in shape or len(shape) != 3:
                return False
            images = np.random.default_rng(0).random((1, *shape), np.float32)
        outputs = self.outputs(tf.constant(images)).numpy()
        return outputs.shape[-1] > 1 and looks_normalised(outputs)

    @classmethod
    def of(
        cls, model: Classifier | keras.Model, value_range: Sequence[float] = (0, 255)
    ) -> Classifier:
        """Return a ``Classifier`` as it is, and wrap a plain Keras model.

        Args:
            model: A ``Classifier``, or a Keras model.
            value_range: Lowest and highest pixel value that a Keras model takes.
        """
        return model if isinstance(model, Classifier) else cls(model, value_range=value_range)

    @property
    def fingerprint(self) -> str:
        """Hash of architecture, weights, value range and kind of outputs, as they are now.

        Names of layers do not count. Of a subclassed model without a configuration, class and
        weights alone count; see ``identity``.
        """
        digest = hashlib.sha256(_architecture(self.model).encode())
        digest.update(repr((self.value_range, self.from_logits)).encode())
        if self.output is not None:
            digest.update(self.output.encode())
        for layer in getattr(self.model, "_flatten_layers", list)():
            # Of layers whose weights are none of Keras' own, such as a wrapped SavedModel.
            digest.update(getattr(layer, "fingerprint", "").encode())
        for weight in self.model.get_weights():
            digest.update(str((weight.shape, weight.dtype)).encode())
            digest.update(np.ascontiguousarray(weight).tobytes())
        return digest.hexdigest()

    def identity(self, images: npt.NDArray[np.floating]) -> str:
        """What tells the model from others: its ``fingerprint``, and what it answers.

        Code of one's own, in a subclassed model or a custom layer, may do what no configuration
        tells. Where there is any, the answers for some images are hashed too.

        Args:
            images: Images ``(n, height, width, channels)``, pixels from 0 to 1; the first four
                are classified.

        Returns:
            A text of hexadecimal digits; for models of Keras' own layers, the fingerprint.

        Example:
            >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
            >>> classifier = Classifier(model)
            >>> classifier.identity(np.zeros((1, 1, 2, 1))) == classifier.fingerprint
            True
        """
        fingerprint = self.fingerprint
        layers = getattr(self.model, "_flatten_layers", lambda: [self.model])()
        if all(type(layer).__module__.partition(".")[0] in _CONFIGURED for layer in layers):
            return fingerprint
        one, other = (_coarse(self.logits(np.float32(images[:_ANSWERS]))) for _ in range(2))
        if one != other:  # the model is random
            return fingerprint
        return hashlib.sha256(fingerprint.encode() + one).hexdigest()

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
        check_range("data", images, self.value_range)
        expected = getattr(self.model, "input_shape", None)
        if isinstance(expected, tuple) and len(expected) == 4:
            wrong = [e for e, size in zip(expected[1:], images.shape[1:]) if e not in (None, size)]
            if wrong or images.ndim != 4:
                raise ValueError(
                    f"`data` must hold images of shape {expected[1:]}, which `model` takes. "
                    f"Received: images of shape {images.shape[1:]}"
                )
        pixels = unit_images(images, self.value_range)
        if self._asked and self.from_logits and self._normalised(pixels):
            # Of a model that could not be called before an image was there.
            self.from_logits = False
            self._graph = tf.function(self.unit_logits, reduce_retracing=True)
        outputs = self.outputs(tf.constant(pixels))
        check_kind(outputs.numpy(), from_logits=self.from_logits, activation=self._activation)
        logits = as_logits(outputs, from_logits=self.from_logits).numpy()
        classes = logits.shape[1]
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"`data` must have labels from 0 to {classes - 1}, the classes of `model`. "
                f"Received: labels from {labels.min()} to {labels.max()}"
            )
        return np.asarray(logits.argmax(axis=-1) == labels)

    def outputs(self, images: tf.Tensor) -> tf.Tensor:
        """What the model returns, as a differentiable tensor.

        Args:
            images: float32 ``(batch, height, width, channels)``, pixels from 0 to 1.

        Returns:
            float32 ``(batch, classes)`` or ``(batch, 1)``: logits or probabilities.
        """
        low, high = self.value_range
        outputs = self.model(low + (high - low) * images, training=False)
        return tf.cast(self._classifying(outputs), tf.float32)

    def unit_logits(self, images: tf.Tensor) -> tf.Tensor:
        """Logits of pixels from 0 to 1, as a differentiable tensor.

        Args:
            images: float32 ``(batch, height, width, channels)``, pixels from 0 to 1.

        Returns:
            float32 ``(batch, classes)``.
        """
        return as_logits(self.outputs(images), from_logits=self.from_logits)

    def logits_of(self, outputs: Any) -> tf.Tensor:
        """Logits from what the model, or a clone of it, returned.

        Args:
            outputs: A tensor, or a dictionary or list of tensors.

        Returns:
            float32 ``(batch, classes)``.

        Example:
            >>> model = keras.Sequential([keras.Input((1, 1, 1)), keras.layers.Flatten()])
            >>> Classifier(model).logits_of(tf.constant([[3.0]])).numpy().tolist()
            [[0.0, 3.0]]
        """
        return as_logits(self._classifying(outputs), from_logits=self.from_logits)

    @functools.cached_property
    def classes(self) -> int | None:
        """Number of classes; ``None`` for a model that does not tell before it is called."""
        declared, shape = _declared_outputs(self.model), self.image_shape
        if declared is not None:
            return _class_count(self._classifying(declared))
        if shape is None or None in shape:
            return None
        images = tf.TensorSpec((None, *shape), tf.float32)
        return _class_count(self._graph.get_concrete_function(images).structured_outputs)

    @property
    def image_shape(self) -> tuple[Any, ...] | None:
        """Shape of one image; ``None`` for a model that does not tell before it is called."""
        return image_shape_of(self.model)

    def _classifying(self, outputs: Any) -> Any:
        """The output that classifies, if it is one of classes."""
        head = chosen_output(outputs, self.output, self.model)
        if len(head.shape) != 2:
            raise ValueError(
                "`model` must return one batch of outputs, (batch, classes), or (batch, 1) for two "
                f"classes. Received: outputs of shape {tuple(head.shape)}"
            )
        names, count = self.class_names, _class_count(head)
        if names is not None and count not in (None, len(names)):
            what = "classes" if head.shape[-1] == 1 else "outputs"
            raise ValueError(
                f"`class_names` must have one name for each of the {count} {what} of `model`. "
                f"Received: {len(names)} names"
            )
        return head


def _class_count(head: Any) -> int | None:
    return 2 if head.shape[-1] == 1 else head.shape[-1]


def _declared_outputs(model: Any) -> Any:
    """The symbolic outputs of a model that declares them; else ``None``."""
    declared = getattr(model, "outputs", None)
    if not getattr(model, "inputs", None) or not declared:
        return None
    structure = getattr(model, "output", None)
    if structure is not None:
        return structure
    # Keras 3's Sequential does not keep the structure.
    return declared[0] if len(declared) == 1 else None


def _architecture(model: keras.Model) -> str:
    try:
        text = str(model.to_json())
    except Exception:  # Keras raises whatever a subclassed model's configuration raises
        return f"{type(model).__module__}.{type(model).__qualname__}"
    # Keras numbers the layers of a process: a model built again is still the same model.
    names = [layer.name for layer in (model, *model._flatten_layers(include_self=False))]
    return json.dumps(_without_names(json.loads(text), names))


def _without_names(config: Any, names: Sequence[str], *, refers: bool = False) -> Any:
    """A configuration with the numbers of layers in place of their names.

    ``refers`` says whether texts refer to layers, as those of a graph's edges do; others may be an
    activation that is called as a layer is.
    """
    if isinstance(config, dict):
        return {
            key: _without_names(value, names, refers=refers or key in _REFERRING)
            for key, value in config.items()
        }
    if isinstance(config, list):
        return [_without_names(value, names, refers=refers) for value in config]
    if refers and isinstance(config, str) and config in names:
        return f"#{names.index(config)}"
    return config


def _coarse(logits: FloatArray) -> bytes:
    """Logits to so few digits that other machines agree."""
    scale = np.sqrt(np.mean(np.float64(logits) ** 2)) or 1.0
    return np.rint(logits / scale / _DIGIT).astype(np.int32).tobytes()


def _checked_names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    checked = tuple(names)
    texts = all(isinstance(name, str) for name in checked)
    if isinstance(names, str) or not texts:
        raise ValueError(f"`class_names` must be texts. Received: class_names={shown(names)}")
    return checked
