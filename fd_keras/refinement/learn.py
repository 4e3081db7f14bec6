"""Refine a quantisation table by gradient descent on its steps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from rich.console import Console

from fd_keras._checks import checked, checked_whole, shown
from fd_keras._console import (
    Readable,
    bar,
    console_became_verbose,
    console_of,
    progress_bars,
    text_table,
)
from fd_keras.classifier import Classifier
from fd_keras.evaluation.accuracies import BENIGN, OURS
from fd_keras.evaluation.attacks import Attack
from fd_keras.evaluation.classifiers import check_gradient
from fd_keras.evaluation.descent import lead
from fd_keras.evaluation.in_graph import pgd
from fd_keras.evaluation.protocols import Protocol
from fd_keras.kernels import clip_straight_through, distil
from fd_keras.presets import TableLike, as_table
from fd_keras.refinement.experiment import Experiment, Split
from fd_keras.refinement.result import ScoredDefence
from fd_keras.refinement.scoring import TableScore, TableScorer, threat_model
from fd_keras.tables import QuantizationTable

_STEP_RANGE = (1.0, 255.0)
_BATCH = 16  # each with its benign twin, and the network's activations are kept
_LEAST_MULTIPLIER = 0.05


@dataclass(frozen=True, eq=False, repr=False)
class LearnResult(Readable):
    """A learnt table beside the one that it started from.

    Args:
        learnt: The best table; the first one where no other was better.
        started: The table that was started from.
        history: For each epoch: ``objective`` and ``benign_loss`` on the validation split, and
            the Lagrange ``multiplier`` of the benign loss.
        max_benign_loss: The constraint, from 0 to 1.

    Example:
        See ``learn_table``.
    """

    learnt: ScoredDefence
    started: ScoredDefence
    history: Sequence[Mapping[str, float]]
    max_benign_loss: float

    @property
    def table(self) -> QuantizationTable:
        """The learnt table."""
        assert self.learnt.table is not None
        return self.learnt.table

    @property
    def gain(self) -> float:
        """Gain in mean accuracy under attack on the test split, from -1 to 1."""
        return self.learnt.test.attacked - self.started.test.attacked

    def __str__(self) -> str:
        rows = []
        for defence in (self.started, self.learnt):
            low, high = (100 * end for end in defence.test.interval(BENIGN))
            benign = f"{100 * defence.test.benign:.1f} [{low:.0f}-{high:.0f}]"
            rows.append((defence.name, benign, f"{100 * defence.test.attacked:.1f}"))
        known = {threat_model(attack) for attack in self.started.test.attacks}
        head = (f"test split, {', '.join(sorted(known))}", "benign, %", "mean under attack, %")
        gain = f"learnt - started: {100 * self.gain:+.1f} points"
        return f"{text_table(head, rows)}\n{gain}"


@console_became_verbose
def learn_table(
    classifier: Classifier | keras.Model,
    data: Any,
    protocol: str | Protocol | Mapping[str, npt.ArrayLike] | Attack = "linf-sweep",
    table: TableLike = "liu2019",
    *,
    max_benign_loss: float = 0.01,
    epochs: int = 10,
    learning_rate: float = 0.03,
    max_images: int = 1000,
    seed: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
    verbose: int | Console = 0,
) -> LearnResult:
    """Refine each step of each channel and band by gradient descent, starting from a table.

    Descended is the logarithm of the steps, on the smooth error on attacked images plus a
    Lagrange multiplier times the smooth error on benign ones. The multiplier rises while more
    benign images are lost than permitted, and falls otherwise. Rounding is passed straight
    through, so that a step's gradient is the rounding error it leaves; soft thresholding has true
    gradients by its thresholds. After every epoch the table is scored as a search scores it, and
    the best one is kept.

    Both splits, the attacks and the threat model, gray-box, are those of ``fd_keras.refine``,
    unless the table is to be learnt against an attacker who knows it: with ``pgd(2)`` instead of a
    protocol, every image that is descended on is attacked through the table of that moment, and
    tables are scored under the same attack through each (adaptive).

    Args:
        classifier: As for ``fd_keras.refine``.
        data: As for ``fd_keras.refine``.
        protocol: As for ``fd_keras.refine``, or one attack that ``fd_keras.evaluation.pgd`` made.
        table: Where to start; its colour space, cycle spins and quantiser are kept.
        max_benign_loss: Share of the benign images that a table may cost, from 0 to 1.
        epochs: Passes over the validation split.
        learning_rate: Of Adam, in the natural logarithm of a step.
        max_images: Number of images in both splits together.
        seed: Of the order of the images and of random attacks.
        cache_dir: As for ``fd_keras.refine``.
        verbose: 1 shows progress on standard error or in the notebook, a rich console shows it
            there. 0: nothing is shown.

    Returns:
        The learnt table and what it gained.

    Raises:
        ImportError: An extra is missing.
        ValueError: An argument does not fit, such as an attack other than PGD.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> classifier = Classifier(model, value_range=(0, 1))
        >>> images = np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1)[:10] / 2
        >>> learnt = learn_table(
        ...     classifier, (images, np.arange(10)), {"darker": images / 2}, epochs=1
        ... )
        >>> learnt.table.channels
        1

    References:
        Esser et al., "Learned Step Size Quantization", ICLR 2020; Bengio et al., "Estimating or
        Propagating Gradients Through Stochastic Neurons", arXiv:1308.3432.
    """
    allowed = float(checked("max_benign_loss", max_benign_loss, 0, 1))
    checked_whole("epochs", epochs, 1)
    start = as_table(table)
    attack = _checked_attack(protocol) if isinstance(protocol, Attack) else None
    console = console_of(verbose)
    experiment = Experiment.of(
        classifier,
        data,
        None if isinstance(protocol, Attack) else protocol,
        max_images=max_images,
        seed=seed,
        cache_dir=cache_dir,
        console=console,
        adaptive=[attack] if attack else (),
        adaptive_images=max_images,
    )
    check_gradient(experiment.classifier, experiment.validation.images)
    experiment.attack()
    validation, test = experiment.validation, experiment.test
    scorer, test_scorer = experiment.scorer(validation), experiment.scorer(test)

    def validated(table: QuantizationTable) -> TableScore:
        return _score(scorer, experiment, table, validation)

    descent = _Descent(experiment.classifier, scorer, start, learning_rate, allowed, seed, attack)
    best, best_score, history = start, validated(start), []
    started_score = best_score
    with progress_bars(console) as progress, bar(progress, "Learning", epochs) as advance:
        for _ in range(epochs):
            descent.epoch()
            score = validated(descent.table)
            value = score.objective(allowed)
            history.append(
                {
                    "objective": value,
                    "benign_loss": score.benign_loss,
                    "multiplier": descent.multiplier,
                }
            )
            if value > best_score.objective(allowed):
                best, best_score = descent.table, score
            advance(1)
    learnt, started = (
        ScoredDefence(
            name,
            OURS,
            _score(test_scorer, experiment, table, test).accuracies,
            score.accuracies,
            table,
        )
        for name, table, score in (
            ("learnt", best, best_score),
            ("started", start, started_score),
        )
    )
    return LearnResult(learnt, started, history, allowed)


def _checked_attack(attack: Attack) -> Attack:
    if attack.family != "PGD" or attack.parameters["num_random_init"] != 1:
        raise ValueError(
            "`protocol` must be PGD from one random start, `pgd(epsilon, iterations)`, where it is "
            f"an attack. Received: protocol={shown(attack.name)}"
        )
    return attack


def _score(
    scorer: TableScorer, experiment: Experiment, table: QuantizationTable, part: Split
) -> TableScore:
    """The score of a table on a split, with that under attacks through the table."""
    score = scorer.score(table)
    adaptive = experiment.under_adaptive_attack(table, part)
    return replace(score, correct={**score.correct, **adaptive})


class _Descent:
    """Adam on the steps, and dual ascent on the multiplier of the benign loss."""

    def __init__(
        self,
        classifier: Classifier,
        scorer: TableScorer,
        table: QuantizationTable,
        learning_rate: float,
        allowed: float,
        seed: int,
        attack: Attack | None,
    ) -> None:
        self._classifier = classifier
        self._labels, self._images = scorer.labels, scorer.images
        self._attack, self._seed = attack, seed
        # An attack through the table starts from the benign image.
        names = [BENIGN] if attack else scorer.attacks
        self._pairs = [(a, i) for a in names for i in range(len(scorer.images[a]))]
        self._start = table
        self._allowed = allowed
        self._draw = np.random.default_rng(seed)
        self.multiplier = 1.0
        steps = table.steps_for(scorer.images[BENIGN].shape[-1])
        # A layer's weight is what optimisers of Keras 2 and 3 both take.
        self._weight = keras.layers.Layer(dtype="float32").add_weight(
            name="log_steps", shape=steps.shape, initializer="zeros"
        )
        self._weight.assign(np.log(steps))
        self._optimizer = keras.optimizers.Adam(learning_rate)
        self._gradient = tf.function(self._eager_gradient, reduce_retracing=True)

    @property
    def table(self) -> QuantizationTable:
        """The table of the current steps."""
        steps = np.exp(np.asarray(tf.convert_to_tensor(self._weight), np.float64))
        provenance = {
            "source": "learn_table",
            "name": "learnt",
            "from": dict(self._start.provenance),
        }
        return replace(self._start, steps=steps.round(2), provenance=provenance)

    def epoch(self) -> None:
        """One pass over all attacked images, each with its benign twin."""
        order = self._draw.permutation(len(self._pairs))
        for first in range(0, len(order), _BATCH):
            chosen = [self._pairs[i] for i in order[first : first + _BATCH]]
            indices = [index for _, index in chosen]
            attacked = np.stack([self._images[name][index] for name, index in chosen])
            gradient, lost = self._gradient(
                tf.constant(self._images[BENIGN][indices]),
                tf.constant(attacked),
                tf.constant(self._labels[indices], tf.int32),
                tf.constant(self.multiplier, tf.float32),
                tf.constant([self._seed, self._draw.integers(2**31)], tf.int32),
            )
            self._optimizer.apply_gradients([(gradient, self._weight)])
            self._weight.assign(tf.clip_by_value(self._weight, *np.log(_STEP_RANGE)))
            # In batches of 16 a loss of 1 % is rare: it moves slowly and stays positive.
            moved = self.multiplier + 0.5 * (float(lost) - self._allowed)
            self.multiplier = max(_LEAST_MULTIPLIER, moved)

    def _eager_gradient(
        self,
        benign: tf.Tensor,
        attacked: tf.Tensor,
        labels: tf.Tensor,
        multiplier: tf.Tensor,
        seed: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if self._attack is not None:
            attacked = self._attacked(self._attack, benign, labels, seed)
        with tf.GradientTape() as tape:
            weight = tf.convert_to_tensor(self._weight)
            tape.watch(weight)
            images = tf.concat([attacked, benign], 0)
            logits = self._logits(images, tf.exp(weight))
            margins = lead(logits, tf.concat([labels, labels], 0))
            errors = tf.sigmoid(-margins)
            count = tf.shape(labels)[0]
            loss = tf.reduce_mean(errors[:count]) + multiplier * tf.reduce_mean(errors[count:])
        lost = tf.reduce_mean(tf.cast(margins[count:] < 0, tf.float32))
        return tape.gradient(loss, weight), lost

    def _attacked(
        self, attack: Attack, benign: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        steps = tf.exp(tf.convert_to_tensor(self._weight))
        assert attack.epsilon is not None
        return pgd(
            benign,
            labels,
            lambda images: self._logits(images, steps),
            epsilon=attack.epsilon,
            steps=attack.iterations,
            step_size=255 * attack.parameters["eps_step"],
            value_range=(0.0, 1.0),
            seed=seed,
        )

    def _logits(self, images: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
        table = self._start
        distilled = distil(
            255 * images,
            steps,
            color_space=table.color_space,
            cycle_spins=table.cycle_spins,
            quantizer=table.quantizer,
        )
        return self._classifier.unit_logits(clip_straight_through(distilled / 255, 0.0, 1.0))
