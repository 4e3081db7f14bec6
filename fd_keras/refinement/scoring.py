"""What a search maximises, and when a trial is not worth its time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras.classifier import Classifier
from fd_keras.dct import TIE_OFFSET, ColorSpace
from fd_keras.kernels import coefficients, pad_to_blocks
from fd_keras.layer import FeatureDistillation
from fd_keras.tables import QuantizationTable

BENIGN = "benign"

#: Shares of the attacked images after which a hopeless trial stops.
RUNGS = (0.25, 0.5)

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

# Bits per pixel are estimated on so many images: a number to compare tables by.
_IMAGES_FOR_BITS = 16


@dataclass(frozen=True, eq=False)
class ScoredImages:
    """Benign images that a classifier gets right, and what attacks made of them.

    Args:
        labels: Classes ``(n,)``.
        sets: ``"benign"`` and names of attacks to float32 images, pixels from 0 to 1. An
            attack may have fewer images: the first ones.

    Example:
        >>> one = np.zeros((1, 8, 8, 1), np.float32)
        >>> ScoredImages(np.array([0]), {"benign": one, "FGSM": one}).attacks
        ['FGSM']
    """

    labels: npt.NDArray[np.integer]
    sets: Mapping[str, FloatArray]

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks."""
        return [name for name in self.sets if name != BENIGN]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class TableScore:
    """What was found out about a table.

    Args:
        right: For the benign images and each attack, which of the images seen are classified
            correctly.
        complete: Whether all images were seen.
        distortion: Mean squared change of a benign pixel, in squared grey levels.
        bits_per_pixel: Entropy of the quantised coefficients of benign images, each band for
            itself, on one block grid: about what an image costs before a coder does better.
        rungs: Accuracy under attack after the shares ``RUNGS`` of the images.

    Example:
        >>> score = TableScore({"benign": np.array([True]), "FGSM": np.array([True, False])})
        >>> score.benign_loss, score.accuracy
        (0.0, 0.5)
    """

    right: Mapping[str, BoolArray]
    complete: bool = True
    distortion: float = math.nan
    bits_per_pixel: float = math.nan
    rungs: tuple[float, ...] = field(default=())

    @property
    def accuracies(self) -> dict[str, float]:
        """Accuracy under each attack that was seen."""
        return {
            name: float(right.mean())
            for name, right in self.right.items()
            if name != BENIGN and len(right)
        }

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the attacks; 0 before any was seen."""
        found = self.accuracies
        return float(np.mean(list(found.values()))) if found else 0.0

    @property
    def benign_loss(self) -> float:
        """Share of the benign images that the table costs."""
        return float(1 - self.right[BENIGN].mean())

    def counts(self) -> dict[str, tuple[int, int]]:
        """For the benign images and each attack: how many are right, and how many were seen."""
        return {name: (int(right.sum()), len(right)) for name, right in self.right.items()}


# Typing alias: whether a table whose score is only partly known is worth more time.
GoOn = Callable[[TableScore], bool]


class TableScorer:
    """Scores tables on images, with one compiled graph for each colour space and spins.

    A table is installed by writing the weights of a layer: nothing is traced or read again.
    Images are seen in an order of the scorer's own, so that any part is like the whole.

    Args:
        classifier: The classifier, without any layer.
        images: What to score on.
        batch_size: Images at a time.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> classifier = Classifier(model, value_range=(0, 1), from_logits=True)
        >>> benign = np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1)[:4]
        >>> images = ScoredImages(np.arange(4), {"benign": benign, "half": benign / 2})
        >>> table = QuantizationTable(np.full((8, 8), 1.0))
        >>> TableScorer(classifier, images).score(table).accuracy
        1.0
    """

    def __init__(
        self, classifier: Classifier, images: ScoredImages, *, batch_size: int = 32
    ) -> None:
        self.images = images
        self._classifier = classifier
        self._batch_size = batch_size
        self._order = np.random.default_rng(0).permutation(len(images))
        self._graphs: dict[tuple[ColorSpace, int], tuple[Any, Any]] = {}
        self._coefficients: dict[ColorSpace, FloatArray] = {}

    def score(
        self,
        table: QuantizationTable,
        *,
        share: float = 1.0,
        max_benign_loss: float = 1.0,
        go_on: GoOn = lambda _: True,
    ) -> TableScore:
        """Classify the images behind a table.

        Args:
            table: The table.
            share: Look at this share of every set only.
            max_benign_loss: Stop among the benign images, which come first, once more of them
                are lost than this share.
            go_on: Asked after each of ``RUNGS``; where it says no, the rest is left out.

        Returns:
            The score; ``complete`` says whether all images were seen.

        Raises:
            ValueError: The table does not fit the images.
        """
        layer, classify = self._graph(table.color_space, table.cycle_spins)
        layer.set_quantization_table(table)
        found = _Found(self.images, self._classes(classify))
        allowed = math.floor(max_benign_loss * len(self.images) + 1e-9)
        found.see(BENIGN, self._part(BENIGN, 0, share), stop_after=allowed)
        lost = found.wrong(BENIGN) > allowed
        edges = [0.0, *(rung * share for rung in RUNGS), share]
        for start, end in itertools.pairwise(edges):
            if lost:
                break
            for attack in self.images.attacks:
                found.see(attack, self._part(attack, start, end))
            rest = end < share
            if rest:
                found.rungs += (found.score().accuracy,)
            if rest and not go_on(found.score()):
                lost = True
        return found.score(
            complete=not lost and share == 1, bits_per_pixel=self._bits_per_pixel(table)
        )

    def _part(self, name: str, start: float, end: float) -> npt.NDArray[np.intp]:
        """Which images of a set lie between two shares of it."""
        count = len(self.images.sets[name])
        order = self._order[self._order < count]
        first, last = (max(1, round(edge * count)) if edge else 0 for edge in (start, end))
        return order[first:last]

    def _classes(self, classify: Any) -> Callable[[str, Any], Any]:
        def run(name: str, chosen: npt.NDArray[np.intp]) -> Any:
            for first in range(0, len(chosen), self._batch_size):
                part = chosen[first : first + self._batch_size]
                yield (
                    part,
                    *(x.numpy() for x in classify(tf.constant(self.images.sets[name][part]))),
                )

        return run

    def _graph(self, color_space: ColorSpace, cycle_spins: int) -> tuple[Any, Any]:
        key = color_space, cycle_spins
        if key not in self._graphs:
            shape = self.images.sets[BENIGN].shape[1:]
            layer = FeatureDistillation(
                color_space=color_space,
                cycle_spins=cycle_spins,
                value_range=(0, 1),
                data_format="channels_last",
            )
            layer.build((None, *shape))

            @tf.function(input_signature=[tf.TensorSpec((None, *shape), tf.float32)])
            def classify(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                distilled = layer(images)
                change = tf.reduce_mean(tf.square(255 * (distilled - images)), axis=(1, 2, 3))
                return tf.argmax(model_outputs(self._classifier, distilled), -1), change

            self._graphs[key] = layer, classify
        return self._graphs[key]

    def _bits_per_pixel(self, table: QuantizationTable) -> float:
        if table.color_space not in self._coefficients:
            pixels = 255 * self.images.sets[BENIGN][self._order[:_IMAGES_FOR_BITS]]
            values = coefficients(pad_to_blocks(tf.constant(pixels)), table.color_space).numpy()
            channels = pixels.shape[-1]
            # (rows, u, columns, v * c) -> (blocks, c, u, v)
            blocks = values.reshape(*values.shape[:3], 8, channels).transpose(0, 2, 4, 1, 3)
            self._coefficients[table.color_space] = blocks.reshape(-1, channels, 8, 8)
        blocks = self._coefficients[table.color_space]
        indices = np.rint(blocks / table.steps_for(blocks.shape[1]) + TIE_OFFSET)
        return float(_entropies(indices.reshape(len(blocks), -1)).sum() / 64)


def model_outputs(classifier: Classifier, images: tf.Tensor) -> tf.Tensor:
    """What a classifier's model returns for a tensor of pixels from 0 to 1, in float32.

    Args:
        classifier: The classifier.
        images: Batch of images.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> classifier = Classifier(model, value_range=(0, 255), from_logits=True)
        >>> model_outputs(classifier, tf.constant([[[[0.0], [1.0]]]])).numpy()
        array([[  0., 255.]], dtype=float32)
    """
    low, high = classifier.value_range
    return tf.cast(classifier.model(low + (high - low) * images, training=False), tf.float32)


class _Found:
    """What has been seen so far."""

    def __init__(self, images: ScoredImages, run: Callable[[str, Any], Any]) -> None:
        self._labels = images.labels
        self._run = run
        self._right: dict[str, list[BoolArray]] = {name: [] for name in images.sets}
        self._changes: list[FloatArray] = []
        self.rungs: tuple[float, ...] = ()

    def see(self, name: str, chosen: Any, *, stop_after: int | None = None) -> None:
        for part, classes, change in self._run(name, chosen):
            self._right[name].append(classes == self._labels[part])
            if name == BENIGN:
                self._changes.append(change)
            if stop_after is not None and self.wrong(name) > stop_after:
                return

    def wrong(self, name: str) -> int:
        return sum(int((~right).sum()) for right in self._right[name])

    def score(self, *, complete: bool = False, bits_per_pixel: float = math.nan) -> TableScore:
        right = {name: np.concatenate(parts) for name, parts in self._right.items() if parts}
        distortion = float(np.concatenate(self._changes).mean())
        return TableScore(right, complete, distortion, bits_per_pixel, self.rungs)


def _entropies(symbols: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Entropy in bits of each column."""
    result = []
    for column in symbols.T:
        _, counts = np.unique(column, return_counts=True)
        shares = counts / len(column)
        result.append(-(shares * np.log2(shares)).sum())
    return np.array(result)


# Fewer trials than these have no median worth the name.
_LEAST_TRIALS = 4


def is_feasible(score: TableScore, max_benign_loss: float) -> bool:
    """Whether a table costs no more benign images than permitted.

    Example:
        >>> is_feasible(TableScore({"benign": np.array([True] * 99 + [False])}), 0.01)
        True
    """
    return score.benign_loss <= max_benign_loss + 1e-9


def objective_value(score: TableScore, max_benign_loss: float) -> float:
    """Accuracy under attack if the table is feasible, else minus what it loses too much.

    So every infeasible table is worse than every feasible one, by a finite number that says
    how far away feasible ones are: not a number would end a trial, and infinity would become
    zero inside a Gaussian process.

    Args:
        score: Of the table.
        max_benign_loss: Permitted loss, from 0 to 1.

    Returns:
        A number from -1 to 1.

    Example:
        >>> lossy = TableScore({"benign": np.array([True, False]), "FGSM": np.array([True])})
        >>> objective_value(lossy, 0.1), objective_value(lossy, 0.5)
        (-0.4, 1.0)
    """
    if is_feasible(score, max_benign_loss):
        return score.accuracy
    return max_benign_loss - score.benign_loss


class Halving:
    """Stops a trial that is in the worse half after a part of the images.

    A trial goes on while it is at least as good as the median of earlier trials at the same
    rung, or as the best one was there: no trial that might win is lost to easy images.

    Args:
        earlier: Metrics of the trials that saw all images, as ``trial_metrics`` returns them,
            the best first.

    Example:
        >>> Halving([])(TableScore({}, rungs=(0.1,)))
        True

    References:
        Jamieson & Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
        Optimization", AISTATS 2016.
    """

    def __init__(self, earlier: Iterable[Mapping[str, float]]) -> None:
        self._earlier = [metrics for metrics in earlier if _rung_name(0) in metrics]

    def __call__(self, score: TableScore) -> bool:
        """Whether a trial goes on."""
        rung = len(score.rungs) - 1
        there = [metrics[_rung_name(rung)] for metrics in self._earlier]
        return len(there) < _LEAST_TRIALS or score.rungs[-1] >= min(np.median(there), there[0])

    def estimate(self, score: TableScore) -> float:
        """Accuracy under attack that a stopped trial would have had, as far as one can tell.

        It differs from the best trial's by as much as it did on the images they both saw, and
        so never passes it.
        """
        best = self._earlier[0]
        behind = score.rungs[-1] - best[_rung_name(len(score.rungs) - 1)]
        return max(0.0, best["accuracy"] + behind)


def trial_metrics(score: TableScore, value: float) -> dict[str, float]:
    """What is logged of a trial.

    Args:
        score: Of its table.
        value: Of the objective.

    Returns:
        Finite numbers by name: ``score`` (the objective), ``accuracy``, ``benign_loss``,
        ``distortion``, ``bits_per_pixel``, ``complete``, and accuracy and counts for each
        attack.

    Example:
        >>> score = TableScore({"benign": np.array([True]), "FGSM": np.array([False])})
        >>> trial_metrics(score, 0.0)["accuracy FGSM"]
        0.0
    """
    metrics: dict[str, float] = {
        "score": value,
        "accuracy": score.accuracy,
        "benign_loss": score.benign_loss,
        "complete": float(score.complete),
        "distortion": score.distortion,
        "bits_per_pixel": score.bits_per_pixel,
    }
    for name, accuracy in score.accuracies.items():
        metrics[f"accuracy {name}"] = accuracy
    for name, (right, seen) in score.counts().items():
        metrics[f"right {name}"], metrics[f"seen {name}"] = float(right), float(seen)
    for rung, accuracy in enumerate(score.rungs):
        metrics[_rung_name(rung)] = accuracy
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}


def counts_of(metrics: Mapping[str, float]) -> dict[str, tuple[int, int]]:
    """The counts that ``trial_metrics`` logged: right and seen, benign first.

    Example:
        >>> counts_of({"right FGSM": 1.0, "seen FGSM": 2.0, "right benign": 3, "seen benign": 3})
        {'benign': (3, 3), 'FGSM': (1, 2)}
    """
    names = [name.removeprefix("right ") for name in metrics if name.startswith("right ")]
    names.sort(key=lambda name: name != BENIGN)
    return {
        name: (round(metrics[f"right {name}"]), round(metrics[f"seen {name}"])) for name in names
    }


def metrics_of(trial: Any) -> dict[str, float]:
    """Metrics of one of Keras Tuner's trials, by name; empty if it has none.

    Args:
        trial: ``keras_tuner.engine.trial.Trial``.
    """
    found = {name: trial.metrics.get_best_value(name) for name in trial.metrics.metrics}
    return {name: float(value) for name, value in found.items() if value is not None}


def _rung_name(rung: int) -> str:
    return f"accuracy at {RUNGS[rung]:g}"
