"""Run the trials of a search with Keras Tuner."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np

from fd_keras.evaluation.accuracies import BENIGN
from fd_keras.refinement.oracles import HYPERBAND_EPOCHS, write_state
from fd_keras.refinement.progress import TrialLogger
from fd_keras.refinement.result import Trial
from fd_keras.refinement.scoring import (
    RUNGS,
    Accuracies,
    BoolArray,
    Objective,
    TableScore,
    TableScorer,
)
from fd_keras.refinement.space import Space
from fd_keras.tables import QuantizationTable

# Typing alias: table -> which images are correct under each adaptive attack.
AdaptiveAttacker = Callable[[QuantizationTable], Mapping[str, BoolArray]]

# Fewer trials than these have no meaningful median.
_LEAST_TRIALS = 4
# Signs of life of a worker within its timeout.
_HEARTBEATS = 4
_IDLE_SECONDS = 0.5


class RefinementTuner(keras_tuner.Tuner):
    """Searches quantisation tables; ``fd_keras.refine`` wraps it.

    A trial installs a table in a layer that was built once and classifies benign and attacked
    images behind it. It takes any oracle of Keras Tuner whose ``objective`` is ``"score"``, to
    be maximised, and whose ``hyperparameters`` hold the whole space.

    Args:
        oracle: Decides what is tried. Those of ``fd_keras.refinement.oracles`` survive a
            killed process or worker.
        space: Function from ``HyperParameters`` to the table of a trial.
        scorer: Holds classifier and images.
        max_benign_loss: Share of the benign images that a table may cost, from 0 to 1.
        stop_early: Whether trials that cannot win stop after a part of the images.
        adaptive: Attacks through the table of a feasible trial, to be counted in the objective.
        objective: ``"all"``: attacks count alike. ``"adaptive"``: only those of ``adaptive`` do.
        log_dir: TensorBoard's directory; ``None``: nothing is logged.
        worker_timeout: In a distributed search: seconds of silence after which a worker is lost.
        **kwargs: ``directory``, ``project_name`` and ``overwrite``, see ``keras_tuner.Tuner``.

    Example:
        >>> import keras, tempfile
        >>> from fd_keras.classifier import Classifier
        >>> from fd_keras.refinement.oracles import make_oracle
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> classifier = Classifier(model, value_range=(0, 1))
        >>> benign = np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1)[:4]
        >>> scorer = TableScorer(classifier, np.arange(4), {"benign": benign, "half": benign / 2})
        >>> def space(hp):
        ...     return QuantizationTable(np.full((8, 8), hp.Float("step", 1, 64)))
        >>> _ = space(hp := keras_tuner.HyperParameters())
        >>> tuner = RefinementTuner(
        ...     make_oracle("random", hp, max_trials=2, seed=1),
        ...     space, scorer, directory=tempfile.mkdtemp()
        ... )
        >>> tuner.search(verbose=0)
        >>> len(trials_of(tuner.oracle, space))
        2
    """

    def __init__(
        self,
        oracle: Any,
        space: Space,
        scorer: TableScorer,
        *,
        max_benign_loss: float = 0.01,
        stop_early: bool = True,
        adaptive: AdaptiveAttacker | None = None,
        objective: Objective = "all",
        log_dir: Any = None,
        worker_timeout: float = 60.0,
        **kwargs: Any,
    ) -> None:
        self.space = space
        self._scorer = scorer
        self._max_benign_loss = max_benign_loss
        self._stop_early = stop_early
        self._adaptive = adaptive
        self._counted = objective
        self._logger = TrialLogger(log_dir)
        self._worker_timeout = worker_timeout
        self._heart: contextlib.ExitStack = contextlib.ExitStack()
        self._asked = 0
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it reloads
            super().__init__(oracle=oracle, **kwargs)

    def run_trial(self, trial: Any, **_: Any) -> dict[str, float]:
        """Score the table of a trial."""
        started = time.monotonic()
        allowed = self._max_benign_loss
        table = self.space(trial.hyperparameters)
        share = trial.hyperparameters.values.get("tuner/epochs", HYPERBAND_EPOCHS)
        # Accuracies under gray-box attacks, which come first, say little about adaptive ones.
        halves = self._stop_early and share == HYPERBAND_EPOCHS and self._counted == "all"
        halving = Halving(self._earlier() if halves else [])
        score = self._scorer.score(
            table,
            share=share / HYPERBAND_EPOCHS,
            max_benign_loss=allowed if self._stop_early else 1.0,
            go_on=halving,
        )
        feasible = score.feasible(allowed)
        if feasible and score.complete and self._adaptive:
            score = replace(score, correct={**score.correct, **self._adaptive(table)})
        value = score.objective(allowed, self._counted)
        if feasible and not score.complete and halves:
            value = halving.estimate(score)
        metrics = trial_metrics(score, value)
        metrics["seconds"] = time.monotonic() - started
        self._logger.log(trial, metrics)
        return {**metrics, **_count_metrics(score.accuracies)}

    def _earlier(self) -> list[dict[str, float]]:
        """Metrics of feasible trials that saw all images, the best first."""
        trials = self.oracle.get_best_trials(self.oracle.max_trials or 1000)
        found = [_metrics_of(trial) for trial in trials if trial.status == "COMPLETED"]
        return [metrics for metrics in found if metrics.get("complete") and metrics["score"] >= 0]

    def pre_create_trial(self) -> None:
        """Wait a moment when the oracle had nothing to do."""
        if self._asked:
            time.sleep(_IDLE_SECONDS)
        self._asked += 1

    def on_trial_begin(self, trial: Any) -> None:
        """Start to show the chief that this worker is alive."""
        self._asked = 0
        if self._is_worker():
            interval = self._worker_timeout / _HEARTBEATS
            self._heart.enter_context(_every(interval, lambda: self._beat(trial.trial_id)))

    def on_trial_end(self, trial: Any) -> None:
        """Report the trial."""
        self._heart.close()
        super().on_trial_end(trial)

    def save(self) -> None:
        """Keep the oracle; a worker leaves a mark of its own."""
        if self._is_worker():
            write_state(self._get_tuner_fname(), {})
        else:
            self.oracle.save()

    def reload(self) -> None:
        """Go on from the oracle's state; the tuner has none of its own."""
        if not self._is_worker():
            self.oracle.reload()

    def _get_tuner_fname(self) -> str:
        """The file whose existence says that there is something to reload."""
        name = f"{self.tuner_id}.json" if self._is_worker() else "oracle.json"
        return str(Path(self.project_dir) / name)

    def _beat(self, trial_id: str) -> None:
        # A chief that is away for a moment will be told by the next beat.
        with contextlib.suppress(Exception):
            self.oracle.get_trial(trial_id)


class Halving:
    """Successive halving: stops a trial that is in the worse half after a part of the images.

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
        """Estimated accuracy under attack of a trial that was stopped.

        It differs from the best trial's by as much as it did on the images they both saw, and
        so never exceeds it.
        """
        best = self._earlier[0]
        behind = score.rungs[-1] - best[_rung_name(len(score.rungs) - 1)]
        return max(0.0, best["accuracy"] + behind)


def trial_metrics(score: TableScore, value: float) -> dict[str, float]:
    """Metrics of a trial.

    Args:
        score: Of its table.
        value: Of the objective.

    Returns:
        Finite numbers by name: ``score`` (the objective), ``accuracy``, ``benign_loss``,
        ``distortion``, ``bits_per_pixel``, ``complete``, and the accuracy for each attack and
        at each rung.

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
    accuracies = score.accuracies
    for name in accuracies.attacks:
        metrics[f"accuracy {name}"] = accuracies.of(name)
    for rung, accuracy in enumerate(score.rungs):
        metrics[_rung_name(rung)] = accuracy
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}


def trials_of(oracle: Any, space: Space) -> list[Trial]:
    """The trials of an oracle that have ended, in their order.

    Args:
        oracle: Of Keras Tuner.
        space: Function from its hyperparameters to tables.

    Example:
        See ``RefinementTuner``.
    """
    found = []
    for number, trial in enumerate(sorted(oracle.trials.values(), key=lambda t: int(t.trial_id))):
        if trial.trial_id not in oracle.end_order:
            continue
        metrics = _metrics_of(trial)
        counts = _pop_counts(metrics)
        hyperparameters = trial.hyperparameters.copy()
        values = dict(hyperparameters.values)
        table = space(hyperparameters) if metrics else None
        found.append(Trial(number, trial.status, values, metrics, table, Accuracies(counts)))
    return found


def _metrics_of(trial: Any) -> dict[str, float]:
    found = {name: trial.metrics.get_best_value(name) for name in trial.metrics.metrics}
    return {name: float(value) for name, value in found.items() if value is not None}


# Keras Tuner keeps nothing of a trial but numbers by name: counts travel as two of them.
_CORRECT, _COUNT = "correct ", "count "


def _count_metrics(accuracies: Accuracies) -> dict[str, float]:
    metrics = {}
    for name, (correct, count) in accuracies.counts.items():
        metrics[_CORRECT + name], metrics[_COUNT + name] = float(correct), float(count)
    return metrics


def _pop_counts(metrics: dict[str, float]) -> dict[str, tuple[int, int]]:
    """Take what ``_count_metrics`` made out of ``metrics``; benign images come first."""
    names = [name.removeprefix(_CORRECT) for name in metrics if name.startswith(_CORRECT)]
    names.sort(key=lambda name: name != BENIGN)
    return {
        name: (round(metrics.pop(_CORRECT + name)), round(metrics.pop(_COUNT + name)))
        for name in names
    }


def _rung_name(rung: int) -> str:
    return f"accuracy at {RUNGS[rung]:g}"


@contextmanager
def _every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call a function again and again in a thread while the block runs."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
