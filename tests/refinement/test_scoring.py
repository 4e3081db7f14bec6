"""Scores of tables, and the objective made of them."""

import math

import numpy as np
import pytest
import searches
from hypothesis import given
from hypothesis import strategies as st

from fd_keras import FeatureDistillation, QuantizationTable, preset_table
from fd_keras.classifier import Classifier
from fd_keras.refinement.scoring import TableScore, TableScorer


@pytest.fixture(scope="module")
def scorer(digits):
    model, test = digits
    unit = {"benign": test.images / 255, "noise": searches.noisy(test.images) / 255}
    return TableScorer(Classifier(model), test.labels, unit, batch_size=16)


def test_a_score_is_what_the_protected_model_gets_right(digits, scorer):
    model, test = digits
    for table in (preset_table("liu2019"), QuantizationTable(np.full((8, 8), 90.0), "ycbcr", 2)):
        layer = FeatureDistillation(table)
        score = scorer.score(table)
        for name, images in (("benign", test.images), ("noise", searches.noisy(test.images))):
            distilled = np.asarray(layer(images))
            right = model.predict(distilled, verbose=0).argmax(-1) == test.labels
            assert score.accuracies.counts[name] == (right.sum(), 60)
            if name == "benign":
                assert score.distortion == pytest.approx(((distilled - images) ** 2).mean(), 1e-4)
        assert score.complete


def test_a_new_table_is_not_traced_again(scorer):
    scorer.score(preset_table("liu2019"))
    _, graph = scorer._graph("rgb", 1, "round")
    before = graph.experimental_get_tracing_count()
    scorer.score(QuantizationTable(np.full((8, 8), 7.0)))
    assert graph.experimental_get_tracing_count() == before == 1


def test_bits_per_pixel_fall_with_the_step_and_are_those_of_the_coefficients(digits, scorer):
    bits = [scorer.score(QuantizationTable(np.full((8, 8), q))).bits_per_pixel for q in (2, 9, 4e4)]
    assert bits[0] > bits[1] > bits[2] == 0


def test_a_trial_ends_when_too_many_benign_images_are_lost(scorer):
    useless = QuantizationTable(np.full((8, 8), 4e4))
    score = scorer.score(useless, max_benign_loss=0.05)
    assert not score.complete
    assert score.accuracies.attacks == []
    assert len(score.correct["benign"]) < 60
    assert scorer.score(useless).complete  # nothing is lost for ever


def test_parts_of_the_images_are_disjoint_and_add_up(scorer):
    parts = [scorer._part("noise", a, b) for a, b in ((0, 0.25), (0.25, 0.5), (0.5, 1))]
    assert sorted(np.concatenate(parts)) == list(range(60))
    stopped = scorer.score(preset_table("liu2019"), go_on=lambda score: len(score.rungs) < 2)
    assert len(stopped.correct["noise"]) == 30
    assert not stopped.complete


@given(
    st.lists(st.booleans(), min_size=1),
    st.lists(st.booleans(), min_size=1),
    st.lists(st.booleans(), min_size=1),
    st.floats(0, 0.99),
)
def test_feasible_beats_infeasible_and_every_objective_is_finite(benign, one, other, allowed):
    first = TableScore({"benign": np.array(benign), "a": np.array(one)})
    second = TableScore({"benign": np.array([True]), "a": np.array(other)})
    values = [score.objective(allowed) for score in (first, second)]
    assert all(math.isfinite(value) for value in values)
    if first.benign_loss > allowed + 1e-6:
        assert values[0] < 0 <= values[1]


def test_benign_accuracy_is_of_all_images(digits, scorer):
    """What a stopped trial has lost is of the images until then."""
    table = QuantizationTable(np.full((8, 8), 60.0))
    found = scorer.score(table).correct["benign"]
    assert scorer.benign_accuracy(table) == pytest.approx(np.mean(found))
