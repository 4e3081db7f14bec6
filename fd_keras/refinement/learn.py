"""A table learnt by gradient: every step of every channel and band for itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from rich.console import Console

from fd_keras._checks import checked, checked_whole
from fd_keras._console import bar, progress_bars
from fd_keras._files import default_cache_dir
from fd_keras.classifier import Classifier
from fd_keras.evaluation.protocols import Protocol, protocol_named
from fd_keras.kernels import clip_straight_through, distil
from fd_keras.presets import TableLike, as_table
from fd_keras.refinement.experiment import Laboratory, halved, score_of
from fd_keras.refinement.result import Contender
from fd_keras.refinement.scoring import (
    BENIGN,
    ScoredImages,
    TableScorer,
    model_outputs,
    objective_value,
)
from fd_keras.tables import QuantizationTable

_STEP_RANGE = (1.0, 255.0)
_LEAST_PROBABILITY = 1e-30
_BATCH = 16  # each with an attacked twin, and the network's activations are kept


@dataclass(frozen=True, eq=False)
class LearnResult:
    """A learnt table beside the one that it started from.

    Args:
        learnt: The best table, which is the first one where no other was better.
        started: The table that was started from.
        history: For each epoch: ``objective`` and ``benign_loss`` on the selecting half, and
            ``multiplier``, the price of a lost benign image.
        max_benign_loss: The constraint.

    Example:
        >>> learn_table  # doctest: +ELLIPSIS
        <function learn_table at 0x...>
    """

    learnt: Contender
    started: Contender
    history: Sequence[Mapping[str, float]]
    max_benign_loss: float

    @property
    def table(self) -> QuantizationTable:
        """The learnt table."""
        assert self.learnt.table is not None
        return self.learnt.table

    @property
    def gain(self) -> float:
        """By how much it is better under attack than the first table, on held-back images."""
        return self.learnt.held_back.attacked - self.started.held_back.attacked

    def __str__(self) -> str:
        lines = ["Gray-box accuracy on held-back images, in %: benign, mean under attack"]
        for contender in (self.started, self.learnt):
            figures = contender.held_back
            low, high = (100 * end for end in figures.interval(BENIGN))
            lines.append(
                f"{contender.name:<10}{100 * figures.benign:6.1f} [{low:.0f}-{high:.0f}]"
                f"{100 * figures.attacked:8.1f}"
            )
        lines.append(f"learnt - started: {100 * self.gain:+.1f} points")
        return "\n".join(lines)


def learn_table(
    model: keras.Model,
    data: Any,
    protocol: str | Protocol | Mapping[str, npt.ArrayLike] = "linf-sweep",
    table: TableLike = "liu2019",
    *,
    max_benign_loss: float = 0.01,
    epochs: int = 10,
    learning_rate: float = 0.03,
    value_range: Sequence[float] = (0, 255),
    from_logits: bool = True,
    max_images: int = 1000,
    limits: Mapping[str, int] | None = None,
    seed: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> LearnResult:
    """Refine every step of a table by gradient, from the table that a search found.

    What is descended is the logarithm of the steps: the smooth error on attacked images plus a
    price times the smooth error on benign ones. The price rises while more benign images are
    lost than permitted, and falls otherwise (a Lagrange multiplier). Rounding is passed
    straight through, so that a step's gradient is the rounding error it leaves. After every
    epoch the table is scored as a search would, and the best one is kept.

    Halves, attacks and the held-back check are those of ``fd_keras.refine``, and so is the
    threat model: gray-box.

    Args:
        model: As for ``fd_keras.refine``.
        data: As for ``fd_keras.refine``.
        protocol: As for ``fd_keras.refine``.
        table: Where to start; its colour space and cycle spins are kept.
        max_benign_loss: Share of the benign images that a table may cost.
        epochs: Passes over the selecting half.
        learning_rate: Of Adam, in the natural logarithm of a step.
        value_range: As for ``fd_keras.refine``.
        from_logits: As for ``fd_keras.refine``.
        max_images: As for ``fd_keras.refine``.
        limits: As for ``fd_keras.refine``.
        seed: Of the order of the images and of random attacks.
        cache_dir: As for ``fd_keras.refine``.
        console: Where progress is shown. Default: nowhere.

    Returns:
        The learnt table and what it gained.

    Raises:
        ImportError: An extra is missing.
        ValueError: An argument does not fit.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> images = np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1)[:10] / 2
        >>> learnt = learn_table(
        ...     model, (images, np.arange(10)), {"darker": images / 2}, value_range=(0, 1), epochs=1
        ... )
        >>> learnt.table.channels
        1

    References:
        Esser et al., "Learned Step Size Quantization", ICLR 2020; Bengio et al., "Estimating or
        Propagating Gradients Through Stochastic Neurons", arXiv:1308.3432.
    """
    classifier = Classifier(model, value_range=value_range, from_logits=from_logits)
    attacks = protocol if isinstance(protocol, Mapping) else protocol_named(protocol)
    lab = Laboratory(
        classifier,
        *halved(classifier, data, attacks, max_images=max_images, limits=limits or {}),
        cache_dir=Path(cache_dir or default_cache_dir()),
        seed=checked_whole("seed", seed, 0),
        console=console,
    )
    lab.attack()
    allowed = float(checked("max_benign_loss", max_benign_loss, 0, 1))
    scorer = TableScorer(classifier, lab.load(lab.selecting))
    start = as_table(table)
    descent = _Descent(classifier, scorer.images, start, learning_rate, allowed, lab.seed)
    best, best_value, history = start, objective_value(scorer.score(start), allowed), []
    with progress_bars(console) as progress, bar(progress, "Learning", epochs) as advance:
        for _ in range(checked_whole("epochs", epochs, 1)):
            descent.epoch()
            score = scorer.score(descent.table)
            value = objective_value(score, allowed)
            history.append(
                {
                    "objective": value,
                    "benign_loss": score.benign_loss,
                    "multiplier": descent.multiplier,
                }
            )
            if value > best_value:
                best, best_value = descent.table, value
            advance(1)
    checker = TableScorer(classifier, lab.load(lab.held_back))
    learnt, started = (
        Contender(name, "feature distillation", score_of(checker, t), score_of(scorer, t), t)
        for name, t in (("learnt", best), ("started", start))
    )
    return LearnResult(learnt, started, history, allowed)


class _Descent:
    """Steps that go down the gradient, and the price of benign images that goes up."""

    def __init__(
        self,
        classifier: Classifier,
        images: ScoredImages,
        table: QuantizationTable,
        learning_rate: float,
        allowed: float,
        seed: int,
    ) -> None:
        self._classifier = classifier
        self._images = images
        self._start = table
        self._allowed = allowed
        self._draw = np.random.default_rng(seed)
        self.multiplier = 1.0
        steps = table.steps_for(images.sets[BENIGN].shape[-1])
        # A layer's weight is what optimisers of Keras 2 and 3 both take.
        self._weight = keras.layers.Layer(dtype="float32").add_weight(
            name="log_steps", shape=steps.shape, initializer="zeros"
        )
        self._weight.assign(np.log(steps))
        self._optimizer = keras.optimizers.Adam(learning_rate)
        self._gradient = tf.function(self._eager_gradient, reduce_retracing=True)

    @property
    def table(self) -> QuantizationTable:
        """The table of the present steps."""
        steps = np.exp(np.asarray(tf.convert_to_tensor(self._weight), np.float64))
        provenance = {
            "source": "learn_table",
            "name": "learnt",
            "from": dict(self._start.provenance),
        }
        start = self._start
        return QuantizationTable(steps.round(2), start.color_space, start.cycle_spins, provenance)

    def epoch(self) -> None:
        """Once over all attacked images, each with its benign twin."""
        pairs = [(a, i) for a in self._images.attacks for i in range(len(self._images.sets[a]))]
        order = self._draw.permutation(len(pairs))
        for first in range(0, len(order), _BATCH):
            chosen = [pairs[i] for i in order[first : first + _BATCH]]
            indices = [index for _, index in chosen]
            attacked = np.stack([self._images.sets[name][index] for name, index in chosen])
            gradient, lost = self._gradient(
                tf.constant(self._images.sets[BENIGN][indices]),
                tf.constant(attacked),
                tf.constant(self._images.labels[indices], tf.int32),
                tf.constant(self.multiplier, tf.float32),
            )
            self._optimizer.apply_gradients([(gradient, self._weight)])
            self._weight.assign(tf.clip_by_value(self._weight, *np.log(_STEP_RANGE)))
            # In batches of 16 a loss of 1 % is rare: the price moves slowly and stays positive.
            self.multiplier = max(0.05, self.multiplier + 0.5 * (float(lost) - self._allowed))

    def _eager_gradient(
        self, benign: tf.Tensor, attacked: tf.Tensor, labels: tf.Tensor, multiplier: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            weight = tf.convert_to_tensor(self._weight)
            tape.watch(weight)
            images = tf.concat([attacked, benign], 0)
            margins = self._margins(images, tf.exp(weight), tf.concat([labels, labels], 0))
            errors = tf.sigmoid(-margins)
            count = tf.shape(labels)[0]
            loss = tf.reduce_mean(errors[:count]) + multiplier * tf.reduce_mean(errors[count:])
        lost = tf.reduce_mean(tf.cast(margins[count:] < 0, tf.float32))
        return tape.gradient(loss, weight), lost

    def _margins(self, images: tf.Tensor, steps: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """By how much the right logit exceeds the largest other one."""
        table = self._start
        distilled = distil(
            255 * images, steps, color_space=table.color_space, cycle_spins=table.cycle_spins
        )
        outputs = model_outputs(self._classifier, clip_straight_through(distilled / 255, 0.0, 1.0))
        if not self._classifier.from_logits:
            outputs = tf.math.log(tf.maximum(outputs, _LEAST_PROBABILITY))
        own = tf.one_hot(labels, tf.shape(outputs)[-1])
        right = tf.reduce_sum(own * outputs, -1)
        return right - tf.reduce_max(outputs - own * 1e9, -1)
