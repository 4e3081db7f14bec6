"""Keras classifiers as ART estimators, alone or behind a defence."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras._checks import shown
from fd_keras._extras import import_extra
from fd_keras.classifier import Classifier, as_logits
from fd_keras.data.labelled import LabelledImages
from fd_keras.evaluation.defences import Defence
from fd_keras.kernels import Gradient
from fd_keras.layer import FeatureDistillation
from fd_keras.protection import chosen_output

FloatArray = npt.NDArray[np.float32]

# Typing alias: what an attacker puts in place of the gradient of a defence.
Substitute = Gradient | Literal["half-step"]

_NO_GRADIENT = "FdKerasNoGradient"
_ATTACKER_SEED = 1_000_003
_GRADIENT_IMAGES = 16


def art_classifier(
    model: Callable[..., Any],
    *,
    value_range: Sequence[float] = (0, 255),
    input_shape: Sequence[int] | None = None,
) -> Any:
    """Wrap a model as an ART classifier.

    Args:
        model: A Keras model, or a function of a batch of images, that returns logits
            ``(batch, classes)``, or ``(batch, 1)`` for two classes. A final softmax or sigmoid
            would make gradients vanish and every attack look weak.
        value_range: Lowest and highest pixel value. Attacks stay within it.
        input_shape: Shape of one image; needed if ``model`` has no ``input_shape``.

    Returns:
        An ``art.estimators.classification.TensorFlowV2Classifier`` that runs ``model`` and the
        loss as graphs, computes the gradients of each image's own class in one pass, and none of
        the weights.

    Raises:
        ImportError: ART is not installed.
        ValueError: The shape of an image is unknown.

    Example:
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> art_classifier(model).nb_classes
        2

    References:
        Nicolae et al., "Adversarial Robustness Toolbox", arXiv:1807.01069.
    """
    low, high = value_range
    shape = input_shape or getattr(model, "input_shape", (None,))[1:]
    if not shape or None in shape:
        raise ValueError(
            "`input_shape` must be the shape of one image, as `model` does not tell. "
            f"Received: input_shape={shown(input_shape)}"
        )
    known = isinstance(model, keras.Model)

    @tf.function(input_signature=[tf.TensorSpec((None, *shape), tf.float32)])
    def graph(images: tf.Tensor) -> tf.Tensor:
        with _without_weight_gradients():
            outputs = model(images, training=False) if known else model(images)
            return as_logits(chosen_output(outputs, None, model), from_logits=True)

    def logits(images: Any, training: bool = False) -> tf.Tensor:  # ART passes it
        return graph(tf.convert_to_tensor(images, tf.float32))

    return _art_class()(
        model=logits,
        nb_classes=int(graph.get_concrete_function().output_shapes[-1]),
        input_shape=tuple(shape),
        loss_object=LogOdds(),
        clip_values=(float(low), float(high)),
    )


def _without_weight_gradients() -> Any:
    """Context in which a graph is built whose backward pass stops where it reads a variable.

    Whoever differentiates a graph from outside, as ART and Foolbox do, has the gradients of all
    that it reads computed, although attacks need those of the images alone.
    """
    with suppress(KeyError):  # the module was reloaded
        tf.RegisterGradient(_NO_GRADIENT)(lambda op, *_: [None] * len(op.inputs))
    graph = tf.compat.v1.get_default_graph()
    return graph.gradient_override_map({"ReadVariableOp": _NO_GRADIENT})


class LogOdds(keras.losses.SparseCategoricalCrossentropy):
    """Log odds of the wrong classes, a loss whose gradient does not vanish.

    Cross-entropy is ``softplus(m)`` of these log odds ``m = log(sum of exp of the other logits) -
    (logit of the label)``. For each image, the gradients of both differ by a positive factor only,
    so that FGSM, BIM and PGD, which use its sign, are the same attacks. Where a classifier is
    confident, float32 rounds that factor to 0, and cross-entropy's gradient with it, which would
    look like robustness; the gradient of ``m`` remains.

    Example:
        >>> float(LogOdds()(np.array([0]), np.array([[50.0, 0.0]], np.float32)))
        -50.0

    References:
        Masking by saturated losses: Carlini & Wagner, "Defensive Distillation is Not Robust to
        Adversarial Examples", arXiv:1607.04311.
    """

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        """Log odds of the wrong classes for each prediction."""
        logits = tf.convert_to_tensor(y_pred)
        own = tf.one_hot(tf.reshape(tf.cast(y_true, tf.int32), [-1]), tf.shape(logits)[-1])
        others = tf.where(own > 0, logits.dtype.min, logits)
        return tf.reduce_logsumexp(others, axis=-1) - tf.reduce_sum(own * logits, axis=-1)


def check_gradient(classifier: Classifier, images: LabelledImages) -> None:
    """Refuse a classifier whose loss has no gradient that an attack can follow.

    Where only some images have none, it warns.

    Args:
        classifier: The classifier alone.
        images: Images that it classifies correctly; the first few are differentiated.

    Raises:
        ValueError: There is no gradient with respect to the pixels, or it is zero on all of these
            images.

    Example:
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> images = LabelledImages(np.array([[[[9.0], [0.0]]]]), np.array([0]), (0, 255))
        >>> check_gradient(Classifier(model), images)
    """
    pixels = tf.constant(images[:_GRADIENT_IMAGES].unit_images())
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        loss = LogOdds()(images.labels[:_GRADIENT_IMAGES], classifier.unit_logits(pixels))
    try:
        gradient = tape.gradient(loss, pixels)
    except LookupError:  # an operation that has none
        gradient = None
    # ART, too, counts what is not a number as zero.
    flat = None if gradient is None else ~np.nan_to_num(gradient.numpy()).any(axis=(1, 2, 3))
    if flat is not None and not flat.all():
        if flat.any():
            warnings.warn(
                f"`classifier` has no gradient on {flat.sum()} of the first {len(flat)} images, "
                "which attacks that follow it leave as they are, so that accuracies under attack "
                "are too high. A final softmax or sigmoid that rounds probabilities to 0 and 1 "
                "does that: take it off, and pass from_logits=True.",
                stacklevel=2,
            )
        return
    if gradient is None:
        fault = "has none: does it round, take an argmax or leave TensorFlow inside?"
    elif classifier.from_logits:
        fault = f"is zero on all of the first {len(pixels)} images: does it round inside?"
    else:
        low, high = classifier.value_range
        fault = (
            f"is zero on all of the first {len(pixels)} images: does it round inside, or does "
            "its softmax round probabilities to 0 and 1, as it may where the model takes other "
            f"pixels than from {low:g} to {high:g} (value_range)? Otherwise take it off. Pass "
            "from_logits=True for logits."
        )
    raise ValueError(
        "`classifier` must have a gradient with respect to the images, which attacks follow, and "
        f"it {fault} Received: classifier="
        f"{shown(getattr(classifier.model, 'name', classifier.model))}"
    )


@functools.cache
def _art_class() -> Any:
    """ART's classifier with the loss as a graph and the gradients of own classes in one pass."""
    base = import_extra("art.estimators.classification", "evaluate").TensorFlowV2Classifier

    class GraphClassifier(base):  # type: ignore[misc,valid-type]
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            # The model is a graph. ART would trace another one around it for each classifier, for
            # which TensorFlow warns where several defences are attacked.
            self._forward_pass = lambda model, x, training: model(x)

        def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **kwargs: Any) -> Any:
            # ART runs the loss eagerly, which takes longer than a small model. In one graph with
            # the model, its last bits would differ, and with them signs of tiny gradients.
            pixels = tf.convert_to_tensor(x, tf.float32)
            with tf.GradientTape() as tape:
                tape.watch(pixels)
                loss = self._graph_loss(np.argmax(y, axis=1), self.model(pixels))
            gradients = tape.gradient(loss, pixels)
            return gradients.numpy() if isinstance(x, np.ndarray) else gradients

        @functools.cached_property
        def _graph_loss(self) -> Any:
            return tf.function(self.loss_object, reduce_retracing=True)

        def class_gradient(
            self, x: Any, label: Any = None, training_mode: bool = False, **kwargs: Any
        ) -> Any:
            # ART makes one pass over the batch for every class that occurs in it.
            if label is None:
                return super().class_gradient(x, label, training_mode, **kwargs)
            labels = np.broadcast_to(np.asarray(label, np.int32), len(x))
            return own_gradient(self.model, x, labels)[:, np.newaxis]

    return GraphClassifier


def own_gradient(model: Callable[..., Any], images: Any, labels: Any) -> FloatArray:
    """Gradient of one output per image.

    Args:
        model: Function of a batch of images that returns ``(batch, classes)``.
        images: Batch of images.
        labels: Index of the output, for each image.

    Returns:
        Array of the shape of ``images``.

    Example:
        >>> own_gradient(lambda x: x**2, np.array([[2.0, 3.0]]), np.array([1]))
        array([[0., 6.]], dtype=float32)
    """
    pixels = tf.convert_to_tensor(images, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        own = tf.gather(model(pixels), labels, batch_dims=1)
    return np.array(tape.gradient(own, pixels))  # a copy: ART writes into it


def attackable(
    classifier: Classifier,
    input_shape: Sequence[int],
    defence: Defence | None = None,
    *,
    draws: int = 1,
    gradient: Substitute = "smooth",
) -> Any:
    """Wrap a classifier, alone or behind a defence, as an ART classifier for pixels from 0 to 1.

    The gradient of the defence is replaced by another one (BPDA). The logits behind a random
    defence are averaged over several draws (EOT).

    Args:
        classifier: The classifier.
        input_shape: Shape of one image.
        defence: The defence; ``None``: the classifier is alone.
        draws: Number of draws of a random defence.
        gradient: As for ``differentiable``.

    Returns:
        What ``art_classifier`` returns.

    Example:
        >>> from fd_keras.evaluation.defences import defence
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> attackable(Classifier(model), (1, 2, 1), defence("bits:5")).nb_classes
        2

    References:
        Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018.
    """
    if defence is None:
        return art_classifier(classifier.unit_logits, value_range=(0, 1), input_shape=input_shape)
    # The attacker knows how a defence draws, but not its seed.
    seeds = range(_ATTACKER_SEED, _ATTACKER_SEED + (draws if defence.random else 1))
    drawn = [differentiable(defence.reseeded(seed), gradient) for seed in seeds]

    def logits(images: tf.Tensor) -> tf.Tensor:
        return tf.add_n([classifier.unit_logits(draw(images)) for draw in drawn]) / len(drawn)

    return art_classifier(logits, value_range=(0, 1), input_shape=input_shape)


def differentiable(
    defence: Defence, gradient: Substitute = "smooth"
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Make a function of tensors, pixels from 0 to 1, that transforms images and has a gradient.

    A quantisation table, and any other defence that has a ``graph``, runs in the attacker's
    graph; the others are called from it.

    Args:
        defence: The defence.
        gradient: ``"smooth"``: the gradient of ``defence.smooth``; ``"half-step"``: that of
            ``defence.encoder.aimed``. Where it has none, and with ``"straight-through"``, the
            identity's gradient. Both are the true gradient where a table belongs to soft
            thresholding.

    Returns:
        A differentiable function from float32 ``(batch, height, width, channels)`` to the same
        shape.

    Example:
        >>> from fd_keras.evaluation.defences import defence
        >>> differentiable(defence("bits:1"))(tf.constant([[[[0.4], [0.6]]]])).numpy().ravel()
        array([0., 1.], dtype=float32)

    References:
        BPDA: Athalye et al., ICML 2018. Smooth rounding: Shin & Song, "JPEG-resistant
        Adversarial Images", 2017.
    """
    if defence.table is not None and gradient != "half-step":
        return FeatureDistillation(defence.table, value_range=(0, 1), gradient=gradient)
    stand_in = defence.smooth if gradient == "smooth" else None
    if gradient == "half-step" and defence.encoder is not None:
        stand_in = defence.encoder.aimed
    forward = _in_graph(defence)
    if stand_in is not None and stand_in is defence.graph:
        return forward  # its gradient is the defence's own

    @tf.custom_gradient
    def call(images: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        result = forward(images)

        def gradients(upstream: tf.Tensor) -> tf.Tensor:
            if stand_in is None:
                return upstream
            with tf.GradientTape() as tape:
                tape.watch(images)
                smooth = stand_in(255 * images) / 255
            return tape.gradient(smooth, images, upstream)

        return tf.ensure_shape(result, images.shape), gradients

    return call


def _in_graph(defence: Defence) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function of tensors, pixels from 0 to 1, that may have no gradient.

    What is TensorFlow's stays in the graph. Called by way of Python, it would wait forever for the
    thread that has called Python where TensorFlow has only one, as on a single core.
    """
    if defence.table is not None:
        return FeatureDistillation(defence.table, value_range=(0, 1))
    if defence.graph is not None:
        graph = defence.graph
        return lambda images: graph(255 * images) / 255

    def defended(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.float32(defence(255 * images) / 255)

    return lambda images: tf.numpy_function(defended, [images], tf.float32, stateful=False)
