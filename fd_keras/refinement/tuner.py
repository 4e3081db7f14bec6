"""The Keras Tuner subclass that runs a search."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras_tuner

from fd_keras.refinement.oracles import HYPERBAND_EPOCHS
from fd_keras.refinement.progress import TrialLogger
from fd_keras.refinement.scoring import (
    BENIGN,
    Halving,
    TableScore,
    TableScorer,
    is_feasible,
    metrics_of,
    objective_value,
    trial_metrics,
)
from fd_keras.refinement.space import Space
from fd_keras.tables import QuantizationTable

# Typing alias: table -> which images it keeps right under each adaptive attack.
Adaptive = Callable[[QuantizationTable], dict[str, Any]]

# A worker shows that it lives so many times before it is taken for lost.
_HEARTBEATS = 4
_IDLE_SECONDS = 0.5


class RefinementTuner(keras_tuner.Tuner):
    """Searches quantisation tables; ``fd_keras.refine`` is the comfortable way to use it.

    A trial installs a table in a layer that was built once and classifies benign and attacked
    images behind it. Give it any oracle of Keras Tuner whose ``objective`` is ``"score"``, to
    be maximised, and whose ``hyperparameters`` hold the whole space.

    Args:
        oracle: Decides what is tried. Those of ``fd_keras.refinement.oracles`` survive a
            killed process or worker.
        space: Function from ``HyperParameters`` to the table of a trial.
        scorer: Holds classifier and images.
        max_benign_loss: Share of the benign images that a table may cost.
        stop_early: Whether trials that cannot win stop after a part of the images.
        adaptive: Attacks through the table of a feasible trial, if the objective shall count
            attackers who know it.
        log_dir: TensorBoard's directory; ``None``: nothing is logged there.
        worker_timeout: With a chief: seconds without a sign after which a worker is lost.
        **kwargs: ``directory``, ``project_name`` and ``overwrite``, see ``keras_tuner.Tuner``.

    Example:
        >>> import keras, tempfile, numpy as np
        >>> from fd_keras.classifier import Classifier
        >>> from fd_keras.refinement.oracles import make_oracle
        >>> from fd_keras.refinement.scoring import ScoredImages
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> classifier = Classifier(model, value_range=(0, 1), from_logits=True)
        >>> benign = np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1)[:4]
        >>> images = ScoredImages(np.arange(4), {"benign": benign, "half": benign / 2})
        >>> def space(hp):
        ...     return QuantizationTable(np.full((8, 8), hp.Float("step", 1, 64)))
        >>> _ = space(hp := keras_tuner.HyperParameters())
        >>> tuner = RefinementTuner(
        ...     make_oracle("random", hp, max_trials=2, seed=1),
        ...     space, TableScorer(classifier, images), directory=tempfile.mkdtemp()
        ... )
        >>> tuner.search(verbose=0)
        >>> len(tuner.oracle.trials)
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
        adaptive: Adaptive | None = None,
        log_dir: Any = None,
        worker_timeout: float = 60.0,
        **kwargs: Any,
    ) -> None:
        self.space = space
        self._scorer = scorer
        self._max_benign_loss = max_benign_loss
        self._stop_early = stop_early
        self._adaptive = adaptive
        self._logger = TrialLogger(log_dir)
        self._worker_timeout = worker_timeout
        self._heart: contextlib.ExitStack = contextlib.ExitStack()
        self._asked = 0
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it reloads
            super().__init__(oracle=oracle, **kwargs)

    def run_trial(self, trial: Any, **_: Any) -> dict[str, float]:
        """Score the table of a trial."""
        started = time.monotonic()
        table = self.space(trial.hyperparameters)
        share = trial.hyperparameters.values.get("tuner/epochs", HYPERBAND_EPOCHS)
        halves = self._stop_early and share == HYPERBAND_EPOCHS
        halving = Halving(self._earlier() if halves else [])
        score = self._scorer.score(
            table,
            share=share / HYPERBAND_EPOCHS,
            max_benign_loss=self._max_benign_loss if self._stop_early else 1.0,
            go_on=halving,
        )
        feasible = is_feasible(score, self._max_benign_loss)
        if feasible and score.complete and self._adaptive:
            score = with_attacks(score, self._adaptive(table))
        value = objective_value(score, self._max_benign_loss)
        if feasible and not score.complete and halves:
            value = halving.estimate(score)
        metrics = trial_metrics(score, value)
        metrics["seconds"] = time.monotonic() - started
        self._logger.log(trial, metrics)
        return metrics

    def _earlier(self) -> list[dict[str, float]]:
        """Metrics of feasible trials that saw all images, the best first."""
        trials = self.oracle.get_best_trials(self.oracle.max_trials or 1000)
        found = [metrics_of(trial) for trial in trials if trial.status == "COMPLETED"]
        return [metrics for metrics in found if metrics.get("complete") and metrics["score"] >= 0]

    def pre_create_trial(self) -> None:
        """Wait a moment when the oracle had nothing to do."""
        if self._asked:
            time.sleep(_IDLE_SECONDS)
        self._asked += 1

    def on_trial_begin(self, trial: Any) -> None:
        """Start to show the chief that this worker lives."""
        self._asked = 0
        if self._is_worker():
            interval = self._worker_timeout / _HEARTBEATS
            self._heart.enter_context(_every(interval, lambda: self._beat(trial.trial_id)))

    def on_trial_end(self, trial: Any) -> None:
        """Report the trial."""
        self._heart.close()
        super().on_trial_end(trial)

    def _beat(self, trial_id: str) -> None:
        # A chief that is away for a moment will be told by the next beat.
        with contextlib.suppress(Exception):
            self.oracle.get_trial(trial_id)


def with_attacks(score: TableScore, right: dict[str, Any]) -> TableScore:
    """A score with further attacks in it.

    Example:
        >>> import numpy as np
        >>> score = TableScore({"benign": np.array([True]), "FGSM": np.array([True])})
        >>> with_attacks(score, {"adaptive PGD": np.array([False])}).accuracy
        0.5
    """
    assert not set(right) & {BENIGN, *score.accuracies}
    return TableScore(
        {**score.right, **right},
        score.complete,
        score.distortion,
        score.bits_per_pixel,
        score.rungs,
    )


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
