"""Results of searches: the front, and files."""

from pathlib import Path

import pytest

from fd_keras import QuantizationTable
from fd_keras.refinement import RefineResult
from fd_keras.refinement.result import _overfitting, pareto_front
from fd_keras.refinement.scoring import Accuracies


def test_front():
    class Point:
        def __init__(self, benign, attacked):
            self.validation = Accuracies({"benign": (benign, 100), "a": (attacked, 100)})

    points = [Point(*pair) for pair in ((99, 10), (95, 30), (95, 20), (90, 30), (80, 50))]
    found = [(p.validation.benign, p.validation.attacked) for p in pareto_front(points)]
    assert found == [(0.8, 0.5), (0.95, 0.3), (0.99, 0.1)]


def test_a_result_is_read_back_as_it_was(search, tmp_path):
    result = search(tmp_path / "search")
    result.save(tmp_path / "result.json")
    again = RefineResult.load(tmp_path / "result.json")
    assert again.table == result.table
    assert str(again) == str(result)
    assert again.to_markdown() == result.to_markdown()
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no result"):
        RefineResult.load(tmp_path / "result.json")


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_committed_results_are_read(name):
    path = Path(__file__).parents[2] / "experiments" / "results" / f"{name}_front.json"
    result = RefineResult.load(path)
    assert path.stat().st_size < 500_000
    assert len(result.trials) == 137
    assert result.table == QuantizationTable.load(path.with_suffix("") / "balanced.json")
    assert result.baselines[0].name == "none"
    for trial in result.trials:
        assert trial.metrics["accuracy"] == pytest.approx(trial.validation.attacked)


def test_overfitting_is_measured_under_attacks_on_both_splits():
    """A table that costs too much is not attacked adaptively on the validation split."""
    attacked = {"FGSM": (60, 100), "PGD, adaptive": (0, 100)}
    test = Accuracies({"benign": (80, 100), **attacked})
    validation = Accuracies({"benign": (80, 100), "FGSM": (60, 100)})
    assert _overfitting(validation, test, "all") == 0
    assert _overfitting(validation, test, "adaptive") == 0
    both = Accuracies({"benign": (80, 100), "FGSM": (90, 100), "PGD, adaptive": (20, 100)})
    assert _overfitting(both, test, "all") == pytest.approx(0.25)
    assert _overfitting(both, test, "adaptive") == pytest.approx(0.2)
