"""Fine-tuning a classifier behind its layer, on distilled and attacked images."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from rich.console import Console

from fd_keras._checks import checked, checked_whole
from fd_keras._files import claim
from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages
from fd_keras.hardening.copies import copied
from fd_keras.hardening.data import (
    check_training_images,
    held_out,
    shuffled_batches,
    undefended_correct,
)
from fd_keras.hardening.model import Augment, AverageWeights, HardeningModel
from fd_keras.hardening.progress import TrainingView
from fd_keras.hardening.recipe import Recipe
from fd_keras.hardening.record import Record
from fd_keras.hardening.result import HardenResult, result_of
from fd_keras.hardening.schedule import warm_up_cosine
from fd_keras.layer import FeatureDistillation

_IDENTITY = "hardening.json"
_BACKUP = "backup"
_LOGS = "logs"

_LEARNING_RATE = 1e-3


def harden(
    model: keras.Model,
    layer: FeatureDistillation,
    train_data: Any,
    validation_data: Any = None,
    *,
    attack_budget: float = 4.0,
    max_benign_loss: float = 0.01,
    epochs: int = 5,
    batch_size: int = 128,
    optimizer: Any = None,
    augment: Augment | None = None,
    from_logits: bool = True,
    dtype_policy: str | None = None,
    jit_compile: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    max_held_out: int = 1000,
    directory: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    seed: int = 1,
    console: Console | None = None,
    **recipe: Any,
) -> HardenResult:
    """Fine-tune a classifier behind its layer until attacks through the layer do less.

    A copy of the classifier learns on distilled images, part of them attacked through the layer
    while it learns. After every epoch, images that are held out are classified, and attacked with
    10 steps of PGD through the layer, with either gradient for rounding. The result is the epoch
    with the best accuracy under that attack among those that lose no more benign accuracy than
    permitted: that of the original classifier without layer, less that of the hardened one behind
    it. If every epoch loses more, it is the one that loses least, and the result says so.

    It is ``HardeningModel`` with ``compile`` and ``fit``: mixed precision, ``tf.data``,
    ``tf.distribute`` (call it in the strategy's scope) and callbacks work as in any training. A
    training that was killed goes on after its last whole epoch when it is started with the same
    arguments and ``directory``: to the bit where the platform is deterministic and
    ``train_data`` are arrays; a data set's own order starts anew.

    An attacker who knows layer and classifier has more than 10 steps, restarts, and attacks
    without gradients: ``fd_keras.evaluate`` has them.

    Args:
        model: Trained classifier with one image input, without the layer. It stays as it is.
        layer: The layer that it will stand behind. It stays as it is, too.
        train_data: The arrays ``(images, labels)``, a ``tf.data.Dataset`` of batches or a
            ``PyDataset`` (Keras 2: ``Sequence``), in the layer's value range; integer labels.
        validation_data: Labelled images to hold out, as ``fd_keras.evaluate`` takes them.
            Default: a fifth of ``train_data``, if these are arrays.
        attack_budget: Largest change of a pixel in grey levels, whatever the value range: 4 means
            4/255. 0: nothing is attacked.
        max_benign_loss: Share of the images by which benign accuracy may fall.
        epochs: Passes over ``train_data``.
        batch_size: For arrays; data sets come in their own.
        optimizer: What ``compile`` takes; it is copied. Default: Adam, with a learning rate that
            rises to 0.001 and falls in a cosine over all epochs.
        augment: Function of a batch of images and a seed of two integers, such as
            ``tf.image.stateless_random_flip_left_right``, applied to training images.
        from_logits: Whether ``model`` returns logits. With probabilities, gradients vanish where
            they are rounded to 0 or 1.
        dtype_policy: Keras' name of a policy to train with, such as ``"mixed_bfloat16"``; the
            result has the model's own.
        jit_compile: Whether to compile with XLA.
        callbacks: Further Keras callbacks.
        max_held_out: Number of held-out images at most.
        directory: Where the state of the training, its figures and TensorBoard's logs are kept.
            Default: nowhere, and it cannot be resumed.
        overwrite: Whether to throw away a training in ``directory``.
        seed: Of all that is drawn: held-out images, order, random starts.
        console: Where progress is shown. Default: nowhere.
        **recipe: Further arguments of ``Recipe``: steps and gradient of the attack, shares and
            weights of the losses, random tables and grids, learning the table, averaging.

    Returns:
        The hardened classifier, its layer, and what they were measured at.

    Raises:
        ValueError: An argument does not fit, or ``directory`` holds another training.
        TypeError: ``train_data`` or ``layer`` is of an unknown type.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential(
        ...     [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
        ... )
        >>> images = np.random.default_rng(1).integers(0, 256, (100, 8, 8, 1))
        >>> labels = (images.mean((1, 2, 3)) > 127).astype(int)
        >>> layer = FeatureDistillation("liu2019")
        >>> result = harden(model, layer, (images, labels), attack_budget=2, epochs=1)
        >>> [(row["defence"], row["threat_model"]) for row in result.rows][:2]
        [('undefended', 'benign'), ('layer only', 'benign')]
        >>> folder = tempfile.mkdtemp()
        >>> result.save(folder)
        >>> HardenResult.load(folder).table == layer.quantization_table
        True

    References:
        See ``Recipe``.
    """
    chosen = Recipe(attack_budget=attack_budget, **recipe)
    allowed = float(checked("max_benign_loss", max_benign_loss, 0, 1))
    _check_pair(model, layer)
    classifier = Classifier(model, value_range=layer.value_range, from_logits=from_logits)
    batch_size = checked_whole("batch_size", batch_size, 1)
    seed = checked_whole("seed", seed, 0)
    most = checked_whole("max_held_out", max_held_out, 1)
    train, held = held_out(
        train_data,
        validation_data,
        value_range=classifier.value_range,
        most=most,
        batch_size=batch_size,
        seed=seed,
    )
    check_training_images(train, classifier)
    undefended = undefended_correct(classifier, held)
    training = HardeningModel(
        model,
        layer,
        chosen,
        from_logits=from_logits,
        augment=augment,
        dtype_policy=dtype_policy,
        seed=seed,
    )
    run = _Run(training, train, held, checked_whole("epochs", epochs, 1), batch_size, seed)
    training.compile(optimizer=run.optimizer(optimizer), jit_compile=jit_compile)
    settings = {
        "recipe": chosen.to_dict(),
        "model_sha256": classifier.fingerprint,
        "table": layer.quantization_table.to_dict(),
        "data": train.fingerprint if isinstance(train, LabelledImages) else type(train).__name__,
        "held_out": held.fingerprint,
        "optimizer": _without_names(keras.optimizers.serialize(training.optimizer)),
        "dtype_policy": dtype_policy,
        **{"epochs": epochs, "batch_size": batch_size, "seed": seed, "max_benign_loss": allowed},
    }
    with ExitStack() as stack:
        if directory is None:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            home = Path(directory)
            _claim(home, settings, overwrite)
        record = Record(home, undefended / len(held) - allowed)
        run.fit(record, home, callbacks, console, logs=directory is not None)
        weights, table = record.best()
    hardened = copied(model)
    hardened.set_weights(weights)
    return result_of(
        record,
        hardened,
        _with_table(layer, table),
        undefended=undefended,
        count=len(held),
        recipe=chosen,
        max_benign_loss=allowed,
        settings=settings,
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """A training, its data, and how long it lasts."""

    training: HardeningModel
    train: LabelledImages | Any
    held: LabelledImages
    epochs: int
    batch_size: int
    seed: int

    def optimizer(self, given: Any) -> Any:
        """A copy of the optimiser that was given, or the default."""
        if given is not None:
            optimizer = keras.optimizers.get(given)
            return type(optimizer).from_config(optimizer.get_config())
        batches = self._batches()
        if batches is None:  # a data set of unknown length
            return keras.optimizers.Adam(_LEARNING_RATE)
        return keras.optimizers.Adam(warm_up_cosine(_LEARNING_RATE, batches * self.epochs))

    def fit(
        self,
        record: Record,
        home: Path,
        callbacks: Sequence[keras.callbacks.Callback],
        console: Console | None,
        *,
        logs: bool,
    ) -> None:
        """Train for the epochs that are left."""
        validation = tf.data.Dataset.from_tensor_slices((self.held.images, self.held.labels))
        validation = validation.batch(self.batch_size)
        if record.start is None:
            start = self.training.evaluate(validation, verbose=0, return_dict=True)
            record.begin({name: float(value) for name, value in start.items()})
        if len(record.epochs) >= self.epochs:
            return
        epoch = tf.Variable(0, dtype=tf.int32)
        data = self.train
        if isinstance(data, LabelledImages):
            data = shuffled_batches(data, self.batch_size, self.seed, epoch)
        own = [
            keras.callbacks.LambdaCallback(on_epoch_begin=lambda number, _: epoch.assign(number)),
            AverageWeights(),
            record,
            keras.callbacks.BackupAndRestore(str(home / _BACKUP), delete_checkpoint=False),
        ]
        if logs:
            own.append(keras.callbacks.TensorBoard(str(home / _LOGS), write_graph=False))
        with TrainingView(console, self.epochs, self._batches()) as view:
            self.training.fit(
                data,
                epochs=self.epochs,
                validation_data=validation,
                callbacks=[*own, view.callback, *callbacks],
                shuffle=not isinstance(data, tf.data.Dataset),
                verbose=0,
            )

    def _batches(self) -> int | None:
        """In one epoch; ``None`` where a data set cannot tell."""
        if isinstance(self.train, LabelledImages):
            return len(self.train) // min(self.batch_size, len(self.train))
        if isinstance(self.train, tf.data.Dataset):
            count = int(self.train.cardinality())
            return count if count > 0 else None
        return len(self.train)


def _check_pair(model: keras.Model, layer: FeatureDistillation) -> None:
    if not isinstance(layer, FeatureDistillation):
        raise TypeError(f"`layer` must be a FeatureDistillation. Received: layer={layer!r}")
    if layer.data_format != "channels_last":
        raise ValueError(
            "`layer` must take images with channels last. "
            f"Received: layer with data_format={layer.data_format!r}"
        )
    if not isinstance(model, keras.Model) or not model.trainable_weights:
        raise ValueError(
            f"`model` must be a Keras model with trainable weights. Received: model={model!r}"
        )
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:]:
        raise ValueError(
            "`model` must take images of one size, (batch, height, width, channels). "
            f"Received: model {model.name!r} with inputs of shape {shape}"
        )


def _claim(home: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Make the directory that of this very training."""
    if overwrite:
        for part in (_BACKUP, _LOGS):
            shutil.rmtree(home / part, ignore_errors=True)
        for file in (_IDENTITY, *Record.FILES):
            (home / file).unlink(missing_ok=True)
    claim(home / _IDENTITY, settings, "a training")


def _without_names(config: Any) -> Any:
    """A configuration without the names that Keras numbers anew in each process, as plain JSON."""
    if isinstance(config, Mapping):
        return {key: _without_names(value) for key, value in config.items() if key != "name"}
    if isinstance(config, (list, tuple)):
        return [_without_names(value) for value in config]
    return config if config is None or isinstance(config, (bool, int, float, str)) else repr(config)


def _with_table(layer: FeatureDistillation, table: Any) -> FeatureDistillation:
    config = {**layer.get_config(), "quantization_table": table.to_dict()}
    return FeatureDistillation.from_config(config)
