"""What a classifier is trained on while it is hardened."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from fd_keras._checks import SMALLEST_EPSILON, checked, checked_whole

AttackGradient = Literal["smooth", "straight-through", "random"]

ATTACK_GRADIENTS: tuple[AttackGradient, ...] = get_args(AttackGradient)

_SHARES = ("attacked_share", "soft_labels", "averaging")
_WEIGHTS = ("trades", "consistency", "step_jitter", "table_rate")


@dataclass(frozen=True)
class Recipe:
    """What each batch of training images is turned into, and the loss on it.

    All images pass the quantisation. Part of every batch is attacked through it first, with
    gradients that stand in for that of rounding; the classifier then learns on the attacked
    images and on the others.

    Args:
        attack_budget: Largest change of a pixel in grey levels, whatever the value range: 4 means
            4/255. 0: no attack, the classifier only learns distilled images.
        attack_steps: 1: one signed gradient step of 1.25 budgets from a random start (FGSM-RS).
            More: PGD with steps of 2.5 budgets divided by their number.
        attack_gradient: What stands for the gradient of rounding while images are attacked.
            ``"smooth"`` makes much stronger attacks than ``"straight-through"``; ``"random"``
            takes one of the two for each batch.
        attacked_share: Part of every batch that is attacked, from 0 to 1.
        trades: 0: the loss on attacked images is their cross-entropy, and they stand in for
            their benign versions. More: the batch stays benign, and this is the weight of the
            Kullback-Leibler divergence between the predictions for benign and attacked images.
        consistency: Weight of the divergence between the predictions for benign images with and
            without the quantisation.
        soft_labels: Share of the original classifier's probabilities for the benign image,
            without quantisation, in what is to be predicted, from 0 to 1.
        step_jitter: Each batch multiplies every step by a random factor from ``exp(-jitter)`` to
            ``exp(jitter)``.
        random_grids: Whether each batch shifts the grid of blocks by a random offset.
        table_rate: How fast the logarithms of the steps move beside the weights, in what the
            optimiser moves a weight by (Adam) or its square (SGD). 0: the table is fixed.
        averaging: Momentum of the moving average of the weights, which is what is checked and
            handed back; smaller in the first batches. 0: the weights as they are.

    Raises:
        ValueError: A number is out of its range, or two settings contradict each other.

    Example:
        >>> Recipe(attack_budget=2, attack_steps=5).step_size
        1.0

    References:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018
        (PGD); Wong et al., "Fast is better than free", ICLR 2020 (FGSM-RS); Zhang et al.,
        "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019 (TRADES);
        Das et al., "SHIELD", KDD 2018 (training on compressed images).
    """

    attack_budget: float = 4.0
    attack_steps: int = 1
    attack_gradient: AttackGradient = "smooth"
    attacked_share: float = 0.5
    trades: float = 0.0
    consistency: float = 0.0
    soft_labels: float = 0.0
    step_jitter: float = 0.0
    random_grids: bool = False
    table_rate: float = 0.0
    averaging: float = 0.999

    def __post_init__(self) -> None:
        for name in _SHARES:
            checked(name, getattr(self, name), 0, 1)
        for name in _WEIGHTS:
            checked(name, getattr(self, name))
        checked_whole("attack_steps", self.attack_steps, 1)
        self._check_budget()
        if self.attack_gradient not in ATTACK_GRADIENTS:
            raise ValueError(
                f"`attack_gradient` must be one of {ATTACK_GRADIENTS}. "
                f"Received: attack_gradient={self.attack_gradient!r}"
            )
        if self.averaging == 1:
            raise ValueError(
                "`averaging` must be below 1, or the weights stay as they are. "
                "Received: averaging=1"
            )
        if self.trades and not self.attacks:
            raise ValueError(
                "`trades` needs attacked images. Received: trades="
                f"{self.trades!r}, attack_budget={self.attack_budget!r}, "
                f"attacked_share={self.attacked_share!r}"
            )
        if self.consistency and not self.keeps_benign:
            raise ValueError(
                "`consistency` compares benign images. Received: consistency="
                f"{self.consistency!r}, attacked_share=1"
            )

    def _check_budget(self) -> None:
        budget = self.attack_budget
        if not isinstance(budget, (int, float)) or not (
            budget == 0 or SMALLEST_EPSILON <= budget <= 255
        ):
            raise ValueError(
                f"`attack_budget` must be 0, or grey levels from {SMALLEST_EPSILON} to 255: for "
                f"0.0078 of pixels from 0 to 1, write 2. Received: attack_budget={budget!r}"
            )

    @property
    def attacks(self) -> bool:
        """Whether any image is attacked."""
        return self.attack_budget > 0 and self.attacked_share > 0

    @property
    def keeps_benign(self) -> bool:
        """Whether benign images stay in every batch."""
        return not self.attacks or self.trades > 0 or self.attacked_share < 1

    @property
    def step_size(self) -> float:
        """Of one attack step, in grey levels."""
        return step_size(self.attack_budget, self.attack_steps)

    def attacked_count(self, count: int) -> int:
        """How many images of a batch are attacked.

        Args:
            count: Number of images in the batch.

        Example:
            >>> Recipe(attacked_share=0.5).attacked_count(7)
            4
        """
        return math.ceil(self.attacked_share * count) if self.attacks else 0

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types."""
        return asdict(self)


def step_size(budget: float, steps: int) -> float:
    """Size of one of so many steps that reach every corner of the budget.

    Args:
        budget: Largest change of a pixel.
        steps: Number of steps.

    Example:
        >>> step_size(4, 1), step_size(4, 10)
        (5.0, 1.0)
    """
    return 1.25 * budget if steps == 1 else 2.5 * budget / steps
