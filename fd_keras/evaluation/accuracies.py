"""Accuracies with their intervals and threat models, and their look-up by defence and attack."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from fd_keras._checks import checked_labels, shown
from fd_keras.classifier import Classifier

# Typing alias: what ``accuracy_row`` returns.
Row = Mapping[str, Any]


def predicted_classes(
    model: keras.Model, images: npt.NDArray[np.generic], *, batch_size: int = 128
) -> npt.NDArray[np.int64]:
    """The class with the largest output, for each image.

    Args:
        model: Classifier from images to logits or probabilities ``(batch, classes)``, or
            ``(batch, 1)`` of the second of two classes.
        images: Batch in the range the model takes.
        batch_size: Number of images that are classified at once.

    Returns:
        Array ``(batch,)``.

    Example:
        >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
        >>> predicted_classes(model, np.array([[[[3.0], [5.0]]]]))
        array([1])
    """
    outputs = np.asarray(model.predict(images, batch_size=batch_size, verbose=0))
    if outputs.shape[-1] == 1:
        outputs = Classifier(model).logits_of(outputs).numpy()
    return outputs.argmax(axis=-1).astype(np.int64)


def accuracy(
    model: keras.Model,
    images: npt.NDArray[np.generic],
    labels: npt.NDArray[np.integer],
    *,
    batch_size: int = 128,
) -> float:
    """The share of images whose predicted class is their label.

    With an accuracy on attacked images, give its threat model: say whether the attacker knew the
    layer.

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
    """Wilson's score interval of a share.

    It covers the choice of the images, and says nothing about stronger attacks.

    Args:
        correct: Number of images classified correctly.
        count: Number of images.
        confidence: Confidence level, from 0 to 1.

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
            f"Received: correct={shown(correct)}, count={shown(count)}"
        )
    from scipy import stats  # slow to import

    test = stats.binomtest(int(correct), int(count))
    interval = test.proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


# Definitions of the threat models, in the order in which they are shown.
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
    "two-pass gray-box": "the defence encodes every image before the attacker acts, and distils it "
    "again before it is classified. The attacker gets the encoded image and knows the classifier, "
    "but not that a defence stands before it. Of the images that are right once encoded.",
    "two-pass adaptive": "the same, but the attacker knows the defence and differentiates through "
    "it, as adaptive attackers do; half-step attacks aim at what is nearest to its next level.",
    "two-pass black-box": "the same, but the attacker searches by queries to the protected model.",
    "certified": "a proof instead of an attack, in two passes: all images that are right after "
    "both and whose distilled version no change of their stored pixels within the bound can alter, "
    "whatever the attacker knows. Of all images.",
}
# What the names of threat models begin with where the defender encodes images first.
TWO_PASS = "two-pass "
CERTIFIED = "certified"
BENIGN = "benign"
NO_ATTACK = "none"
UNDEFENDED = "none"
# Epsilon, on pixels from 0 to 1, of attacks that only check that an attack can win at all.
UNBOUNDED = 0.5
OURS = "feature distillation"

# The splits that a figure may be of; reports take the test split only.
TEST = "test"
VALIDATION = "validation"

_NORMS = ("inf", "2", None)
_EFFECT = ("success", "mean_l2", "mean_linf")
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
    effect: Mapping[str, float | None] | None = None,
    split: str = TEST,
) -> dict[str, Any]:
    """One accuracy with its 95 % Wilson interval, as a row of a report.

    Args:
        defence: Name of the defence.
        family: Kind of defence; ``"none"`` for the undefended classifier.
        threat_model: One of ``THREAT_MODELS``.
        correct: Number of images classified correctly.
        count: Number of images.
        attack: Name of the attack with its strength; ``"none"`` for benign images.
        attack_family: Kind of attack, for curves over epsilon.
        norm: ``"inf"`` or ``"2"``; ``None`` where the attack has none.
        epsilon: Largest perturbation in that norm, on pixels from 0 to 1
            (``Attack.unit_epsilon``); ``None`` where the attack has no limit.
        effect: What the attack did, as ``attack_effect`` returns it.
        split: ``"test"``, or ``"validation"`` for images that something was chosen on.

    Returns:
        The arguments, ``accuracy`` and ``interval``; ``effect`` only where it is given.

    Raises:
        ValueError: An argument does not fit.

    Example:
        >>> row = accuracy_row(
        ...     defence="none", family="none", threat_model="benign", correct=9, count=10
        ... )
        >>> row["accuracy"], row["split"]
        (0.9, 'test')
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
        "split": split,
        **({} if effect is None else {"effect": dict(effect)}),
    }
    check_rows([row], splits=(TEST, VALIDATION))
    return row


def attack_effect(
    norms: npt.NDArray[np.floating], reached: npt.NDArray[np.bool_]
) -> dict[str, float | None]:
    """What an attack did to images, whatever a defence makes of them.

    Args:
        norms: L2 and L-inf norm of the change of each image ``(n, 2)``, pixels from 0 to 1.
        reached: Which attacks reached their aim, ``(n,)``: the target's class, or without a
            target, any wrong one, at the model that was attacked.

    Returns:
        ``success``, the share that reached it, and ``mean_l2`` and ``mean_linf`` of these, as
        Feature Squeezing's tables give them; ``None`` where there are none.

    Example:
        >>> attack_effect(np.array([[0.5, 0.25], [3.0, 1.0]]), np.array([True, False]))
        {'success': 0.5, 'mean_l2': 0.5, 'mean_linf': 0.25}

    References:
        Xu et al., "Feature Squeezing", NDSS 2018.
    """
    means = norms[reached].mean(axis=0).tolist() if reached.any() else [None, None]
    return {"success": float(reached.mean()), "mean_l2": means[0], "mean_linf": means[1]}


def check_rows(rows: Sequence[Row], *, splits: Sequence[str] = (TEST,)) -> None:
    """Refuse rows that lack a key, contradict themselves or occur twice.

    Args:
        rows: What ``accuracy_row`` returns.
        splits: Splits that they may be of.

    Raises:
        ValueError: With the number of the row and what is wrong with it.

    Example:
        >>> check_rows([{"defence": "none", "accuracy": 0.9}])
        Traceback (most recent call last):
        ...
        ValueError: `rows[0]` must have the keys ['attack', 'attack_family', 'correct', 'count',
        'epsilon', 'family', 'interval', 'norm', 'split', 'threat_model'] too.
        Received: {'accuracy': 0.9, 'defence': 'none'}
    """
    seen = set()
    for number, row in enumerate(rows):
        received = f"Received: {shown(row)}"
        if not isinstance(row, Mapping):
            raise ValueError(f"`rows[{number}]` must be a dictionary. {received}")
        if missing := sorted(_KEYS - set(row)):
            raise ValueError(f"`rows[{number}]` must have the keys {missing} too. {received}")
        for rule, holds in (*_text_rules(row, splits), *_number_rules(row)):
            if not holds:
                raise ValueError(f"`rows[{number}]` must have {rule}. {received}")
        key = row["defence"], row["threat_model"], row["attack"]
        if key in seen:
            raise ValueError(f"`rows` must hold each figure once. {received}")
        seen.add(key)


class Mean(NamedTuple):
    """Mean accuracy over attacks.

    Args:
        accuracy: From 0 to 1.
        low: Mean of the lower ends of the 95 % intervals.
        high: Mean of their upper ends. Attacks share their images, so their errors do not average
            out: the interval is as wide for many attacks as for one.
    """

    accuracy: float
    low: float
    high: float


class AccuracyGrid:
    """Accuracies by defence, threat model and attack.

    Args:
        rows: Valid rows.
        order: Names of defences in the order in which they are shown; those without rows are
            left out, and others follow.

    Example:
        >>> row = accuracy_row(
        ...     defence="none", family="none", threat_model="benign", correct=9, count=10
        ... )
        >>> grid = AccuracyGrid([row])
        >>> grid.defences, grid.columns, grid.benign("none").accuracy
        (['none'], [('benign', 'none')], 0.9)
    """

    def __init__(self, rows: Sequence[Row], order: Iterable[str] = ()) -> None:
        self._rows = {(row["defence"], row["threat_model"], row["attack"]): row for row in rows}
        self.families: dict[str, str] = {row["defence"]: row["family"] for row in rows}
        named = dict.fromkeys([*order, *self.families])
        self.defences = [name for name in named if name in self.families]
        pairs = dict.fromkeys((row["threat_model"], row["attack"]) for row in rows)
        # Sorting is stable: attacks stay in the order in which they came.
        self.columns = sorted(pairs, key=lambda pair: list(THREAT_MODELS).index(pair[0]))

    @property
    def threat_models(self) -> list[str]:
        """Those with an attacker, in the order in which they are shown."""
        return [name for name in dict.fromkeys(pair[0] for pair in self.columns) if name != BENIGN]

    @property
    def ours(self) -> list[str]:
        """Names of the feature-distillation defences."""
        return [name for name in self.defences if self.families[name] == OURS]

    @property
    def baselines(self) -> list[str]:
        """Names of the other defences, without the undefended classifier."""
        return [name for name in self.defences if self.families[name] not in (OURS, UNDEFENDED)]

    @property
    def undefended(self) -> str | None:
        """Name of the undefended classifier, if it was evaluated."""
        names = (name for name in self.defences if self.families[name] == UNDEFENDED)
        return next(names, None)

    def row(self, defence: str, threat_model: str, attack: str) -> Row | None:
        """One accuracy, if it was measured.

        Args:
            defence: Name of the defence.
            threat_model: The threat model.
            attack: Name of the attack.
        """
        return self._rows.get((defence, threat_model, attack))

    def attacks(self, threat_model: str, defence: str | None = None) -> list[str]:
        """Attacks that were run under a threat model.

        Args:
            threat_model: The threat model.
            defence: Only those run against this defence.
        """
        return [
            attack
            for model, attack in self.columns
            if model == threat_model and (defence is None or self.row(defence, model, attack))
        ]

    def shown(self, threat_model: str) -> list[str]:
        """Names of the defences that a table of one threat model shows.

        Of benign and certified accuracy these are all, so that it is seen where nothing is proven.

        Args:
            threat_model: The threat model.
        """
        everywhere = threat_model in (BENIGN, CERTIFIED)
        return [n for n in self.defences if everywhere or self.attacks(threat_model, n)]

    def counts(self, threat_model: str, attack: str, defences: Sequence[str]) -> str:
        """From how many images some accuracies are, such as ``"32-200"`` where it differs.

        Args:
            threat_model: The threat model.
            attack: Name of the attack.
            defences: Names of the defences; one that was not measured is left out.
        """
        rows = [self.row(name, threat_model, attack) for name in defences]
        found = {row["count"] for row in rows if row is not None}
        return "-".join(map(str, sorted({min(found), max(found)}))) if found else "-"

    def shared_attacks(self, threat_model: str, defences: Sequence[str]) -> list[str]:
        """Attacks that were run under a threat model against every one of some defences.

        PGD without a bound is left out: it is there for a sanity check, and nothing withstands it.

        Args:
            threat_model: The threat model.
            defences: Names of the defences.
        """
        return [
            attack
            for attack in self.attacks(threat_model)
            if all(_bounded(self.row(name, threat_model, attack)) for name in defences)
        ]

    @property
    def effects(self) -> dict[str, Mapping[str, float | None]]:
        """What each attack on the undefended classifier did, by its name."""
        found: dict[str, Mapping[str, float | None]] = {}
        for row in self._rows.values():
            if row["defence"] == self.undefended and row.get("effect"):
                found.setdefault(row["attack"], row["effect"])
        return found

    def benign(self, defence: str) -> Mean | None:
        """Accuracy without an attack, if it was measured.

        Args:
            defence: Name of the defence.
        """
        return self.mean(defence, BENIGN, [NO_ATTACK])

    def mean(self, defence: str, threat_model: str, attacks: Sequence[str]) -> Mean | None:
        """Mean accuracy under several attacks of one threat model, if all were run.

        Args:
            defence: Name of the defence.
            threat_model: The threat model.
            attacks: Names of the attacks.
        """
        rows = [self.row(defence, threat_model, attack) for attack in attacks]
        found = [row for row in rows if row is not None]
        if not found or len(found) < len(rows):
            return None
        triples = [(row["accuracy"], *row["interval"]) for row in found]
        return Mean(*(sum(values) / len(found) for values in zip(*triples)))


def is_number(value: object) -> bool:
    """Whether ``value`` is an int or a float that JSON can hold.

    Args:
        value: Anything.

    Example:
        >>> is_number(3), is_number(True), is_number(float("nan"))
        (True, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_effect(effect: Any) -> bool:
    if effect is None:
        return True
    if not isinstance(effect, Mapping) or set(effect) != set(_EFFECT):
        return False
    success, *norms = (effect[key] for key in _EFFECT)
    return (
        is_number(success) and 0 <= success <= 1 and all(n is None or is_number(n) for n in norms)
    )


def _text_rules(row: Row, splits: Sequence[str]) -> list[tuple[str, bool]]:
    benign = row["threat_model"] == BENIGN
    return [
        *(
            (f"a name as {key}", isinstance(row[key], str) and bool(row[key].strip()))
            for key in ("defence", "family", "attack")
        ),
        (f"a threat_model of {list(THREAT_MODELS)}", row["threat_model"] in THREAT_MODELS),
        ("attack 'none' exactly with threat_model 'benign'", (row["attack"] == "none") == benign),
        ("attack_family as text or None", isinstance(row["attack_family"], str | None)),
        (f"an effect of the numbers {list(_EFFECT)}", _is_effect(row.get("effect"))),
        ("norm 'inf', '2' or None", row["norm"] in _NORMS),
        # Images that a defence was tuned on flatter it.
        (f"split {' or '.join(map(repr, splits))}", row["split"] in splits),
    ]


def _number_rules(row: Row) -> list[tuple[str, bool]]:
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


def _bounded(row: Mapping[str, Any] | None) -> bool:
    """Whether an attack was run that is not the sanity check's."""
    return row is not None and (row["epsilon"] or 0.0) < UNBOUNDED
