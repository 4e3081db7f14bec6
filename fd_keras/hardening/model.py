"""The Keras model that hardening fits: a classifier behind the layer, with its own attacker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fd_keras._checks import shown
from fd_keras._compat import (
    batches_of,
    count_results_once,
    descend,
    optimizer_variables,
    reason_of,
    seed_random_layers,
)
from fd_keras.classifier import Classifier
from fd_keras.evaluation.in_graph import pgd
from fd_keras.hardening.layer import TrainingDistillation
from fd_keras.hardening.recipe import Augment, Recipe, cross_entropy
from fd_keras.kernels import Gradient
from fd_keras.layer import FeatureDistillation
from fd_keras.protection import image_shape_of

# Half precision would round pixels, and attacks on them, to half a grey level and more.
_PIXEL_LAYERS = (keras.layers.Rescaling, keras.layers.Normalization)


def clone_classifier(model: keras.Model, *, dtype_policy: str | None = None) -> keras.Model:
    """A model of the same architecture, with a copy of the weights.

    Args:
        model: A functional or sequential model, or any other with a complete ``get_config``.
        dtype_policy: Name of a Keras dtype policy, such as ``"mixed_bfloat16"``, for all layers
            but those that scale pixels. Default: each layer's own.

    Raises:
        ValueError: The model cannot be cloned, or its layers do not take the policy.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> clone = clone_classifier(model)
        >>> clone is not model, clone.output_shape
        (True, (None, 3))
    """
    try:
        if dtype_policy is None:
            clone = keras.models.clone_model(model)
        else:
            clone = _with_policy(model, dtype_policy)
        if not clone.built or len(clone.weights) != len(model.weights):
            clone(np.zeros((1, *(image_shape_of(model) or ())), np.float32))
        clone.set_weights(model.get_weights())
    except Exception as error:  # Keras raises whatever a model's own code raises
        raise ValueError(
            "`classifier` must be a functional or sequential model, or have a get_config() that "
            f"builds it again. Received: model {model.name!r} ({reason_of(error)})"
        ) from error
    return clone


def _with_policy(model: keras.Model, policy: str) -> keras.Model:
    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=clone)
        if isinstance(layer, _PIXEL_LAYERS):
            return type(layer).from_config(layer.get_config())
        return type(layer).from_config({**layer.get_config(), "dtype": policy})

    return keras.models.clone_model(model, clone_function=clone)


# Of the PGD on validation images; enough to rank epochs, not to report a robustness.
CHECK_STEPS = 10

# What is drawn in each batch. Other numbers than those of the published trainings would draw
# other random starts.
_AUGMENT, _START, _TRANSFERRED = 0, 2, 3


class HardeningModel(keras.Model):
    """Trains a clone of a classifier on distilled and attacked images.

    ``compile`` takes any optimiser and no loss; ``fit`` takes batches ``(images, labels)`` with
    images in the layer's value range and integer labels, all of Keras' callbacks, and the
    ``AverageWeights`` that belongs to this model. ``evaluate`` returns ``benign_accuracy`` and
    ``adaptive_accuracy`` of the averaged weights: images count for the latter that withstand 10
    steps of PGD through the layer with either surrogate gradient of rounding, or with the true
    one of soft thresholding. All random numbers,
    those of layers such as ``Dropout`` too, depend on ``seed`` and the count of batches alone, so
    that a resumed training repeats those of one that never stopped.

    Args:
        classifier: A ``Classifier``, or a Keras model that takes pixels in the layer's value
            range and returns logits. It is not changed.
        layer: The ``FeatureDistillation`` that it will stand behind; it is not changed.
        recipe: The attack on training images, and the loss on them.
        augment: Function of a batch of training images and a seed of two integers, for
            TensorFlow's ``stateless`` operations. Default: none.
        dtype_policy: Name of a Keras dtype policy to train with, such as ``"mixed_bfloat16"``.
            Default: the classifier's own.
        seed: Of all random numbers.

    Raises:
        ValueError: Classifier and layer do not fit each other, or the classifier cannot be
            cloned.
        TypeError: ``layer`` is no ``FeatureDistillation``.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
        ... )
        >>> training = HardeningModel(model, FeatureDistillation("liu2019"), Recipe())
        >>> training.compile("adam")
        >>> images, labels = tf.random.uniform((16, 8, 8, 1), 0, 255), tf.range(16) % 2
        >>> history = training.fit(images, labels, verbose=0)
        >>> sorted(history.history)
        ['adaptive_accuracy', 'benign_accuracy', 'loss']

    References:
        See ``Recipe``.
    """

    def __init__(
        self,
        classifier: Classifier | keras.Model,
        layer: FeatureDistillation,
        recipe: Recipe,
        *,
        augment: Augment | None = None,
        dtype_policy: str | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__(name="hardening", dtype=dtype_policy, autocast=False)
        # No Keras object, so that its model is neither trained nor saved as a part of this one.
        self._original = classifier_behind(layer, classifier)
        model = self._original.model
        self.recipe = recipe
        self.classifier = clone_classifier(model, dtype_policy=dtype_policy)
        self.averaged = clone_classifier(model)
        shape = self._original.image_shape
        assert shape is not None
        self.distillation = TrainingDistillation(layer, shape[-1], rate=recipe.table_rate)
        # Before anything is frozen: Keras 2 orders weights by whether they are trained.
        averages = tuple(self.averaged.weights)
        self._average = _averager(averages, self.classifier.weights, recipe.averaging)
        self._averages: Callable[[], Sequence[Any]] = lambda: averages
        self.averaged.trainable = False
        random_states = tuple(seed_random_layers(self.classifier, seed))
        self._random_states: Callable[[], Sequence[Any]] = lambda: random_states
        self._augment = augment
        self._seed = seed
        self._mean_loss = keras.metrics.Mean(name="loss")
        self._benign = keras.metrics.Mean(name="benign_accuracy")
        self._adaptive = keras.metrics.Mean(name="adaptive_accuracy")
        count_results_once(self)
        self(tf.zeros((1, *shape)))  # builds it, which restoring needs

    @property
    def metrics(self) -> list[Any]:
        """What is reset when an epoch begins."""
        return [self._mean_loss, self._benign, self._adaptive]

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Outputs of the averaged classifier behind the layer."""
        return self.averaged(self.distillation(images), training=False)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Attack a part of a batch, and take one step on all of it."""
        images, labels = _images_and_labels(data, self._original.classes)
        if self._augment is not None:
            images = tf.ensure_shape(self._augment(images, self._drawn(_AUGMENT)), images.shape)
        recipe, through, attacked = self.recipe, *self._counts(images)
        mixed = self._attacked_in_part(images, labels, through, attacked)
        teacher = self._logits(self._original.model, images) if recipe.soft_labels else None
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        with tf.GradientTape() as tape:
            logits = self._logits(self.classifier, self.distillation(mixed), training=True)
            loss = cross_entropy(labels, logits, teacher, recipe.soft_labels)
            if self.classifier.losses:
                loss += tf.cast(tf.add_n(self.classifier.losses), loss.dtype)
            # The optimiser adds up the gradients of all replicas.
            loss = loss / replicas
        descend(self.optimizer, tape, loss, self.trainable_variables)
        self._mean_loss.update_state(loss * replicas)
        right = _right(labels, logits)
        if recipe.attacks:
            self._adaptive.update_state(right[:through])
        if recipe.keeps_benign:
            self._benign.update_state(right[attacked:])
        return self._results(self._mean_loss, *([self._benign] if recipe.keeps_benign else []))

    def test_step(self, data: Any) -> dict[str, Any]:
        """Classify a batch, and attack it with PGD."""
        images, labels = _images_and_labels(data, self._original.classes)
        self._benign.update_state(_right(labels, self._behind_layer(self.averaged, images)))
        if self.recipe.attacks:
            gradients = self.distillation.gradients
            withstood = [self._withstood(images, labels, gradient) for gradient in gradients]
            self._adaptive.update_state(tf.reduce_prod(tf.stack(withstood), 0))
        return self._results(self._benign)

    def average_weights(self) -> None:
        """Move the averaged weights towards those of the classifier, after each batch."""
        self._average(tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.float32))

    def averaged_weights(self) -> list[Any]:
        """Arrays in the order of the original's ``get_weights``."""
        return [np.asarray(tf.convert_to_tensor(weight)) for weight in self._averages()]

    def state(self) -> list[Any]:
        """All variables that training changes, the compiled optimiser's among them."""
        trained = optimizer_variables(self.optimizer, self.trainable_variables)
        return [*self.weights, *self._random_states(), *trained]

    def _results(self, *metrics: Any) -> dict[str, Any]:
        """The named metrics, and the accuracy under attack if there is one."""
        shown = [*metrics, *([self._adaptive] if self.recipe.attacks else [])]
        return {metric.name: metric.result() for metric in shown}

    def _attacked_in_part(
        self, images: tf.Tensor, labels: tf.Tensor, through: Any, attacked: Any
    ) -> tf.Tensor:
        """A batch whose first images are attacked through the layer, the next on the original."""
        recipe, parts = self.recipe, []
        if recipe.attacks:
            first = self._attacked(
                self.classifier,
                images[:through],
                labels[:through],
                steps=recipe.attack_steps,
                gradient=recipe.attack_gradient,
                seed=self._drawn(_START),
            )
            parts.append(first)
        if recipe.transferred_share:
            transferred = pgd(
                images[through:attacked],
                labels[through:attacked],
                lambda x: self._logits(self._original.model, x),
                epsilon=recipe.transferred_epsilon,
                steps=recipe.attack_steps,
                value_range=self.distillation.value_range,
                seed=self._drawn(_TRANSFERRED),
            )
            parts.append(transferred)
        return tf.concat([*parts, images[attacked:]], 0)

    def _attacked(
        self,
        classifier: keras.Model,
        images: tf.Tensor,
        labels: tf.Tensor,
        *,
        steps: int,
        gradient: Gradient,
        seed: tf.Tensor,
    ) -> tf.Tensor:
        """Images attacked through the layer."""
        return pgd(
            images,
            labels,
            lambda x: self._behind_layer(classifier, x, gradient),
            epsilon=self.recipe.epsilon,
            steps=steps,
            value_range=self.distillation.value_range,
            seed=seed,
        )

    def _withstood(self, images: tf.Tensor, labels: tf.Tensor, gradient: Gradient) -> tf.Tensor:
        """1 for images that the averaged classifier gets right under attack, else 0."""
        attacked = self._attacked(
            self.averaged,
            images,
            labels,
            steps=CHECK_STEPS,
            gradient=gradient,
            seed=tf.constant([self._seed, 0]),
        )
        return _right(labels, self._behind_layer(self.averaged, attacked))

    def _behind_layer(
        self, classifier: keras.Model, images: tf.Tensor, gradient: Gradient = "straight-through"
    ) -> tf.Tensor:
        """Logits as at inference: attacks must not count for batch normalisation."""
        return self._logits(classifier, self.distillation(images, gradient=gradient))

    def _logits(
        self, classifier: keras.Model, images: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        return self._original.logits_of(classifier(images, training=training))

    def _counts(self, images: tf.Tensor) -> tuple[Any, Any]:
        """Ends of the parts of a batch that are attacked: through the layer, and at all."""
        count = tf.shape(images)[0] if images.shape[0] is None else images.shape[0]
        through, transferred = self.recipe.attacked_counts(count)
        return through, through + transferred

    def _drawn(self, number: int) -> tf.Tensor:
        """The seed of one of the things that are drawn in each batch, on each replica."""
        batch = tf.cast(tf.convert_to_tensor(batches_of(self.optimizer)), tf.int32)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        context = tf.distribute.get_replica_context()
        seed = tf.stack([self._seed, batch * replicas + context.replica_id_in_sync_group])
        return tf.random.experimental.stateless_fold_in(seed, number)


class AverageWeights(keras.callbacks.Callback):
    """Updates the averaged weights of a ``HardeningModel`` after each batch.

    A callback, not a part of the training step: variables of a ``tf.distribute`` strategy can
    only be assigned outside of its replicas.

    Example:
        >>> callbacks = [AverageWeights(), keras.callbacks.CSVLogger("history.csv")]
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Update them."""
        self.model.average_weights()


def classifier_behind(
    layer: FeatureDistillation, classifier: Classifier | keras.Model
) -> Classifier:
    """The classifier, if it can be trained behind the layer.

    Args:
        layer: The layer.
        classifier: A ``Classifier`` with the layer's value range, or a Keras model, which is
            taken to have it and to return logits.

    Raises:
        ValueError: They do not fit each other.
        TypeError: ``layer`` is no ``FeatureDistillation``.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
        ... )
        >>> layer = FeatureDistillation("liu2019", value_range=(0, 1))
        >>> classifier_behind(layer, model).value_range
        (0.0, 1.0)
    """
    if not isinstance(layer, FeatureDistillation):
        raise TypeError(f"`layer` must be a FeatureDistillation. Received: layer={shown(layer)}")
    if layer.data_format != "channels_last":
        raise ValueError(
            "`layer` must take images with channels last. "
            f"Received: layer with data_format={layer.data_format!r}"
        )
    model = classifier.model if isinstance(classifier, Classifier) else classifier
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`classifier` must be a Classifier or a Keras model. "
            f"Received: classifier={shown(classifier)}"
        )
    shape = image_shape_of(model)
    if shape is None or not model.weights:
        raise ValueError(
            "`classifier` must have weights and know the size of its images; call a subclassed "
            f"model on one batch of images first. Received: model {model.name!r}"
        )
    if not model.trainable_weights:
        raise ValueError(
            "`classifier` must have trainable weights; those of a wrapped SavedModel cannot be "
            f"trained. Received: model {model.name!r}"
        )
    if len(shape) != 3 or None in shape:
        raise ValueError(
            "`classifier` must take images of one size, (batch, height, width, channels). "
            f"Received: model {model.name!r} with inputs of shape {(None, *shape)}"
        )
    if not isinstance(classifier, Classifier):
        return Classifier(model, value_range=layer.value_range)
    if classifier.value_range != layer.value_range:
        raise ValueError(
            "`classifier` and `layer` must have the same value_range. Received: classifier with "
            f"value_range={classifier.value_range}, layer with value_range={layer.value_range}"
        )
    return classifier


def _averager(
    averages: Sequence[Any], weights: Sequence[Any], momentum: float
) -> Callable[[tf.Tensor], None]:
    """The update of all averages as one graph."""
    pairs = list(zip(averages, weights))

    @tf.function
    def update(batches: tf.Tensor) -> None:
        # The first weights are the original's: they must not outlast a short training.
        kept = tf.minimum(momentum, (1 + batches) / (10 + batches))
        for average, weight in pairs:
            new = tf.cast(tf.convert_to_tensor(weight), average.dtype)
            old = tf.convert_to_tensor(average)
            if new.dtype.is_floating:
                new += tf.cast(kept, new.dtype) * (old - new)
            average.assign(new)

    return update


def _right(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """1 where the largest logit is the label's, else 0."""
    found = tf.argmax(logits, -1, output_type=tf.int64)
    return tf.cast(found == tf.cast(labels, tf.int64), tf.float32)


def _images_and_labels(data: Any, classes: int | None) -> tuple[tf.Tensor, tf.Tensor]:
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(
            "`train_data` must yield pairs (images, labels), without weights. "
            f"Received: batches of type {type(data).__name__}"
        )
    images, labels = data
    if images.shape.rank != 4:
        raise ValueError(
            "`train_data` must yield batches of images (batch, height, width, channels). "
            f"Received: images of shape {images.shape}"
        )
    labels = tf.convert_to_tensor(labels)
    numbers = labels.dtype.is_integer or labels.dtype.is_floating
    if not numbers or (labels.shape.rank == 2 and labels.shape[1] != 1):
        raise ValueError(
            "`train_data` must yield integer labels (batch,). "
            f"Received: labels of shape {labels.shape} and dtype {labels.dtype.name}"
        )
    if labels.dtype.is_floating:
        message = "`train_data` must yield labels that are whole numbers"
        with tf.control_dependencies(
            [tf.debugging.assert_equal(labels, tf.round(labels), message)]
        ):
            labels = tf.cast(labels, tf.int64)
    if classes is not None:
        # A label outside would be a target of zeros, and so no loss.
        message = f"`train_data` must yield labels from 0 to {classes - 1}"
        known = tf.cast(labels, tf.int64)
        with tf.control_dependencies(
            [tf.debugging.assert_equal(known, tf.clip_by_value(known, 0, classes - 1), message)]
        ):
            labels = tf.identity(labels)
    return tf.cast(images, tf.float32), tf.reshape(labels, (-1,))
