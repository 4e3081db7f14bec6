"""What a search maximises, and when a trial is not worth its time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fd_keras.refinement.scoring import BENIGN, RUNGS, TableScore

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
