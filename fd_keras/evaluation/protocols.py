"""Named sets of attacks with fixed parameters, so that figures can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fd_keras.evaluation.attacks import (
    Attack,
    autoattack,
    bim,
    carlini_wagner_l2,
    deepfool,
    fgsm,
    pgd,
    square,
)

# So strong that a classifier which keeps its accuracy hides its gradient.
_UNBOUNDED = pgd(127.5, 20)


@dataclass(frozen=True)
class Protocol:
    """The attacks of an evaluation, by what the attacker knows.

    All are made for images that the classifier alone gets right.

    Args:
        name: What reports call it.
        description: Where it comes from, one sentence.
        gray_box: Attacks on the classifier alone.
        adaptive: Attacks on the classifier behind each defence.
        black_box: Attacks on the same without gradients.
        limits: Fewer images for families of attacks, such as ``{"CW-L2": 50}``.

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


def _evademl(name: str, dataset: str, fast: Attack, small: Attack) -> Protocol:
    """FGSM, BIM, DeepFool and CW-L2, and what an attacker who knows the defence makes of it."""
    assert fast.epsilon is not None
    assert small.epsilon is not None
    return Protocol(
        name,
        f"The attacks of Feature Squeezing (Xu et al., NDSS 2018) on {dataset}, which Liu et "
        "al. (CVPR 2019) use too; adaptive PGD and Square at the same bounds are added.",
        gray_box=(fast, small, deepfool(), carlini_wagner_l2()),
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


# The platform gives bounds for pixels from 0 to 1: .0078 and .004 step .002 on ImageNet, .0156 and
# .008 step .0012 on CIFAR-10.
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _evademl("evademl-imagenet", "ImageNet", fgsm(1.989), bim(1.02, 0.51, 10)),
        _evademl("evademl-cifar10", "CIFAR-10", fgsm(3.978), bim(2.04, 0.306, 10)),
        _sweep(),
        Protocol(
            "autoattack",
            "ART's AutoAttack at 2 and 8 /255 (Croce & Hein, ICML 2020).",
            gray_box=(autoattack(2), autoattack(8)),
            adaptive=(autoattack(2), autoattack(8), _UNBOUNDED),
        ),
    )
}


def protocol_named(protocol: str | Protocol) -> Protocol:
    """A protocol as it is, or the one of that name.

    Raises:
        ValueError: There is none of that name.

    Example:
        >>> protocol_named("linf-sweep").description
        'PGD with 20 steps at 1, 2, 4 and 8 /255.'
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"`protocol` must be a Protocol or one of {tuple(PROTOCOLS)}. "
            f"Received: protocol={protocol!r}"
        )
    return PROTOCOLS[protocol]
