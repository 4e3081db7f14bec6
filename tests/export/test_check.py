"""What the outputs of an export decide, and the limits by which it is judged."""

import numpy as np
import pytest

from fd_keras.export.check import (
    LIMITS,
    ExportCheck,
    RuntimeCheck,
    Unprotected,
    accuracy_of,
    compared,
    rule_of,
)
from fd_keras.export.runtimes import Run


@pytest.mark.parametrize(
    ("quantize", "images", "other", "passed"),
    [
        ("int8", 32, 1, True),  # 96.9 %, as half of all samples from 97 % are
        ("int8", 100, 6, True),
        ("int8", 100, 7, False),
        ("int8", 1000, 40, False),
        ("int8", 2, 2, False),
        ("none", 100, 3, True),
        ("none", 100, 4, False),
        ("none", 1000, 0, True),
    ],
)
def test_one_image_of_a_few_is_no_proof_of_a_wrong_class(quantize, images, other, passed):
    run = RuntimeCheck("LiteRT", 0, 0, 0.0, 1 - other / images, 0.0, True, 1.0)
    check = ExportCheck("model.tflite", "tflite", quantize, 1000, images, {}, (run,))
    assert check.passed is passed, check.problems


def judged(actual, expected, quantize="int8", labels=None, activation=None, **options):
    """The check of one runtime's predictions against Keras'."""
    runs = [Run({"predictions": np.asarray(x)}, [], 1.0) for x in (actual, expected)]
    rules = {"predictions": rule_of("predictions", runs[1].outputs["predictions"], activation)}
    run = compared("LiteRT", *runs, 1.0, rules, labels)
    accuracy = None if labels is None else accuracy_of(runs[1], labels, rules)
    return ExportCheck(
        "model.tflite", "tflite", quantize, 1000, len(expected), {}, (run,),
        keras_accuracy=accuracy, threat_model=None if labels is None else "gray-box",
        decided={name: rule.text for name, rule in rules.items()}, **options,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["probability", "logit"])
def test_binary_decisions_are_compared_at_the_threshold(kind, rng):
    """An int8 file that changed 14.5 % of them was once proven, with the same class on 100 %."""
    sign = rng.choice([-1.0, 1.0], 200)
    changed = np.arange(200) < 29
    margin = np.where(changed, 0.02, 0.8)
    scores = sign * margin
    moved = np.where(changed, -scores, scores)
    z, other = (np.float32(x)[:, None] for x in (scores, moved))
    if kind == "probability":
        z, other = (1 / (1 + np.exp(-8 * x)) for x in (z, other))
    labels = (sign > 0).astype(int)
    check = judged(other, z, labels=labels)
    assert check.runtimes[0].relative_error < LIMITS["int8"].relative_error
    assert check.runtimes[0].same_class == pytest.approx(0.855)
    assert check.problems == (
        "LiteRT: only 85.5% of the images get the same class, not 97%",
        "LiteRT: accuracy (gray-box) changes by -14.5 points",
    )
    assert f"taken for a {kind}" in str(check)
    assert judged(z, z, labels=labels).passed
    assert (check.keras_accuracy, check.runtimes[0].accuracy) == (1, pytest.approx(0.855))


@pytest.mark.parametrize(
    ("shape", "activation", "text"),
    [
        ((4, 10), None, "largest of 10 classes"),
        ((4, 1), "sigmoid", "above 0.5, taken for a probability, as its activation is sigmoid"),
        ((4, 1), "linear", "above 0, taken for a logit, as its activation is linear"),
        ((4, 1), None, "above 0.5, taken for a probability, as all lie from 0 to 1"),
        ((4,), None, "above 0.5, taken for a probability, as all lie from 0 to 1"),
        ((4, 8, 8, 5), None, "largest of 5 classes of each pixel"),
        ((4, 8, 8, 1), "sigmoid", "above 0.5 of each pixel, taken for a probability, as its act"),
        ((4, 8, 8, 3), "sigmoid", "decisions not compared, for shape (8, 8, 3) is none of classes"),
        ((4, 16, 6), None, "decisions not compared, for shape (16, 6) is none of classes"),
    ],
)
def test_it_is_said_what_was_compared(shape, activation, text, rng):
    outputs = rng.random(shape)
    assert rule_of("predictions", outputs, activation).text.startswith(text)
    assert text in str(judged(outputs, outputs, activation=activation))


def test_names_and_values_tell_logits_from_probabilities(rng):
    outputs = rng.random((9, 1))
    assert rule_of("logits", outputs).threshold == 0
    assert rule_of("probabilities", 2 * outputs).threshold == 0.5
    assert rule_of("predictions", 2 * outputs).threshold == 0
    assert rule_of("score", outputs[:, 0]).kind == "none"


def test_segmentation_is_compared_pixel_by_pixel(rng):
    logits = rng.normal(size=(2, 50, 50, 3))
    wrong = logits.copy()
    wrong[:, :4, :10] = -wrong[:, :4, :10]  # 1.6 % of the pixels
    check = judged(wrong, logits, "none")
    share = (wrong.argmax(-1) == logits.argmax(-1)).mean()
    assert 0.98 < share < 0.99
    assert check.runtimes[0].same_class == share
    assert f"only {share:.1%} of the pixels get the same class, not 99%" in check.problems[0]
    with pytest.raises(ValueError, match="`labels` belong to images, and 'predictions' decides ea"):
        judged(logits, logits, labels=np.zeros(2, int))


def test_a_proof_that_compared_nothing_is_none(rng):
    boxes = rng.random((5, 16, 6))
    check = judged(boxes, boxes)
    assert check.problems == ("LiteRT: no output decides anything that could be compared",)
    assert "NOT PROVEN" in str(check)
    assert check.runtimes[0].same_class is None
    # Behind a layer the distilled images are compared, and values must be those of Keras.
    seen = RuntimeCheck("LiteRT", 640, 0, 0.0, None, 0.01, True, 1.0)
    moved = RuntimeCheck("LiteRT", 640, 0, 0.0, None, 0.1, True, 1.0)
    for run, passed in ((seen, True), (moved, False)):
        check = ExportCheck("model.tflite", "tflite", "int8", 1000, 5, {}, (run,))
        assert check.passed is passed


def test_the_output_that_labels_are_of_is_chosen_by_name(rng):
    outputs = {"species": rng.normal(size=(8, 3)), "sex": rng.normal(size=(8, 1))}
    run = Run(outputs, [], 1.0)
    rules = {name: rule_of(name, array) for name, array in outputs.items()}
    labels = outputs["species"].argmax(-1)
    with pytest.raises(ValueError, match=r"`output` must name .*\['species', 'sex'\]"):
        accuracy_of(run, labels, rules)
    assert accuracy_of(run, labels, rules, "species") == 1
    assert accuracy_of(run, (outputs["sex"][:, 0] > 0).astype(int), rules, "sex") == 1


def test_advice_can_be_followed():
    """Who gave images like those it will see was told to give some."""
    run = RuntimeCheck("LiteRT", 0, 0, 0.0, 0.5, 0.0, True, 1.0)
    for own, quantize, advice in (
        (False, "int8", "Pass images like those it will see, or verify=False"),
        (True, "int8", "Use another `quantize`, or verify=False"),
        (True, "none", ". Use verify=False"),
    ):
        check = ExportCheck(
            "model.tflite",
            "tflite",
            quantize,
            1000,
            100,
            {},
            (run,),
            unprotected=Unprotected() if own else None,
        )
        with pytest.raises(ValueError, match="same class") as failed:
            check.raise_for_problems()
        assert advice in str(failed.value)
