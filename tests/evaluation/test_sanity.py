"""Sanity checks of an evaluation, on outcomes made up to pass or fail them."""

import dataclasses

import numpy as np
import pytest

from fd_keras.evaluation import carlini_wagner_l2, deepfool, fgsm, pgd, square
from fd_keras.evaluation.sanity import Outcome, check_outcomes

COUNT = 100

GRAY = "adaptive is never gentler than gray-box"
UNBOUNDED = "accuracy falls to about 0 without a bound"
LARGER = "a larger epsilon never helps the defender"
ITERATIONS = "more iterations never help the defender"
BLACK = "black-box is not stronger than adaptive"
AIM = "attacks without a bound reach their aim"
RADIUS = "no attack wins within the certified radius"


def outcome(attack, threat_model, percent):
    """The first images stay right, so that differences are as little noisy as can be."""
    return Outcome(attack, threat_model, np.arange(COUNT) < percent)


def verdicts(*outcomes, defence="x"):
    return {check["name"]: check["passed"] for check in check_outcomes(defence, outcomes)}


@pytest.mark.parametrize(("adaptive", "passed"), [(50, True), (60, True), (75, False)])
def test_adaptive_against_gray_box(adaptive, passed):
    found = verdicts(outcome(pgd(2.55), "adaptive", adaptive), outcome(fgsm(2.55), "gray-box", 60))
    assert found == {GRAY: passed}


def test_the_strongest_adaptive_attack_counts_and_none_beyond_the_bound():
    gray = outcome(fgsm(2.55), "gray-box", 50)
    weak, strong = outcome(pgd(2.55, 10), "adaptive", 90), outcome(pgd(2.55, 50), "adaptive", 40)
    beyond = outcome(pgd(5.1), "adaptive", 10)
    assert verdicts(gray, weak, strong)[GRAY]
    assert not verdicts(gray, weak, beyond)[GRAY]
    assert GRAY not in verdicts(gray, beyond)


@pytest.mark.parametrize(("left", "passed"), [(0, True), (5, True), (6, False), (80, False)])
def test_an_unbounded_attack_leaves_about_nothing(left, passed):
    assert verdicts(outcome(pgd(127.5), "adaptive", left)) == {UNBOUNDED: passed}


@pytest.mark.parametrize(("stronger", "passed"), [(30, True), (40, True), (60, False)])
@pytest.mark.parametrize("threat_model", ["gray-box", "adaptive"])
def test_accuracy_falls_with_epsilon(threat_model, stronger, passed):
    found = verdicts(
        outcome(pgd(5.1), threat_model, stronger), outcome(pgd(2.55), threat_model, 40)
    )
    assert found == {LARGER: passed}


@pytest.mark.parametrize(("more", "passed"), [(30, True), (41, True), (60, False)])
def test_more_iterations(more, passed):
    found = verdicts(
        outcome(pgd(2.55, 100), "adaptive", more), outcome(pgd(2.55, 20), "adaptive", 40)
    )
    assert found == {ITERATIONS: passed}


@pytest.mark.parametrize(("blind", "passed"), [(70, True), (39, True), (20, False)])
def test_black_box(blind, passed):
    found = verdicts(outcome(square(2.55), "black-box", blind), outcome(pgd(2.55), "adaptive", 40))
    assert found == {BLACK: passed}


def test_noise_is_forgiven_and_only_common_images_count():
    """Of 20 images, 3 more is no evidence; and the other 80 belong to one attack only."""
    few = Outcome(pgd(2.55), "adaptive", np.arange(20) < 11)
    many = Outcome(fgsm(2.55), "gray-box", np.arange(COUNT) < 8)
    assert verdicts(few, many)[GRAY]
    assert not verdicts(Outcome(pgd(2.55), "adaptive", np.ones(20, bool)), many)[GRAY]


def test_attacks_without_a_bound_are_left_out():
    assert verdicts(outcome(deepfool(), "gray-box", 50)) == {}


@pytest.mark.parametrize(("success", "passed"), [(1.0, True), (0.5, True), (0.1, False)])
def test_attacks_without_a_bound_succeed_on_the_classifier_alone(success, passed):
    """CW with a confidence of 5 finds nothing where logits are smaller than that."""
    effect = {"success": success, "l2": 0.1, "linf": 0.1}
    found = dataclasses.replace(outcome(carlini_wagner_l2("next"), "gray-box", 9), effect=effect)
    assert verdicts(found, defence="none") == {AIM: passed}
    assert verdicts(found) == {}


def test_details_name_threat_models_and_counts():
    (check,) = check_outcomes(
        "x", [outcome(fgsm(2.55), "gray-box", 30), outcome(pgd(2.55), "adaptive", 90)]
    )
    assert check["defence"] == "x"
    assert check["detail"] == (
        "adaptive PGD-20 .01 leaves 90.0 %, gray-box FGSM .01 30.0 % of 100 images right"
    )


@pytest.mark.parametrize(("within", "passed"), [(60, True), (61, False)])
def test_one_image_lost_within_the_certified_radius_refutes_it(within, passed):
    """No noise is forgiven; beyond the radius, anything may change."""
    positions = np.arange(COUNT)
    refuted = Outcome(
        *(pgd(2), "two-pass adaptive", positions < 60),
        within=positions < within,
        changed=positions >= 60,
    )
    found = check_outcomes("x", [refuted])
    assert {check["name"]: check["passed"] for check in found} == {RADIUS: passed}
    assert found[0]["detail"] == (
        f"two-pass adaptive PGD-20 2/255 changes {within - 60} of {within} predictions"
    )


def test_a_wrong_prediction_that_changes_within_the_radius_counts_too():
    everything = np.ones(4, bool)
    wrong = Outcome(pgd(2), "two-pass gray-box", ~everything, within=everything, changed=everything)
    assert not check_outcomes("x", [wrong])[0]["passed"]


def test_two_passes_are_checked_as_one_is():
    gray = outcome(fgsm(2.55), "two-pass gray-box", 60)
    assert verdicts(gray, outcome(pgd(2.55), "two-pass adaptive", 75)) == {GRAY: False}
    assert verdicts(gray, outcome(pgd(2.55), "two-pass adaptive", 50)) == {GRAY: True}


def test_weaker_adaptive_attacks_are_not_held_against_a_stronger_gray_box_attack():
    gray, weak = outcome(pgd(8), "gray-box", 0), outcome(pgd(2), "adaptive", 60)
    assert GRAY not in verdicts(gray, weak)
