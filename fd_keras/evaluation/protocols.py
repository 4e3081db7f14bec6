"""Named protocols: sets of attacks with fixed parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fd_keras._checks import checked_whole, shown
from fd_keras.evaluation.attacks import (
    Attack,
    autoattack,
    bim,
    carlini_wagner_l2,
    carlini_wagner_linf,
    deepfool,
    fgsm,
    half_step,
    pgd,
    square,
)
from fd_keras.evaluation.defences import CANDIDATES
from fd_keras.evaluation.runners import FAMILIES, TARGETS

# So strong that any classifier fails, unless its gradient is masked.
_UNBOUNDED = pgd(127.5, 20)

# Of the attacks that are added in two passes.
_ITERATIONS = 40

_DEFENCES = ("feature distillation", *CANDIDATES)
_LIMITABLE = (*FAMILIES, "gray-box", "adaptive", "black-box", *_DEFENCES)


@dataclass(frozen=True, repr=False)
class Protocol:
    """The attacks of an evaluation, by threat model.

    Args:
        name: Name in reports.
        description: Origin of the attacks, in one sentence.
        gray_box: Attacks on the classifier alone.
        adaptive: Attacks through each defence.
        black_box: Attacks on the classifier behind each defence, without gradients.
        limits: Maximum number of images for what is slow, by family of attack, family of defence
            or threat model, such as ``{"CW-L2": 50, "quilting": 20, "adaptive": 100}``.
        eot_draws: Number of draws of a random defence that an adaptive attacker averages over.

    Raises:
        ValueError: ``limits`` holds an unknown name, something else than whole numbers, or 0 for a
            family of defences; two attacks under one threat model share a name; or ``eot_draws`` is
            no whole number from 1 on.

    Example:
        >>> [attack.name for attack in PROTOCOLS["linf-sweep"].gray_box]
        ['PGD-20 1/255', 'PGD-20 2/255', 'PGD-20 4/255', 'PGD-20 8/255']
    """

    name: str
    description: str
    gray_box: tuple[Attack, ...] = ()
    adaptive: tuple[Attack, ...] = ()
    black_box: tuple[Attack, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    eot_draws: int = 4

    def __post_init__(self) -> None:
        checked_whole("eot_draws", self.eot_draws, 1)
        if any(name not in _LIMITABLE for name in self.limits):
            raise ValueError(
                f"`limits` must map some of {_LIMITABLE} to numbers of images. "
                f"Received: limits={shown(dict(self.limits))}"
            )
        limits = {
            # Without a benign image, there is nothing to say of a defence.
            name: checked_whole(f"limits[{name!r}]", count, int(name in _DEFENCES))
            for name, count in self.limits.items()
        }
        object.__setattr__(self, "limits", limits)
        for model, gradient in (("adaptive", True), ("black_box", False)):
            for attack in getattr(self, model):
                if attack.uses_gradient != gradient:
                    where = "black_box" if gradient else "adaptive"
                    raise ValueError(
                        f"`{model}` must hold attacks that {'use' if gradient else 'need no'} "
                        f"gradients; put others into `{where}`. Received: {model} with "
                        f"{attack.name}"
                    )
        for model in ("gray_box", "adaptive", "black_box"):
            names = [attack.name for attack in getattr(self, model)]
            if len(set(names)) < len(names):
                raise ValueError(
                    f"`{model}` must hold attacks of different names, by which they are reported. "
                    f"Received: {model}={shown(names)}"
                )

    def __repr__(self) -> str:
        return f"<Protocol {self.name!r} of {len(self.attacks)} attacks>"

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """All attacks."""
        return (*self.gray_box, *self.adaptive, *self.black_box)

    def for_classes(self, count: int) -> Protocol:
        """The protocol for a classifier with so many classes.

        Args:
            count: Number of classes.

        Returns:
            The protocol itself where all of its attacks can be made; else one whose attacks and
            description say what was left out.

        Example:
            >>> [attack.name for attack in PROTOCOLS["autoattack"].for_classes(2).gray_box]
            ['AutoAttack 2/255 without DLR', 'AutoAttack 8/255 without DLR']
        """
        if all(attack.for_classes(count) is attack for attack in self.attacks):
            return self
        return replace(
            self,
            description=f"{self.description} Without APGD on DLR, which needs three classes.",
            gray_box=tuple(attack.for_classes(count) for attack in self.gray_box),
            adaptive=tuple(attack.for_classes(count) for attack in self.adaptive),
            black_box=tuple(attack.for_classes(count) for attack in self.black_box),
        )

    def for_two_passes(self) -> Protocol:
        """The protocol with what an adaptive attacker on encoded images needs beside it.

        Returns:
            A protocol that attacks with PGD and half-step of 40 iterations, too, at every bound
            that another adaptive attack has.

        Example:
            >>> few = Protocol("few", "", adaptive=(pgd(2, 40),)).for_two_passes()
            >>> [attack.name for attack in few.adaptive]
            ['PGD-40 2/255', 'Half-step-40 2/255']
        """
        found = (attack.epsilon for attack in self.adaptive if attack != _UNBOUNDED)
        bounds = sorted({epsilon for epsilon in found if epsilon is not None})
        added = [make(bound, _ITERATIONS) for make in (pgd, half_step) for bound in bounds]
        names = [attack.name for attack in self.adaptive]
        missing = (attack for attack in added if attack.name not in names)
        return replace(self, adaptive=(*self.adaptive, *missing))

    def limit(self, *names: str) -> int | None:
        """The smallest limit for any of several names.

        Args:
            names: Families of attacks or defences, and threat models.

        Returns:
            A number of images; ``None`` where there is no limit.

        Example:
            >>> few = Protocol("few", "", limits={"adaptive": 100, "quilting": 20})
            >>> few.limit("adaptive", "PGD", "quilting"), few.limit("gray-box", "PGD", "JPEG")
            (20, None)
        """
        return min((self.limits[name] for name in names if name in self.limits), default=None)


def _evademl(name: str, dataset: str, fast: Attack, small: Attack) -> Protocol:
    """FGSM, BIM, DeepFool and targeted CW, with adaptive PGD and Square at the same bounds."""
    assert fast.epsilon is not None
    assert small.epsilon is not None
    return Protocol(
        name,
        f"The attacks of Feature Squeezing (Xu et al., NDSS 2018) on {dataset}, which Liu et "
        "al. (CVPR 2019) use too; adaptive PGD and Square at the same bounds are added.",
        gray_box=(
            fast,
            small,
            deepfool(),
            *(carlini_wagner_l2(target) for target in TARGETS),
            *(carlini_wagner_linf(target) for target in TARGETS),
        ),
        adaptive=(
            fast,
            small,
            pgd(small.epsilon, 10),
            pgd(small.epsilon, 40),
            pgd(fast.epsilon, 40),
            _UNBOUNDED,
        ),
        black_box=(square(fast.epsilon),),
    )


def _sweep() -> Protocol:
    levels = (1, 2, 4, 8)
    attacks = tuple(pgd(level, 20) for level in levels)
    return Protocol(
        "linf-sweep",
        "PGD with 20 steps at 1, 2, 4 and 8 /255.",
        gray_box=attacks,
        adaptive=(*attacks, pgd(4, 5), pgd(4, 100), _UNBOUNDED),
        black_box=(square(4),),
    )


# EvadeML-Zoo gives bounds for pixels from 0 to 1: .0078 and .004 step .002 on ImageNet, .0156 and
# .008 step .0012 on CIFAR-10. Its DeepFool divides differences of probabilities by gradients of
# logits, and makes up for that by an overshoot of 35 and 10 times the step; ours has logits in both
# and the usual overshoot of .02. Of its CW-Linf, the number of steps is smaller here.
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _evademl("evademl-imagenet", "ImageNet", fgsm(1.989), bim(1.02, 0.51, 10)),
        _evademl("evademl-cifar10", "CIFAR-10", fgsm(3.978), bim(2.04, 0.306, 10)),
        _sweep(),
        Protocol(
            "autoattack",
            "AutoAttack at 2 and 8 /255 (Croce & Hein, ICML 2020) with ART's parts, and "
            "Foolbox's L-inf DeepFool in the place of FAB.",
            gray_box=(autoattack(2), autoattack(8)),
            adaptive=(autoattack(2), autoattack(8), _UNBOUNDED),
        ),
    )
}


def protocol_named(protocol: str | Protocol, limits: Mapping[str, int] | None = None) -> Protocol:
    """Return a protocol as it is, or the one of that name.

    Args:
        protocol: A protocol, or a name in ``PROTOCOLS``.
        limits: Replaces the limits of the protocol; ``None``: they stay.

    Raises:
        ValueError: There is no protocol of that name, or ``limits`` do not fit.

    Example:
        >>> protocol_named("linf-sweep", {"adaptive": 100}).limits
        {'adaptive': 100}
    """
    if not isinstance(protocol, Protocol):
        if protocol not in PROTOCOLS:
            raise ValueError(
                f"`protocol` must be a Protocol or one of {tuple(PROTOCOLS)}. "
                f"Received: protocol={shown(protocol)}"
            )
        protocol = PROTOCOLS[protocol]
    return protocol if limits is None else replace(protocol, limits=limits)


# What ``--attack`` takes, at one epsilon each; ``None``: the attack minimises the norm instead.
_BY_NAME: dict[str, Callable[[float], Attack] | Attack] = {
    "fgsm": fgsm,
    "bim": lambda epsilon: bim(epsilon, epsilon / 4, 10),
    "pgd": pgd,
    "square": square,
    "autoattack": autoattack,
    "deepfool": deepfool(),
    "cw-l2": carlini_wagner_l2(),
}


def attack_protocol(
    names: Sequence[str], epsilons: Sequence[float], beside: Protocol | None = None
) -> Protocol:
    """A protocol of some attacks at some bounds.

    They are made gray-box and adaptive; Square, which only queries, black-box. PGD without a bound
    is added, for the sanity check that an adaptive attack can win at all.

    Args:
        names: ``"fgsm"``, ``"bim"``, ``"pgd"``, ``"square"``, ``"autoattack"``; or ``"deepfool"``
            and ``"cw-l2"``, which have no bound.
        epsilons: Bounds in grey levels of 255.
        beside: A protocol whose attacks are made, too.

    Raises:
        ValueError: There is no such attack, one needs an epsilon, an epsilon is not in grey levels
            of 255, or ``beside`` has an attack of the same name with other parameters.

    Example:
        >>> few = attack_protocol(["pgd", "square"], [4])
        >>> [attack.name for attack in (*few.gray_box, *few.black_box)]
        ['PGD-20 4/255', 'Square-1000 4/255']
    """
    made: list[Attack] = []
    for name in names:
        if name.lower() not in _BY_NAME:
            raise ValueError(
                f"`attack` must be one of {tuple(_BY_NAME)}. Received: attack={shown(name)}"
            )
        found = _BY_NAME[name.lower()]
        if not isinstance(found, Attack) and not epsilons:
            raise ValueError(
                f"`epsilon` is needed for an attack with a bound, in grey levels of 255. Received: "
                f"attack={shown(name)} without epsilon"
            )
        made += [found] if isinstance(found, Attack) else [found(epsilon) for epsilon in epsilons]
    if epsilons and not any(attack.epsilon for attack in made):
        raise ValueError(
            "`epsilon` is the bound of an attack that has one, and these have none. Received: "
            f"epsilon={shown(list(epsilons))} with attack={shown(list(names))}"
        )
    made = list({attack.name: attack for attack in made}.values())  # each that is asked for, once
    white = tuple(attack for attack in made if attack.uses_gradient)
    black = tuple(attack for attack in made if not attack.uses_gradient)
    adaptive = (*white, *([_UNBOUNDED] if white else ()))
    if beside is None:
        title = ", ".join(attack.name for attack in made)
        return Protocol(title, f"The attacks that were asked for: {title}.", white, adaptive, black)

    def joined(own: Sequence[Attack], added: Sequence[Attack]) -> tuple[Attack, ...]:
        return (*own, *(attack for attack in added if attack not in own))

    named = ", ".join(attack.name for attack in made)
    own = {attack.name: attack for attack in beside.attacks}
    for attack in made:
        if own.get(attack.name, attack) != attack:
            raise ValueError(
                f"`attack` must not be one that {beside.name} has with other parameters. "
                f"Received: {attack.name} with {attack.parameters}, and "
                f"{own[attack.name].parameters} there"
            )
    return replace(
        beside,
        name=f"{beside.name}, {named}",
        description=f"{beside.description} And {named}.",
        gray_box=joined(beside.gray_box, white),
        adaptive=joined(beside.adaptive, adaptive),
        black_box=joined(beside.black_box, black),
    )
