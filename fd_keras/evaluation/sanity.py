"""Sanity checks of an evaluation: signs that its attacks were too weak.

A defence that masks its gradient looks strong under weak attacks. The signs of it are listed by
Athalye et al. (ICML 2018) and Carlini et al. ("On Evaluating Adversarial Robustness",
arXiv:1902.06705).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fd_keras.evaluation.accuracies import TWO_PASS, UNDEFENDED
from fd_keras.evaluation.attacks import Attack

# An attack this strong, in grey levels of 255, may turn an image into any other.
_UNBOUNDED = 127.5
_ABOUT_ZERO = 0.05

# An attack without a bound that reaches its aim on fewer images of the classifier alone has failed.
_MOST = 0.5

# A classifier that is less far above chance, as a share of the way from there to 1, hardly knows
# these classes.
_NEAR_CHANCE = 0.1

# The usual causes of an accuracy near chance.
CAUSES = (
    "the order of the classes (--classes, labels), the value range of the pixels (value_range) "
    "and whether the model returns logits or probabilities (from_logits, output)"
)


def check_clean_accuracy(right: int, seen: int, classes: int) -> dict[str, object]:
    """Whether the classifier alone is better than chance on the images that were read.

    Args:
        right: Number of images that it gets right.
        seen: Number of images that were read.
        classes: Number of its classes.

    Returns:
        A check as a report holds it.

    Example:
        >>> check_clean_accuracy(9, 10, 10)["passed"], check_clean_accuracy(1, 10, 10)["passed"]
        (True, False)
    """
    chance, accuracy = 1 / classes, right / seen
    passed = (accuracy - chance) / (1 - chance) >= _NEAR_CHANCE if classes > 1 else True
    detail = (
        f"without attack and defence, {right} of {seen} images read are right, "
        f"{100 * accuracy:.1f} %; chance is {100 * chance:.1f} %"
    )
    if not passed:
        detail += f". Check {CAUSES}"
    return {
        "name": "the classifier is better than chance",
        "passed": passed,
        "detail": detail,
        "defence": UNDEFENDED,
    }


@dataclass(frozen=True, eq=False)
class Outcome:
    """Which images are classified correctly under one attack.

    Args:
        attack: The attack.
        threat_model: ``"gray-box"``, ``"adaptive"`` or ``"black-box"``; in two passes, such as
            ``"two-pass adaptive"``.
        correct: Booleans ``(n,)``, for the first ``n`` images that are attacked.
        within: Which attacked images lie within the certified radius of the stored ones,
            ``(n,)``; ``None`` where nothing is certified.
        changed: Which of them are classified differently from the stored ones, ``(n,)``.
        effect: What the attack did, as ``attack_effect`` returns it.

    Example:
        >>> from fd_keras.evaluation.attacks import fgsm
        >>> Outcome(fgsm(2.55), "gray-box", np.array([True, False])).accuracy
        0.5
    """

    attack: Attack
    threat_model: str
    correct: npt.NDArray[np.bool_]
    within: npt.NDArray[np.bool_] | None = None
    changed: npt.NDArray[np.bool_] | None = None
    effect: Mapping[str, float | None] | None = None

    @property
    def attacker(self) -> str:
        """The threat model, whatever the number of passes."""
        return self.threat_model.removeprefix(TWO_PASS)

    @property
    def accuracy(self) -> float:
        """Share of images that are classified correctly."""
        return float(self.correct.mean())

    @property
    def title(self) -> str:
        """Threat model and name of the attack."""
        return f"{self.threat_model} {self.attack.name}"


def check_outcomes(defence: str, outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """Check whether the attacks on one defence were as strong as they should be.

    * An adaptive attacker is never weaker than a gray-box one at the same bound.
    * Accuracy falls to about 0 for a bound that allows everything, and never rises with the bound.
    * More iterations never help the defender.
    * An attack without gradients is not stronger than one with gradients.
    * No attack changes a prediction within the certified radius, which would refute the proof.
    * An attack without a bound reaches its aim on most images of the undefended classifier; CW's
      confidence may be more than small logits can reach.

    Differences within noise are allowed, but not within a certified radius: two standard errors
    of the paired difference, or one image.

    Args:
        defence: Name of the defence.
        outcomes: Outcomes of all attacks on it.

    Returns:
        One dictionary per check, with ``name``, ``passed``, ``detail`` and ``defence``. Checks
        that lack the attacks that they compare are left out.

    Example:
        >>> from fd_keras.evaluation.attacks import pgd
        >>> weak = Outcome(pgd(2.55), "adaptive", np.ones(50, bool))
        >>> strong = Outcome(pgd(2.55), "gray-box", np.zeros(50, bool))
        >>> [check["passed"] for check in check_outcomes("masked", [weak, strong])]
        [False]
    """
    bounded = [outcome for outcome in outcomes if outcome.attack.epsilon is not None]
    by_model: dict[str, list[Outcome]] = {"gray-box": [], "adaptive": [], "black-box": []}
    for outcome in bounded:
        by_model[outcome.attacker].append(outcome)
    found = [
        _combined("adaptive is never gentler than gray-box", _against_gray_box(by_model)),
        _combined("accuracy falls to about 0 without a bound", _unbounded(by_model["adaptive"])),
        _combined("a larger epsilon never helps the defender", _larger_epsilon(by_model)),
        _combined("more iterations never help the defender", _more_iterations(by_model)),
        _combined("black-box is not stronger than adaptive", _against_black_box(by_model)),
        _combined("no attack wins within the certified radius", _within_radius(outcomes)),
    ]
    if defence == UNDEFENDED:
        aims = _combined("attacks without a bound reach their aim", _reaching(outcomes))
        found.append(aims)
    return [{**check, "defence": defence} for check in found if check]


# Typing alias: whether a comparison holds, and a sentence that says what was found.
_Finding = tuple[bool, str]


def _combined(name: str, findings: Iterator[_Finding]) -> dict[str, object] | None:
    """One check: its failures, or else all of its comparisons."""
    ordered = sorted(findings, key=lambda finding: finding[0])
    if not ordered:
        return None
    passed = ordered[0][0]
    shown = [text for held, text in ordered if held == passed]
    return {"name": name, "passed": passed, "detail": "; ".join(shown)}


def _against_gray_box(outcomes: Mapping[str, list[Outcome]]) -> Iterator[_Finding]:
    for gray in outcomes["gray-box"]:
        allowed = [o for o in outcomes["adaptive"] if _bound(o) <= _bound(gray)]
        if allowed and max(map(_bound, allowed)) == _bound(gray):
            yield _not_above(min(allowed, key=lambda o: o.accuracy), gray)


def _reaching(outcomes: Sequence[Outcome]) -> Iterator[_Finding]:
    for outcome in outcomes:
        success = (outcome.effect or {}).get("success")
        if outcome.attack.epsilon is None and success is not None:
            text = f"{outcome.title} reaches its aim on {100 * success:.0f} % of the images"
            yield success >= _MOST, text


def _unbounded(adaptive: list[Outcome]) -> Iterator[_Finding]:
    for outcome in adaptive:
        if _bound(outcome) >= _UNBOUNDED:
            left = int(outcome.correct.sum())
            held = left <= max(1, _ABOUT_ZERO * len(outcome.correct))
            yield held, f"{outcome.title} leaves {left} of {len(outcome.correct)} images right"


def _larger_epsilon(outcomes: Mapping[str, list[Outcome]]) -> Iterator[_Finding]:
    for _, series in _series(outcomes, lambda attack: (attack.family, attack.iterations)):
        ordered = sorted(series, key=_bound)
        for weaker, stronger in itertools.pairwise(ordered):
            if weaker.attacker != "black-box" and weaker.attack.family != "FGSM":
                yield _not_above(stronger, weaker)


def _more_iterations(outcomes: Mapping[str, list[Outcome]]) -> Iterator[_Finding]:
    only_adaptive = {"adaptive": outcomes["adaptive"]}
    for _, series in _series(only_adaptive, lambda attack: (attack.family, attack.epsilon)):
        ordered = sorted(series, key=lambda o: o.attack.iterations)
        for fewer, more in itertools.pairwise(ordered):
            yield _not_above(more, fewer)


def _against_black_box(outcomes: Mapping[str, list[Outcome]]) -> Iterator[_Finding]:
    for blind in outcomes["black-box"]:
        same = [o for o in outcomes["adaptive"] if o.attack.epsilon == blind.attack.epsilon]
        if same:
            yield _not_above(min(same, key=lambda o: o.accuracy), blind)


def _within_radius(outcomes: Sequence[Outcome]) -> Iterator[_Finding]:
    for outcome in outcomes:
        if outcome.within is not None and outcome.changed is not None and outcome.within.any():
            within, changed = int(outcome.within.sum()), int(outcome.changed[outcome.within].sum())
            yield changed == 0, f"{outcome.title} changes {changed} of {within} predictions"


def _series(
    outcomes: Mapping[str, list[Outcome]], key: Callable[[Attack], object]
) -> Iterator[tuple[object, list[Outcome]]]:
    groups: dict[object, list[Outcome]] = {}
    for threat_model, members in outcomes.items():
        for outcome in members:
            groups.setdefault((threat_model, key(outcome.attack)), []).append(outcome)
    yield from groups.items()


def _bound(outcome: Outcome) -> float:
    assert outcome.attack.epsilon is not None  # only bounded attacks are compared
    return outcome.attack.epsilon


def _not_above(stronger: Outcome, weaker: Outcome) -> _Finding:
    """Whether the accuracy under ``stronger`` is not above that under ``weaker``, up to noise."""
    count = min(len(stronger.correct), len(weaker.correct))
    gap = stronger.correct[:count].astype(float) - weaker.correct[:count]
    noise = max(2 * gap.std() / np.sqrt(count), 1 / count)
    detail = (
        f"{stronger.title} leaves {100 * stronger.correct[:count].mean():.1f} %, {weaker.title} "
        f"{100 * weaker.correct[:count].mean():.1f} % of {count} images right"
    )
    return bool(gap.mean() <= noise), detail
