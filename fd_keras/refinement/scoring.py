"""Score quantisation tables: accuracy on benign and attacked images, objective and cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fd_keras.classifier import Classifier
from fd_keras.dct import TIE_OFFSET, ColorSpace, Quantizer
from fd_keras.evaluation.accuracies import BENIGN, wilson_interval
from fd_keras.kernels import coefficients, pad_to_blocks
from fd_keras.layer import FeatureDistillation
from fd_keras.tables import QuantizationTable

#: Shares of the attacked images after which a trial may be stopped.
RUNGS = (0.25, 0.5)

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
# Typing alias: number of correct images and of all images, for benign ones and each attack.
Counts = Mapping[str, tuple[int, int]]

# Which attacks a search counts: all of them, or those that know the table.
Objective = Literal["all", "adaptive"]

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

_ADAPTIVE = ", adaptive"
# Bits per pixel are estimated on so many images: a number to compare tables by.
_IMAGES_FOR_BITS = 16


def adaptive_name(attack: str) -> str:
    """The name under which accuracies list an attack through the table.

    Example:
        >>> adaptive_name("PGD-10 4/255")
        'PGD-10 4/255, adaptive'
    """
    return attack + _ADAPTIVE


def threat_model(name: str) -> str:
    """The threat model of an entry of ``Accuracies``.

    Example:
        >>> threat_model("FGSM 8/255"), threat_model("PGD-10 8/255, adaptive")
        ('gray-box', 'adaptive')
    """
    if name == BENIGN:
        return BENIGN
    return "adaptive" if name.endswith(_ADAPTIVE) else "gray-box"


@dataclass(frozen=True, eq=False)
class Accuracies:
    """Accuracies of one defence on benign images and under attacks.

    Args:
        counts: ``"benign"`` and names of attacks to (correct, all) images.

    Example:
        >>> found = Accuracies({"benign": (99, 100), "FGSM": (40, 100), "BIM": (60, 100)})
        >>> found.benign, found.attacked, found.of("FGSM")
        (0.99, 0.5, 0.4)
    """

    counts: Counts

    @classmethod
    def from_correct(cls, correct: Mapping[str, BoolArray]) -> Accuracies:
        """Accuracies from which images are classified correctly.

        Args:
            correct: ``"benign"`` and names of attacks to booleans, one for each image.
        """
        return cls({name: (int(part.sum()), len(part)) for name, part in correct.items()})

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks."""
        return [name for name in self.counts if name != BENIGN]

    @property
    def benign(self) -> float:
        """Accuracy on benign images."""
        return self.of(BENIGN)

    @property
    def benign_loss(self) -> float:
        """Share of the benign images that are misclassified."""
        return 1 - self.benign

    @property
    def attacked(self) -> float:
        """Mean accuracy over the attacks; 0 without any."""
        return self._mean(self.attacks)

    @property
    def gray_box(self) -> float:
        """Mean accuracy over the gray-box attacks; 0 without any."""
        return self._mean([name for name in self.attacks if threat_model(name) == "gray-box"])

    @property
    def adaptive(self) -> float:
        """Mean accuracy over the adaptive attacks; 0 without any."""
        return self._mean([name for name in self.attacks if threat_model(name) == "adaptive"])

    def counted(self, objective: Objective) -> float:
        """Mean accuracy over the attacks that an objective counts.

        Args:
            objective: ``"all"`` or ``"adaptive"``.

        Example:
            >>> found = Accuracies({"FGSM": (4, 10), "PGD, adaptive": (2, 10)})
            >>> round(found.counted("all"), 2), found.counted("adaptive")
            (0.3, 0.2)
        """
        return self.attacked if objective == "all" else self.adaptive

    def of(self, name: str) -> float:
        """Accuracy on benign images or under one attack."""
        correct, count = self.counts[name]
        return correct / count

    def interval(self, name: str) -> tuple[float, float]:
        """95 % Wilson interval of one accuracy."""
        return wilson_interval(*self.counts[name])

    def _mean(self, names: list[str]) -> float:
        return float(np.mean([self.of(name) for name in names])) if names else 0.0


@dataclass(frozen=True, eq=False)
class TableScore:
    """Accuracies and cost of a table on all or some of the images.

    Args:
        correct: For the benign images and each attack, which of the classified images are
            classified correctly.
        complete: Whether all images were classified.
        distortion: Mean squared change of a benign pixel, in squared grey levels of 255.
        bits_per_pixel: Entropy of the rounded coefficients of benign images, band by band
            on one block grid: an upper estimate of what an image costs in a file. NaN for soft
            thresholding, which no file can hold.
        rungs: Accuracy under attack after the shares ``RUNGS`` of the images.

    Example:
        >>> score = TableScore({"benign": np.array([True]), "FGSM": np.array([True, False])})
        >>> score.benign_loss, score.accuracy
        (0.0, 0.5)
    """

    correct: Mapping[str, BoolArray]
    complete: bool = True
    distortion: float = math.nan
    bits_per_pixel: float = math.nan
    rungs: tuple[float, ...] = field(default=())

    @property
    def accuracies(self) -> Accuracies:
        """Accuracies on the images that were classified."""
        return Accuracies.from_correct(self.correct)

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the attacks; 0 before any was scored."""
        return self.accuracies.attacked

    @property
    def benign_loss(self) -> float:
        """Share of the benign images that the table costs."""
        return self.accuracies.benign_loss

    def feasible(self, max_benign_loss: float) -> bool:
        """Whether the table costs no more benign images than permitted.

        Args:
            max_benign_loss: Permitted share, from 0 to 1.

        Example:
            >>> TableScore({"benign": np.array([True] * 99 + [False])}).feasible(0.01)
            True
        """
        return self.benign_loss <= max_benign_loss + 1e-9

    def objective(self, max_benign_loss: float, counted: Objective = "all") -> float:
        """Accuracy under attack of a feasible table; minus the excess loss of any other.

        So every infeasible table scores below every feasible one, by a finite number that says
        how far away feasible ones are: NaN would end a trial, and infinity would become zero
        inside a Gaussian process.

        Args:
            max_benign_loss: Permitted share of benign images, from 0 to 1.
            counted: Which attacks count.

        Returns:
            A number from -1 to 1.

        Example:
            >>> lossy = TableScore({"benign": np.array([True, False]), "FGSM": np.array([True])})
            >>> lossy.objective(0.1), lossy.objective(0.5)
            (-0.4, 1.0)
        """
        if self.feasible(max_benign_loss):
            return self.accuracies.counted(counted)
        return max_benign_loss - self.benign_loss


# Typing alias: whether a table whose score is only partly known is worth more time.
GoOn = Callable[[TableScore], bool]


class TableScorer:
    """Scores tables on images, with a compiled graph for each colour space, grids and quantiser.

    A table is installed by writing the weights of a layer: nothing is traced again. Images are
    taken in a shuffled but fixed order, so that any part of them is like the whole.

    Args:
        classifier: The classifier without the layer.
        labels: Classes of the benign images, ``(n,)``.
        images: ``"benign"`` and names of attacks to float32 images, pixels from 0 to 1. An
            attack may have fewer images: the first ones.
        batch_size: Number of images at once.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> classifier = Classifier(model, value_range=(0, 1))
        >>> benign = np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1)[:4]
        >>> scorer = TableScorer(classifier, np.arange(4), {"benign": benign, "half": benign / 2})
        >>> scorer.score(QuantizationTable(np.full((8, 8), 1.0))).accuracy
        1.0
    """

    def __init__(
        self,
        classifier: Classifier,
        labels: npt.NDArray[np.integer],
        images: Mapping[str, FloatArray],
        *,
        batch_size: int = 32,
    ) -> None:
        self.labels = labels
        self.images = images
        self.attacks = [name for name in images if name != BENIGN]
        self._classifier = classifier
        self._batch_size = batch_size
        self._order = np.random.default_rng(0).permutation(len(labels))
        self._graphs: dict[tuple[ColorSpace, int, Quantizer], tuple[Any, Any]] = {}
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
            share: Share of the images to use, from 0 to 1.
            max_benign_loss: Stop among the benign images, which come first, once more than
                this share of them is lost.
            go_on: Asked after each of ``RUNGS``; where it says no, the rest is left out.

        Returns:
            The score; ``complete`` says whether all images were classified.

        Raises:
            ValueError: The table does not fit the images.
        """
        layer, classify = self._graph(table.color_space, table.cycle_spins, table.quantizer)
        layer.set_quantization_table(table)
        found = _Found(list(self.images))
        allowed = math.floor(max_benign_loss * len(self.labels) + 1e-9)
        for correct, change in self._classified(classify, BENIGN, 0, share):
            found.add(BENIGN, correct, change)
            if found.lost > allowed:
                break
        stopped = found.lost > allowed
        edges = [0.0, *(rung * share for rung in RUNGS), share]
        for start, end in itertools.pairwise(edges):
            if stopped:
                break
            for attack in self.attacks:
                for correct, _ in self._classified(classify, attack, start, end):
                    found.add(attack, correct)
            if end < share:
                found.rungs += (found.score().accuracy,)
                stopped = not go_on(found.score())
        return found.score(
            complete=not stopped and share == 1, bits_per_pixel=self._bits_per_pixel(table)
        )

    def benign_accuracy(self, table: QuantizationTable) -> float:
        """Share of the benign images that are classified correctly behind a table.

        Args:
            table: The table.
        """
        layer, classify = self._graph(table.color_space, table.cycle_spins, table.quantizer)
        layer.set_quantization_table(table)
        found = [correct for correct, _ in self._classified(classify, BENIGN, 0, 1)]
        return float(np.concatenate(found).mean())

    def _part(self, name: str, start: float, end: float) -> npt.NDArray[np.intp]:
        """Which images of a set lie between two shares of it."""
        count = len(self.images[name])
        order = self._order[self._order < count]
        first, last = (max(1, round(edge * count)) if edge else 0 for edge in (start, end))
        return order[first:last]

    def _classified(
        self, classify: Any, name: str, start: float, end: float
    ) -> Iterator[tuple[BoolArray, FloatArray]]:
        """Batch by batch: which images are correct, and how much the layer changed each."""
        chosen = self._part(name, start, end)
        for first in range(0, len(chosen), self._batch_size):
            part = chosen[first : first + self._batch_size]
            classes, change = classify(tf.constant(self.images[name][part]))
            yield classes.numpy() == self.labels[part], change.numpy()

    def _graph(
        self, color_space: ColorSpace, cycle_spins: int, quantizer: Quantizer
    ) -> tuple[Any, Any]:
        key = color_space, cycle_spins, quantizer
        if key not in self._graphs:
            shape = self.images[BENIGN].shape[1:]
            layer = FeatureDistillation(
                color_space=color_space,
                cycle_spins=cycle_spins,
                quantizer=quantizer,
                value_range=(0, 1),
                data_format="channels_last",
            )
            layer.build((None, *shape))

            @tf.function(input_signature=[tf.TensorSpec((None, *shape), tf.float32)])
            def classify(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                distilled = layer(images)
                change = tf.reduce_mean(tf.square(255 * (distilled - images)), axis=(1, 2, 3))
                return tf.argmax(self._classifier.unit_logits(distilled), -1), change

            self._graphs[key] = layer, classify
        return self._graphs[key]

    def _bits_per_pixel(self, table: QuantizationTable) -> float:
        if table.quantizer != "round":
            return math.nan
        if table.color_space not in self._coefficients:
            pixels = 255 * self.images[BENIGN][self._order[:_IMAGES_FOR_BITS]]
            values = coefficients(pad_to_blocks(tf.constant(pixels)), table.color_space).numpy()
            channels = pixels.shape[-1]
            # (rows, u, columns, v * c) -> (blocks, c, u, v)
            blocks = values.reshape(*values.shape[:3], 8, channels).transpose(0, 2, 4, 1, 3)
            self._coefficients[table.color_space] = blocks.reshape(-1, channels, 8, 8)
        blocks = self._coefficients[table.color_space]
        indices = np.rint(blocks / table.steps_for(blocks.shape[1]) + TIE_OFFSET)
        return float(_entropies(indices.reshape(len(blocks), -1)).sum() / 64)


class _Found:
    """Collects a score batch by batch."""

    def __init__(self, names: list[str]) -> None:
        self._correct: dict[str, list[BoolArray]] = {name: [] for name in names}
        self._changes: list[FloatArray] = []
        self.lost = 0
        self.rungs: tuple[float, ...] = ()

    def add(self, name: str, correct: BoolArray, change: FloatArray | None = None) -> None:
        self._correct[name].append(correct)
        if change is not None:
            self._changes.append(change)
            self.lost += int((~correct).sum())

    def score(self, *, complete: bool = False, bits_per_pixel: float = math.nan) -> TableScore:
        correct = {name: np.concatenate(parts) for name, parts in self._correct.items() if parts}
        distortion = float(np.concatenate(self._changes).mean())
        return TableScore(correct, complete, distortion, bits_per_pixel, self.rungs)


def _entropies(symbols: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Entropy in bits of each column."""
    result = []
    for column in symbols.T:
        _, counts = np.unique(column, return_counts=True)
        shares = counts / len(column)
        result.append(-(shares * np.log2(shares)).sum())
    return np.array(result)
