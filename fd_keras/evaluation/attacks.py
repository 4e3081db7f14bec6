"""Attacks with fixed parameters.

The threat model depends on what an attack is generated on. On the classifier alone it is
*gray-box*: the attacker knows the classifier, but not the defence. On the classifier behind its
defence it is *adaptive* if the attacker differentiates through both, with a substitute for the
gradient of the defence (BPDA, Athalye et al. 2018), and *black-box* if it uses no gradient.

Perturbation strengths are in grey levels of 255, whatever value range a classifier takes: 4 means
4/255.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fd_keras._checks import (
    SMALLEST_EPSILON,
    check_range,
    checked_labels,
    checked_whole,
    shown,
)
from fd_keras.evaluation.runners import FAMILIES, TARGETS, library, runner

# Typing alias: called with the number of images just attacked.
OnBatch = Callable[[int], None]

# APGD on the difference of logits ratio (DLR) compares the first with the third logit.
_DLR_CLASSES = 3
# Wrong classes that the standard AutoAttack aims at.
_DLR_TARGETS = 9
# In the place of FAB.
_BOUNDARY = "LinfDeepFoolAttack"


@dataclass(frozen=True)
class Attack:
    """An evasion attack with all of its parameters.

    Args:
        name: Name in reports, with the strength.
        family: One of ``FGSM``, ``BIM``, ``PGD``, ``Half-step``, ``Square`` and ``AutoAttack``,
            which are ART's; ``DeepFool`` and ``CW-L2``, which are Foolbox's; and ``CW-Linf``.
        norm: ``"inf"`` or ``"2"``: the norm that the attack bounds or minimises.
        epsilon: Bound on the norm in grey levels of 255; ``None`` for attacks that minimise the
            norm.
        parameters: Arguments of the library's class, for pixels from 0 to 1.
        batch_size: Number of images attacked at once.

    Raises:
        ValueError: There is no such family, or ``epsilon`` is not in grey levels.

    Example:
        >>> fgsm(1.989).name
        'FGSM .0078'
    """

    name: str
    family: str
    norm: str
    epsilon: float | None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(
                f"`family` must be one of {FAMILIES}. Received: family={shown(self.family)}"
            )
        if self.epsilon is not None:
            _checked_epsilon(self.epsilon)

    @property
    def unit_epsilon(self) -> float | None:
        """The bound for pixels from 0 to 1, as reports and caches store it."""
        return None if self.epsilon is None else _unit(self.epsilon)

    @property
    def iterations(self) -> int:
        """Maximum number of iterations; 1 for single-step attacks."""
        names = ("max_iter", "steps", "iterations")  # ART's, Foolbox's and ours
        return int(next((self.parameters[name] for name in names if name in self.parameters), 1))

    @property
    def target(self) -> str | None:
        """``"next"`` or ``"least likely"`` for a targeted attack."""
        return self.parameters.get("target")

    @property
    def library(self) -> str | None:
        """Name of the package that makes it; ``None`` where it is our own."""
        return library(self.family)

    @property
    def uses_gradient(self) -> bool:
        """Whether it differentiates the classifier; else it only queries it."""
        return self.family != "Square"

    def for_classes(self, count: int) -> Attack:
        """The attack on a classifier with so many classes.

        Args:
            count: Number of classes.

        Returns:
            The attack itself, or AutoAttack without DLR where there are two classes.

        Example:
            >>> autoattack(8).for_classes(2).name
            'AutoAttack 8/255 without DLR'
        """
        if count >= _DLR_CLASSES or not self._has_dlr:
            return self
        parameters = {**self.parameters, "dlr": False}
        return replace(self, name=f"{self.name} without DLR", parameters=parameters)

    @property
    def _has_dlr(self) -> bool:
        return self.family == "AutoAttack" and bool(self.parameters.get("dlr", True))

    def to_dict(self) -> dict[str, Any]:
        """Everything that decides what the attack does, as plain JSON types."""
        return {
            "name": self.name,
            "family": self.family,
            "norm": self.norm,
            "epsilon": self.unit_epsilon,
            "parameters": dict(self.parameters),
            "batch_size": self.batch_size,
        }

    def generate(
        self,
        classifier: Any,
        images: npt.NDArray[np.generic],
        labels: npt.NDArray[np.integer],
        *,
        seed: int = 1,
        on_batch: OnBatch | None = None,
        until_wrong: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Attack images.

        Args:
            classifier: What ``art_classifier`` returns.
            images: ``(n, height, width, channels)`` within the classifier's value range.
            labels: True classes ``(n,)``, integers.
            seed: Seed of everything random in the attack. NumPy's global generator, which ART
                draws from, is restored afterwards.
            on_batch: Called with the number of images just attacked.
            until_wrong: Whether BIM, PGD and half-step leave an image once it is misclassified,
                which is as strong against this very classifier, and faster the fewer images
                withstand. Images that must fool it behind a defence, too, or classifiers that are
                random, need all steps.

        Returns:
            Attacked images, float32, within the value range.

        Raises:
            ImportError: ART is not installed.
            ValueError: Labels or images do not fit the classifier.

        Example:
            >>> import keras
            >>> from fd_keras.evaluation import art_classifier
            >>> model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten()])
            >>> image = np.array([[[[100.0], [90.0]]]], np.float32)
            >>> attacked = fgsm(8).generate(art_classifier(model), image, np.array([0]))
            >>> attacked.ravel().round(3)
            array([92., 98.], dtype=float32)
        """
        labels = checked_labels(labels, len(images))
        _check_fit(classifier, images, labels)
        if self._has_dlr and classifier.nb_classes < _DLR_CLASSES:
            raise ValueError(
                f"`classifier` must have {_DLR_CLASSES} classes for {self.name}; take "
                "autoattack(epsilon, dlr=False). "
                f"Received: a classifier of {classifier.nb_classes} classes"
            )
        attack = runner(
            self.family,
            self.parameters,
            classifier,
            batch_size=self.batch_size,
            until_wrong=until_wrong,
        )
        attacked = []
        with _seeded(seed):
            for start in range(0, len(images), self.batch_size):
                batch = slice(start, start + self.batch_size)
                attacked.append(attack(images[batch].astype(np.float32), labels[batch]))
                if on_batch:
                    on_batch(len(attacked[-1]))
        return np.concatenate(attacked).astype(np.float32)


def fgsm(epsilon: float) -> Attack:
    """FGSM: one step of ``epsilon`` along the sign of the loss gradient.

    Args:
        epsilon: Change of a pixel in grey levels of 255.

    Raises:
        ValueError: ``epsilon`` is not in grey levels of 255.

    Example:
        >>> fgsm(2).name
        'FGSM 2/255'

    References:
        Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015.
    """
    return Attack(f"FGSM {_text(epsilon)}", "FGSM", "inf", epsilon, {"eps": _unit(epsilon)})


def bim(epsilon: float, step: float, iterations: int = 10) -> Attack:
    """BIM: iterated FGSM within ``epsilon`` of the image.

    Args:
        epsilon: Largest change of a pixel in grey levels of 255.
        step: Change of a pixel in one iteration in grey levels of 255, at most ``epsilon``.
        iterations: Number of steps.

    Raises:
        ValueError: ``epsilon`` or ``step`` is not in grey levels of 255, ``step`` is larger than
            ``epsilon``, or ``iterations`` is no whole number from 1 on.

    Example:
        >>> bim(1.02, 0.51).name
        'BIM .004'

    References:
        Kurakin et al., "Adversarial Examples in the Physical World", 2017.
    """
    step = _checked_step(step, _checked_epsilon(epsilon), iterations)
    if step > epsilon:
        raise ValueError(
            f"`step` must be at most `epsilon`. Received: step={shown(step)}, "
            f"epsilon={shown(epsilon)}"
        )
    parameters = {"eps": _unit(epsilon), "eps_step": _unit(step), "max_iter": iterations}
    return Attack(f"BIM {_text(epsilon)}", "BIM", "inf", epsilon, parameters)


def pgd(
    epsilon: float, iterations: int = 20, *, step: float | None = None, restarts: int = 1
) -> Attack:
    """PGD: iterated signed gradient steps from a random start within ``epsilon``.

    Args:
        epsilon: Largest change of a pixel in grey levels of 255.
        iterations: Number of steps.
        step: Change of a pixel in one iteration in grey levels of 255. Default:
            ``2.5 * epsilon / iterations``.
        restarts: Number of random starts; the first that succeeds counts.

    Raises:
        ValueError: ``epsilon`` or ``step`` is not in grey levels of 255, or ``iterations`` or
            ``restarts`` is no whole number from 1 on.

    Example:
        >>> pgd(8).name
        'PGD-20 8/255'

    References:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018.
    """
    checked_whole("iterations", iterations, 1)
    checked_whole("restarts", restarts, 1)
    if step is None:
        unit_step = 2.5 * _unit(epsilon) / iterations
    else:
        unit_step = _unit(_checked_step(step, epsilon, iterations))
    parameters = {
        "eps": _unit(epsilon),
        "eps_step": unit_step,
        "max_iter": iterations,
        "num_random_init": restarts,
    }
    times = f" x{restarts}" if restarts > 1 else ""
    return Attack(f"PGD-{iterations}{times} {_text(epsilon)}", "PGD", "inf", epsilon, parameters)


def half_step(epsilon: float, iterations: int = 40) -> Attack:
    """Half step: PGD that carries coefficients over the half step to their next level.

    It starts from the image itself and is for defences whose images lie on a lattice before they
    are attacked, as in two passes: there, every coefficient is half a step from the next level.
    Through such a defence, it follows a gradient of its own, which aims at the coefficients that
    are nearest to their boundary in the direction that the loss asks for. Elsewhere it is PGD
    without a random start.

    Args:
        epsilon: Largest change of a pixel in grey levels of 255.
        iterations: Number of steps of ``2.5 * epsilon / iterations``.

    Raises:
        ValueError: ``epsilon`` is not in grey levels of 255, or ``iterations`` is no whole number
            from 1 on.

    Example:
        >>> half_step(2).name
        'Half-step-40 2/255'
    """
    checked_whole("iterations", iterations, 1)
    parameters = {
        "eps": _unit(epsilon),
        "eps_step": 2.5 * _unit(epsilon) / iterations,
        "max_iter": iterations,
        "num_random_init": 0,
    }
    name = f"Half-step-{iterations} {_text(epsilon)}"
    return Attack(name, "Half-step", "inf", epsilon, parameters)


def deepfool(iterations: int = 50, overshoot: float = 0.02) -> Attack:
    """DeepFool: step to the nearest linearised decision boundary until the class changes.

    It is untargeted and minimises the L2 norm. It is Foolbox's, with the ten likeliest classes. An
    image whose class has not changed after the last step is returned as it then is.

    Args:
        iterations: Maximum number of steps.
        overshoot: How far to step beyond the boundary, as a share of the perturbation.

    Raises:
        ValueError: ``iterations`` is no whole number from 1 on.

    Example:
        >>> deepfool().epsilon is None
        True

    References:
        Moosavi-Dezfooli et al., "DeepFool", CVPR 2016. Foolbox: Rauber et al., JOSS 2020.
    """
    checked_whole("iterations", iterations, 1)
    parameters = {"steps": iterations, "overshoot": overshoot, "candidates": 10}
    return Attack("DeepFool", "DeepFool", "2", None, parameters)


def carlini_wagner_l2(
    target: str = "next",
    confidence: float = 5.0,
    iterations: int = 1000,
    *,
    search_steps: int = 9,
    initial_const: float = 1e-3,
    step_size: float = 0.01,
) -> Attack:
    """CW-L2: minimise the L2 norm of the perturbation plus a hinge loss on the logits.

    It is targeted, and Foolbox's, with the parameters of Carlini's code. Where it finds no image
    on target, the benign image is returned. An attacked image succeeds only if it is on target; a
    classifier is right only if it gives the true class.

    Args:
        target: ``"next"``: the class after the true one. ``"least likely"``: that of the smallest
            logit of the benign image.
        confidence: By how much the target's logit must exceed the others.
        iterations: Maximum number of Adam's steps for each weight of the hinge loss. A batch ends
            earlier where a tenth of them brought it no further.
        search_steps: Number of weights of the hinge loss that are tried.
        initial_const: First weight of the hinge loss.
        step_size: Of Adam.

    Raises:
        ValueError: There is no such target, or a number of steps is no whole number from 1 on.

    Example:
        >>> carlini_wagner_l2("least likely").name
        'CW-L2 least likely'

    References:
        Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017.
        Foolbox: Rauber et al., JOSS 2020.
    """
    checked_whole("iterations", iterations, 1)
    checked_whole("search_steps", search_steps, 1)
    parameters = {
        "target": _checked_target(target),
        "confidence": confidence,
        "steps": iterations,
        "binary_search_steps": search_steps,
        "initial_const": initial_const,
        "stepsize": step_size,
        "abort_early": True,
    }
    return Attack(f"CW-L2 {target}", "CW-L2", "2", None, parameters)


def carlini_wagner_linf(
    target: str = "next",
    confidence: float = 5.0,
    iterations: int = 200,
    *,
    initial_const: float = 1e-3,
    const_factor: float = 10.0,
    step_size: float = 0.005,
) -> Attack:
    """CW-Linf: lower a bound on the change of a pixel for as long as the target can be reached.

    It is Carlini's attack, but with fewer steps: his code makes up to 1000 for each of 21 weights
    of the hinge loss. Where it finds no image on target, the benign image is returned.

    Args:
        target: As for ``carlini_wagner_l2``.
        confidence: As for ``carlini_wagner_l2``.
        iterations: Maximum number of Adam's steps for each weight of the hinge loss.
        initial_const: First weight of the hinge loss.
        const_factor: What it grows by, up to 20, where the steps do not suffice.
        step_size: Of Adam.

    Raises:
        ValueError: There is no such target, or ``iterations`` is no whole number from 1 on.

    Example:
        >>> carlini_wagner_linf().name
        'CW-Linf next'

    References:
        Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017.
    """
    checked_whole("iterations", iterations, 1)
    parameters = {
        "target": _checked_target(target),
        "confidence": confidence,
        "iterations": iterations,
        "step_size": step_size,
        "initial_const": initial_const,
        "largest_const": 20.0,
        "const_factor": const_factor,
        "decrease_factor": 0.9,
    }
    return Attack(f"CW-Linf {target}", "CW-Linf", "inf", None, parameters)


def square(epsilon: float, queries: int = 1000) -> Attack:
    """Square Attack: random search by queries, without gradients.

    Args:
        epsilon: Largest change of a pixel in grey levels of 255.
        queries: Maximum number of predictions per image.

    Raises:
        ValueError: ``epsilon`` is not in grey levels of 255, or ``queries`` is no whole number from
            1 on.

    Example:
        >>> square(8).name
        'Square-1000 8/255'

    References:
        Andriushchenko et al., "Square Attack", ECCV 2020.
    """
    checked_whole("queries", queries, 1)
    parameters = {"eps": _unit(epsilon), "max_iter": queries, "p_init": 0.8}
    return Attack(f"Square-{queries} {_text(epsilon)}", "Square", "inf", epsilon, parameters)


def autoattack(epsilon: float, *, dlr: bool = True) -> Attack:
    """AutoAttack, as near to its standard version as ART and Foolbox have it.

    That version has APGD on cross-entropy, APGD on the difference of logits ratio (DLR) aimed at
    the nine likeliest wrong classes, FAB aimed at these, and Square with 5000 queries; each attacks
    what withstood those before, from one start, and APGD's first step is ``2 * epsilon``. So does
    this one, with one difference. ART has no FAB: Foolbox's DeepFool in the L-inf norm takes its
    place, which like FAB seeks the nearest wrong class, but does not go back to the image on its
    way; its result counts if it lies within the bound.

    Args:
        epsilon: Largest change of a pixel in grey levels of 255.
        dlr: Whether APGD on the difference of logits ratio takes part; it needs three classes.
            ``evaluate`` and ``refine`` leave it out where there are two.

    Raises:
        ValueError: ``epsilon`` is not in grey levels of 255.

    Example:
        >>> autoattack(8).name
        'AutoAttack 8/255'

    References:
        Croce & Hein, "Reliable Evaluation of Adversarial Robustness", ICML 2020.
    """
    parameters = {
        "eps": _unit(epsilon),
        "eps_step": 2 * _unit(epsilon),
        "dlr": "targeted",
        "targets": _DLR_TARGETS,
        "boundary": _BOUNDARY,
    }
    attack = Attack(f"AutoAttack {_text(epsilon)}", "AutoAttack", "inf", epsilon, parameters)
    return attack if dlr else attack.for_classes(2)


def _checked_epsilon(epsilon: float) -> float:
    if not SMALLEST_EPSILON <= epsilon <= 255:
        raise ValueError(
            f"`epsilon` must be grey levels of 255, from {SMALLEST_EPSILON} to 255: for 0.0078 of "
            f"pixels from 0 to 1, write 1.989. Received: epsilon={shown(epsilon)}"
        )
    return epsilon


def _checked_target(target: str) -> str:
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {TARGETS}. Received: target={shown(target)}")
    return target


def _checked_step(step: float, epsilon: float, iterations: int) -> float:
    """Refuse steps that were meant for pixels from 0 to 1; they do not come near the bound."""
    checked_whole("iterations", iterations, 1)
    if not min(SMALLEST_EPSILON, epsilon / iterations) <= step <= 255:
        raise ValueError(
            f"`step` must be grey levels of 255, at least {SMALLEST_EPSILON} unless `iterations` "
            f"smaller steps reach `epsilon`. Received: step={shown(step)}, "
            f"epsilon={shown(epsilon)}, iterations={shown(iterations)}"
        )
    return step


def _unit(levels: float) -> float:
    """Grey levels as a share of 255; 1.989 gives 0.0078 to the last bit, as papers write it."""
    share = levels / 255
    short = float(f"{share:.12g}")
    return short if abs(share - short) < 1e-16 else share


def _text(epsilon: float) -> str:
    """``2/255`` for whole grey levels, else the share of 255 as papers write it: ``.0078``."""
    if abs(epsilon - np.rint(epsilon)) < 1e-9:
        return f"{epsilon:.0f}/255"
    return f"{_unit(epsilon):g}".lstrip("0")


def _check_fit(
    classifier: Any, images: npt.NDArray[np.generic], labels: npt.NDArray[np.integer]
) -> None:
    classes = classifier.nb_classes
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"`labels` must lie from 0 to {classes - 1}, the classifier's classes. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )
    low, high = classifier.clip_values.tolist()
    check_range("images", images, (low, high))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    state = np.random.get_state()  # ART draws from it
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)
