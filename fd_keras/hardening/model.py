"""The Keras model that is fitted: a classifier behind the quantisation, and its own attacker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from fd_keras._compat import descend
from fd_keras.hardening.copies import copied
from fd_keras.hardening.layer import TrainingDistillation
from fd_keras.hardening.objective import as_logits, cross_entropy, divergence, perturbed, targets
from fd_keras.hardening.recipe import Recipe, step_size
from fd_keras.hardening.views import PLAIN, View, random_view
from fd_keras.kernels import GRADIENTS, Gradient
from fd_keras.layer import FeatureDistillation

# Of the PGD that checks held-out images; enough to rank epochs, not to report a robustness.
CHECK_STEPS = 10

# Typing alias: a batch of images and a seed of two integers, to other images.
Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

# Typing alias: a batch of images to outputs.
Classifier = Callable[[tf.Tensor], tf.Tensor]


class _Seeds(NamedTuple):
    """Pairs of integers, one for each thing that is drawn in a batch."""

    augment: tf.Tensor
    view: tf.Tensor
    start: tf.Tensor
    gradient: tf.Tensor


class HardeningModel(keras.Model):
    """Trains a copy of a classifier on distilled and attacked images, with ``compile`` and ``fit``.

    ``compile`` takes any optimiser and no loss; ``fit`` takes batches ``(images, labels)`` with
    images in the layer's value range and integer labels, all of Keras' callbacks, and the
    ``AverageWeights`` that belongs to this model. ``evaluate`` classifies benign images, and
    attacks them with 10 steps of PGD through the layer, once with each gradient for rounding; an
    image must withstand both. It returns ``benign_accuracy`` and ``adaptive_accuracy`` of the
    averaged classifier. All that is drawn at random depends on
    ``seed`` and the optimiser's count of batches alone, so that a resumed training goes on as if
    it had not stopped.

    Args:
        model: The classifier; it stays as it is.
        layer: The ``FeatureDistillation`` that it will stand behind.
        recipe: What it is trained on.
        from_logits: Whether ``model`` returns logits; else probabilities.
        augment: Function of a batch of images and a seed of two integers, for TensorFlow's
            ``stateless`` operations, that is applied to each batch of training images first.
        dtype_policy: Keras' name of a policy, such as ``"mixed_bfloat16"``, that the copy is
            trained with; ``None`` keeps the model's own.
        seed: Of all that is drawn.

    Raises:
        ValueError: The model cannot be copied.

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
        model: keras.Model,
        layer: FeatureDistillation,
        recipe: Recipe,
        *,
        from_logits: bool = True,
        augment: Augment | None = None,
        dtype_policy: str | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__(name="hardening", dtype=dtype_policy, autocast=False)
        self.recipe = recipe
        self.classifier = copied(model, dtype_policy=dtype_policy)
        self.averaged = copied(model)
        self.distillation = TrainingDistillation(
            layer, model.input_shape[-1], rate=recipe.table_rate
        )
        # Before anything is frozen: Keras 2 orders weights by whether they are trained.
        averages = tuple(self.averaged.weights)
        self._average = _averager(averages, self.classifier.weights, recipe.averaging)
        self._averages: Callable[[], Sequence[Any]] = lambda: averages
        self.averaged.trainable = False
        # A closure: as an attribute, the original would be trained and saved as a part of this.
        self._original: Classifier = lambda images: model(images, training=False)
        self._from_logits = from_logits
        self._augment = augment
        self._seed = seed
        self._mean_loss = keras.metrics.Mean(name="loss")
        self._benign = keras.metrics.Mean(name="benign_accuracy")
        self._adaptive = keras.metrics.Mean(name="adaptive_accuracy")
        self(tf.zeros((1, *model.input_shape[1:])))  # builds it, which restoring needs

    @property
    def metrics(self) -> list[Any]:
        """What is reset when an epoch begins."""
        return [self._mean_loss, self._benign, self._adaptive]

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Outputs of the averaged classifier behind the layer."""
        return self.averaged(self.distillation(images), training=False)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Attack a part of a batch, and take one step on all of it."""
        images, labels = _images_and_labels(data)
        seeds = self._seeds()
        if self._augment is not None:
            images = tf.ensure_shape(self._augment(images, seeds.augment), images.shape)
        view = random_view(
            seeds.view,
            self.distillation.channels,
            step_jitter=self.recipe.step_jitter,
            random_grids=self.recipe.random_grids,
        )
        count = self._attacked_count(images)
        attacked = self._attacked(images[:count], labels[:count], view, seeds)
        with tf.GradientTape() as tape:
            loss, benign_logits, attacked_logits = self._loss(images, attacked, labels, view)
            # The optimiser adds up the gradients of all replicas.
            loss = loss / tf.distribute.get_strategy().num_replicas_in_sync
        descend(self.optimizer, tape, loss, self.trainable_variables)
        self._mean_loss.update_state(loss * tf.distribute.get_strategy().num_replicas_in_sync)
        if attacked_logits is not None:
            self._adaptive.update_state(_right(labels[:count], attacked_logits))
        if self.recipe.keeps_benign:  # they are the last ones of the batch
            first = tf.shape(labels)[0] - tf.shape(benign_logits)[0]
            self._benign.update_state(_right(labels[first:], benign_logits))
        benign = [self._benign] if self.recipe.keeps_benign else []
        return self._results(self._mean_loss, *benign)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Classify a batch, and attack it with PGD."""
        images, labels = _images_and_labels(data)
        self._benign.update_state(_right(labels, self._behind(self.averaged, images)))
        if self.recipe.attacks:
            withstood = [self._withstood(images, labels, gradient) for gradient in GRADIENTS]
            self._adaptive.update_state(tf.reduce_prod(tf.stack(withstood), 0))
        return self._results(self._benign)

    def average_weights(self) -> None:
        """Move the averaged weights towards those of the classifier, after each batch."""
        self._average(tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.float32))

    def averaged_weights(self) -> list[Any]:
        """Arrays in the order of the original's ``get_weights``."""
        return [np.asarray(tf.convert_to_tensor(weight)) for weight in self._averages()]

    def _results(self, *metrics: Any) -> dict[str, Any]:
        """The named metrics, and the accuracy under attack if there is one."""
        shown = [*metrics, *([self._adaptive] if self.recipe.attacks else [])]
        return {metric.name: metric.result() for metric in shown}

    def _loss(
        self, images: tf.Tensor, attacked: tf.Tensor | None, labels: tf.Tensor, view: View
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """The loss, and the logits of benign and of attacked images."""
        recipe = self.recipe
        benign = images
        if attacked is not None and not recipe.trades:
            benign = images[tf.shape(attacked)[0] :]
        parts = [] if attacked is None else [self.distillation.distil(attacked, view)]
        parts.append(self.distillation.distil(benign, view))
        if recipe.consistency:
            parts.append(benign)
        outputs = self._logits(self.classifier, tf.concat(parts, 0), training=True)
        split = list(tf.split(outputs, [tf.shape(part)[0] for part in parts]))
        attacked_logits = None if attacked is None else split.pop(0)
        wanted = self._targets(images, labels, outputs.shape[-1])
        if attacked_logits is None:
            loss = cross_entropy(wanted, split[0])
        elif recipe.trades:
            twins = split[0][: tf.shape(attacked_logits)[0]]
            loss = cross_entropy(wanted, split[0])
            loss += recipe.trades * divergence(twins, attacked_logits)
        else:
            loss = cross_entropy(wanted, tf.concat([attacked_logits, split[0]], 0))
        if recipe.consistency:
            both = divergence(split[0], split[1]) + divergence(split[1], split[0])
            loss += recipe.consistency * both / 2
        if self.classifier.losses:
            loss += tf.cast(tf.add_n(self.classifier.losses), loss.dtype)
        return loss, split[0], attacked_logits

    def _attacked(
        self, images: tf.Tensor, labels: tf.Tensor, view: View, seeds: _Seeds
    ) -> tf.Tensor | None:
        recipe = self.recipe
        if not recipe.attacks:
            return None

        def through(gradient: Gradient) -> tf.Tensor:
            return perturbed(
                images,
                labels,
                lambda x: self._behind(self.classifier, x, view, gradient),
                budget=self._in_pixels(recipe.attack_budget),
                steps=recipe.attack_steps,
                step_size=self._in_pixels(recipe.step_size),
                value_range=self.distillation.value_range,
                seed=seeds.start,
            )

        if recipe.attack_gradient != "random":
            return through(recipe.attack_gradient)
        smooth = tf.random.stateless_uniform((), seeds.gradient) < 0.5
        return tf.cond(smooth, lambda: through("smooth"), lambda: through("straight-through"))

    def _withstood(self, images: tf.Tensor, labels: tf.Tensor, gradient: Gradient) -> tf.Tensor:
        """1 for images that the averaged classifier gets right under attack, else 0."""
        budget = self._in_pixels(self.recipe.attack_budget)
        attacked = perturbed(
            images,
            labels,
            lambda x: self._behind(self.averaged, x, gradient=gradient),
            budget=budget,
            steps=CHECK_STEPS,
            step_size=step_size(budget, CHECK_STEPS),
            value_range=self.distillation.value_range,
            seed=tf.constant([self._seed, 0]),
        )
        return _right(labels, self._behind(self.averaged, attacked))

    def _behind(
        self,
        classifier: keras.Model,
        images: tf.Tensor,
        view: View = PLAIN,
        gradient: Gradient = "straight-through",
    ) -> tf.Tensor:
        """Logits behind the layer, as at inference: attacks leave no trace in batch statistics."""
        return self._logits(
            classifier, self.distillation.distil(images, view, gradient), training=False
        )

    def _logits(self, classifier: keras.Model, images: tf.Tensor, training: bool) -> tf.Tensor:
        return as_logits(classifier(images, training=training), from_logits=self._from_logits)

    def _targets(self, images: tf.Tensor, labels: tf.Tensor, classes: int) -> tf.Tensor:
        soft = None
        if self.recipe.soft_labels:
            soft = as_logits(self._original(images), from_logits=self._from_logits)
        return targets(labels, soft, self.recipe.soft_labels, classes)

    def _attacked_count(self, images: tf.Tensor) -> Any:
        if images.shape[0] is not None:
            return self.recipe.attacked_count(images.shape[0])
        share = self.recipe.attacked_share * tf.cast(tf.shape(images)[0], tf.float32)
        return tf.cast(tf.math.ceil(share), tf.int32)

    def _in_pixels(self, grey_levels: float) -> float:
        low, high = self.distillation.value_range
        return grey_levels * (high - low) / 255

    def _seeds(self) -> _Seeds:
        batch = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int32)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        context = tf.distribute.get_replica_context()
        seed = tf.stack([self._seed, batch * replicas + context.replica_id_in_sync_group])
        fold = tf.random.experimental.stateless_fold_in
        return _Seeds(*(fold(seed, number) for number in range(len(_Seeds._fields))))


class AverageWeights(keras.callbacks.Callback):
    """Updates the averaged weights of a ``HardeningModel`` after each batch.

    A callback, not a part of the training step: variables of a ``tf.distribute`` strategy can
    only be assigned outside of its replicas.

    Example:
        >>> callbacks = [AverageWeights(), keras.callbacks.BackupAndRestore("backup")]
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Update them."""
        self.model.average_weights()


def _averager(
    averages: Sequence[Any], weights: Sequence[Any], momentum: float
) -> Callable[[tf.Tensor], None]:
    """The update of all weights as one graph."""
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


def _images_and_labels(data: Any) -> tuple[tf.Tensor, tf.Tensor]:
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
    if not labels.dtype.is_integer or (labels.shape.rank == 2 and labels.shape[1] != 1):
        raise ValueError(
            "`train_data` must yield integer labels (batch,). "
            f"Received: labels of shape {labels.shape} and dtype {labels.dtype.name}"
        )
    return tf.cast(images, tf.float32), tf.reshape(labels, (-1,))
