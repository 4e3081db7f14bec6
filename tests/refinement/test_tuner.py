"""Trials: their metrics, and when they stop."""

import numpy as np
import pytest

from fd_keras.refinement.scoring import RUNGS, TableScore
from fd_keras.refinement.tuner import Halving, trial_metrics


def test_halving_keeps_what_may_win_and_never_overrates_what_it_stops():
    def earlier(accuracy, at):
        return {"accuracy": accuracy, f"accuracy at {RUNGS[0]:g}": at, "score": accuracy}

    four = [earlier(0.6, 0.4), earlier(0.5, 0.7), earlier(0.4, 0.6), earlier(0.3, 0.5)]
    halving = Halving(four)
    # the best itself had 0.4 there, below the median
    assert halving(TableScore({}, rungs=(0.4,)))
    assert not halving(TableScore({}, rungs=(0.39,)))
    assert halving.estimate(TableScore({}, rungs=(0.3,))) == pytest.approx(0.5)
    assert Halving(four[:3])(TableScore({}, rungs=(0.0,)))


def test_metrics_are_finite_numbers():
    metrics = trial_metrics(TableScore({"benign": np.array([False])}, complete=False), -0.5)
    assert "distortion" not in metrics  # it was not measured
    assert metrics["score"] == -0.5
