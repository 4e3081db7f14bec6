"""Accuracies, their confidence intervals and the rows of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from fd_keras._checks import checked_labels


def predicted_classes(
    model: keras.Model, images: npt.NDArray[np.generic], *, batch_size: int = 128
) -> npt.NDArray[np.int64]:
    """The class with the largest output, for each image.

    Args:
        model: Classifier from images to logits or probabilities ``(batch, classes)``.
        images: Batch in the range the model takes.
        batch_size: Number of images that are classified at once.

    Returns:
        Array ``(batch,)``.

    Example:
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> predicted_classes(model, np.array([[[[3.0], [5.0]]]]))
        array([1])
    """
    outputs = model.predict(images, batch_size=batch_size, verbose=0)
    return np.asarray(outputs).argmax(axis=-1).astype(np.int64)


def accuracy(
    model: keras.Model,
    images: npt.NDArray[np.generic],
    labels: npt.NDArray[np.integer],
    *,
    batch_size: int = 128,
) -> float:
    """The share of images whose predicted class is their label.

    An accuracy on attacked images means nothing without its threat model: say whether the
    attacker knew the layer.

    Args:
        model: Classifier from images to logits or probabilities ``(batch, classes)``.
        images: Batch in the range the model takes.
        labels: Integer classes ``(batch,)``.
        batch_size: Number of images that are classified at once.

    Returns:
        A number from 0 to 1.

    Raises:
        ValueError: ``labels`` are not one integer per image, or there are none.

    Example:
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> accuracy(model, np.array([[[[3.0], [5.0]]], [[[1.0], [0.0]]]]), np.array([1, 1]))
        0.5
    """
    labels = checked_labels(labels, len(images))
    return float(np.mean(predicted_classes(model, images, batch_size=batch_size) == labels))


def wilson_interval(correct: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for the share that ``correct`` of ``count`` estimates.

    It says what drawing other images would change, and nothing about better attacks.

    Args:
        correct: Number of images classified correctly.
        count: Number of images.
        confidence: Probability that such intervals hold the true share.

    Returns:
        ``(low, high)``, from 0 to 1.

    Raises:
        ValueError: ``correct`` is not from 0 to ``count``, or there are no images.

    Example:
        >>> low, high = wilson_interval(7, 200)
        >>> round(low, 3), round(high, 3)
        (0.017, 0.07)

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    if not (count > 0 and 0 <= correct <= count):
        raise ValueError(
            "`correct` must be from 0 to `count`, and `count` at least 1. "
            f"Received: correct={correct!r}, count={count!r}"
        )
    from scipy import stats  # slow to import

    test = stats.binomtest(int(correct), int(count))
    interval = test.proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


# What each threat model means; the order in which they are shown.
THREAT_MODELS = {
    "benign": "no attacker: the images as they are.",
    "gray-box": "the attacker knows the classifier and its weights, but not that a defence "
    "stands before it.",
    "adaptive": "the attacker knows classifier and defence and differentiates through both. "
    "Where the defence has no useful gradient, that of a smooth stand-in takes its place, and "
    "then the identity's (BPDA): an image counts as right if it withstands both. Where the defence "
    "is random, gradients are averaged over draws (EOT).",
    "black-box": "the attacker sees only what the protected model returns, no gradient, and "
    "searches by queries.",
}
BENIGN = "benign"
NO_ATTACK = "none"
UNDEFENDED = "none"
OURS = "feature distillation"

_NORMS = ("inf", "2", None)
_KEYS = frozenset(
    {"defence", "family", "attack", "attack_family", "threat_model", "norm", "epsilon"}
    | {"accuracy", "correct", "count", "interval", "split"}
)


def accuracy_row(
    *,
    defence: str,
    family: str,
    threat_model: str,
    correct: int,
    count: int,
    attack: str = NO_ATTACK,
    attack_family: str | None = None,
    norm: str | None = None,
    epsilon: float | None = None,
) -> dict[str, Any]:
    """One figure of a report, with its 95 % Wilson interval.

    Args:
        defence: Name of the defence.
        family: What kind of defence it is; ``"none"`` for the bare classifier.
        threat_model: ``"benign"``, ``"gray-box"``, ``"adaptive"`` or ``"black-box"``.
        correct: Number of images classified correctly.
        count: Number of images.
        attack: Name of the attack with its strength; ``"none"`` for benign images.
        attack_family: What kind of attack it is, for curves over its strength.
        norm: ``"inf"`` or ``"2"``; ``None`` where the attack has none.
        epsilon: Largest perturbation in that norm, of pixels from 0 to 1; ``None`` where the
            attack has no limit.

    Returns:
        The row.

    Raises:
        ValueError: An argument does not fit.

    Example:
        >>> row = accuracy_row(
        ...     defence="none", family="none", threat_model="benign", correct=9, count=10
        ... )
        >>> row["accuracy"], row["split"]
        (0.9, 'report')
    """
    row = {
        "defence": defence,
        "family": family,
        "attack": attack,
        "attack_family": attack_family,
        "threat_model": threat_model,
        "norm": norm,
        "epsilon": epsilon,
        "interval": list(wilson_interval(correct, count)),
        "accuracy": correct / count,
        "correct": int(correct),
        "count": int(count),
        "split": "report",
    }
    check_rows([row])
    return row


def check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse figures that lack something, contradict themselves or occur twice.

    Args:
        rows: What ``accuracy_row`` returns.

    Raises:
        ValueError: With the number of the row and what is wrong with it.

    Example:
        >>> check_rows([{"defence": "none", "accuracy": 0.9}])
        Traceback (most recent call last):
        ...
        ValueError: `rows[0]` must have the keys ['attack', 'attack_family', 'correct', 'count',
        'epsilon', 'family', 'interval', 'norm', 'split', 'threat_model'] too.
        Received: {'defence': 'none', 'accuracy': 0.9}
    """
    seen = set()
    for number, row in enumerate(rows):
        received = f"Received: {row!r}"
        if not isinstance(row, Mapping):
            raise ValueError(f"`rows[{number}]` must be a dictionary. {received}")
        if missing := sorted(_KEYS - set(row)):
            raise ValueError(f"`rows[{number}]` must have the keys {missing} too. {received}")
        for rule, holds in (*_text_rules(row), *_number_rules(row)):
            if not holds:
                raise ValueError(f"`rows[{number}]` must have {rule}. {received}")
        key = row["defence"], row["threat_model"], row["attack"]
        if key in seen:
            raise ValueError(f"`rows` must hold each figure once. {received}")
        seen.add(key)


def is_number(value: object) -> bool:
    """Whether ``value`` is an int or a float that JSON can hold.

    Args:
        value: Anything.

    Example:
        >>> is_number(3), is_number(True), is_number(float("nan"))
        (True, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text_rules(row: Mapping[str, Any]) -> list[tuple[str, bool]]:
    benign = row["threat_model"] == BENIGN
    return [
        *(
            (f"a name as {key}", isinstance(row[key], str) and bool(row[key].strip()))
            for key in ("defence", "family", "attack")
        ),
        (f"a threat_model of {list(THREAT_MODELS)}", row["threat_model"] in THREAT_MODELS),
        ("attack 'none' exactly with threat_model 'benign'", (row["attack"] == "none") == benign),
        ("attack_family as text or None", isinstance(row["attack_family"], str | None)),
        ("norm 'inf', '2' or None", row["norm"] in _NORMS),
        # What a defence was tuned on flatters it.
        ("split 'report'", row["split"] == "report"),
    ]


def _number_rules(row: Mapping[str, Any]) -> list[tuple[str, bool]]:
    correct, count, epsilon, interval = (
        row[key] for key in ("correct", "count", "epsilon", "interval")
    )
    counts = all(type(value) is int for value in (correct, count)) and 0 <= correct <= count
    share = correct / count if counts and count else math.nan
    return [
        ("correct and count as whole numbers, 0 <= correct <= count", counts and count > 0),
        (
            "accuracy equal to correct / count",
            is_number(row["accuracy"]) and abs(row["accuracy"] - share) < 1e-6,
        ),
        (
            "an interval [low, high] around its accuracy",
            isinstance(interval, Sequence)
            and len(interval) == 2
            and all(map(is_number, interval))
            and -1e-9 <= interval[0] <= share + 1e-9
            and share - 1e-9 <= interval[1] <= 1 + 1e-9,
        ),
        (
            "epsilon as a number on pixels from 0 to 1, or None",
            epsilon is None
            or (is_number(epsilon) and epsilon >= 0 and (epsilon <= 1 or row["norm"] == "2")),
        ),
    ]
