"""Fine-tune a classifier behind its layer, on distilled and attacked images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from fd_keras._checks import (
    callers_level,
    check_range,
    checked,
    checked_whole,
    printable,
    shown,
)
from fd_keras._console import Advance, bar, console_became_verbose, console_of, progress_bars
from fd_keras._files import DocumentFormat, RunDirectory
from fd_keras.classifier import Classifier
from fd_keras.data.labelled import LabelledImages, batches_with_labels
from fd_keras.evaluation.sanity import check_clean_accuracy
from fd_keras.evaluation.selection import ClassifierWarning
from fd_keras.hardening.data import shuffled_batches, training_and_validation
from fd_keras.hardening.model import (
    CHECK_STEPS,
    AverageWeights,
    HardeningModel,
    classifier_behind,
    clone_classifier,
)
from fd_keras.hardening.recipe import Recipe, Training, warm_up_cosine
from fd_keras.hardening.record import ADAPTIVE, BENIGN, FILES, Record
from fd_keras.hardening.result import HardenResult, result_of
from fd_keras.hardening.team import Team
from fd_keras.layer import FeatureDistillation
from fd_keras.tables import QuantizationTable

Settings = TypeVar("Settings", Recipe, Training)

_LOGS = "logs"
_TRAININGS = RunDirectory(
    DocumentFormat("fd_keras.hardening", 1, "training"),
    "hardening.json",
    (*FILES, f"{_LOGS}/train/events.out.tfevents.*", f"{_LOGS}/validation/events.out.tfevents.*"),
)

_LEARNING_RATE = 1e-3


@console_became_verbose
def harden(
    classifier: Classifier | keras.Model,
    layer: FeatureDistillation,
    train_data: Any,
    validation_data: Any = None,
    recipe: Recipe | None = None,
    training: Training | None = None,
    *,
    max_benign_loss: float = 0.01,
    max_validation_images: int = 1000,
    directory: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    seed: int = 1,
    verbose: int | Console = 0,
) -> HardenResult:
    """Fine-tune a classifier behind its layer, so that attacks through the layer do less.

    A clone of the classifier learns on distilled images, part of them attacked through the layer
    while it learns. After every epoch, the validation images are classified, and attacked with 10
    steps of PGD through the layer, with either surrogate gradient of rounding or the true one of
    soft thresholding. The result is the epoch with the best accuracy under that attack among
    those whose benign loss is permitted: the benign accuracy of the original classifier without
    the layer, less that of the hardened one behind it. If every epoch loses more, it is the one
    that loses least, and the result says so.

    It is ``HardeningModel`` with ``compile`` and ``fit``: mixed precision, ``tf.data``,
    ``tf.distribute`` (call it in the strategy's scope) and callbacks work as in any training.
    With ``MultiWorkerMirroredStrategy``, every process calls it with the same arguments, the first
    one writes, and ``directory`` must be the same place for all; that needs Keras 2, as Keras 3's
    ``fit`` fails there on any model. A training that was killed goes on after its last whole
    epoch when it is started with the same arguments and ``directory``: to the bit where the
    platform is deterministic and ``train_data`` are arrays; a data set's own order and the counts
    of callbacks start anew. A data set is known again by its type, size and shapes, and
    ``augment`` by its name: with other content under the same, take another directory. One
    process, or those of one strategy, trains in a directory at a time.

    An attacker who knows layer and classifier has more than 10 steps, restarts, and attacks
    without gradients: ``fd_keras.evaluate`` has them.

    Args:
        classifier: A ``Classifier`` with the layer's value range, or a Keras model that takes
            pixels in that range and returns logits; with one image input, and without the layer.
            It is not changed.
        layer: The layer that it will stand behind; it is not changed.
        train_data: The arrays ``(images, labels)``, a ``tf.data.Dataset`` of batches or a
            ``PyDataset`` (Keras 2: ``Sequence``), in the layer's value range; integer labels.
        validation_data: Labelled images that choose the epoch, as ``fd_keras.evaluate`` takes
            them. Default: a fifth of ``train_data``, if these are arrays, which is then not
            trained on.
        recipe: The attack on training images (``epsilon`` in grey levels of 255), and the loss.
            Default: ``Recipe()``.
        training: Epochs, batch size, optimiser, augmentation, precision and callbacks. Default:
            ``Training()``.
        max_benign_loss: Share of the images by which benign accuracy may fall.
        max_validation_images: Maximum number of validation images.
        directory: Where the state of the training, its accuracies and TensorBoard's logs are
            kept. Default: nowhere, and it cannot be resumed.
        overwrite: Whether to delete the training in ``directory``; other files there stay.
        seed: Of all random numbers: validation split, order, random starts.
        verbose: 1 shows progress on standard error or in the notebook, a rich console shows it
            there. 0: nothing is shown.

    Returns:
        The hardened classifier, its layer, and their accuracies.

    Raises:
        ValueError: An argument does not fit, processes that train together do not have the same
            ``directory``, Keras cannot train on several machines, or ``directory`` holds another
            training, a damaged one, files of other origin or links in the places of a training's
            files, or another process trains there.
        OSError: ``directory`` cannot be written to; the last epoch that was is kept.
        TypeError: ``train_data``, ``layer``, ``recipe`` or ``training`` is of another type.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
        ... )
        >>> images = np.random.default_rng(1).integers(0, 256, (100, 8, 8, 1))
        >>> labels = (images.mean((1, 2, 3)) > 127).astype(int)
        >>> layer = FeatureDistillation("liu2019")
        >>> recipe, training = Recipe(epsilon=2), Training(epochs=1)
        >>> result = harden(model, layer, (images, labels), recipe=recipe, training=training)
        >>> [(row["defence"], row["threat_model"]) for row in result.rows][:2]
        [('undefended', 'benign'), ('layer only', 'benign')]
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> result.save(folder)
        >>> HardenResult.load(folder).table == layer.quantization_table
        True

    References:
        See ``Recipe``.
    """
    team = Team.current()
    recipe = _settings("recipe", recipe, Recipe)
    training = _settings("training", training, Training)
    allowed = float(checked("max_benign_loss", max_benign_loss, 0, 1))
    classifier = classifier_behind(layer, classifier)
    seed, console = checked_whole("seed", seed, 0), console_of(verbose)
    train, validation = training_and_validation(
        train_data,
        validation_data,
        classifier,
        most=checked_whole("max_validation_images", max_validation_images, 1),
        batch_size=training.batch_size,
        seed=seed,
    )
    run = _Run(
        HardeningModel(
            classifier,
            layer,
            recipe,
            augment=training.augment,
            dtype_policy=training.dtype_policy,
            seed=seed,
        ),
        training,
        train,
        validation,
        seed,
        team,
    )
    run.model.compile(optimizer=run.optimizer(), jit_compile=training.jit_compile)
    settings = {
        "recipe": recipe.to_dict(),
        "model_sha256": classifier.fingerprint,
        "table": layer.quantization_table.to_dict(),
        "data": _name_of(train),
        "augment": training.augment and _function_name(training.augment),
        "validation": validation.fingerprint,
        "validation_from_train_data": validation_data is None,
        "optimizer": _without_names(keras.optimizers.serialize(run.model.optimizer)),
        "dtype_policy": training.dtype_policy,
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "seed": seed,
        "max_benign_loss": allowed,
    }
    _check_validation(classifier, validation)  # before the directory is claimed, or emptied
    with ExitStack() as stack:
        home = None
        if directory is not None and team.leads:
            claimed = _TRAININGS.claimed(directory, settings, overwrite=overwrite)
            home = stack.enter_context(claimed)
        team.meet()  # nobody reads what the first process is about to delete
        if directory is not None and not team.leads:
            home = Path(directory)
        undefended = _correct_count(classifier, validation)
        _say_clean_accuracy(classifier, undefended, len(validation), console)
        record = Record(home, undefended / len(validation) - allowed, writes=team.leads)
        run.fit(record, home, console)
        weights, table = record.best()
    hardened = clone_classifier(classifier.model)
    hardened.set_weights(weights)
    return result_of(
        record,
        hardened,
        _with_table(layer, table),
        undefended=undefended,
        count=len(validation),
        recipe=recipe,
        max_benign_loss=allowed,
        settings=settings,
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """A model to fit, its data, and how it is fitted."""

    model: HardeningModel
    training: Training
    train: LabelledImages | Any
    validation: LabelledImages
    seed: int
    team: Team

    def optimizer(self) -> Any:
        """A copy of the optimiser that was given, or the default."""
        if self.training.optimizer is not None:
            optimizer = keras.optimizers.get(self.training.optimizer)
            return type(optimizer).from_config(optimizer.get_config())
        batches = self._batches()
        if batches is None:  # a data set of unknown length
            return keras.optimizers.Adam(_LEARNING_RATE)
        return keras.optimizers.Adam(warm_up_cosine(_LEARNING_RATE, batches * self.training.epochs))

    def fit(self, record: Record, home: Path | None, console: Console | None) -> None:
        """Train for the epochs that are left."""
        validation = tf.data.Dataset.from_tensor_slices(
            (self.validation.images, self.validation.labels)
        ).batch(self.training.batch_size)
        validation = self.team.shared_out(validation)
        # Before it is read, which builds variables that all processes must build together.
        self.team.check_same(int(record.kept))
        restored = record.restore(self.model)
        self.team.check_same(len(record.epochs))
        if not restored:
            start = self.model.evaluate(validation, verbose=0, return_dict=True)
            record.begin({name: float(value) for name, value in start.items()}, self.model)
        if record.stopped or len(record.epochs) >= self.training.epochs:
            return
        epoch = tf.Variable(0, dtype=tf.int32)
        data = self.train
        if isinstance(data, LabelledImages):
            data = shuffled_batches(data, self.training.batch_size, self.seed, epoch)
            data = self.team.shared_out(data)
        callbacks = [
            keras.callbacks.LambdaCallback(on_epoch_begin=lambda number, _: epoch.assign(number)),
            AverageWeights(),
            record,
        ]
        if home is not None and self.team.leads:
            callbacks.append(keras.callbacks.TensorBoard(str(home / _LOGS), write_graph=False))
        with _training_progress(console, self.training.epochs, self._batches()) as progress:
            self.model.fit(
                data,
                epochs=self.training.epochs,
                initial_epoch=len(record.epochs),
                validation_data=validation,
                # The state is saved last: callbacks may change it when an epoch ends.
                callbacks=[*callbacks, progress, *self.training.callbacks, record.saving()],
                shuffle=not isinstance(data, tf.data.Dataset),
                verbose=0,
            )

    def _batches(self) -> int | None:
        """In one epoch; ``None`` where a data set cannot tell."""
        if isinstance(self.train, LabelledImages):
            return len(self.train) // min(self.training.batch_size, len(self.train))
        if isinstance(self.train, tf.data.Dataset):
            count = int(self.train.cardinality())
            return count if count > 0 else None
        return len(self.train)


@contextmanager
def _training_progress(
    console: Console | None, epochs: int, batches: int | None
) -> Iterator[keras.callbacks.Callback]:
    """Show a bar over all batches, and a line for every epoch; yield the callback for it."""
    total = None if batches is None else batches * epochs
    with (
        progress_bars(console, unit="batches") as progress,
        bar(progress, "Hardening", total) as advance,
    ):
        yield _Progress(progress.console, advance, epochs, batches or 0)


class _Progress(keras.callbacks.Callback):
    def __init__(self, console: Console, advance: Advance, epochs: int, batches: int) -> None:
        super().__init__()
        self._console, self._advance = console, advance
        self._epochs, self._batches = epochs, batches
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if not self._begun:  # a resumed training does not begin at 0
            self._advance(epoch * self._batches)
            self._begun = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._advance(1)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        logs = logs or {}
        figures = [f"loss {logs['loss']:.3f}", f"benign {100 * logs[f'val_{BENIGN}']:.1f} %"]
        if f"val_{ADAPTIVE}" in logs:
            adaptive = 100 * logs[f"val_{ADAPTIVE}"]
            figures.append(f"adaptive (PGD-{CHECK_STEPS}) {adaptive:.1f} %")
        text = f"Epoch {epoch + 1} of {self._epochs}: " + ", ".join(figures)
        self._console.print(text, highlight=False)


def _settings(name: str, given: Settings | None, kind: type[Settings]) -> Settings:
    if given is not None and not isinstance(given, kind):
        raise TypeError(f"`{name}` must be a {kind.__name__}. Received: {name}={shown(given)}")
    return kind() if given is None else given


def _check_validation(classifier: Classifier, images: LabelledImages) -> None:
    """Refuse validation images that do not fit the classifier, by as few of them as tell."""
    extremes = [int(images.labels.argmin()), int(images.labels.argmax())]
    check_range("validation_data", images.images, classifier.value_range)
    try:
        classifier.correct(images.images[extremes], images.labels[extremes])
    except ValueError as error:
        raise ValueError(str(error).replace("`data`", "`validation_data`")) from error


def _correct_count(classifier: Classifier, images: LabelledImages) -> int:
    batches = batches_with_labels((images.images, images.labels), 128)
    return sum(int(np.sum(classifier.correct(*batch))) for batch in batches)


def _say_clean_accuracy(
    classifier: Classifier, right: int, count: int, console: Console | None
) -> None:
    """What a user must see first, and a warning where it is about chance."""
    check = check_clean_accuracy(right, count, classifier.classes or 1)
    if not check["passed"]:
        warnings.warn(str(check["detail"]), ClassifierWarning, stacklevel=callers_level())
    if console is not None:
        share = f"{right} of {count} images ({100 * right / count:.1f} %)"
        for line in (
            f"Assumed: outputs are {classifier.assumption}",
            f"Clean accuracy on all validation images: {share}",
        ):
            console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def _name_of(train: LabelledImages | Any) -> str:
    """What tells training data from others: of data sets, only what they say of themselves."""
    if isinstance(train, LabelledImages):
        return train.fingerprint
    kind = type(train).__name__
    if isinstance(train, tf.data.Dataset):
        return f"{kind} of {int(train.cardinality())} x {train.element_spec}"
    return f"{kind} of {len(train)}"


def _function_name(function: Any) -> str:
    return ".".join(
        getattr(function, part, type(function).__name__) for part in ("__module__", "__qualname__")
    )


def _without_names(config: Any) -> Any:
    """A configuration without the names that Keras numbers anew in each process, as plain JSON."""
    if isinstance(config, Mapping):
        return {key: _without_names(value) for key, value in config.items() if key != "name"}
    if isinstance(config, (list, tuple)):
        return [_without_names(value) for value in config]
    return config if config is None or isinstance(config, (bool, int, float, str)) else repr(config)


def _with_table(layer: FeatureDistillation, table: QuantizationTable) -> FeatureDistillation:
    config = {**layer.get_config(), "quantization_table": table.to_dict()}
    return FeatureDistillation.from_config(config)
