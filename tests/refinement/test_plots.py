"""Plots of a search, and the importance of its parameters."""

import pytest

from fd_keras.refinement import parameter_importance, plots
from fd_keras.refinement.result import Trial
from fd_keras.refinement.scoring import Accuracies


def test_plots_of_a_search(search, tmp_path):
    result = search(tmp_path, max_trials=8, baselines=["liu2019", "jpeg:90", "jpeg:50"])
    front = plots.plot_front(result).axes[0]
    drawn = {tuple(point) for line in front.lines for point in zip(*line.get_data())}
    for defence in (*result.front, *result.baselines):
        assert (100 * defence.test.benign, 100 * defence.test.attacked) in drawn
    assert len(plots.plot_trials(result).axes[0].lines) >= 2
    plots.plot_importance(result).savefig(tmp_path / "importance.png")


def test_the_parameter_that_decides_is_the_important_one(rng):
    def trial(number):
        values = {"decides": rng.random(), "idle": rng.random(), "kind": "ab"[number % 2]}
        metrics = {"score": values["decides"] ** 2}
        return Trial(number, "COMPLETED", values, metrics, None, Accuracies({}))

    shares = parameter_importance([trial(number) for number in range(40)])
    assert next(iter(shares)) == "decides"
    assert shares["decides"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert parameter_importance([trial(0)] * 7) == {}
